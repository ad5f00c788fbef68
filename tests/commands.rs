//! The program as a new user meets it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::resume::{TINY, straight};
use crate::util::{must_not_skip, nextword, root, stderr};

/// Exit codes, as the README has them.
const USAGE: i32 = 2;
const BAD_FILE: i32 = 3;
const DIVERGED: i32 = 4;
const RESOURCES: i32 = 5;

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    fn run(&self, args: &[&str]) -> Output {
        nextword()
            .args(args)
            .current_dir(self.folder.path())
            .output()
            .unwrap()
    }

    /// Runs a command that must fail, with one sentence that holds all of `says`, and must leave
    /// no run behind.
    fn refuses(&self, args: &[&str], code: i32, says: &[&str]) {
        let output = self.run(args);
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
        assert_one_sentence(&error);
        for part in says {
            assert!(
                error.contains(part),
                "{args:?} does not say `{part}`: {error}"
            );
        }
        assert!(output.stdout.is_empty(), "{args:?} writes a result");
        assert!(!self.path("runs").exists(), "{args:?} leaves a run behind");
    }

    fn train_with(&self, set: &[&str]) -> Vec<String> {
        let config = self.write("tiny.toml", TINY);
        let mut args = vec!["train".to_string(), config];
        args.extend(
            set.iter()
                .flat_map(|set| ["--set".to_string(), (*set).to_string()]),
        );
        args
    }

    fn training_refuses(&self, set: &[&str], code: i32, says: &[&str]) {
        let args = self.train_with(set);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.refuses(&args, code, says);
    }
}

fn assert_one_sentence(error: &str) {
    assert_eq!(error.matches("error: ").count(), 1, "{error}");
    assert!(
        !error.contains("panicked") && !error.contains("a fault of nextword"),
        "{error}"
    );
}

fn json_lines(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", stderr(output));
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn wrong_configurations_are_refused_with_the_fact_and_the_fix() {
    let place = Place::new();
    place.refuses(
        &["train", "nowhere.toml"],
        USAGE,
        &["nowhere.toml", "hint:"],
    );
    let unknown = place.write("unknown.toml", "[model]\nn_layer = 2\n");
    place.refuses(
        &["train", &unknown],
        USAGE,
        &["unknown.toml:2", "did you mean `n_layers`?"],
    );
    let binary = place.write("binary.toml", [0xFF, 0x00, 0xFE]);
    place.refuses(&["train", &binary], USAGE, &["binary.toml"]);
    place.training_refuses(
        &["model.n_heads=3"],
        USAGE,
        &["3 heads do not divide d_model = 16", "n_heads = 2"],
    );
    place.training_refuses(&["train.steps=0"], USAGE, &["train.steps"]);
    place.training_refuses(
        &["schedule.warmup_steps=99"],
        USAGE,
        &["warm-up of 99 steps"],
    );
    place.training_refuses(
        &["model.vocab_size=3"],
        USAGE,
        &["model.vocab_size", "the model 3"],
    );
    place.training_refuses(
        &["expect_parameters=1"],
        USAGE,
        &["expect_parameters", "not 1"],
    );
}

#[test]
fn wrong_texts_are_refused_with_the_fact_and_the_fix() {
    let place = Place::new();
    let path = |name: &str| format!("data={{path={:?}}}", place.path(name).display().to_string());
    place.training_refuses(&[&path("missing.txt")], BAD_FILE, &["missing.txt"]);
    place.write("empty.txt", "");
    place.training_refuses(&[&path("empty.txt")], BAD_FILE, &["empty.txt"]);
    place.write("binary.txt", [b'a', 0xFF, 0xFE, 0x00]);
    place.training_refuses(&[&path("binary.txt")], BAD_FILE, &["binary.txt", "UTF-8"]);
    place.write("short.txt", "twelve chars");
    place.training_refuses(
        &[&path("short.txt"), "model.context_length=64"],
        USAGE,
        &["64", "hint:"],
    );
    place.write("broken.jsonl", "{\"text\": \"fine\"}\n{\"text\": oops}\n");
    place.training_refuses(&[&path("broken.jsonl")], BAD_FILE, &["broken.jsonl", "2"]);
}

#[test]
fn devices_that_are_not_there_are_refused() {
    let place = Place::new();
    place.training_refuses(&["device=\"gpu\""], USAGE, &["`gpu`", "hint:"]);
    place.training_refuses(&["device=\"cuda\""], USAGE, &["cuda", "hint:"]);
    place.training_refuses(&["device=\"wgpu:7\""], USAGE, &["wgpu:7", "flex"]);
}

#[test]
fn folders_that_cannot_be_written_are_refused() {
    let place = Place::new();
    place.write("file", "not a folder");
    place.training_refuses(&["out=\"file/run\""], RESOURCES, &["file/run"]);
    if cfg!(target_os = "linux") {
        place.training_refuses(&["out=\"/proc/run\""], RESOURCES, &["/proc/run"]);
    }
}

#[test]
fn a_model_that_cannot_fit_into_memory_is_refused_before_it_is_made() {
    let place = Place::new();
    let huge = [
        "model.d_model=65536",
        "model.n_heads=64",
        "model.n_layers=90",
    ];
    place.training_refuses(&huge, RESOURCES, &["memory"]);
}

#[test]
fn a_diverging_run_stops_and_names_what_was_not_finite() {
    let place = Place::new();
    let args = place.train_with(&[
        "schedule.learning_rate=1e30",
        "optimizer.clip_norm=0",
        "checkpoint.every=0",
    ]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let output = place.run(&args);
    let error = stderr(&output);
    assert_eq!(output.status.code(), Some(DIVERGED), "{error}");
    for part in [
        "diverged at step",
        "is not finite",
        "learning rate",
        "gradient norms",
    ] {
        assert!(error.contains(part), "`{part}` in {error}");
    }
    assert_one_sentence(&error);
    assert!(
        !place.path("runs/tiny/last").exists(),
        "no record of numbers that are none"
    );
}

#[test]
fn a_second_run_in_the_same_folder_is_refused_and_the_first_stays() {
    let place = Place::new();
    let run = straight(place.folder.path(), "flex").display().to_string();
    let before = fs::read(Path::new(&run).join("metrics.jsonl")).unwrap();
    let out = format!("out={run:?}");
    place.training_refuses(
        &[&out],
        USAGE,
        &["there is a run in this folder already", "nextword resume"],
    );
    assert_eq!(
        fs::read(Path::new(&run).join("metrics.jsonl")).unwrap(),
        before
    );
}

#[test]
fn records_that_do_not_fit_together_are_refused() {
    let place = Place::new();
    let run = straight(place.folder.path(), "flex");
    place.refuses(
        &["generate", "nowhere"],
        BAD_FILE,
        &["`nowhere` does not exist"],
    );
    let record = run.join("best");
    let shown = record.display().to_string();

    let tokenizer = fs::read_to_string(record.join("tokenizer.json")).unwrap();
    fs::write(record.join("tokenizer.json"), "{\"model\": 3}").unwrap();
    place.refuses(&["generate", &shown, "One"], BAD_FILE, &["tokenizer.json"]);
    let other = place.write("other.txt", "only a few of these letters");
    let prepared = place.path("prepared").display().to_string();
    assert!(
        place
            .run(&["prepare", &other, "--out", &prepared])
            .status
            .success()
    );
    fs::copy(
        Path::new(&prepared).join("tokenizer.json"),
        record.join("tokenizer.json"),
    )
    .unwrap();
    place.refuses(&["generate", &shown, "One"], BAD_FILE, &["tokenizer"]);
    fs::write(record.join("tokenizer.json"), tokenizer).unwrap();

    let config = fs::read_to_string(record.join("config.json")).unwrap();
    fs::write(
        record.join("config.json"),
        config.replace("\"n_layers\": 2", "\"n_layers\": 3"),
    )
    .unwrap();
    place.refuses(
        &["generate", &shown, "One"],
        BAD_FILE,
        &["missing: `blocks.2.attention.query.weight`"],
    );
    fs::write(record.join("config.json"), config).unwrap();

    let weights = fs::read(record.join("model.safetensors")).unwrap();
    fs::write(
        record.join("model.safetensors"),
        &weights[..weights.len() - 9],
    )
    .unwrap();
    place.refuses(
        &["generate", &shown, "One"],
        BAD_FILE,
        &["model.safetensors"],
    );
}

/// A disk of one megabyte, which needs the right to mount one.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_ends_the_run_with_its_code_and_keeps_what_was_saved() {
    let place = Place::new();
    let config = place.write(
        "tiny.toml",
        TINY.replace("keep_last = 2", "keep_last = 100"),
    );
    let disk = place.path("disk").display().to_string();
    fs::create_dir(&disk).unwrap();
    let script = "mount -t tmpfs -o size=1m tmpfs \"$1\" || exit 77\n\
                  shift; \"$@\"; code=$?\n\
                  find \"$DISK\" -name MANIFEST.json | wc -l; exit $code";
    let program = nextword().get_program().to_owned();
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", script, "sh", &disk])
        .arg(program)
        .args([
            "train",
            &config,
            "--quiet",
            "--set",
            "train.steps=400",
            "--set",
            "checkpoint.every=5",
        ])
        .args(["--set", &format!("out=\"{disk}/run\"")])
        .env("DISK", &disk)
        .output();
    let Ok(output) = output else {
        eprintln!("skipped: no unshare here");
        return;
    };
    let error = stderr(&output);
    let may_not = output.status.code() == Some(77) || error.starts_with("unshare:");
    if may_not {
        assert!(!must_not_skip(), "{error}");
        eprintln!("skipped: this user may not mount a disk: {error}");
        return;
    }
    assert_eq!(output.status.code(), Some(RESOURCES), "{error}");
    assert_one_sentence(&error);
    assert!(error.contains("No space left"), "{error}");
    let kept: u32 = String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .unwrap();
    assert!(
        kept >= 2,
        "checkpoints before the disk was full stay: {kept}"
    );
}

/// `StatQuest`'s model answers both prompts, whatever the seed.
#[test]
fn statquest_answers_awesome_to_both_prompts() {
    let place = Place::new();
    let config = root().join("configs/statquest.toml").display().to_string();
    for seed in 1..=5 {
        let set = [format!("seed={seed}"), format!("name=\"s{seed}\"")];
        let trained = place.run(&[
            "train", &config, "--quiet", "--set", &set[0], "--set", &set[1],
        ]);
        assert!(trained.status.success(), "{}", stderr(&trained));
        for prompt in ["what is statquest", "statquest is what"] {
            let run = format!("runs/s{seed}");
            let answer = place.run(&["generate", &run, prompt, "--temperature", "0", "--json"]);
            let answer = json_lines(&answer).remove(0);
            assert_eq!(answer["text"], "awesome", "seed {seed}, {prompt}");
            assert_eq!(answer["finish_reason"], "eos", "seed {seed}, {prompt}");
        }
    }
}

/// The README's way with a text of one's own, and of a record that is trained further.
#[test]
fn a_text_of_ones_own_trains_resumes_from_anywhere_and_is_finetuned() {
    let place = Place::new();
    let text: Vec<String> = nextword_data::Stories::new(3, 40).iter().collect();
    place.write("my.txt", text.join("\n"));
    let config = root()
        .join("configs/shakespeare-char-cpu.toml")
        .display()
        .to_string();
    let mine = ["--set", "data.path=my.txt"];
    let plan = place.run(&[&["plan", &config, "--steps", "1"], &mine[..]].concat());
    assert!(plan.status.success(), "{}", stderr(&plan));
    let short = ["--set", "name=mine", "--set", "train.steps=4", "--quiet"];
    let train = place.run(&[&["train", &config], &mine[..], &short[..]].concat());
    assert!(train.status.success(), "{}", stderr(&train));
    let elsewhere = tempfile::tempdir().unwrap();
    let run = place.path("runs/mine").display().to_string();
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
    let tuned = place.run(&[&["train", &finetune], &set[..]].concat());
    assert!(tuned.status.success(), "{}", stderr(&tuned));
    fs::remove_dir_all(place.path("runs/mine")).unwrap();
    let on = place.run(&[
        "resume",
        "runs/finetune",
        "--quiet",
        "--set",
        "train.steps=3",
    ]);
    assert!(
        on.status.success(),
        "a finetuned run stands by itself: {}",
        stderr(&on)
    );
}

/// Each optimizer learns, and continues as if it had not been stopped.
#[test]
fn every_optimizer_learns_and_resumes() {
    for (kind, rate) in [("sgd", 0.3), ("muon", 0.003), ("adamw", 0.003)] {
        let place = Place::new();
        let losses = |set: &[String]| -> Vec<f64> {
            let mut all = vec![
                format!("optimizer.kind=\"{kind}\""),
                format!("schedule.learning_rate={rate}"),
            ];
            all.extend_from_slice(set);
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            let args = place.train_with(&all);
            let args: Vec<&str> = args.iter().map(String::as_str).chain(["--json"]).collect();
            step_losses(&json_lines(&place.run(&args)))
        };
        let straight = losses(&["name=\"straight\"".to_string()]);
        assert!(straight[23] < straight[0] - 0.2, "{kind}: {straight:?}");
        let half = losses(&[
            "name=\"half\"".to_string(),
            "checkpoint.every=12".to_string(),
            "train.steps=24".to_string(),
            "validation.every=0".to_string(),
        ]);
        assert_eq!(
            half, straight,
            "{kind}: what is kept and measured changes nothing"
        );
        fs::remove_dir_all(place.path("runs/half/checkpoints/step-00000024")).unwrap();
        let rest = step_losses(&json_lines(&place.run(&["resume", "runs/half", "--json"])));
        assert_eq!(rest, straight[12..], "{kind} resumed");
    }
}

fn step_losses(events: &[Value]) -> Vec<f64> {
    let steps = events.iter().filter(|event| event["event"] == "step");
    steps.map(|event| event["loss"].as_f64().unwrap()).collect()
}

#[test]
fn the_way_from_training_to_text() {
    let place = Place::new();
    let run = straight(place.folder.path(), "flex");
    let shown = run.display().to_string();

    let generate = |more: &[&str]| {
        let mut args = vec![
            "generate",
            &shown,
            "One day",
            "--json",
            "--max-tokens",
            "20",
        ];
        args.extend(more);
        json_lines(&place.run(&args)).remove(0)
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
    let unknown = place.run(&["generate", &shown, "One 🦀", "--max-tokens", "3"]);
    assert!(
        unknown.status.success() && stderr(&unknown).contains("🦀"),
        "{}",
        stderr(&unknown)
    );

    let text = place.write("text.txt", "One day a small fox went to the river.");
    let eval = json_lines(&place.run(&["eval", &shown, &text, "--json"])).remove(0);
    let figure = |name: &str| eval["loss"][name].as_f64();
    let (loss, perplexity) = (figure("nats_per_token"), figure("perplexity"));
    assert!(
        (loss.unwrap().exp() - perplexity.unwrap()).abs() < 1e-6,
        "{eval}"
    );

    let inspect = json_lines(&place.run(&["inspect", &shown, "--json"])).remove(0);
    assert!(inspect.to_string().contains("\"step\":"), "{inspect}");
    let plot = place.run(&["plot", &shown]);
    assert!(plot.status.success(), "{}", stderr(&plot));
    let svg = fs::read_to_string(run.join("loss.svg")).unwrap();
    assert!(
        svg.starts_with("<svg") && svg.contains("validation"),
        "{svg}"
    );
    let again = place.run(&["resume", &shown]);
    assert!(
        again.status.success() && stderr(&again).contains("all steps were made"),
        "{}",
        stderr(&again)
    );
}

#[test]
fn plan_tells_parameters_baselines_and_speed_and_writes_nothing() {
    let place = Place::new();
    let config = place.write("tiny.toml", TINY);
    let plan = json_lines(&place.run(&["plan", &config, "--json", "--steps", "2"])).remove(0);
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
    let dry = place.run(&["train", &config, "--dry-run"]);
    assert!(dry.status.success() && !place.path("runs").exists());
}

#[test]
fn prepared_data_trains_like_the_text_itself() {
    let place = Place::new();
    let text: String = nextword_data::Stories::new(3, 12)
        .iter()
        .collect::<Vec<_>>()
        .join("\n\n");
    let path = place.write("text.txt", text);
    let prepared = place.path("prepared").display().to_string();
    assert!(
        place
            .run(&[
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
        let args = place.train_with(&[data, &format!("name=\"{name}\""), "train.steps=6"]);
        let args: Vec<&str> = args.iter().map(String::as_str).chain(["--json"]).collect();
        let events = json_lines(&place.run(&args));
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

/// Every command line in the documents names options that are there.
#[test]
fn commands_in_the_documents_exist() {
    let mut seen = 0;
    for document in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"] {
        let text = fs::read_to_string(root().join(document)).unwrap();
        let lines = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("nextword "));
        for line in lines {
            let mut words = line
                .split('#')
                .next()
                .unwrap_or_default()
                .split_whitespace();
            let command = words.next().unwrap();
            let help = nextword().args([command, "--help"]).output().unwrap();
            assert!(help.status.success(), "{document}: nextword {line}");
            let help = String::from_utf8(help.stdout).unwrap();
            for option in words.filter(|word| word.starts_with("--")) {
                let name = option.split('=').next().unwrap();
                assert!(help.contains(name), "{document}: nextword {line}");
            }
            seen += 1;
        }
    }
    assert!(seen >= 10, "only {seen} commands are shown");
}
