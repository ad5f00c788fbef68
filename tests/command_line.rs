//! The command line: output files, arguments, and what is printed.

use std::fs;
use std::process::Stdio;

use crate::test_dir::{BAD_FILE, TestDir, USAGE, assert_one_error, json_lines};
use crate::util::{nextword, root, stderr};

/// A trained model with a byte-level tokenizer, and StatQuest's.
fn model(name: &str) -> String {
    root().join("docs/models").join(name).display().to_string()
}

/// Files of users, which no command may replace.
const USER_FILES: [(&str, &[u8]); 10] = [
    (
        "badge.svg",
        b"<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"90\" height=\"20\" role=\"img\"><title>build: passing</title></svg>",
    ),
    (
        "cache.safetensors",
        b"\x2a\0\0\0\0\0\0\0{\"blocks.0.attn.hook_pattern\":{}}",
    ),
    ("corpus.txt", b"to be or not to be\n"),
    ("config.toml", b"name = \"run\"\n"),
    ("notes.md", b"# Notes\n"),
    ("data.json", b"{\"text\": \"a\"}\n"),
    ("page.html", b"<!doctype html>\n<title>mine</title>\n"),
    (
        "logo.svg",
        b"<svg width=\"3\" xmlns=\"http://www.w3.org/2000/svg\"></svg>\n",
    ),
    ("w.safetensors", b"\x0a\0\0\0\0\0\0\0{\"a.b\":{}}"),
    ("x.bin", b"\x00\x01\x02"),
];

#[test]
fn no_command_replaces_a_file_of_another_kind() {
    let dir = TestDir::new();
    let (letters, statquest) = (model("letters"), model("statquest"));
    dir.write(
        "metrics.jsonl",
        "{\"step\":1,\"loss\":2.0}\n{\"step\":2,\"loss\":1.0}\n",
    );
    let commands: [(&str, Vec<&str>); 6] = [
        ("gguf", vec!["export", &letters, "--format", "gguf"]),
        (
            "html",
            vec![
                "explain",
                &statquest,
                "what is statquest",
                "--format",
                "html",
            ],
        ),
        (
            "json",
            vec![
                "explain",
                &statquest,
                "what is statquest",
                "--format",
                "json",
            ],
        ),
        (
            "txt",
            vec![
                "explain",
                &statquest,
                "what is statquest",
                "--format",
                "text",
            ],
        ),
        (
            "safetensors",
            vec![
                "explain",
                &statquest,
                "what is statquest",
                "--format",
                "safetensors",
            ],
        ),
        ("svg", vec!["plot", "metrics.jsonl"]),
    ];
    for (extension, command) in &commands {
        for (name, content) in USER_FILES {
            if *extension == "svg" && !name.ends_with("svg") {
                continue; // Refused for its name; see below.
            }
            dir.write(name, content);
            let args = [&command[..], &["--out", name]].concat();
            dir.rejects(&args, USAGE, &[name, "already exists", "--force"]);
            assert_eq!(fs::read(dir.path(name)).unwrap(), content, "{args:?}");
        }
        // Its own file is replaced, and another one with --force.
        let own = format!("own.{extension}");
        for _ in 0..2 {
            let output = dir.run(&[&command[..], &["--out", &own]].concat());
            assert!(output.status.success(), "{}", stderr(&output));
        }
        dir.write(&own, "something else");
        let output = dir.run(&[&command[..], &["--out", &own, "--force"]].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        assert_ne!(fs::read(dir.path(&own)).unwrap(), b"something else");
    }
    // Files of the other commands are not replaced either.
    for (extension, command) in &commands {
        for (other, _) in commands.iter().filter(|(other, _)| other != extension) {
            let name = format!("own.{other}");
            let before = fs::read(dir.path(&name)).unwrap();
            let output = dir.run(&[&command[..], &["--out", &name]].concat());
            assert_eq!(output.status.code(), Some(USAGE), "{extension} over {name}");
            assert_one_error(&stderr(&output));
            assert_eq!(fs::read(dir.path(&name)).unwrap(), before);
        }
    }
}

#[test]
fn files_without_out_are_guarded_too() {
    let dir = TestDir::new();
    let statquest = model("statquest");
    dir.write("metrics.jsonl", "{\"step\":1,\"loss\":2.0}\n");
    for (name, args) in [
        (
            "explain.html",
            vec!["explain", &statquest, "what", "--format", "html"],
        ),
        ("loss.svg", vec!["plot", "metrics.jsonl"]),
    ] {
        dir.write(name, "mine");
        dir.rejects(&args, USAGE, &[name, "already exists"]);
        assert_eq!(fs::read(dir.path(name)).unwrap(), b"mine");
    }
}

#[test]
fn folders_are_not_replaced_by_files_nor_files_by_folders() {
    let dir = TestDir::new();
    let letters = model("letters");
    dir.write("file", "mine");
    dir.write("a.txt", "one two three four five six seven eight nine ten");
    fs::create_dir(dir.path("folder")).unwrap();
    for args in [
        vec!["export", &letters, "--format", "hf", "--out", "file"],
        vec!["import", &letters, "--out", "file"],
        vec!["quantize", &letters, "--out", "file"],
        vec!["prepare", "a.txt", "--out", "file"],
    ] {
        dir.rejects(&args, USAGE, &["`file` is a file"]);
        assert_eq!(fs::read(dir.path("file")).unwrap(), b"mine");
    }
    for args in [
        vec!["export", &letters, "--format", "gguf", "--out", "folder"],
        vec![
            "explain", &letters, "a", "--format", "text", "--out", "folder",
        ],
        vec!["plot", &letters, "--out", "folder"],
    ] {
        dir.rejects(&args, USAGE, &["`folder` is a folder"]);
    }
    // A missing folder is named, with the fix, and no temporary name is shown.
    for args in [
        vec![
            "export",
            &letters,
            "--format",
            "gguf",
            "--out",
            "missing/x.gguf",
        ],
        vec!["explain", &letters, "a", "--out", "missing/x.html"],
        vec!["plot", &letters, "--out", "missing/x.svg"],
    ] {
        dir.rejects(
            &args,
            USAGE,
            &["the folder `missing` does not exist", "mkdir -p missing"],
        );
    }
    if cfg!(target_os = "linux") {
        let error = stderr(&dir.run(&["export", &letters, "--format", "hf", "--out", "/proc/x"]));
        assert!(
            error.contains("/proc/x") && !error.contains(".new"),
            "{error}"
        );
    }
}

#[test]
fn force_is_refused_where_it_has_no_effect() {
    let dir = TestDir::new();
    let letters = model("letters");
    dir.rejects(
        &[
            "export", &letters, "--format", "hf", "--out", "folder", "--force",
        ],
        USAGE,
        &["--force applies only to formats that are one file"],
    );
    assert!(!dir.path("folder").exists());
}

#[test]
fn unknown_extensions_are_refused() {
    let dir = TestDir::new();
    let statquest = model("statquest");
    for name in [
        "x.pdf", "x.png", "x.docx", "x", "x.svg", "x.csv", "x.toml", "x.rs",
    ] {
        dir.rejects(
            &["explain", &statquest, "what", "--out", name],
            USAGE,
            &[name, "unknown extension", ".html"],
        );
        assert!(!dir.path(name).exists());
    }
    for name in ["x.html", "x.HTM", "x.json", "x.safetensors", "x.txt"] {
        let output = dir.run(&["explain", &statquest, "what", "--out", name]);
        assert!(output.status.success(), "{name}: {}", stderr(&output));
    }
    dir.write("metrics.jsonl", "{\"step\":1,\"loss\":2.0}\n");
    for name in ["x.png", "x.pdf", "config.toml", "x.txt"] {
        dir.rejects(
            &["plot", "metrics.jsonl", "--out", name],
            USAGE,
            &[name, ".svg"],
        );
    }
}

#[test]
fn preparing_into_a_dataset_says_that_it_is_replaced() {
    let dir = TestDir::new();
    dir.write("a.txt", "one two three ".repeat(30));
    let prepare = || stderr(&dir.run(&["prepare", "a.txt", "--out", "data"]));
    assert!(!prepare().contains("replaces"));
    let again = prepare();
    assert!(
        again.contains("note: this replaces the dataset in data") && again.contains("a.txt"),
        "{again}"
    );
}

#[test]
fn automatic_devices_are_named() {
    let dir = TestDir::new();
    let letters = model("letters");
    let output = dir.run(&[
        "generate",
        &letters,
        "a",
        "--max-tokens",
        "2",
        "--device",
        "auto",
    ]);
    let notes = stderr(&output);
    assert!(notes.contains("device auto: "), "{notes}");
    assert!(!notes.contains("device auto: auto"), "{notes}");
    let args = dir.train_with(&["device=\"auto\"", "train.steps=2"]);
    let args: Vec<&str> = args.iter().map(String::as_str).chain(["--json"]).collect();
    let events = json_lines(&dir.run(&args));
    assert_ne!(events[0]["device"], "auto");
    assert!(events[0]["device"].is_string());
}

/// Graphics drivers print errors if this variable is not set.
#[test]
fn a_missing_runtime_folder_is_not_reported() {
    let output = nextword()
        .args(["generate", &model("letters"), "a", "--device", "wgpu:99"])
        .env_remove("XDG_RUNTIME_DIR")
        .output()
        .unwrap();
    let error = stderr(&output);
    assert_eq!(output.status.code(), Some(USAGE), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn greedy_completions_print_no_seed() {
    let dir = TestDir::new();
    let letters = model("letters");
    let generate = |options: &[&str]| {
        let args = [&["generate", &letters, "a", "--max-tokens", "8"], options].concat();
        stderr(&dir.run(&args))
    };
    assert!(!generate(&["--temperature", "0"]).contains("seed"));
    assert!(generate(&["--seed", "5"]).contains("seed 5"));
    assert!(generate(&["--seed", "-1"]).contains("seed 18446744073709551615"));
    assert!(generate(&["--seed", "x"]).contains("must be a 64-bit integer"));
    assert!(generate(&["--temperature", "0"]).contains("tok/s"));
}

#[test]
fn models_with_different_tokenizers_are_compared_by_bytes_only() {
    let dir = TestDir::new();
    dir.write("a.txt", "what is statquest ".repeat(20));
    let (letters, statquest) = (model("letters"), model("statquest"));
    let eval = |model: &str, against: &str, json: bool| {
        let args = ["eval", model, "a.txt", "--against", against, "--json"];
        dir.run(&args[..if json { 6 } else { 5 }])
    };
    let output = eval(&letters, &statquest, false);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("different tokenizers"),
        "{}",
        stderr(&output)
    );
    assert_eq!(
        json_lines(&eval(&letters, &statquest, true))[0]["same_tokenizer"],
        false
    );
    let same = eval(&letters, &letters, false);
    assert!(!stderr(&same).contains("different tokenizers"));
    assert_eq!(
        json_lines(&eval(&letters, &letters, true))[0]["same_tokenizer"],
        true
    );
}

#[test]
fn an_empty_task_is_named_as_such() {
    let dir = TestDir::new();
    let letters = model("letters");
    for text in ["", "\n", "\n\n  \n"] {
        dir.write("empty.jsonl", text);
        dir.rejects(
            &["eval", &letters, "--task", "empty.jsonl"],
            BAD_FILE,
            &["no questions and no texts", "hint:"],
        );
    }
    dir.rejects(
        &[
            "eval",
            &letters,
            "--task",
            "empty.jsonl",
            "--against",
            &letters,
        ],
        USAGE,
        &["--against"],
    );
}

#[test]
fn a_chat_goes_past_lines_that_are_not_text() {
    use std::io::Write;

    let mut child = nextword()
        .args([
            "chat",
            &model("letters"),
            "--max-tokens",
            "3",
            "--temperature",
            "0",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let input = b"One day\n\xff\xfe\n\xe2\x28\xa1\nThe\n/quit\n";
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    let notes = stderr(&output);
    assert!(output.status.success(), "{notes}");
    assert_eq!(notes.matches("not valid UTF-8").count(), 2, "{notes}");
    assert!(notes.contains("it continues your text"), "{notes}");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).lines().count(),
        2,
        "{notes}"
    );
}

#[test]
fn addresses_that_this_machine_does_not_have_are_named() {
    let dir = TestDir::new();
    let letters = model("letters");
    let serve = |host: &str| {
        dir.run(&[
            "serve",
            &letters,
            "--api-key",
            "k",
            "--port",
            "0",
            "--host",
            host,
        ])
    };
    for (host, hint) in [
        ("192.0.2.7", "no such address"),
        ("no-such-host.invalid", "another --host"),
    ] {
        let output = serve(host);
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(USAGE), "{error}");
        assert!(error.contains(hint) && !error.contains("--port"), "{error}");
    }
}

#[test]
fn a_plan_prints_sizes_before_it_measures() {
    let dir = TestDir::new();
    for name in ["quickstart", "statquest", "llama-small"] {
        let config = root()
            .join(format!("configs/{name}.toml"))
            .display()
            .to_string();
        let text = dir.run_merged(&["plan", &config]);
        for part in ["parameters", "memory", "disk", "speed", "time"] {
            assert!(text.contains(part), "{name}: {part} in {text}");
        }
        let places =
            ["\n  disk ", "\nmeasuring the speed", "\n  speed "].map(|part| text.find(part));
        assert!(places[0].is_some() && places.is_sorted(), "{name}: {text}");
        let measured = &json_lines(&dir.run(&["plan", &config, "--json"]))[0]["measured"];
        assert!(measured["tokens_per_second"].as_f64().unwrap() > 0.0);
        assert!(measured["tokens"].as_u64().unwrap() > 0, "{measured}");
    }
}
