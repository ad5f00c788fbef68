//! Runs on preferences, and what runs forget.
#![allow(clippy::unwrap_used)]

mod other_text;

use std::fs;
use std::path::Path;

use nextword_base::hash::hash_file;
use nextword_model::{Bits, DeviceName, ModelDir};
use serde_json::{Value, json};

use crate::{
    InMemoryTrainer, MetricsLine, NoHooks, OtherTextLoss, Outcome, PreferenceLoss,
    PreferenceMetrics, Reporter, RunConfig, RunFolder, StepReport, StopFlag, StopReason,
    TrainError, Trainer, ValidationReport, parse_config, prepare_conversations, prepare_run,
    prepare_stored_run,
};

/// A folder with the small model of the documents as `base`, and the records in `lines` as `pairs.jsonl`.
fn folder(lines: &[Value]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    fs::create_dir(&base).unwrap();
    for file in [
        "config.json",
        "card.json",
        "tokenizer.json",
        "model.safetensors",
    ] {
        let source = Path::new("../../docs/models/letters").join(file);
        fs::copy(source, base.join(file)).unwrap();
    }
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    fs::write(folder.path().join("pairs.jsonl"), lines.join("\n")).unwrap();
    folder
}

/// Pairs in which "yes" is preferred to "not", whatever the prompt is.
fn pairs(count: usize) -> Vec<Value> {
    let names = ["Mia", "Tom", "Ben", "Ella", "Anna", "Max", "Sam", "Leo"];
    let things = ["cat", "bird", "tree", "house", "road", "lake", "hat", "cup"];
    (0..count)
        .map(|i| {
            let prompt = format!("{} saw the {}", names[i % 8], things[i / 8 % 8]);
            json!({"prompt": prompt, "chosen": "yes", "rejected": "not"})
        })
        .collect()
}

fn rated(count: usize) -> Vec<Value> {
    let of_pair = |pair: Value| {
        [("chosen", true), ("rejected", false)].map(|(key, label)| {
            json!({"prompt": pair["prompt"], "completion": pair[key], "label": label})
        })
    };
    pairs(count).into_iter().flat_map(of_pair).collect()
}

/// A run of the records in `folder`.
fn config(folder: &Path, more: &str) -> RunConfig {
    let text = format!(
        "start_from = {:?}\nout = {:?}\n[data]\nconversations = {:?}\nsplit.validation = 0.25\n{more}",
        folder.join("base"),
        folder.join("run"),
        folder.join("pairs.jsonl"),
    );
    parse_config(&text, Path::new("x.toml"), &[]).unwrap()
}

const SIX_STEPS: &str = "[train]\nsteps = 6\nbatch_size = 3\naccumulation = 2\nlog_every = 1\n\
    [schedule]\nwarmup_steps = 0\nlearning_rate = 1e-3\n[validation]\nevery = 2\ncompletions = 0\n\
    [checkpoint]\nevery = 3\n[preferences]\n";

/// Collects the reports of a run, and stops it after an update.
#[derive(Default)]
struct Collector {
    stop_after: u64,
    stop: StopFlag,
    steps: Vec<StepReport>,
    validations: Vec<ValidationReport>,
    preparations: Vec<String>,
    warnings: Vec<String>,
    other_text: Vec<(u64, Vec<OtherTextLoss>)>,
}

impl Reporter for Collector {
    fn preparing(&mut self, message: &str) {
        self.preparations.push(message.to_string());
        if self.stop_after == WHILE_PREPARING {
            self.stop.raise();
        }
    }

    fn stepped(&mut self, report: &StepReport, _logged: bool) {
        self.steps.push(report.clone());
        if report.step == self.stop_after {
            self.stop.raise();
        }
    }

    fn validated(&mut self, report: &ValidationReport) {
        self.validations.push(*report);
    }

    fn measured_other_text(&mut self, step: u64, losses: &[OtherTextLoss]) {
        self.other_text.push((step, losses.to_vec()));
    }

    fn warned(&mut self, message: &str) {
        self.warnings.push(message.to_string());
    }
}

/// Stops a run while the log probabilities of its reference are computed.
const WHILE_PREPARING: u64 = u64::MAX;

/// Trains `config` in its folder until `stop_after`.
fn train(config: RunConfig, stop_after: u64) -> (Collector, Outcome) {
    let setup = prepare_run(config).unwrap();
    let folder = RunFolder::create(&setup.config.folder(), &setup.config).unwrap();
    let mut reports = Collector {
        stop_after,
        ..Collector::default()
    };
    let stop = reports.stop.clone();
    let trainer = Trainer::begin(setup, folder).unwrap();
    let outcome = trainer.run(&mut reports, &mut NoHooks, &stop).unwrap();
    (reports, outcome)
}

fn resume(run: &Path) -> Result<(Collector, Outcome), TrainError> {
    let (folder, mut config) = RunFolder::open(run)?;
    folder.locate_base(&mut config)?;
    let trainer = Trainer::resume(prepare_stored_run(config)?, folder)?;
    let mut reports = Collector::default();
    let outcome = trainer.run(&mut reports, &mut NoHooks, &StopFlag::default())?;
    Ok((reports, outcome))
}

/// The hashes of the last model and of the moments, and the metrics without times.
fn artifacts(run: &Path, weights: &str) -> (Vec<String>, Vec<MetricsLine>) {
    let files = [
        format!("last/{weights}"),
        format!("best/{weights}"),
        "checkpoints/step-00000006/optimizer.safetensors".to_string(),
        "reference.bin".to_string(),
    ];
    let hashes = files.map(|file| hash_file(&run.join(file)).unwrap().hex());
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let line = |line: &str| MetricsLine {
        elapsed: 0.0,
        tokens_per_second: None,
        memory: None,
        ..serde_json::from_str(line).unwrap()
    };
    (hashes.to_vec(), metrics.lines().map(line).collect())
}

#[test]
fn runs_on_preferences_resume_bit_for_bit() {
    for (records, more, weights) in [
        (pairs(24), "", "model.safetensors"),
        (
            rated(12),
            "loss = 'kto'\n[lora]\nrank = 2\n",
            "adapter.safetensors",
        ),
        (
            pairs(24),
            "loss = 'ipo'\n[lora]\nrank = 2\n",
            "adapter.safetensors",
        ),
    ] {
        let more = format!("{SIX_STEPS}{more}");
        let [whole, part] = [folder(&records), folder(&records)];
        let (reports, _) = train(config(whole.path(), &more), 99);
        assert_eq!(reports.preparations.len(), 1, "{:?}", reports.preparations);
        train(config(part.path(), &more), 4);
        let run = part.path().join("run");
        let reference = hash_file(&run.join("reference.bin")).unwrap().hex();
        let (reports, _) = resume(&run).unwrap();
        assert!(reports.preparations.is_empty(), "computed once");
        assert_eq!(
            hash_file(&run.join("reference.bin")).unwrap().hex(),
            reference
        );
        assert_eq!(
            artifacts(&run, weights),
            artifacts(&whole.path().join("run"), weights),
            "{more}"
        );
    }
}

#[test]
fn a_run_that_is_stopped_while_it_computes_its_reference_ends_with_the_same_files() {
    let [whole, part] = [folder(&pairs(24)), folder(&pairs(24))];
    train(config(whole.path(), SIX_STEPS), 99);
    let (_, outcome) = train(config(part.path(), SIX_STEPS), WHILE_PREPARING);
    assert_eq!((outcome.reason, outcome.step), (StopReason::Interrupted, 0));
    let run = part.path().join("run");
    assert!(!run.join("reference.bin").exists());
    resume(&run).unwrap();
    let weights = "model.safetensors";
    assert_eq!(
        artifacts(&run, weights),
        artifacts(&whole.path().join("run"), weights)
    );
}

#[test]
fn a_resumed_run_needs_the_reference_that_it_began_with() {
    let folder = folder(&pairs(24));
    train(config(folder.path(), SIX_STEPS), 2);
    let run = folder.path().join("run");
    let path = run.join("reference.bin");
    let bytes = fs::read(&path).unwrap();
    let mut damaged = bytes.clone();
    *damaged.last_mut().unwrap() ^= 1;
    fs::write(&path, damaged).unwrap();
    let problem = |run| resume(run).err().unwrap().to_string();
    assert!(problem(&run).contains("checksum"), "{}", problem(&run));
    fs::remove_file(&path).unwrap();
    assert!(
        problem(&run).contains("reference.bin: is missing"),
        "{}",
        problem(&run)
    );
    fs::write(&path, bytes).unwrap();
    assert_eq!(resume(&run).unwrap().1.step, 6);
}

#[test]
fn the_first_step_starts_from_the_reference() {
    for lora in ["", "[lora]\nrank = 2\n"] {
        let folder = folder(&pairs(24));
        let (reports, _) = train(config(folder.path(), &format!("{SIX_STEPS}{lora}")), 99);
        let first = &reports.steps[0];
        assert!((first.loss - 2f64.ln()).abs() < 1e-12, "{}", first.loss);
        let PreferenceMetrics {
            accuracy, margin, ..
        } = first.preferences;
        assert_eq!((accuracy, margin), (Some(0.0), Some(0.0)));
        let last = reports.steps.last().unwrap();
        assert!(last.loss < first.loss, "{} {}", last.loss, first.loss);
    }
}

#[test]
fn adapters_of_quantized_models_learn_preferences() {
    let folder = folder(&pairs(24));
    let path = folder.path().join("base");
    let base = ModelDir::open(&path).unwrap();
    let tokenizer = fs::read_to_string(base.tokenizer_path()).unwrap();
    let device = DeviceName::Flex.open().unwrap();
    let model = base.load(&device).unwrap().quantize(Bits::Int8);
    ModelDir::save(&path, &model, &tokenizer, &base.card).unwrap();
    for recompute in [false, true] {
        let more = format!("{SIX_STEPS}[lora]\nrank = 2\n");
        let mut config = config(folder.path(), &more);
        config.train.recompute = recompute;
        config.out = Some(folder.path().join(format!("run-{recompute}")));
        let (reports, _) = train(config, 99);
        let (first, last) = (&reports.steps[0], &reports.steps[5]);
        assert!((first.loss - 2f64.ln()).abs() < 1e-12, "{}", first.loss);
        assert!(
            last.loss < first.loss && last.preferences.accuracy > Some(0.5),
            "{last:?}"
        );
    }
    let [weights, recomputed] = ["run-false", "run-true"]
        .map(|run| hash_file(&folder.path().join(run).join("last/adapter.safetensors")).unwrap());
    assert_eq!(weights.hex(), recomputed.hex());
}

#[test]
fn a_small_model_learns_what_is_preferred() {
    for (records, loss, lora, steps) in [
        (pairs(64), "dpo", "", 40),
        (pairs(64), "dpo", "[lora]\nrank = 4\n", 40),
        (rated(64), "kto", "", 60),
    ] {
        let folder = folder(&records);
        let more = format!(
            "[train]\nsteps = {steps}\nbatch_size = 8\n[schedule]\nwarmup_steps = 2\nlearning_rate = 3e-3\n\
             [validation]\nevery = 0\ncompletions = 0\n{lora}[preferences]\nloss = '{loss}'\n"
        );
        let setup = prepare_run(config(folder.path(), &more)).unwrap();
        let mut reports = Collector::default();
        let trainer = InMemoryTrainer::new(setup).unwrap();
        trainer.run(&mut reports, &StopFlag::default()).unwrap();
        let found = reports.validations.last().unwrap();
        let metrics = found.preferences;
        assert!(metrics.margin.unwrap() > 0.1, "{loss}: {metrics:?}");
        if loss == "dpo" {
            assert_eq!(metrics.accuracy, Some(1.0), "{metrics:?}");
        } else {
            assert!(metrics.chosen_reward.unwrap() > metrics.rejected_reward.unwrap());
        }
    }
}

#[test]
fn pairs_are_rated_completions_for_kto() {
    let folder = folder(&pairs(8));
    let read = |more: &str| {
        let config = config(folder.path(), &format!("[preferences]\n{more}"));
        prepare_conversations(config).unwrap().unwrap()
    };
    let kto = read("loss = 'kto'");
    assert_eq!(kto.report.train + kto.report.validation, 16);
    assert_eq!(kto.train.len(), 2 * kto.report.train);
    let text = |index| kto.tokenizer.decode(&kto.train.sample(index).unwrap().ids);
    let roles: Vec<_> = (0..kto.train.len())
        .map(|at| kto.role(at).unwrap())
        .collect();
    assert_eq!(
        roles.iter().filter(|role| **role == "good").count(),
        roles.len() / 4
    );
    for pair in 0..kto.report.train {
        let [own, mismatched] = [0, 1].map(|side| kto.train.sample(2 * pair + side).unwrap());
        let start = own.trained[0].start;
        assert_eq!(
            own.ids[..start],
            mismatched.ids[..start],
            "{}",
            text(2 * pair)
        );
        assert_eq!(mismatched.trained[0].start, start);
    }
    let dpo = read("");
    assert_eq!((dpo.report.pairs, dpo.report.longer_chosen), (8, 0));
    assert_eq!(dpo.role(0), Some("chosen"));
    assert_eq!(dpo.role(1), Some("rejected"));
    for pair in 0..dpo.report.train {
        let [chosen, rejected] = [0, 1].map(|side| dpo.train.sample(2 * pair + side).unwrap());
        assert_eq!(
            chosen.ids[..chosen.trained[0].start],
            rejected.ids[..rejected.trained[0].start]
        );
        assert_ne!(chosen.ids, rejected.ids);
    }
    assert_ne!(kto.fingerprint(), dpo.fingerprint());
}

#[test]
fn records_and_loss_must_fit_together() {
    let error = |records: &[Value], more: &str| {
        let folder = folder(records);
        let found = prepare_run(config(folder.path(), more));
        found.err().unwrap().to_string()
    };
    let message = error(&pairs(4), "");
    assert!(
        message.contains("[preferences]") && message.contains("line 1"),
        "{message}"
    );
    let message = error(&rated(4), "[preferences]\n");
    assert!(
        message.contains("rates one completion") && message.contains("kto"),
        "{message}"
    );
    let talk = json!({"messages": [
        {"role": "user", "content": "A"}, {"role": "assistant", "content": "B"},
    ]});
    let message = error(&[talk], "[preferences]\n");
    assert!(message.contains("no completions to compare"), "{message}");

    let parse = |text: &str| {
        let found = parse_config(text, Path::new("x.toml"), &[]);
        found.err().unwrap().to_string()
    };
    let data = "data.conversations = 'x.jsonl'\n";
    for (text, parts) in [
        (
            "data.builtin = 'stories'\n[preferences]\n",
            ["preferences", "stories_preferences"],
        ),
        (
            &format!("{data}[preferences]\nbeta = 0.0\n"),
            ["preferences.beta", "0.1"],
        ),
        (
            &format!("{data}[preferences]\nlabel_smoothing = 0.5\n"),
            ["label_smoothing", "below 0.5"],
        ),
        (
            &format!("{data}[preferences]\nloss = 'kto'\nlabel_smoothing = 0.1\n"),
            ["label_smoothing", "\"dpo\""],
        ),
        (
            &format!("{data}[preferences]\ndesirable_weight = 2.0\n"),
            ["desirable_weight", "\"kto\""],
        ),
        (
            &format!("{data}[preferences]\nloss = 'dp'\n"),
            ["dpo", "kto"],
        ),
    ] {
        let message = parse(text);
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
}

#[test]
fn runs_on_preferences_have_smaller_learning_rates() {
    let folder = folder(&pairs(8));
    for (more, expected) in [("", 1e-5), ("[lora]\n", 1e-4)] {
        let setup = prepare_run(config(folder.path(), &format!("[preferences]\n{more}"))).unwrap();
        let schedule = setup.config.schedule;
        assert!(
            (schedule.learning_rate - expected).abs() < 1e-12,
            "{schedule:?}"
        );
        assert!((schedule.min_learning_rate - expected / 10.0).abs() < 1e-12);
        assert_eq!(setup.config.train.batch_size, 8);
    }
    let supervised = config(folder.path(), "");
    assert_eq!(supervised.train.batch_size, 16);
    assert_eq!(PreferenceLoss::default(), PreferenceLoss::Dpo);
}
