#![allow(clippy::unwrap_used, clippy::float_cmp)] // Same bits, or simple values.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

const CONFIG: &str = "
    name = 'tiny'
    seed = 3
    data.builtin = 'stories'
    data.documents = 40
    data.split.validation = 0.2
    data.tokenizer.kind = 'char'
    model.n_layers = 1
    model.n_heads = 2
    model.d_model = 8
    model.context_length = 16
    train.steps = 12
    train.batch_size = 2
    train.log_every = 3
    validation.every = 4
    validation.windows = 8
    checkpoint.every = 5
    schedule.warmup_steps = 0
";

fn options(folder: &Path) -> SweepOptions {
    SweepOptions {
        config_path: "tiny.toml".into(),
        config_text: CONFIG.to_string(),
        set: vec![],
        vary: vec![
            "schedule.learning_rate=1e-3,1e-2".parse().unwrap(),
            "model.d_model=8,16".parse().unwrap(),
        ],
        seeds: 2,
        budget: None,
        folder: Some(folder.to_path_buf()),
        keep_best: None,
        parallel: Some(2),
    }
}

fn run(options: SweepOptions) -> SweepReport {
    let sweep = Sweep::prepare(options).unwrap();
    sweep
        .run(&InProcess, &NullObserver, &StopFlag::default())
        .unwrap()
}

/// Everything that does not depend on the machine.
fn without_measurements(report: &SweepReport) -> String {
    let mut report = report.clone();
    for arm in &mut report.arms {
        arm.measured = RunMeasurement::default();
        for run in arm.runs.iter_mut().filter_map(|run| run.result.as_mut()) {
            run.measured = RunMeasurement::default();
        }
    }
    to_json(&report)
}

/// Stops a run after some updates, as a signal does, and then fails all others.
struct Interrupting {
    updates_left: AtomicUsize,
}

impl Launcher for Interrupting {
    fn launch(
        &self,
        spec: &RunSpec,
        threads: usize,
        _stop: &StopFlag,
        _progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Option<RunResult>, ExperimentError> {
        let stop = StopFlag::default();
        let handle = stop.clone();
        let count = |value: usize| value.checked_sub(1);
        let mut progress = move |_: u64, _: u64| {
            let left = &self.updates_left;
            if left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, count)
                .is_err()
            {
                handle.raise();
            }
        };
        InProcess.launch(spec, threads, &stop, &mut progress)
    }
}

#[test]
fn adapters_are_counted_by_what_they_train() {
    let folder = tempfile::tempdir().unwrap();
    let report = run(SweepOptions {
        config_text: "
            start_from = '../../docs/models/letters'
            data.builtin = 'stories'
            data.documents = 12
            train.steps = 1
            train.batch_size = 1
            train.sequence_length = 16
            validation.windows = 2
            lora.rank = 1
        "
        .to_string(),
        vary: vec!["lora.rank=1,2".parse().unwrap()],
        seeds: 1,
        ..options(folder.path())
    });
    let [first, second] = [0, 1].map(|arm| report.arms[arm].trained_parameters.unwrap());
    assert!(first > 0 && second == 2 * first, "{first} {second}");
    assert_eq!(report.arms[0].parameters, report.arms[1].parameters);
}

#[test]
fn an_interrupted_sweep_ends_with_the_results_of_an_undisturbed_one() {
    let folder = tempfile::tempdir().unwrap();
    let undisturbed = run(options(&folder.path().join("a")));
    assert!(undisturbed.is_complete());
    let other = folder.path().join("b");
    for updates in [7, 0, 20, 21] {
        let sweep = Sweep::prepare(options(&other)).unwrap();
        let launcher = Interrupting {
            updates_left: AtomicUsize::new(updates),
        };
        let report = sweep
            .run(&launcher, &NullObserver, &StopFlag::default())
            .unwrap();
        assert!(!report.is_complete());
    }
    let resumed = run(options(&other));
    assert_eq!(
        without_measurements(&resumed),
        without_measurements(&undisturbed)
    );
    // Nothing is left to train, and the results stay.
    assert_eq!(run(options(&other)), resumed);
}

#[test]
fn differences_are_paired_by_seed() {
    let folder = tempfile::tempdir().unwrap();
    let report = run(options(folder.path()));
    assert_eq!(
        (report.arms.len(), report.metric),
        (4, Metric::ValidationLoss)
    );
    let loss = |arm: usize, seed: usize| {
        report.arms[arm].runs[seed]
            .result
            .as_ref()
            .unwrap()
            .validation_loss
            .unwrap()
    };
    let differences = [loss(2, 0) - loss(0, 0), loss(2, 1) - loss(0, 1)];
    let interval = report.arms[2].difference.unwrap();
    assert_eq!(interval.mean, f64::midpoint(differences[0], differences[1]));
    assert!(interval.contains(differences[0].min(interval.mean)));
    assert!(report.arms[0].difference.is_none());
    assert_ne!(loss(0, 0).to_bits(), loss(0, 1).to_bits());
    assert!(report.arms[1].parameters > report.arms[0].parameters);
    let curve = report.arms[0].mean_curve(Metric::ValidationLoss).unwrap();
    assert_eq!(
        curve.iter().map(|(step, _)| *step).collect::<Vec<_>>(),
        [4, 8, 12]
    );
    assert_eq!(curve[2].1, report.arms[0].loss.unwrap().mean);
    let stored = std::fs::read_to_string(folder.path().join("results.json")).unwrap();
    assert!(stored.contains("\"mean_difference\""));
}

#[test]
fn runs_are_ordinary_run_folders_with_the_settings_of_their_arm() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path());
    options.budget = Some(Budget::Tokens(160));
    let report = run(options);
    let run = folder.path().join(&report.arms[3].runs[1].folder);
    let (_, config) = nextword_train::RunFolder::open(&run).unwrap();
    assert_eq!(
        (config.model.d_model, config.seed, config.train.steps),
        (16, 4, 5)
    );
    assert_eq!(config.schedule.learning_rate.to_bits(), 1e-2_f64.to_bits());
    let result = report.arms[3].runs[1].result.as_ref().unwrap();
    assert_eq!((result.step, result.tokens), (5, 160));
}

#[test]
fn another_sweep_is_refused_and_more_arms_are_added() {
    let folder = tempfile::tempdir().unwrap();
    let first = run(options(folder.path()));
    let mut changed = options(folder.path());
    changed.set.push("train.batch_size=3".to_string());
    let error = Sweep::prepare(changed).unwrap_err().to_string();
    assert!(error.contains("the configuration has changed"), "{error}");
    let mut more = options(folder.path());
    more.vary[1].values.push("4".to_string());
    more.seeds = 3;
    let report = run(more);
    assert_eq!((report.arms.len(), report.seeds.len()), (6, 3));
    assert_eq!(report.arms[0].runs[..2], first.arms[0].runs[..]);
}

#[test]
fn an_arm_that_cannot_be_trained_is_named_before_the_first_run() {
    let folder = tempfile::tempdir().unwrap();
    let mut invalid = options(folder.path());
    invalid.vary[1].values.push("9".to_string());
    let error = Sweep::prepare(invalid).unwrap_err().to_string();
    assert!(error.contains("model.d_model=9"), "{error}");
    let mut contradictory = options(folder.path());
    contradictory.budget = Some(Budget::Steps(3));
    contradictory.vary.push("train.steps=1,2".parse().unwrap());
    assert!(Sweep::prepare(contradictory).is_err());
    assert!(!folder.path().join("results.json").exists());
}

#[test]
fn a_run_that_diverges_has_a_result_and_no_loss() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path());
    options.vary = vec!["schedule.learning_rate=1e-3,1e30".parse().unwrap()];
    let report = run(options);
    assert!(report.is_complete() && report.arms[1].loss.is_none());
    let result = report.arms[1].runs[0].result.as_ref().unwrap();
    assert!(result.diverged.as_ref().unwrap().contains("diverged"));
}

#[test]
fn only_the_best_models_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path());
    options.keep_best = Some(1);
    let report = run(options);
    let runs = report.arms.iter().flat_map(|arm| &arm.runs);
    let kept: Vec<_> = runs.filter(|run| run.path.join("best").exists()).collect();
    assert_eq!(kept.len(), 1);
    let losses = report.arms.iter().flat_map(|arm| &arm.runs);
    let lowest = losses
        .filter_map(|run| run.loss(report.metric))
        .reduce(f64::min);
    assert_eq!(kept[0].loss(report.metric), lowest);
    assert!(report.arms[0].runs[0].path.join("metrics.jsonl").exists());
}
