//! The same fault has the same exit code in every command.

use std::net::TcpListener;

use crate::test_dir::{BAD_FILE, TestDir, USAGE, assert_one_error};
use crate::training::succeeds;
use crate::util::{root, stderr};

/// A failure that is neither of the command line nor of a file.
const FAILURE: i32 = 1;

/// A folder with a model of an encoder and one of an encoder and a decoder, a text and a task.
fn models() -> TestDir {
    let dir = TestDir::new();
    let shared = "[model]\nn_layers = 1\nn_heads = 2\nd_model = 8\ncontext_length = 32\n\
                  [train]\nsteps = 1\nbatch_size = 2\n[data.tokenizer]\nkind = 'byte'\n";
    dir.write("config.toml", shared);
    for (architecture, data) in [
        (
            "encoder",
            &[
                "data.builtin=stories",
                "data.documents=9",
                "data.tokenizer.mask=<MASK>",
            ][..],
        ),
        ("encoder_decoder", &["data.pairs=statquest"][..]),
    ] {
        let name = format!("name={architecture}");
        let architecture = format!("model.architecture={architecture}");
        let set = [&[name.as_str(), &architecture][..], data].concat();
        succeeds(&dir, &["train", "config.toml", "--quiet"], &set);
    }
    dir.write("text.txt", "One day a fox met a crow.");
    dir.write(
        "task.jsonl",
        "{\"context\": \"a\", \"endings\": [\"b\", \"c\"], \"label\": 0}",
    );
    dir
}

/// Runs a command, whose arguments are separated by spaces, and checks its code and that it explains it in one message.
fn fails(dir: &TestDir, line: &str, code: i32) {
    let args: Vec<&str> = line.split(' ').collect();
    let output = dir.run(&args);
    let error = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{line}: {error}");
    assert_one_error(&error);
}

#[test]
fn a_fault_has_one_exit_code_in_all_commands() {
    let dir = models();
    let letters = root().join("docs/models/letters").display().to_string();
    let each = |commands: &[&str], subject: &str, code: i32| {
        for command in commands {
            fails(&dir, &command.replace('@', subject), code);
        }
    };

    // A model, a text or a run that is not there.
    let of_models = [
        "generate @ x",
        "eval @ text.txt",
        "explain @ x",
        "serve @ --port 0",
        "chat @",
        "inspect @",
        "fill @ ___",
        "embed @ x",
        "compare @ @",
        "quantize @ --out out",
        "export @ --format hf --out out",
        "merge @ --out out",
        "import @ --out out",
        "bench load @",
        "plot @",
        "export-metrics @ --format csv",
        "watch @",
        "resume @",
        "prepare @ --out out",
    ];
    each(&of_models, "missing", BAD_FILE);
    let of_texts = ["eval % @", "eval % --task @", "eval % --conversations @"];
    for line in of_texts {
        each(&[&line.replace('%', &letters)], "missing", BAD_FILE);
    }

    // A configuration that is not there.
    let of_configs = [
        "train @",
        "plan @",
        "preview @",
        "doctor @",
        "sweep @ --vary seed=1",
    ];
    each(&of_configs, "missing.toml", USAGE);

    // A device that cannot be used.
    let with_device = [
        "generate @ x -d nothing",
        "eval @ text.txt -d nothing",
        "explain @ x -d nothing",
        "serve @ --port 0 -d nothing",
        "chat @ -d nothing",
        "embed @ x -d nothing",
        "compare @ --device flex --device nothing",
        "bench load @ --device nothing",
        "bench decode --device nothing",
    ];
    each(&with_device, &letters, USAGE);

    // A model that the command, or the format, is not for.
    let not_for_encoders = [
        "eval @ text.txt",
        "eval @ --task task.jsonl",
        "generate @ x",
        "fill runs/encoder_decoder ___",
        "embed runs/encoder_decoder x",
        "merge @ --out out",
        "export @ --format gguf --out out.gguf",
        "export @ --format peft --out out",
    ];
    each(&not_for_encoders, "runs/encoder", USAGE);

    // A place that cannot be written.
    let to_files = [
        "explain @ x --format json --out missing/x.json",
        "export @ --format gguf --out missing/x.gguf",
        "export-metrics runs/encoder --format csv --out missing/x.csv",
        "plot runs/encoder --out missing/x.svg",
    ];
    each(&to_files, &letters, USAGE);

    // A port that another program uses, for as long as it does.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port();
    fails(&dir, &format!("serve {letters} --port {port}"), FAILURE);
    fails(&dir, &format!("watch runs --port {port}"), FAILURE);
}
