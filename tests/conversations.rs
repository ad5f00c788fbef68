//! Training on conversations: what `preview` shows, what `serve` sends, and resumed runs.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::serving::Server;
use crate::test_dir::{BAD_FILE, RESUMABLE, TestDir, USAGE};
use crate::util::{sha256, stderr};

/// A small model that is finetuned on conversations.
const BASE: &str = r#"
name = "base"
[data]
builtin = "stories"
documents = 20
tokenizer.kind = "bpe"
tokenizer.vocab_size = 300
[model]
context_length = 96
n_layers = 2
n_heads = 2
d_model = 16
[train]
steps = 3
[schedule]
warmup_steps = 0
"#;

const CHAT: &str = r#"
name = "chat"
start_from = "runs/base"
[data]
conversations = "support.jsonl"
split.validation = 0.3
[validation]
every = 4
[samples]
every = 12
max_tokens = 8
"#;

/// A folder with the base model and a file of conversations.
fn prepared() -> TestDir {
    let dir = TestDir::new();
    let lines: Vec<String> = (0..30)
        .map(|i| {
            let mut messages = vec![
                json!({"role": "user", "content": format!("Who is number {i}?")}),
                json!({"role": "assistant", "content": format!("It is {i}.")}),
            ];
            if i % 3 == 0 {
                messages.push(json!({"role": "user", "content": "Sure?"}));
                messages.push(json!({"role": "assistant", "content": "Yes."}));
            }
            json!({ "messages": messages }).to_string()
        })
        .collect();
    dir.write("support.jsonl", lines.join("\n"));
    dir.write("base.toml", BASE);
    dir.write("chat.toml", [CHAT, RESUMABLE].concat());
    let base = dir.run(&["train", "base.toml", "--quiet"]);
    assert!(base.status.success(), "{}", stderr(&base));
    dir
}

fn artifacts(run: &Path) -> Vec<String> {
    let files = ["model.safetensors", "chat_template.jinja"];
    let paths = files.map(|file| run.join("last").join(file));
    paths.iter().map(|path| sha256(path)).collect()
}

#[test]
fn a_resumed_run_on_conversations_has_the_weights_of_an_uninterrupted_one() {
    let dir = prepared();
    dir.succeed(&["train", "chat.toml", "--quiet", "--set", "name=whole"]);
    dir.succeed(&[
        "train",
        "chat.toml",
        "--quiet",
        "--set",
        "name=part",
        "--set",
        "train.steps=6",
    ]);
    // Neither the base model nor the working directory is needed any more.
    fs::remove_dir_all(dir.path("runs/base")).unwrap();
    dir.succeed(&["resume", "runs/part", "--quiet", "--set", "train.steps=12"]);
    assert_eq!(
        artifacts(&dir.path("runs/part")),
        artifacts(&dir.path("runs/whole"))
    );

    let metrics = fs::read_to_string(dir.path("runs/whole/metrics.jsonl")).unwrap();
    let lines: Vec<Value> = metrics
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let validated = lines.iter().filter(|line| line.get("val_loss").is_some());
    for line in validated {
        assert!(
            line["ended"].is_number() && line["exact"].is_number(),
            "{line}"
        );
    }
    let samples = fs::read_to_string(dir.path("runs/whole/samples/step-00000012.txt")).unwrap();
    assert_eq!(samples.matches("--- in the data:").count(), 3, "{samples}");

    // Other conversations are other data.
    let mut text = fs::read_to_string(dir.path("support.jsonl")).unwrap();
    text = text.replace("It is 7.", "It is 8.");
    dir.write("support.jsonl", text);
    let changed = dir.run(&["resume", "runs/part", "--quiet", "--set", "train.steps=13"]);
    assert_eq!(changed.status.code(), Some(USAGE), "{}", stderr(&changed));
    assert!(
        stderr(&changed).contains("the data has changed"),
        "{}",
        stderr(&changed)
    );
}

#[test]
fn a_resumed_run_on_packed_conversations_has_the_weights_of_an_uninterrupted_one() {
    let dir = prepared();
    let packed = [
        "--set",
        "data.packing=samples",
        "--set",
        "train.sequence_length=96",
    ];
    let with = |args: &[&str]| dir.succeed(&[args, &packed].concat());
    let preview = with(&["preview", "chat.toml", "--json"]);
    let summary: Value = serde_json::from_str(preview.lines().next().unwrap()).unwrap();
    let rows = &summary["rows"];
    assert!(rows["packed"] == true && rows["length"] == 96, "{summary}");
    let (with_packing, without) = (&rows["with_packing"], &rows["without_packing"]);
    assert!(
        with_packing["rows"].as_u64() < without["rows"].as_u64(),
        "{rows}"
    );
    with(&["train", "chat.toml", "--quiet", "--set", "name=whole"]);
    let part = ["--set", "name=part", "--set", "train.steps=6"];
    with(&[&["train", "chat.toml", "--quiet"][..], &part].concat());
    let resume = ["resume", "runs/part", "--quiet", "--set", "train.steps=12"];
    dir.succeed(&resume);
    assert_eq!(
        artifacts(&dir.path("runs/part")),
        artifacts(&dir.path("runs/whole"))
    );
    // Without packing, the run is another one.
    let other = [
        "resume",
        "runs/part",
        "--set",
        "train.steps=13",
        "--set",
        "data.packing=packed",
    ];
    let other = dir.run(&other);
    assert!(
        !other.status.success() && stderr(&other).contains("data.packing"),
        "{}",
        stderr(&other)
    );
}

#[test]
fn preview_shows_the_prompts_that_the_server_sends() {
    let dir = prepared();
    let text = dir.succeed(&["preview", "chat.toml", "--longest", "--ids"]);
    for part in [
        "### User:\n",
        "[[",
        "<EOS>]]",
        "that `serve` sends for this conversation are the same",
        "EOS token    <EOS>",
        "the built-in template \"plain\"",
        "messages (30)",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    assert!(!text.contains('\x1b'), "{text}");
    let number = dir.run(&["preview", "chat.toml", "--sample", "999"]);
    assert_eq!(number.status.code(), Some(USAGE));
    let other = dir.run(&["preview", "base.toml"]);
    assert_eq!(other.status.code(), Some(USAGE));
    assert!(
        stderr(&other).contains("neither conversations nor pairs"),
        "{}",
        stderr(&other)
    );

    let lines = dir.succeed(&["preview", "chat.toml", "--all", "--json"]);
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines[0]["samples"].as_u64(), Some(lines.len() as u64 - 1));

    // The trained model is served with the template that it was trained with.
    dir.succeed(&["train", "chat.toml", "--quiet"]);
    let server = Server::start(&dir.path("runs/chat"), &[]);
    let mut compared = 0;
    for sample in &lines[1..] {
        assert_eq!(sample["same_as_served"], true);
        let text = sample["text"].as_str().unwrap();
        let user = text.split("### User:\n").nth(1).unwrap();
        let user = user.split("\n\n### Assistant:").next().unwrap();
        let messages = json!([{"role": "user", "content": user}]);
        let (status, _, body) = server.post("/tokenize", &json!({ "messages": messages }));
        assert_eq!(status, 200, "{body}");
        let served: Value = serde_json::from_str(&body).unwrap();
        let start = sample["trained"][0][0].as_u64().unwrap() as usize;
        let prompt = &sample["ids"].as_array().unwrap()[..start];
        assert_eq!(served["tokens"].as_array().unwrap(), prompt, "{user}");
        compared += 1;
    }
    assert!(compared >= 10, "{compared}");
}

#[test]
fn invalid_conversations_are_errors_with_a_line() {
    let dir = prepared();
    dir.write(
        "support.jsonl",
        "{\"messages\": [{\"role\": \"robot\", \"content\": \"x\"}]}\n",
    );
    for command in ["preview", "plan", "train"] {
        let output = dir.run(&[command, "chat.toml"]);
        assert_eq!(
            output.status.code(),
            Some(BAD_FILE),
            "{command}: {}",
            stderr(&output)
        );
        let error = stderr(&output);
        assert!(
            error.contains("line 1") && error.contains("robot"),
            "{error}"
        );
    }
}

#[test]
fn evaluation_is_over_the_trained_tokens_of_all_conversations() {
    let dir = prepared();
    dir.succeed(&["train", "chat.toml", "--quiet"]);
    let text = fs::read_to_string(dir.path("support.jsonl")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let evaluate = |name: &str, lines: &[&str]| {
        dir.write(name, lines.join("\n"));
        let args = ["eval", "runs/chat", "--conversations", name, "--json"];
        let report: Value = serde_json::from_str(&dir.succeed(&args)).unwrap();
        let loss = report["loss"]["nats_per_token"].as_f64().unwrap();
        let tokens = report["loss"]["tokens"].as_u64().unwrap();
        (loss, tokens, report)
    };
    let (first, second) = lines.split_at(11);
    let [(whole, all, report), (a, m, _), (b, n, _)] = [
        ("all.jsonl", &lines[..]),
        ("a.jsonl", first),
        ("b.jsonl", second),
    ]
    .map(|(name, lines)| evaluate(name, lines));
    assert_eq!((all, report["conversations"].as_u64()), (m + n, Some(30)));
    let sum = a * m as f64 + b * n as f64;
    assert!((whole * all as f64 - sum).abs() < 1e-3, "{whole}, {a}, {b}");
    assert_eq!(report["completions"], 16);
    let all_of_them = [
        "preview",
        "chat.toml",
        "--all",
        "--json",
        "--set",
        "data.split.validation=0.0",
    ];
    let preview = dir.succeed(&all_of_them);
    let samples = preview.lines().skip(1).map(|line| {
        let sample: Value = serde_json::from_str(line).unwrap();
        let spans = sample["trained"].as_array().unwrap().iter();
        let len = |span: &Value| span[1].as_u64().unwrap() - span[0].as_u64().unwrap();
        spans.map(len).sum::<u64>()
    });
    assert_eq!(samples.sum::<u64>(), all);
    let printed = dir.succeed(&["eval", "runs/chat", "--conversations", "a.jsonl"]);
    assert!(
        printed.contains("nats per token of the assistant's messages"),
        "{printed}"
    );
    assert!(printed.contains(" of 11 completions)"), "{printed}");
}

#[test]
fn what_a_chat_model_is_for_is_said_where_it_is_used_otherwise() {
    let dir = prepared();
    let plan = dir.succeed(&["plan", "chat.toml", "--steps", "0"]);
    assert!(
        plan.contains(" of them trained)") && plan.contains(" trained tokens"),
        "{plan}"
    );
    dir.succeed(&["train", "chat.toml", "--quiet"]);
    let generated = dir.run(&["generate", "runs/chat", "Who", "--max-tokens", "2"]);
    let notes = stderr(&generated);
    assert!(notes.contains("chat runs/chat"), "{notes}");
    let base = dir.run(&["generate", "runs/base", "Who", "--max-tokens", "2"]);
    assert!(
        !stderr(&base).contains("chat template"),
        "{}",
        stderr(&base)
    );
}

#[test]
fn errors_of_templates_name_the_template() {
    let dir = prepared();
    let fails = |template: &str| {
        let set = format!("data.chat_template={template}");
        let output = dir.run(&["preview", "chat.toml", "--set", &set]);
        assert!(!output.status.success());
        stderr(&output)
    };
    let error = fails("chatml"); // The vocabulary has none of its tokens.
    assert!(
        error.contains("the built-in template \"chatml\""),
        "{error}"
    );
    assert!(
        error.contains("use data.chat_template = \"plain\""),
        "{error}"
    );
    dir.write("open.jinja", "{% for m in messages %}{{ m.content");
    let error = fails("open.jinja");
    assert!(error.contains("`open.jinja`: syntax error"), "{error}");
    dir.write("empty.jinja", "{{ messages[0].name.first }}");
    let line = json!({"messages": [{"role": "assistant", "content": "Hi"}]}).to_string();
    let others = fs::read_to_string(dir.path("support.jsonl")).unwrap();
    dir.write("support.jsonl", format!("{line}\n{others}"));
    let error = fails("empty.jinja");
    assert!(
        error.contains("does not begin with a message of the user"),
        "{error}"
    );
    dir.write("support.jsonl", others);
    dir.write("picky.jinja", "{{ raise_exception('no user turn') }}");
    let error = fails("picky.jinja");
    assert!(
        error.contains("line 1 (picky.jinja): the chat template rejected")
            && error.contains("no user turn"),
        "{error}"
    );
}
