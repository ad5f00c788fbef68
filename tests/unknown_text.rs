//! Text that a vocabulary does not have, from training to the API.

use std::fs;

use serde_json::{Value, json};

use crate::serving::Server;
use crate::test_dir::TestDir;

const CONFIG: &str = r#"
name = "run"
out = "run"
[data]
path = "text.txt"
[model]
context_length = 16
n_layers = 1
n_heads = 1
d_model = 8
[train]
steps = 2
batch_size = 2
[schedule]
warmup_steps = 0
[samples]
prompts = []
"#;

/// A run on lower-case text, with these settings.
fn train(settings: &[&str]) -> TestDir {
    let dir = TestDir::new();
    fs::write(dir.path("text.txt"), "hello there lower cases ".repeat(20)).unwrap();
    fs::write(dir.path("run.toml"), CONFIG).unwrap();
    let output = dir.run(&[&["train", "run.toml", "--quiet"], settings].concat());
    assert!(output.status.success(), "{output:?}");
    dir
}

fn post(server: &Server, path: &str, body: &Value) -> Value {
    let (status, _, text) = server.post(path, body);
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

#[test]
fn the_api_tells_what_of_a_prompt_is_unknown() {
    for unk in ["<unk>", ""] {
        let dir = train(&["--set", &format!("data.tokenizer.unk=\"{unk}\"")]);
        let server = Server::start(&dir.path("run"), &[]);
        let mut body = json!({"prompt": "Hello Z, Z", "max_tokens": 2});
        let response = post(&server, "/v1/completions", &body);
        assert_eq!(response["unknown"], json!(["H", "Z", ","]), "{response}");
        assert_eq!(response["unknown_count"], 4);
        body["stream"] = json!(true);
        let (_, _, events) = server.post("/v1/completions", &body);
        assert!(events.contains(r#""unknown_count":4"#), "{events}");
        let known = post(
            &server,
            "/v1/completions",
            &json!({"prompt": "hello", "max_tokens": 2}),
        );
        assert!(known.get("unknown").is_none(), "{known}");

        let tokens = post(
            &server,
            "/tokenize",
            &json!({"content": "Hello", "with_pieces": true}),
        );
        assert_eq!(tokens["unknown_count"], 1);
        let starts: Vec<&Value> = tokens["tokens"]
            .as_array()
            .unwrap()
            .iter()
            .map(|token| &token["start"])
            .collect();
        let expected = if unk.is_empty() {
            vec![1, 2, 3, 4]
        } else {
            vec![0, 1, 2, 3, 4]
        };
        assert_eq!(json!(starts), json!(expected));
    }
}

#[test]
fn offsets_of_an_echoed_prompt_count_unknown_characters() {
    for (unk, prompt, expected) in [
        ("", "Hello", vec![1, 2, 3, 4, 5]),
        ("<unk>", "Hello", vec![0, 1, 2, 3, 4, 5]),
        ("<unk>", "éhΩΩo", vec![0, 1, 2, 3, 4, 5]),
        ("", "éhΩΩo", vec![1, 4, 5]),
    ] {
        let dir = train(&["--set", &format!("data.tokenizer.unk=\"{unk}\"")]);
        let server = Server::start(&dir.path("run"), &[]);
        for stream in [false, true] {
            let body = json!({"prompt": prompt, "max_tokens": 1, "echo": true, "logprobs": 0, "stream": stream});
            let (_, _, text) = server.post("/v1/completions", &body);
            let mut offsets: Vec<Value> = Vec::new();
            let lines = text.lines().map(|line| line.trim_start_matches("data: "));
            for value in lines.filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
                let found = value["choices"][0]["logprobs"]["text_offset"]
                    .as_array()
                    .cloned();
                offsets.extend(found.into_iter().flatten());
            }
            assert_eq!(
                json!(offsets),
                json!(expected),
                "{unk:?} {prompt} {stream}: {text}"
            );
        }
    }
}

#[test]
fn offsets_of_echoed_words_count_all_white_space() {
    let dir = train(&["--set", "data.tokenizer.kind=\"word\""]);
    let server = Server::start(&dir.path("run"), &[]);
    for (prompt, expected) in [
        // Tokens whose texts are the prompt begin with the space before them.
        ("hello there", &[0, 5][..]),
        ("hello\tthere  lower\n\n cases", &[0, 6, 13, 21]),
        (" hello é<EOS>there", &[1, 7, 8, 13]),
    ] {
        let body = json!({"prompt": prompt, "max_tokens": 0, "echo": true, "logprobs": 0});
        let choice = post(&server, "/v1/completions", &body)["choices"][0].clone();
        assert_eq!(choice["text"], prompt);
        assert_eq!(
            choice["logprobs"]["text_offset"],
            json!(expected),
            "{prompt:?}"
        );
    }
}

#[test]
fn detokenize_shows_special_tokens_on_request() {
    let dir = train(&[]);
    let server = Server::start(&dir.path("run"), &[]);
    let tokens = post(&server, "/tokenize", &json!({"content": "he<EOS>H"}))["tokens"].clone();
    for (skip, expected) in [
        (None, "he"),
        (Some(true), "he"),
        (Some(false), "he<EOS><unk>"),
    ] {
        let mut body = json!({"tokens": tokens});
        if let Some(skip) = skip {
            body["skip_special_tokens"] = json!(skip);
        }
        assert_eq!(
            post(&server, "/detokenize", &body)["content"],
            expected,
            "{skip:?}"
        );
    }
}

#[test]
fn prepare_says_how_much_is_unknown_and_why_a_vocabulary_is_small() {
    let dir = TestDir::new();
    let words: Vec<String> = (0..3000).map(|n| format!("w{n}")).collect();
    fs::write(dir.path("text.txt"), "the ".repeat(1000) + &words.join(" ")).unwrap();
    let output = dir.run(&[
        "prepare",
        "text.txt",
        "--out",
        "words",
        "--tokenizer",
        "word",
        "--vocab-size",
        "1003",
    ]);
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(
        shown.contains("unknown     2,000 of 4,000 parts of the text (50.0 %)"),
        "{shown}"
    );
    let output = dir.run(&[
        "prepare",
        "text.txt",
        "--out",
        "bpe",
        "--tokenizer",
        "bpe",
        "--vocab-size",
        "50000",
    ]);
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(
        shown.contains("of 50,000 requested: the text has no more pairs"),
        "{shown}"
    );
}
