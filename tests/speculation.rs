//! `--draft`, `--prompt-lookup` and `--kv-bits`, and the pages of a server.

use serde_json::{Value, json};

use crate::serving::Server;
use crate::test_dir::{BAD_FILE, TestDir, USAGE};
use crate::util::{root, stderr};

fn letters() -> String {
    root().join("docs/models/letters").display().to_string()
}

/// The completion that `generate` prints for `options`.
fn generate(dir: &TestDir, options: &[&str]) -> Value {
    let letters = letters();
    let prompt = "The cat saw a bird. The cat saw";
    let args = [
        "generate", &letters, prompt, "--seed", "5", "--json", "-m", "60",
    ];
    let output = dir.run(&[&args[..], options].concat());
    assert!(output.status.success(), "{options:?}: {}", stderr(&output));
    let mut value: Value = serde_json::from_slice(&output.stdout).unwrap();
    value["peak_memory_bytes"] = Value::Null;
    value
}

#[test]
fn speculative_decoding_prints_the_same_text() {
    let dir = TestDir::new();
    let letters = letters();
    for sampling in [&["--temperature", "0"][..], &["--temperature", "0.9"]] {
        let plain = generate(&dir, sampling);
        for options in [
            &["--prompt-lookup", "1"][..],
            &["--prompt-lookup", "15"],
            &["--draft", &letters],
        ] {
            let options = [sampling, options].concat();
            assert_eq!(generate(&dir, &options), plain, "{options:?}");
        }
    }
}

#[test]
fn keys_and_values_of_8_bits_generate_text() {
    let dir = TestDir::new();
    let plain = generate(&dir, &["--temperature", "0"]);
    let same = generate(&dir, &["--temperature", "0", "--kv-bits", "32"]);
    assert_eq!(same, plain);
    let rounded = generate(&dir, &["--temperature", "0", "--kv-bits", "8"]);
    assert_eq!(rounded["tokens"], 60);
    // A draft of the same model over exact keys and values changes nothing.
    let drafted = generate(
        &dir,
        &[
            "--temperature",
            "0",
            "--kv-bits",
            "8",
            "--draft",
            &letters(),
        ],
    );
    assert_eq!(drafted, rounded);
}

#[test]
fn wrong_decoding_options_are_one_clear_error() {
    let dir = TestDir::new();
    let letters = letters();
    let statquest = root().join("docs/models/statquest").display().to_string();
    for (options, code, message) in [
        (&["--kv-bits", "4"][..], USAGE, "must be 8 or 32"),
        (&["--prompt-lookup", "0"], USAGE, "--prompt-lookup must be"),
        (
            &["--prompt-lookup", "2", "--draft", &letters],
            USAGE,
            "--draft",
        ),
        (
            &["--draft", &statquest],
            USAGE,
            "hint: use a draft model with the same tokenizer",
        ),
        (&["--draft", "missing"], BAD_FILE, "missing"),
    ] {
        let output = dir.run(&[&["generate", &letters, "The"], options].concat());
        let text = stderr(&output);
        assert!(text.contains(message), "{options:?}: {text}");
        assert_eq!(output.status.code(), Some(code), "{options:?}: {text}");
    }
}

#[test]
fn a_server_shares_pages_and_counts_them() {
    let model = root().join("docs/models/letters");
    let body = |n: usize| {
        let prompt = format!("The cat saw a bird. The bird saw a {}", &"cat"[..n]);
        json!({"model": "m", "prompt": prompt, "max_tokens": 20, "seed": n, "ignore_eos": true})
    };
    let texts: Vec<Vec<Value>> = [&[][..], &["--prompt-lookup", "6"], &["--slots", "2"]]
        .iter()
        .map(|options| {
            let server = Server::start(&model, options);
            let complete = |n: usize| -> Value {
                let (status, _, text) = server.post("/v1/completions", &body(n));
                assert_eq!(status, 200, "{text}");
                let answer: Value = serde_json::from_str(&text).unwrap();
                answer["choices"][0]["text"].clone()
            };
            let texts: Vec<Value> = (0..4).map(complete).collect();
            let (_, _, metrics) = server.get("/metrics", "");
            let value = |name: &str| -> u64 {
                let mut lines = metrics.lines();
                let line = lines.find(|line| line.starts_with(&format!("nextword_{name}{{")));
                line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
            };
            assert!(value("cached_tokens_total") > 0, "{metrics}");
            assert_eq!(value("cache_pages_used"), 0);
            assert!(value("cache_pages_cached") > 0);
            assert!(value("cache_pages_free") > 0);
            texts
        })
        .collect();
    assert!(texts.iter().all(|other| *other == texts[0]), "{texts:?}");
}
