//! Stops within the validations, completions and samples of a run.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use nextword_base::hash::hash_file;
use nextword_data::Tokenizer;
use nextword_model::Transformer;
use serde_json::Value;

use crate::ranks::tests::on_ranks;
use crate::{
    Completion, CompletionRequest, Hooks, OtherTextLoss, Outcome, Progress, Reporter, RunConfig,
    RunFolder, SampleRequest, StopFlag, StopReason, TrainError, Trainer, Worker, parse_config,
    prepare_run, prepare_stored_run,
};

const STEPS: u64 = 4;

/// When a run is stopped.
#[derive(Clone, Copy, Debug)]
enum Stop {
    Never,
    /// After this number of reports of progress.
    AtProgress(usize),
    /// When the losses of other texts are there at first.
    AfterOtherText,
}

/// Raises the flag at `stop`.
struct Stops {
    at: Stop,
    flag: StopFlag,
    seen: Vec<String>,
}

impl Reporter for Stops {
    fn progressed(&mut self, progress: &Progress<'_>) {
        assert!(progress.done < progress.total, "{progress:?}");
        if matches!(self.at, Stop::AtProgress(at) if at == self.seen.len()) {
            self.flag.raise();
        }
        self.seen.push(progress.what.to_string());
    }

    fn measured_other_text(&mut self, _step: u64, _losses: &[OtherTextLoss]) {
        if matches!(self.at, Stop::AfterOtherText) {
            self.flag.raise();
        }
    }
}

/// Generates the same text each time, and ends it early if a stop was requested, as the program does.
struct Generates(StopFlag);

impl Hooks for Generates {
    fn sample(
        &mut self,
        _model: &Transformer,
        _tokenizer: &Arc<dyn Tokenizer>,
        request: &SampleRequest<'_>,
    ) -> Result<Option<String>, TrainError> {
        self.0.check()?;
        Ok(Some(format!("after {}", request.prompt)))
    }

    fn complete(
        &mut self,
        _model: &Transformer,
        _tokenizer: &Arc<dyn Tokenizer>,
        _request: &CompletionRequest<'_>,
    ) -> Result<Option<Completion>, TrainError> {
        self.0.check()?;
        Ok(Some(Completion::default()))
    }
}

/// The configuration of a run in `folder`, with more settings of `[train]`.
fn config(folder: &Path, train: &str) -> RunConfig {
    fs::write(folder.join("other.txt"), "one two three ".repeat(30)).unwrap();
    let pairs: Vec<String> = (0..24).map(|i| format!("{i} is\t{}\n", i + 1)).collect();
    fs::write(folder.join("pairs.tsv"), pairs.concat()).unwrap();
    let text = format!(
        "out = {:?}\n[data]\npairs = {:?}\ntokenizer.kind = 'char'\nsplit.validation = 0.3\n\
         [model]\nn_layers = 1\nn_heads = 2\nd_model = 8\ncontext_length = 32\n\
         [schedule]\nwarmup_steps = 0\n\
         [validation]\nevery = 2\nbatch_size = 3\ncompletions = 2\nalso = {{ name = 'other', path = {:?} }}\n\
         [checkpoint]\nevery = 2\n[samples]\nevery = 2\nprompts = ['a', 'b']\n\
         [train]\nsteps = {STEPS}\nbatch_size = 2\naccumulation = 2\nlanes = 2\n{train}",
        folder.join("run"),
        folder.join("pairs.tsv"),
        folder.join("other.txt"),
    );
    parse_config(&text, Path::new("x.toml"), &[]).unwrap()
}

/// Starts a run in `folder`, or resumes it, until its end or `stop`. Returns its outcome and its progress.
fn train(
    folder: &Path,
    ranks: usize,
    config: impl Fn(&Path) -> RunConfig,
    stop: Stop,
) -> (Outcome, Vec<String>) {
    let run = folder.join("run");
    let is_new = !run.exists();
    let config = if is_new {
        config(folder)
    } else {
        RunFolder::stored_config(&run).unwrap()
    };
    let mut results = on_ranks(ranks, |group| {
        let prepare = if is_new {
            prepare_run
        } else {
            prepare_stored_run
        };
        let mut setup = prepare(config.clone()).unwrap();
        setup.group = group;
        let flag = StopFlag::default();
        if !setup.group.is_first() {
            Worker::new(setup).run(&flag).unwrap();
            return None;
        }
        let trainer = if is_new {
            let folder = RunFolder::create(&run, &setup.config).unwrap();
            Trainer::begin(setup, folder)
        } else {
            let (folder, _) = RunFolder::open(&run).unwrap();
            Trainer::resume(setup, folder)
        };
        let mut reporter = Stops {
            at: stop,
            flag: flag.clone(),
            seen: Vec::new(),
        };
        let outcome = trainer
            .unwrap()
            .run(&mut reporter, &mut Generates(flag.clone()), &flag);
        Some((outcome.unwrap(), reporter.seen))
    });
    results.swap_remove(0).unwrap()
}

/// Keys of metrics that depend on the machine.
const MEASURED: [&str; 4] = ["elapsed", "tokens_per_second", "memory", "waited_share"];

/// Everything that a run determines, without times.
fn artifacts(run: &Path) -> (Vec<Value>, Vec<String>, Value) {
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let without_times = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        let fields = line.as_object_mut().unwrap();
        fields.retain(|key, _| !MEASURED.contains(&key.as_str()));
        line
    };
    let checkpoint = run.join(format!("checkpoints/step-{STEPS:08}"));
    let hashes = [
        checkpoint.join("model.safetensors"),
        checkpoint.join("optimizer.safetensors"),
        run.join("best/model.safetensors"),
        run.join("last/model.safetensors"),
        run.join("samples/step-00000002.txt"),
        run.join("samples/step-00000004.txt"),
    ]
    .map(|file| hash_file(&file).unwrap().hex());
    let state = fs::read_to_string(checkpoint.join("state.json")).unwrap();
    let mut state: Value = serde_json::from_str(&state).unwrap();
    let fields = state.as_object_mut().unwrap();
    fields.retain(|key, _| key != "elapsed" && key != "metrics_bytes");
    (
        metrics.lines().map(without_times).collect(),
        hashes.to_vec(),
        state,
    )
}

/// A stop takes effect at the next batch or completion, also at a step that is saved, and at the last one. The resumed run
/// does what was left out, and nothing twice.
#[test]
fn a_run_that_is_stopped_within_any_evaluation_ends_with_the_same_files() {
    let whole = tempfile::tempdir().unwrap();
    let (expected_outcome, seen) = train(whole.path(), 1, |f| config(f, ""), Stop::Never);
    assert_eq!(expected_outcome.reason, StopReason::Finished);
    let parts = [
        "validation",
        "loss of other",
        "completions of held-out data",
        "samples",
        "samples of held-out data",
    ];
    for part in parts {
        assert!(seen.iter().any(|what| what == part), "{part}: {seen:?}");
    }
    let expected = artifacts(&whole.path().join("run"));
    for (ranks, settings) in [(1, ""), (2, "[parallel]\nshard_optimizer = true\n")] {
        let all = tempfile::tempdir().unwrap();
        let (_, seen) = train(all.path(), ranks, |f| config(f, settings), Stop::Never);
        assert_eq!(
            artifacts(&all.path().join("run")),
            expected,
            "{ranks} ranks"
        );
        for progress in 0..seen.len() {
            let what = format!("{ranks} ranks {settings:?}, {progress}");
            let folder = tempfile::tempdir().unwrap();
            let stop = Stop::AtProgress(progress);
            let (outcome, before) = train(folder.path(), ranks, |f| config(f, settings), stop);
            assert_eq!(outcome.reason, StopReason::Interrupted, "{what}");
            assert_eq!(
                before,
                seen[..=progress],
                "{what}: nothing is computed after the stop"
            );
            let (outcome, _) = train(folder.path(), ranks, |f| config(f, settings), Stop::Never);
            assert_eq!(outcome.reason, StopReason::Finished, "{what}");
            assert_eq!(outcome.other_text, expected_outcome.other_text, "{what}");
            assert_eq!(artifacts(&folder.path().join("run")), expected, "{what}");
        }
    }
}

#[test]
fn losses_before_the_first_step_are_measured_once() {
    let whole = tempfile::tempdir().unwrap();
    train(whole.path(), 1, |f| config(f, ""), Stop::Never);
    let folder = tempfile::tempdir().unwrap();
    let (outcome, _) = train(folder.path(), 1, |f| config(f, ""), Stop::AfterOtherText);
    assert_eq!((outcome.reason, outcome.step), (StopReason::Interrupted, 0));
    train(folder.path(), 1, |f| config(f, ""), Stop::Never);
    let [stopped, whole] = [folder, whole].map(|folder| artifacts(&folder.path().join("run")));
    assert_eq!(stopped, whole);
}

/// Without updates of the weights, the second validation is not better than the first.
#[test]
fn early_stopping_comes_after_what_a_stop_left_out() {
    let patient = |folder: &Path| {
        let mut config = config(folder, "");
        config.train.steps = STEPS + 2;
        config.validation.patience = 1;
        (
            config.schedule.learning_rate,
            config.schedule.min_learning_rate,
        ) = (1e-30, 1e-30);
        config
    };
    let whole = tempfile::tempdir().unwrap();
    train(whole.path(), 1, patient, Stop::Never);
    let expected = artifacts(&whole.path().join("run"));
    for ranks in [1, 2] {
        let all = tempfile::tempdir().unwrap();
        let (outcome, seen) = train(all.path(), ranks, patient, Stop::Never);
        assert_eq!(
            (outcome.reason, outcome.step),
            (StopReason::EarlyStopped, STEPS)
        );
        let other = seen.iter().rposition(|what| what == "loss of other");
        for progress in other.unwrap()..seen.len() {
            let what = format!("{ranks} ranks, {progress}");
            let folder = tempfile::tempdir().unwrap();
            let (outcome, _) = train(folder.path(), ranks, patient, Stop::AtProgress(progress));
            assert_eq!(outcome.reason, StopReason::Interrupted, "{what}");
            let (outcome, _) = train(folder.path(), ranks, patient, Stop::Never);
            assert_eq!(outcome.reason, StopReason::EarlyStopped, "{what}");
            assert_eq!(artifacts(&folder.path().join("run")), expected, "{what}");
        }
    }
}
