//! Stops within the validations, completions and samples of a run.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use nextword_base::hash::hash_file;
use nextword_data::Tokenizer;
use nextword_model::Transformer;
use serde_json::Value;

use crate::{
    Completion, CompletionRequest, Hooks, Outcome, Progress, Reporter, RunFolder, SampleRequest,
    StopFlag, StopReason, TrainError, Trainer, parse_config, prepare_run, prepare_stored_run,
};

const STEPS: u64 = 4;

/// Raises the flag when the run has reported progress for a number of times.
struct StopAtProgress {
    left: Option<usize>,
    stop: StopFlag,
    seen: Vec<String>,
}

impl Reporter for StopAtProgress {
    fn progressed(&mut self, progress: &Progress<'_>) {
        assert!(progress.done < progress.total, "{progress:?}");
        self.seen.push(progress.what.to_string());
        match &mut self.left {
            Some(0) => self.stop.raise(),
            Some(left) => *left -= 1,
            None => {}
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

/// Starts the run in `folder`, or resumes it, until its end or a stop after `progress` reports of progress.
fn train(folder: &Path, progress: Option<usize>) -> (Outcome, Vec<String>) {
    let run = folder.join("run");
    let trainer = if run.exists() {
        let (folder, config) = RunFolder::open(&run).unwrap();
        Trainer::resume(prepare_stored_run(config).unwrap(), folder).unwrap()
    } else {
        fs::write(folder.join("other.txt"), "one two three ".repeat(30)).unwrap();
        let pairs: Vec<String> = (0..24).map(|i| format!("{i} is\t{}\n", i + 1)).collect();
        fs::write(folder.join("pairs.tsv"), pairs.concat()).unwrap();
        let text = format!(
            "out = {run:?}\n[data]\npairs = {:?}\ntokenizer.kind = 'char'\nsplit.validation = 0.3\n\
             [model]\nn_layers = 1\nn_heads = 2\nd_model = 8\ncontext_length = 32\n\
             [schedule]\nwarmup_steps = 0\n[train]\nsteps = {STEPS}\nbatch_size = 4\n\
             [validation]\nevery = 2\nbatch_size = 3\ncompletions = 2\nalso = {{ name = 'other', path = {:?} }}\n\
             [checkpoint]\nevery = 2\n[samples]\nevery = 2\nprompts = ['a', 'b']\n",
            folder.join("pairs.tsv"),
            folder.join("other.txt"),
        );
        let config = parse_config(&text, Path::new("x.toml"), &[]).unwrap();
        let setup = prepare_run(config).unwrap();
        let folder = RunFolder::create(&run, &setup.config).unwrap();
        Trainer::begin(setup, folder).unwrap()
    };
    let stop = StopFlag::default();
    let mut reporter = StopAtProgress {
        left: progress,
        stop: stop.clone(),
        seen: Vec::new(),
    };
    let outcome = trainer.run(&mut reporter, &mut Generates(stop.clone()), &stop);
    (outcome.unwrap(), reporter.seen)
}

/// Everything that a run determines, without times.
fn artifacts(run: &Path) -> (Vec<Value>, Vec<String>, Value) {
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let without_times = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        let fields = line.as_object_mut().unwrap();
        fields.retain(|key, _| !["elapsed", "tokens_per_second", "memory"].contains(&key.as_str()));
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

/// A stop takes effect at the next batch or completion, also in the last validation. The resumed run does what was left
/// out, and nothing twice.
#[test]
fn a_run_that_is_stopped_within_any_evaluation_ends_with_the_same_files() {
    let whole = tempfile::tempdir().unwrap();
    let (outcome, seen) = train(whole.path(), None);
    assert_eq!(outcome.reason, StopReason::Finished);
    let parts = [
        "validation",
        "loss of other",
        "completions of held-out data",
        "samples",
    ];
    for part in parts {
        assert!(seen.iter().any(|what| what == part), "{part}: {seen:?}");
    }
    let expected = artifacts(&whole.path().join("run"));
    for progress in 0..seen.len() {
        let folder = tempfile::tempdir().unwrap();
        let (outcome, before) = train(folder.path(), Some(progress));
        assert_eq!(outcome.reason, StopReason::Interrupted, "{progress}");
        assert_eq!(
            before,
            seen[..=progress],
            "nothing is computed after the stop"
        );
        let (outcome, _) = train(folder.path(), None);
        assert_eq!(outcome.reason, StopReason::Finished, "{progress}");
        assert_eq!(
            artifacts(&folder.path().join("run")),
            expected,
            "{progress}"
        );
    }
}
