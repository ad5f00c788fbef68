//! Dependencies between crates point one way.

use std::collections::BTreeSet;
use std::fs;

use toml::Table;

use crate::util::root;

/// Crates of the workspace that each crate may depend on. ARCHITECTURE.md says why.
const MAY_USE: &[(&str, &[&str])] = &[
    ("data", &[]),
    ("kernels", &[]),
    ("model", &["kernels"]),
    ("generate", &["kernels", "data", "model"]),
    ("explain", &["data", "model", "generate"]),
    ("convert", &["data", "model"]),
    ("eval", &["data", "model", "generate"]),
    ("train", &["kernels", "data", "model", "eval"]),
    ("server", &["data", "model", "generate", "explain"]),
    (
        "nextword",
        &[
            "kernels", "data", "model", "generate", "explain", "convert", "eval", "train", "server",
        ],
    ),
];

/// External dependencies that only the named crates may have.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("axum", &["server"]),
    ("tokio", &["server"]),
    ("anyhow", &["nextword"]),
    ("clap", &["nextword"]),
    ("tokenizers", &["data"]),
    ("safetensors", &["model"]),
];

fn dependencies(manifest: &Table) -> BTreeSet<String> {
    let tables = ["dependencies", "build-dependencies"];
    tables
        .iter()
        .filter_map(|name| manifest.get(*name)?.as_table())
        .flat_map(|table| table.keys().cloned())
        .collect()
}

#[test]
fn crates_depend_only_on_allowed_crates() {
    let mut seen = 0;
    for entry in fs::read_dir(root().join("crates")).unwrap() {
        let folder = entry.unwrap();
        let name = folder.file_name().into_string().unwrap();
        let manifest = fs::read_to_string(folder.path().join("Cargo.toml")).unwrap();
        let uses = dependencies(&manifest.parse().unwrap());
        let allowed = MAY_USE.iter().find(|(crate_name, _)| *crate_name == name);
        let (_, allowed) =
            allowed.unwrap_or_else(|| panic!("crates/{name} is missing from MAY_USE"));
        for used in uses
            .iter()
            .filter_map(|used| used.strip_prefix("nextword-"))
        {
            assert!(allowed.contains(&used), "{name} may not use {used}");
        }
        for (dependency, owners) in ONLY_IN {
            let is_allowed = !uses.contains(*dependency) || owners.contains(&name.as_str());
            assert!(
                is_allowed,
                "{dependency} belongs to {owners:?}, not to {name}"
            );
        }
        let uses_burn = uses.iter().any(|used| used.starts_with("burn"));
        assert!(name != "data" || !uses_burn, "data must not depend on Burn");
        seen += 1;
    }
    assert!(seen >= 6, "found only {seen} crates");
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
    let entries: Vec<&str> = names
        .lines()
        .filter(|name| !name.starts_with('.'))
        .collect();
    assert!(
        entries.len() <= 18,
        "{} entries: {entries:?}",
        entries.len()
    );
    for entry in entries {
        assert!(
            readme.contains(entry),
            "README's tree does not show {entry}"
        );
    }
}
