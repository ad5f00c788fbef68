//! Training on pairs with each architecture, and on masked tokens: resumed runs, previews, `generate`, `fill` and
//! `embed`.

use std::fs;

use serde_json::{Value, json};

use crate::serving::Server;
use crate::test_dir::{BAD_FILE, RESUMABLE, TestDir, USAGE};
use crate::util::{sha256, stderr};

/// Pairs of the bilingual corpus.
const PAIRS: &str = r#"
name = "pairs"
[data]
pairs = "translation"
documents = 60
tokenizer.kind = "word"
[model]
context_length = 32
n_layers = 1
n_heads = 2
d_model = 16
[validation]
every = 4
completions = 2
[samples]
every = 12
"#;

/// Stories with blanks.
const BLANKS: &str = r#"
name = "blanks"
[data]
builtin = "stories"
documents = 10
tokenizer.kind = "bpe"
tokenizer.vocab_size = 300
masked.whole_words = true
[model]
architecture = "encoder"
context_length = 32
n_layers = 1
n_heads = 2
d_model = 16
[validation]
every = 4
windows = 4
"#;

fn prepared() -> TestDir {
    let dir = TestDir::new();
    dir.write("pairs.toml", [PAIRS, RESUMABLE].concat());
    dir.write("blanks.toml", [BLANKS, RESUMABLE].concat());
    dir
}

/// The validation losses of a run.
fn losses(dir: &TestDir, run: &str) -> Vec<Value> {
    let metrics = fs::read_to_string(dir.path(run).join("metrics.jsonl")).unwrap();
    let lines = metrics
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .filter_map(|line| line.get("val_loss").cloned())
        .collect()
}

#[test]
fn resumed_runs_on_pairs_and_masked_tokens_have_the_weights_of_uninterrupted_ones() {
    let dir = prepared();
    for (config, architecture) in [
        ("pairs.toml", "decoder"),
        ("pairs.toml", "prefix"),
        ("pairs.toml", "encoder_decoder"),
        ("blanks.toml", "encoder"),
    ] {
        let of = |name: &str| format!("{architecture}-{name}");
        let train = |name: &str, steps: &str| {
            let name = format!("name={}", of(name));
            let model = format!("model.architecture={architecture}");
            let steps = format!("train.steps={steps}");
            let set = ["--set", &name, "--set", &model, "--set", &steps];
            dir.succeed(&[&["train", config, "--quiet"][..], &set].concat());
        };
        train("whole", "12");
        train("part", "6");
        let part = format!("runs/{}", of("part"));
        dir.succeed(&["resume", &part, "--quiet", "--set", "train.steps=12"]);
        let weights = |name: &str| {
            let run = dir.path(&format!("runs/{}", of(name)));
            sha256(&run.join("last/model.safetensors"))
        };
        assert_eq!(weights("part"), weights("whole"), "{architecture}");
        let whole = losses(&dir, &format!("runs/{}", of("whole")));
        assert_eq!(whole.len(), 3);
        assert_eq!(losses(&dir, &part).last(), whole.last(), "{architecture}");
    }
}

#[test]
fn each_architecture_learns_the_pairs_of_statquest() {
    let dir = prepared();
    let set = [
        "data.pairs=statquest",
        "data.split.validation=0",
        "model.dropout.residual=0",
        "train.steps=120",
        "schedule.learning_rate=0.01",
        "validation.completions=0",
        "samples.every=0",
    ];
    for architecture in ["decoder", "prefix", "encoder_decoder"] {
        let name = format!("name={architecture}");
        let model = format!("model.architecture={architecture}");
        let mut args = vec![
            "train",
            "pairs.toml",
            "--quiet",
            "--set",
            &name,
            "--set",
            &model,
        ];
        args.extend(set.iter().flat_map(|set| ["--set", set]));
        dir.succeed(&args);
        let run = format!("runs/{architecture}");
        for (source, target) in [("let's go", "vamos"), ("to go", "ir")] {
            let args = ["generate", &run, source, "--temperature", "0", "--quiet"];
            assert_eq!(
                dir.succeed(&args).trim_end(),
                target,
                "{architecture}: {source}"
            );
        }
        if architecture == "decoder" {
            continue;
        }
        // Explained and served, the source and its target are the same.
        let report = dir.succeed(&["explain", &run, "let's go", "--format", "json"]);
        let report: Value = serde_json::from_str(&report).unwrap();
        assert_eq!(
            report["answer"][0]["token"]["text"], "vamos",
            "{architecture}"
        );
        assert_eq!(report["verdict"]["verified"], true, "{architecture}");
        let server = Server::start(&dir.path(&run), &[]);
        let body = json!({"prompt": "let's go", "temperature": 0});
        let (status, _, text) = server.post("/v1/completions", &body);
        assert!(status == 200 && text.contains("vamos"), "{text}");
    }
}

#[test]
fn preview_shows_what_is_trained_of_a_pair() {
    let dir = prepared();
    dir.write("own.tsv", "to go\tir\nlet's go\tvamos\n");
    let preview = |set: &[&str]| {
        let own = ["preview", "pairs.toml", "--set", "data.pairs=own.tsv"];
        let set = set.iter().flat_map(|set| ["--set", set]);
        let all: Vec<&str> = own
            .into_iter()
            .chain(["--set", "data.split.validation=0"])
            .chain(set)
            .collect();
        dir.succeed(&all)
    };
    let target = preview(&[]);
    assert!(target.contains("to go <SEP>[[ir <EOS>]]"), "{target}");
    assert!(target.contains("source       {prompt}<SEP>"), "{target}");
    let both = preview(&["data.loss_on=both"]);
    assert!(both.contains("to[[go <SEP> ir <EOS>]]"), "{both}");
    let encoder = preview(&["model.architecture=encoder_decoder"]);
    assert!(
        encoder.contains("to go <EOS> <EOS>[[ir <EOS>]]"),
        "{encoder}"
    );
}

#[test]
fn blanks_are_filled_and_texts_are_embedded() {
    let dir = prepared();
    dir.succeed(&["train", "blanks.toml", "--quiet"]);
    let text = "Once upon ___ time";
    let filled = dir.succeed(&["fill", "runs/blanks", text, "--top-k", "3", "--json"]);
    let filled: Value = serde_json::from_str(&filled).unwrap();
    let candidates = filled["blanks"][0]["candidates"].as_array().unwrap();
    assert_eq!(candidates.len(), 3);
    let probability = |at: usize| candidates[at]["probability"].as_f64().unwrap();
    assert!(probability(0) >= probability(1) && probability(1) >= probability(2));
    let shown = dir.succeed(&["fill", "runs/blanks", text, "-k", "3"]);
    assert_eq!(shown.lines().count(), 2 + 3, "{shown}");
    let fails = |args: &[&str], code: i32, part: &str| {
        let output = dir.run(args);
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
        assert!(error.contains(part), "{args:?}: {error}");
    };
    fails(
        &["fill", "runs/blanks", "whole"],
        USAGE,
        "the text has no blank",
    );
    fails(
        &["generate", "runs/blanks", "Once"],
        USAGE,
        "`nextword fill`",
    );

    let texts = [
        "embed",
        "runs/blanks",
        "a fox",
        "a cat",
        "--pooling",
        "first",
    ];
    let lines = dir.succeed(&texts);
    let vectors: Vec<Vec<f64>> = lines
        .lines()
        .map(|line| line.split(' ').map(|x| x.parse().unwrap()).collect())
        .collect();
    assert_eq!((vectors.len(), vectors[0].len()), (2, 16));
    assert!((vectors[0].iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-5);
    dir.write("texts.txt", "a fox\na cat\n");
    let from_file = [
        "embed",
        "runs/blanks",
        "--file",
        "texts.txt",
        "--pooling",
        "first",
    ];
    assert_eq!(dir.succeed(&from_file), lines);
    fails(
        &["embed", "runs/blanks", "--file", "no.txt"],
        BAD_FILE,
        "no.txt",
    );
    dir.write("blank.txt", "a fox\n\na cat\n");
    fails(
        &["embed", "runs/blanks", "--file", "blank.txt"],
        USAGE,
        "text 2 of 3 is blank",
    );

    // What an encoder cannot do is refused, and what comes next is possible.
    fails(&["chat", "runs/blanks"], USAGE, "`nextword fill`");
    let gguf = [
        "export",
        "runs/blanks",
        "--format",
        "gguf",
        "--out",
        "x.gguf",
    ];
    let error = stderr(&dir.run(&gguf));
    assert!(
        error.contains("architecture decoder") && !error.contains("gpt2"),
        "{error}"
    );
    let quantized = dir.run(&["quantize", "runs/blanks", "--out", "small"]);
    assert!(
        stderr(&quantized).contains("nextword fill small"),
        "{}",
        stderr(&quantized)
    );
    let report = dir.succeed(&["explain", "runs/blanks", text, "--format", "json"]);
    let report: Value = serde_json::from_str(&report).unwrap();
    let explained = report["answer"][0]["token"]["id"].as_u64();
    assert_eq!(explained, candidates[0]["id"].as_u64());
    assert_eq!(report["verdict"]["verified"], true);

    let server = Server::start(&dir.path("runs/blanks"), &[]);
    let (status, _, text) = server.post("/v1/completions", &json!({"prompt": "Once"}));
    assert!(status == 400 && text.contains("/v1/embeddings"), "{text}");
    let (status, ..) = server.post("/v1/embeddings", &json!({"input": "a fox"}));
    assert_eq!(status, 200);
}

#[test]
fn data_that_an_architecture_cannot_learn_from_is_an_error() {
    let dir = prepared();
    let rejected = |config: &str, set: &[&str], part: &str| {
        let set = set.iter().flat_map(|set| ["--set", set]);
        let args: Vec<&str> = ["train", config].into_iter().chain(set).collect();
        dir.rejects(&args, USAGE, &[part, "hint:"]);
    };
    rejected(
        "pairs.toml",
        &["model.architecture=encoder"],
        "an encoder learns from texts",
    );
    let both = ["model.architecture=prefix", "data.loss_on=both"];
    rejected("pairs.toml", &both, "data.loss_on");
    rejected(
        "blanks.toml",
        &["model.architecture=decoder"],
        "data.masked",
    );
    rejected("blanks.toml", &["data.masked.rate=15"], "masked.rate = 15");
    dir.write("own.tsv", "to go\tir\nlet's go\n");
    for command in ["preview", "plan", "train"] {
        let args = [command, "pairs.toml", "--set", "data.pairs=own.tsv"];
        dir.rejects(&args, BAD_FILE, &["own.tsv", "line 2", "1 column"]);
    }
}
