//! The program as a new user sees it.

use std::fs;

use nextword_data::{TokenizerConfig, TokenizerKind, build_tokenizer};
use nextword_model::{ModelCard, ModelConfig, ModelDir};
use serde_json::Value;

use crate::resume::{TINY, train_uninterrupted};
use crate::test_dir::{TestDir, json_lines};
use crate::util::{flex, nextword, root, stderr};

/// Weights are in memory only once. At GPT-2's size the peak is 1.2 times their size.
#[cfg(target_os = "linux")]
#[test]
fn loading_a_model_takes_little_more_memory_than_its_weights() {
    let dir = TestDir::new();
    let tokenizer = TokenizerConfig {
        kind: TokenizerKind::Byte,
        ..TokenizerConfig::default()
    };
    let tokenizer = build_tokenizer(&tokenizer, std::iter::empty()).unwrap();
    let config = ModelConfig {
        vocab_size: tokenizer.vocab_size(),
        context_length: 256,
        n_layers: 12,
        d_model: 512,
        n_heads: 8,
        ..ModelConfig::default()
    };
    let weight_bytes = 4 * config.parameter_counts().total();
    assert!(weight_bytes > 150_000_000, "{weight_bytes}");
    let model = config.init(&flex(), 1).unwrap();
    let path = dir.path("model");
    ModelDir::save(
        &path,
        &model,
        &tokenizer.to_json().unwrap(),
        &ModelCard::default(),
    )
    .unwrap();
    drop(model);
    let output = dir.run(&["generate", "model", "a", "--max-tokens", "1", "--json"]);
    let peak = json_lines(&output)[0]["peak_memory_bytes"]
        .as_u64()
        .unwrap();
    println!("peak memory: {peak} bytes, weights: {weight_bytes} bytes");
    let program = 60_000_000; // The program itself, and the activations of a token.
    assert!(
        peak < (weight_bytes + weight_bytes / 10 + program) as u64,
        "{peak}"
    );
}

/// `StatQuest`'s model completes both prompts correctly with any seed.
#[test]
fn statquest_answers_awesome_to_both_prompts() {
    let dir = TestDir::new();
    let config = root().join("configs/statquest.toml").display().to_string();
    for seed in 1..=5 {
        let set = [format!("seed={seed}"), format!("name=\"s{seed}\"")];
        let output = dir.run(&[
            "train", &config, "--quiet", "--set", &set[0], "--set", &set[1],
        ]);
        assert!(output.status.success(), "{}", stderr(&output));
        for prompt in ["what is statquest", "statquest is what"] {
            let run = format!("runs/s{seed}");
            let output = dir.run(&["generate", &run, prompt, "--temperature", "0", "--json"]);
            let completion = json_lines(&output).remove(0);
            assert_eq!(completion["text"], "awesome", "seed {seed}, {prompt}");
            assert_eq!(completion["finish_reason"], "eos", "seed {seed}, {prompt}");
        }
    }
}

/// The README's commands for training on your own text and for finetuning.
#[test]
fn own_text_trains_resumes_and_is_finetuned() {
    let dir = TestDir::new();
    let text: Vec<String> = nextword_data::Stories::new(3, 40).iter().collect();
    dir.write("my.txt", text.join("\n"));
    let config = root()
        .join("configs/shakespeare-char-cpu.toml")
        .display()
        .to_string();
    let data = ["--set", "data.path=my.txt"];
    let plan = dir.run(&[&["plan", &config, "--steps", "1"], &data[..]].concat());
    assert!(plan.status.success(), "{}", stderr(&plan));
    let options = ["--set", "name=mine", "--set", "train.steps=4", "--quiet"];
    let train = dir.run(&[&["train", &config], &data[..], &options[..]].concat());
    assert!(train.status.success(), "{}", stderr(&train));
    let elsewhere = tempfile::tempdir().unwrap();
    let run = dir.path("runs/mine").display().to_string();
    let mut resume = nextword();
    resume.args(["resume", &run, "--quiet", "--set", "train.steps=6"]);
    let resume = resume.current_dir(elsewhere.path()).output().unwrap();
    assert!(resume.status.success(), "{}", stderr(&resume));

    let finetune = root().join("configs/finetune.toml").display().to_string();
    let set = [
        "--set",
        "start_from=runs/mine",
        "--set",
        "train.steps=2",
        "--quiet",
    ];
    let finetuned = dir.run(&[&["train", &finetune], &set[..]].concat());
    assert!(finetuned.status.success(), "{}", stderr(&finetuned));
    fs::remove_dir_all(dir.path("runs/mine")).unwrap();
    let resumed = dir.run(&[
        "resume",
        "runs/finetune",
        "--quiet",
        "--set",
        "train.steps=3",
    ]);
    assert!(
        resumed.status.success(),
        "a finetuned run resumes without its base model: {}",
        stderr(&resumed)
    );
}

/// Each optimizer learns, and resumes with the same losses.
#[test]
fn every_optimizer_learns_and_resumes() {
    for (kind, lr) in [("sgd", 0.3), ("muon", 0.003), ("adamw", 0.003)] {
        let dir = TestDir::new();
        let losses = |set: &[String]| -> Vec<f64> {
            let mut settings = vec![
                format!("optimizer.kind=\"{kind}\""),
                format!("schedule.learning_rate={lr}"),
            ];
            settings.extend_from_slice(set);
            let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
            let args = dir.train_with(&settings);
            let args: Vec<&str> = args.iter().map(String::as_str).chain(["--json"]).collect();
            step_losses(&json_lines(&dir.run(&args)))
        };
        let full = losses(&["name=\"full\"".to_string()]);
        assert!(full[23] < full[0] - 0.2, "{kind}: {full:?}");
        let checkpointed = losses(&[
            "name=\"half\"".to_string(),
            "checkpoint.every=12".to_string(),
            "train.steps=24".to_string(),
            "validation.every=0".to_string(),
        ]);
        assert_eq!(
            checkpointed, full,
            "{kind}: checkpoints and validation do not change the losses"
        );
        fs::remove_dir_all(dir.path("runs/half/checkpoints/step-00000024")).unwrap();
        let resumed = step_losses(&json_lines(&dir.run(&["resume", "runs/half", "--json"])));
        assert_eq!(resumed, full[12..], "{kind} resumed");
    }
}

fn step_losses(events: &[Value]) -> Vec<f64> {
    let steps = events.iter().filter(|event| event["event"] == "step");
    steps.map(|event| event["loss"].as_f64().unwrap()).collect()
}

#[test]
fn train_generate_inspect_and_plot_work_in_sequence() {
    let dir = TestDir::new();
    let run = train_uninterrupted(dir.folder.path(), "flex");
    let run_arg = run.display().to_string();

    let generate = |options: &[&str]| {
        let mut args = vec![
            "generate",
            &run_arg,
            "One day",
            "--json",
            "--max-tokens",
            "20",
        ];
        args.extend(options);
        let mut completion = json_lines(&dir.run(&args)).remove(0);
        completion["peak_memory_bytes"].take();
        completion
    };
    let first = generate(&["--seed", "4"]);
    assert!(
        (1..=20).contains(&first["ids"].as_array().unwrap().len()),
        "{first}"
    );
    assert_eq!(
        first,
        generate(&["--seed", "4"]),
        "the same seed gives the same text"
    );
    assert_ne!(first["text"], generate(&["--seed", "5"])["text"]);
    let greedy = generate(&["--temperature", "0"]);
    assert_eq!(
        greedy["text"],
        generate(&["--temperature", "0", "--seed", "9"])["text"]
    );
    let output = dir.run(&["generate", &run_arg, "One 🦀", "--max-tokens", "3"]);
    assert!(
        output.status.success() && stderr(&output).contains("🦀"),
        "{}",
        stderr(&output)
    );

    let text = dir.write("text.txt", "One day a small fox went to the river.");
    let eval = json_lines(&dir.run(&["eval", &run_arg, &text, "--json"])).remove(0);
    let metric = |name: &str| eval["loss"][name].as_f64();
    let (loss, perplexity) = (metric("nats_per_token"), metric("perplexity"));
    assert!(
        (loss.unwrap().exp() - perplexity.unwrap()).abs() < 1e-6,
        "{eval}"
    );

    let inspect = json_lines(&dir.run(&["inspect", &run_arg, "--json"])).remove(0);
    assert!(inspect.to_string().contains("\"step\":"), "{inspect}");
    let plot = dir.run(&["plot", &run_arg]);
    assert!(plot.status.success(), "{}", stderr(&plot));
    let svg = fs::read_to_string(run.join("loss.svg")).unwrap();
    assert!(
        svg.starts_with("<svg") && svg.contains("validation"),
        "{svg}"
    );
    let resumed = dir.run(&["resume", &run_arg]);
    assert!(
        resumed.status.success() && stderr(&resumed).contains("all steps are already done"),
        "{}",
        stderr(&resumed)
    );
}

#[test]
fn plan_reports_size_baselines_and_speed_and_writes_nothing() {
    let dir = TestDir::new();
    let config = dir.write("tiny.toml", TINY);
    let plan = json_lines(&dir.run(&["plan", &config, "--json", "--steps", "2"])).remove(0);
    let total = plan["parameters"]["total"].as_u64().unwrap();
    assert!(total > 5000, "{plan}");
    let baselines = &plan["baselines"];
    let [uniform, unigram, bigram] =
        ["uniform", "unigram", "bigram"].map(|name| baselines[name].as_f64().unwrap());
    assert!(uniform > unigram && unigram > bigram, "{baselines}");
    assert!(
        plan["measured"]["tokens_per_second"].as_f64().unwrap() > 0.0,
        "{plan}"
    );
    let dry_run = dir.run(&["train", &config, "--dry-run"]);
    assert!(dry_run.status.success() && !dir.path("runs").exists());
}

#[test]
fn prepared_data_trains_like_its_text() {
    let dir = TestDir::new();
    let text: String = nextword_data::Stories::new(3, 12)
        .iter()
        .collect::<Vec<_>>()
        .join("\n\n");
    let path = dir.write("text.txt", text);
    let prepared = dir.path("prepared").display().to_string();
    assert!(
        dir.run(&[
            "prepare",
            &path,
            "--out",
            &prepared,
            "--separator",
            "\\n\\n"
        ])
        .status
        .success()
    );
    let losses = |data: &str, name: &str| -> Vec<Value> {
        let args = dir.train_with(&[data, &format!("name=\"{name}\""), "train.steps=6"]);
        let args: Vec<&str> = args.iter().map(String::as_str).chain(["--json"]).collect();
        let events = json_lines(&dir.run(&args));
        let steps = events.into_iter().filter(|event| event["event"] == "step");
        steps.map(|event| event["loss"].clone()).collect()
    };
    let direct = losses(
        &format!("data={{path={path:?}, separator=\"\\n\\n\"}}"),
        "direct",
    );
    assert_eq!(direct.len(), 6);
    assert_eq!(
        direct,
        losses(&format!("data={{prepared={prepared:?}}}"), "prepared")
    );
}

/// Every command line in the documentation uses existing options.
#[test]
fn documented_commands_exist() {
    let mut count = 0;
    for document in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"] {
        let text = fs::read_to_string(root().join(document)).unwrap();
        let lines = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("nextword "))
            .filter(|line| !line.starts_with(['=', '-'])); // In a manifest or a diagram.
        for line in lines {
            let mut words = line
                .split('#')
                .next()
                .unwrap_or_default()
                .split_whitespace();
            let mut command = vec![words.next().unwrap()];
            if command == ["bench"] {
                command.extend(words.next()); // The benchmark's name.
            }
            let help = nextword().args(command).arg("--help").output().unwrap();
            assert!(help.status.success(), "{document}: nextword {line}");
            let help = String::from_utf8(help.stdout).unwrap();
            for option in words.filter(|word| word.starts_with("--")) {
                let name = option.split('=').next().unwrap();
                assert!(help.contains(name), "{document}: nextword {line}");
            }
            count += 1;
        }
    }
    assert!(count >= 10, "found only {count} commands");
}

/// Every benchmark, in its shortest form.
#[test]
fn bench_reports_speed_and_memory_bandwidth() {
    let dir = TestDir::new();
    dir.write("tiny.toml", TINY);
    let train = dir.run(&["train", "tiny.toml", "--quiet", "--set", "train.steps=2"]);
    assert!(train.status.success(), "{}", stderr(&train));
    let size = ["--size", "small"];
    let commands: [&[&str]; 8] = [
        &["train", size[0], size[1], "--steps", "1", "--warm-up", "0"],
        &[
            "train",
            size[0],
            size[1],
            "--steps",
            "1",
            "--precision",
            "bf16",
            "--recompute",
        ],
        &["decode", size[0], size[1], "--tokens", "4"],
        &["decode", size[0], size[1], "--tokens", "4", "--bits", "4"],
        &["prefill", "runs/tiny"],
        &["matmul"],
        &["tokenize", "runs/tiny"],
        &["load", "runs/tiny"],
    ];
    for args in commands {
        let output = dir.run(&[&["bench"], args, &["--rounds", "1", "--json"]].concat());
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        for report in json_lines(&output) {
            assert_eq!(report["bench"], args[0]);
            let seconds = report["seconds"]["median"].as_f64().unwrap();
            assert!(seconds > 0.0 && seconds < 60.0, "{report}");
            let fraction = report["share_of_peak"].as_f64().unwrap_or(0.5);
            // The weights of small models come from the caches, faster than the memory bandwidth.
            assert!(fraction > 0.0 && fraction < 20.0, "{report}");
        }
    }
    let rejected = dir.run(&[
        "bench",
        "decode",
        "runs/tiny",
        "--bits",
        "4",
        "--device",
        "ndarray",
    ]);
    assert_eq!(rejected.status.code(), Some(2));
    assert!(
        stderr(&rejected).contains("nextword quantize"),
        "{}",
        stderr(&rejected)
    );
}
