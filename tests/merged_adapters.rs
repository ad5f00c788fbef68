//! Merged adapters that are rounded, and exported ones.

use std::fs;

use serde_json::Value;

use crate::adapters::{rejects, succeeds, trained};
use crate::test_dir::USAGE;
use crate::util::stderr;

#[test]
fn rounding_that_outweighs_a_merged_adapter_is_warned_of() {
    let dir = trained();
    let weak = ["merge", "runs/tuned", "--scale", "0.05", "--out", "weak"];
    succeeds(&dir, &weak);
    succeeds(&dir, &["merge", "runs/tuned", "--out", "merged"]);
    let change = |folder: &str| {
        let card = fs::read_to_string(dir.path(folder).join("card.json")).unwrap();
        let card: Value = serde_json::from_str(&card).unwrap();
        card["merged_change"].as_f64().unwrap()
    };
    let ratio = change("weak") / change("merged");
    assert!((ratio - 0.05).abs() < 1e-4, "{ratio}");
    let warning = |model: &str, bits: &str| {
        let out = format!("{model}-{bits}");
        let args = ["quantize", model, "--bits", bits, "--out", &out];
        let notes = stderr(&succeeds(&dir, &args));
        notes.contains("the adapter that was merged into them by")
    };
    assert!(warning("weak", "4"));
    assert!(!warning("merged", "8"));
    assert!(!warning("base", "4"));
}

#[test]
fn an_exported_adapter_names_its_base() {
    let dir = trained();
    let export = |args: &[&str]| {
        let start = ["export", "runs/tuned", "--format", "peft", "--out", "peft"];
        let output = succeeds(&dir, &[&start, args].concat());
        let config = fs::read_to_string(dir.path("peft/adapter_config.json")).unwrap();
        let config: Value = serde_json::from_str(&config).unwrap();
        let name = config["base_model_name_or_path"]
            .as_str()
            .unwrap()
            .to_string();
        (name, stderr(&output).contains("--base-name"))
    };
    assert_eq!(
        export(&["--base-name", "me/base"]),
        ("me/base".to_string(), false)
    );
    let (_, has_note) = export(&[]);
    assert!(has_note);
    let args = [
        "export",
        "runs/tuned",
        "--format",
        "hf",
        "--out",
        "hf",
        "--base-name",
        "x",
    ];
    rejects(&dir, &args, USAGE, &["applies only to --format peft"]);
}
