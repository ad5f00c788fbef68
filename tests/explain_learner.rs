//! What a learner reads: sums that fit the terminal, names of steps, the verification of every value, addresses by
//! the text of a token, and the commands around `explain`.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::Stdio;

use nextword_explain::terminal::{self, View};
use nextword_explain::{ReportOptions, label};
use nextword_model::{ModelConfig, Position};

use crate::explain_report::{explainer, large_vocab_config, options};
use crate::test_dir::TestDir;
use crate::util::{nextword, root, stderr};

/// The lines of the first sum of embedding and position in a report of `width` columns.
fn first_sum(d_model: usize, width: usize) -> Vec<String> {
    let config = ModelConfig {
        d_model,
        n_heads: 1,
        n_kv_heads: None,
        position: Position::Sinusoidal,
        ..large_vocab_config()
    };
    let explainer = explainer(&config, 3);
    let explanation = explainer.explain("w00 w02", &options(1)).unwrap();
    let report = explanation.report(&ReportOptions::default()).unwrap();
    let view = View {
        width,
        ..View::default()
    };
    let text = terminal::render(&explanation, &report, &view);
    let start = text.split("embedding + position\n").nth(1).unwrap();
    let lines = start.lines().take_while(|line| !line.is_empty());
    lines.map(str::to_string).collect()
}

#[test]
fn sums_are_shown_in_full_where_the_values_fit() {
    for (d_model, width, is_full) in [
        (2, 60, true),
        (2, 80, true),
        (4, 80, true),
        (4, 60, true),
        (8, 80, true),
        (8, 132, true),
        (8, 50, false),
        (64, 80, false),
    ] {
        let lines = first_sum(d_model, width);
        let text = lines.join("\n");
        assert_eq!(!text.contains('…'), is_full, "{d_model} in {width}: {text}");
        if is_full {
            let is_fitting = |line: &String| line.chars().count() <= width;
            assert!(lines.iter().all(is_fitting), "{text}");
            let values = text
                .split_whitespace()
                .filter(|word| word.parse::<f64>().is_ok());
            assert_eq!(values.count(), 2 * 3 * d_model, "{text}");
        }
    }
}

#[test]
fn every_step_of_a_layer_has_its_own_name() {
    for position in [Position::Rotary, Position::Sinusoidal] {
        for qk_norm in [false, true] {
            let config = ModelConfig {
                position,
                qk_norm,
                ..large_vocab_config()
            };
            let explainer = explainer(&config, 3);
            let explanation = explainer.explain("w00 w02", &options(1)).unwrap();
            let attention = explanation.trace.graph.iter();
            let attention = attention.filter(|node| node.name.starts_with("blocks.0.attn."));
            let names = attention.filter(|node| !node.name.ends_with("_before_norm"));
            let titles: Vec<&str> = names.map(|node| label(node).title).collect();
            let distinct: BTreeSet<&&str> = titles.iter().collect();
            assert_eq!(distinct.len(), titles.len(), "{titles:?}");
        }
    }
}

#[test]
fn every_value_is_compared_and_masked_ones_are_not_counted() {
    let explainer = explainer(&large_vocab_config(), 3);
    let explanation = explainer.explain("w00 w02 w01", &options(2)).unwrap();
    let trace = &explanation.trace;
    let verification = &trace.verification;
    assert!(verification.is_verified(), "{}", verification.summary());
    let compared: Vec<&str> = verification
        .differences
        .iter()
        .map(|d| d.name.as_str())
        .collect();
    let all: Vec<&str> = trace.graph.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(compared, all);
    for (difference, node) in verification.differences.iter().zip(&trace.graph) {
        let visible = trace.visible_values(node).into_iter().flatten().count();
        assert_eq!(difference.count, visible, "{}", node.name);
    }
    assert!(compared.contains(&"probabilities"));
}

#[test]
fn the_index_of_a_token_may_be_its_text() {
    let explainer = explainer(&large_vocab_config(), 3);
    let explanation = explainer.explain("w00 w02 w01", &options(1)).unwrap();
    let by_name = explanation.why("logits[position=2,token=w02]").unwrap();
    let id = explainer.token_id("w02").unwrap();
    let by_id = explanation
        .why(&format!("logits[position=2,token={id}]"))
        .unwrap();
    assert_eq!(by_name.address, by_id.address);
    assert_eq!(
        explanation
            .why("logits[ token = w02 , position=2 ]")
            .unwrap()
            .address,
        by_id.address
    );
    for (address, problem) in [
        (
            "logits[position=2,token=w99]",
            "`w99` is neither an index nor a single token",
        ),
        ("logits[position=w02]", "is not of the form AXIS=INDEX"),
        ("logits[token=]", "is not of the form AXIS=INDEX"),
    ] {
        let error = explanation.why(address).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }
}

/// Trains `config` with overrides; returns what was printed to standard error.
fn train(dir: &TestDir, config: &str, set: &[&str]) -> String {
    let config = root().join(format!("configs/{config}.toml"));
    let config = config.display().to_string();
    let mut args = vec!["train", &config];
    for set in set {
        args.extend(["--set", *set]);
    }
    let output = dir.run(&args);
    assert!(output.status.success(), "{}", stderr(&output));
    stderr(&output)
}

#[test]
fn explain_reads_standard_input_and_writes_standard_output() {
    let dir = TestDir::new();
    let model = root().join("docs/models/statquest").display().to_string();
    let with_input = |args: &[&str]| {
        let mut child = nextword()
            .args([&["explain", &model], args].concat())
            .current_dir(dir.path(""))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let input = b"what is statquest\n";
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let given = dir.run(&["explain", &model, "what is statquest"]);
    let given = String::from_utf8(given.stdout).unwrap();
    assert!(given.contains("what · is · statquest"), "{given}");
    assert_eq!(with_input(&[]), given);
    assert_eq!(with_input(&["--out", "-"]), given);
    assert!(with_input(&["--out", "-", "--format", "html"]).starts_with("<!doctype html>"));
    assert!(with_input(&["--out", "-", "--format", "json"]).starts_with("{\"format\":"));
    assert!(!dir.path("-").exists());
    for args in [
        vec![
            "explain",
            &model,
            "what",
            "--out",
            "-",
            "--format",
            "safetensors",
        ],
        vec!["export", &model, "--out", "-", "--format", "gguf"],
        vec!["quantize", &model, "--out", "-"],
    ] {
        let output = dir.run(&args);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{args:?}: {}",
            stderr(&output)
        );
        assert!(!dir.path("-").exists(), "{args:?}");
    }
}

#[test]
fn an_address_without_indices_says_which_value_it_shows() {
    let dir = TestDir::new();
    let model = root().join("docs/models/statquest").display().to_string();
    let why = |address: &str| dir.run(&["explain", &model, "what is statquest", "--why", address]);
    let assumed = stderr(&why("logits"));
    assert!(
        assumed.contains("note: position=0, token=0 by default"),
        "{assumed}"
    );
    let named = why("logits[position=3,token=awesome]");
    assert!(named.status.success() && !stderr(&named).contains("by default"));
    for (edit, problem) in [
        ("token=0:awesom", "did you mean `awesome`?"),
        ("no-position", "did you mean `no-positions`?"),
        ("head=1", "e.g. head=0.0"),
    ] {
        let output = dir.run(&["explain", &model, "what", "--what-if", edit]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(problem), "{}", stderr(&output));
    }
}

#[test]
fn prompts_follow_the_data_and_a_finished_run_is_not_saved_again() {
    let dir = TestDir::new();
    let text = dir.write(
        "rust.txt",
        "what is rust <EOS> fast\nrust is what <EOS> fast\n",
    );
    let (path, separator) = (format!("data.path={text}"), r"data.separator=\n");
    let steps = "train.steps=30";
    let printed = train(
        &dir,
        "statquest",
        &[&path, separator, "name=rust", steps, "samples.every=30"],
    );
    assert!(
        printed.contains("samples.prompts: \"what is statquest\" has"),
        "{printed}"
    );
    assert!(
        printed.contains("explain runs/rust 'what is rust'"),
        "{printed}"
    );
    assert!(!printed.contains("a single document"), "{printed}");

    let resumed = dir.run(&["resume", "runs/rust"]);
    let resumed = stderr(&resumed);
    assert!(resumed.contains("nothing to train: step 30"), "{resumed}");
    assert!(!resumed.contains("saved "), "{resumed}");
    assert!(
        resumed.contains("explain runs/rust 'what is rust'"),
        "{resumed}"
    );
    std::fs::remove_dir_all(dir.path("runs/rust/last")).unwrap();
    let restored = stderr(&dir.run(&["resume", "runs/rust"]));
    assert!(restored.contains("saved "), "{restored}");
    assert!(dir.path("runs/rust/last/model.safetensors").exists());

    let single = train(&dir, "statquest", &[&path, "name=single", steps]);
    assert!(single.contains("the text is a single document"), "{single}");
    let literal = "data.separator='\\n'";
    let wrong = train(&dir, "statquest", &[&path, literal, "name=wrong", steps]);
    assert!(wrong.contains("does not divide the text"), "{wrong}");
    let known = train(
        &dir,
        "statquest",
        &["name=known", steps, "samples.every=30"],
    );
    assert!(!known.contains("warning"), "{known}");
    assert!(
        known.contains("explain runs/known 'what is statquest'"),
        "{known}"
    );
}
