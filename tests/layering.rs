//! Dependencies between crates point one way.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use toml::{Table, Value};

use crate::util::root;

/// Crates of the workspace that each crate depends on: exactly these. ARCHITECTURE.md says why.
const USES: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("chat", &["data"]),
    ("data", &["base"]),
    ("kernels", &["base"]),
    ("model", &["base", "kernels"]),
    ("generate", &["base", "data", "kernels", "model"]),
    ("explain", &["generate", "model"]),
    ("convert", &["base", "data", "model"]),
    ("eval", &["data", "model"]),
    (
        "train",
        &[
            "base", "chat", "convert", "data", "eval", "kernels", "model", "parallel",
        ],
    ),
    ("experiments", &["base", "data", "eval", "model", "train"]),
    ("hub", &["base"]),
    ("parallel", &[]),
    ("plot", &[]),
    ("server", &["chat", "data", "explain", "generate", "model"]),
    (
        "benchmark",
        &["data", "generate", "kernels", "model", "train"],
    ),
    (
        "nextword",
        &[
            "base",
            "benchmark",
            "chat",
            "convert",
            "data",
            "eval",
            "experiments",
            "explain",
            "generate",
            "hub",
            "kernels",
            "model",
            "parallel",
            "plot",
            "server",
            "train",
        ],
    ),
];

/// External dependencies that only the named crates may have.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("axum", &["server"]),
    ("minijinja", &["chat"]),
    ("tokio", &["server", "nextword"]),
    ("anyhow", &["nextword"]),
    ("clap", &["nextword"]),
    ("mpi", &["parallel"]),
    ("tokenizers", &["data"]),
    ("ureq", &["hub"]),
    ("safetensors", &["model"]),
];

/// The names of all dependencies, optional and platform-specific ones included, but not those of tests.
fn dependencies(manifest: &Table) -> BTreeSet<String> {
    let own = |table: &Table| -> Vec<String> {
        ["dependencies", "build-dependencies"]
            .iter()
            .filter_map(|name| table.get(*name)?.as_table())
            .flat_map(|table| table.keys().cloned())
            .collect()
    };
    let targets = manifest.get("target").and_then(Value::as_table);
    let targets = targets.into_iter().flat_map(Table::values);
    let targets = targets.filter_map(Value::as_table).flat_map(own);
    own(manifest).into_iter().chain(targets).collect()
}

/// The manifest of `crates/NAME`.
fn manifest(name: &str) -> Table {
    let path = root().join("crates").join(name).join("Cargo.toml");
    fs::read_to_string(path).unwrap().parse().unwrap()
}

/// The Rust code of a folder, without comments.
fn code(folder: &Path) -> String {
    let mut all = String::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.push_str(&code(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(path).unwrap();
            let lines = text.lines().filter(|line| !line.trim().starts_with("//"));
            all.extend(lines.flat_map(|line| [line, "\n"]));
        }
    }
    all
}

#[test]
fn crates_depend_exactly_on_the_crates_of_the_table() {
    let found: BTreeSet<String> = fs::read_dir(root().join("crates"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let listed: BTreeSet<String> = USES.iter().map(|(name, _)| (*name).to_string()).collect();
    assert_eq!(found, listed, "the crates in crates/ and in USES");
    for (name, uses) in USES {
        let dependencies = dependencies(&manifest(name));
        let found: BTreeSet<&str> = dependencies
            .iter()
            .filter_map(|dependency| dependency.strip_prefix("nextword-"))
            .collect();
        let uses: BTreeSet<&str> = uses.iter().copied().collect();
        assert_eq!(
            found, uses,
            "dependencies of {name}, in its manifest and in USES"
        );
    }
}

#[test]
fn every_dependency_between_crates_occurs_in_the_code() {
    for (name, uses) in USES {
        let code = code(&root().join("crates").join(name).join("src"));
        for used in *uses {
            let is_used = code.contains(&format!("nextword_{used}"));
            assert!(is_used, "{name} depends on {used} without using it");
        }
    }
}

#[test]
fn external_dependencies_stay_in_their_crates() {
    for (name, _) in USES {
        let dependencies = dependencies(&manifest(name));
        for (dependency, owners) in ONLY_IN {
            let is_allowed = !dependencies.contains(*dependency) || owners.contains(name);
            assert!(
                is_allowed,
                "{dependency} belongs to {owners:?}, not to {name}"
            );
        }
        let uses_burn = dependencies.iter().any(|used| used.starts_with("burn"));
        let is_without_tensors = ["base", "chat", "data", "hub", "parallel", "plot"].contains(name);
        assert!(
            !(is_without_tensors && uses_burn),
            "{name} must not depend on Burn"
        );
    }
}

#[test]
fn burn_is_pinned_without_default_features() {
    let manifest: Table = fs::read_to_string(root().join("Cargo.toml"))
        .unwrap()
        .parse()
        .unwrap();
    let burn = &manifest["workspace"]["dependencies"]["burn"];
    assert_eq!(burn["version"].as_str(), Some("=0.22.1"));
    assert_eq!(burn["default-features"].as_bool(), Some(false));
}

#[test]
fn readme_lists_every_entry_of_the_root() {
    let output = std::process::Command::new("git")
        .args(["ls-tree", "--name-only", "HEAD"])
        .current_dir(root())
        .output();
    // A downloaded archive has no git history.
    let Some(output) = output.ok().filter(|output| output.status.success()) else {
        return;
    };
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let names = String::from_utf8(output.stdout).unwrap();
    let entries: Vec<&str> = names.lines().collect();
    assert!(
        entries.len() <= 20,
        "{} entries: {entries:?}",
        entries.len()
    );
    for entry in entries.iter().filter(|name| !name.starts_with('.')) {
        assert!(
            readme.contains(entry),
            "README's tree does not show {entry}"
        );
    }
}
