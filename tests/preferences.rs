//! Training on preferences with the program: pairs are shown and trained, and metrics have TRL's names.

use std::fs;

use serde_json::Value;

use crate::test_dir::TestDir;
use crate::util::stderr;

const BASE: &str = r#"
name = "base"
[data]
builtin = "stories_chat"
documents = 30
tokenizer.kind = "bpe"
tokenizer.vocab_size = 400
[model]
context_length = 160
n_layers = 1
n_heads = 2
d_model = 16
[train]
steps = 2
[schedule]
warmup_steps = 0
[validation]
completions = 0
"#;

const PAIRS: &str = r#"
name = "pairs"
start_from = "runs/base"
[data]
builtin = "stories_preferences"
documents = 30
seed = 1
split.validation = 0.2
[preferences]
beta = 0.5
[train]
steps = 2
batch_size = 2
log_every = 1
[schedule]
warmup_steps = 0
[validation]
every = 1
completions = 0
also = { name = "general", path = "text.txt" }
"#;

/// A folder with the base model, and what the run on pairs reads.
fn prepared() -> TestDir {
    let dir = TestDir::new();
    dir.write("base.toml", BASE);
    dir.write("pairs.toml", PAIRS);
    dir.write(
        "text.txt",
        "Once there was a cat in the garden. ".repeat(20),
    );
    dir.succeed(&["train", "base.toml", "--quiet"]);
    dir
}

#[test]
fn pairs_are_previewed_planned_and_trained() {
    let dir = prepared();

    let preview = dir.run_merged(&["preview", "pairs.toml"]);
    assert!(preview.contains("(pair 1, chosen)"), "{preview}");
    assert!(preview.contains("(pair 1, rejected)"), "{preview}");
    assert!(
        preview.contains("pairs        the chosen completion is longer in "),
        "{preview}"
    );
    let plan = dir.run_merged(&["plan", "pairs.toml", "--steps", "1"]);
    assert!(plan.contains("epochs"), "{plan}");

    let lines = dir.run_merged(&["train", "pairs.toml"]);
    for part in [
        "under the model that the run starts from",
        "loss 0.693  acc 0.00  margin 0.000",
        "rewards chosen",
        "step 0  loss of other text: general",
        "loss of other text: general",
    ] {
        assert!(lines.contains(part), "{part} is missing from {lines}");
    }
    let metrics = fs::read_to_string(dir.path("runs/pairs/metrics.jsonl")).unwrap();
    let metrics: Vec<Value> = metrics
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let with = |key: &str| {
        metrics
            .iter()
            .filter(|line| line.get(key).is_some())
            .count()
    };
    for key in [
        "rewards/chosen",
        "rewards/rejected",
        "rewards/accuracies",
        "rewards/margins",
        "logps/chosen",
        "logps/rejected",
    ] {
        assert_eq!(with(key), 4, "{key}: two updates and two validations");
    }
    assert_eq!((with("other_text"), with("val_loss")), (3, 2));
    // The finished run needs neither its reference nor the model that it started from.
    fs::remove_file(dir.path("runs/pairs/reference.bin")).unwrap();
    fs::remove_dir_all(dir.path("runs/base")).unwrap();
    let again = dir.run_merged(&["resume", "runs/pairs"]);
    assert!(again.contains("nothing to train"), "{again}");
    let quiet = dir.run(&["generate", "runs/pairs", "On a", "--max-tokens", "3"]);
    assert!(quiet.status.success(), "{}", stderr(&quiet));
}

#[test]
fn events_of_runs_on_preferences_have_their_metrics() {
    let dir = prepared();
    let args = [
        "train",
        "pairs.toml",
        "--json",
        "--set",
        "preferences.loss=kto",
    ];
    let output = dir.run(&args);
    assert!(output.status.success(), "{}", stderr(&output));
    let events: Vec<Value> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of = |name: &str| -> Vec<&Value> {
        events
            .iter()
            .filter(|event| event["event"] == name)
            .collect()
    };
    for event in of("step").iter().chain(&of("validation")) {
        assert!(event["kl"].as_f64().unwrap() >= 0.0, "{event}");
    }
    assert_eq!(of("other_text").len(), 3);
    assert_eq!(of("ended")[0]["other_text"][0]["name"], "general");
}
