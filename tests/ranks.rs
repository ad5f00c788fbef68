//! Training on several ranks, as threads of one process: the bits of one rank. `scripts/check_mpi.sh` does the same
//! with processes.

use std::fs;
use std::path::Path;

use nextword_parallel::{Group, ParallelError};
use nextword_train::{
    NoHooks, NullReporter, RunConfig, RunFolder, StopFlag, StopReason, TrainError, Trainer, Worker,
    parse_config, prepare_run, prepare_stored_run,
};
use serde_json::Value;

use crate::resume::TINY;
use crate::util::{copy, sha256};

/// What makes the shared run one of 20 steps whose updates, and whose validations, several ranks can share.
const DIVIDED: [&str; 8] = [
    "train.steps=20",
    "train.batch_size=2",
    "train.accumulation=8",
    "train.lanes=8",
    "validation.every=10",
    "validation.windows=12",
    "validation.batch_size=2",
    "checkpoint.every=0",
];

pub(crate) fn config(set: &[&str]) -> RunConfig {
    let set: Vec<String> = DIVIDED.iter().chain(set).map(ToString::to_string).collect();
    parse_config(TINY, Path::new("tiny.toml"), &set).unwrap()
}

/// Runs `work` on `ranks` threads and returns the results in the order of the ranks.
fn on_ranks<T: Send>(ranks: usize, work: impl Fn(Group) -> T + Sync) -> Vec<T> {
    let groups = Group::threads(ranks).unwrap();
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = groups
            .into_iter()
            .map(|group| scope.spawn(move || work(group)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    })
}

/// Starts a run in `folder`, or resumes the one there, and trains until the end of `config`.
fn train_rank(group: Group, config: RunConfig, folder: &Path) -> Result<StopReason, TrainError> {
    let is_new = config.run_folder.is_none();
    let mut setup = if is_new {
        prepare_run(config)?
    } else {
        prepare_stored_run(config)?
    };
    setup.group = group;
    let stop = StopFlag::default();
    if !setup.group.is_first() {
        return Worker::new(setup).run(&stop);
    }
    let trainer = if is_new {
        let folder = RunFolder::create(folder, &setup.config)?;
        Trainer::begin(setup, folder)?
    } else {
        let (folder, _) = RunFolder::open(folder)?;
        Trainer::resume(setup, folder)?
    };
    Ok(trainer.run(&mut NullReporter, &mut NoHooks, &stop)?.reason)
}

/// Trains a new run on `ranks`.
fn train(ranks: usize, config: &RunConfig, folder: &Path) {
    let ends = on_ranks(ranks, |group| train_rank(group, config.clone(), folder));
    for end in ends {
        assert_eq!(end.unwrap(), StopReason::Finished);
    }
}

/// Continues a run on `ranks` until update `steps`.
fn resume(ranks: usize, steps: u64, folder: &Path) {
    let (lock, mut config) = RunFolder::open(folder).unwrap();
    drop(lock);
    config.train.steps = steps;
    let ends = on_ranks(ranks, |group| train_rank(group, config.clone(), folder));
    for end in ends {
        assert_eq!(end.unwrap(), StopReason::Finished);
    }
}

/// Weights, moments and metrics without times.
fn artifacts(folder: &Path, step: u64) -> (String, String, Vec<Value>) {
    let checkpoint = folder.join(format!("checkpoints/step-{step:08}"));
    let metrics = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let metrics = metrics.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        for changing in ["elapsed", "tokens_per_second", "waited_share", "memory"] {
            line.as_object_mut().unwrap().remove(changing);
        }
        line
    });
    (
        sha256(&checkpoint.join("model.safetensors")),
        sha256(&checkpoint.join("optimizer.safetensors")),
        metrics.collect(),
    )
}

#[test]
fn any_allowed_number_of_ranks_has_the_bits_of_one() {
    let variants: [&[&str]; 6] = [
        &[],
        &["optimizer.kind=sgd", "optimizer.momentum=0.9"],
        &["optimizer.kind=muon"],
        &["train.precision=bf16"],
        &["data.packing=documents", "data.order=random"], // Unequal numbers of targets.
        &[
            "train.recompute=true",
            "train.accumulation=16",
            "train.batch_size=1",
        ],
    ];
    for variant in variants {
        let config = config(variant);
        let folder = tempfile::tempdir().unwrap();
        let run = |ranks: usize| folder.path().join(ranks.to_string());
        train(1, &config, &run(1));
        let expected = artifacts(&run(1), 20);
        assert_eq!(expected.2.len(), 22, "20 updates and 2 validations");
        for ranks in [2, 4, 8] {
            train(ranks, &config, &run(ranks));
            assert_eq!(
                artifacts(&run(ranks), 20),
                expected,
                "{ranks} ranks, {variant:?}"
            );
        }
        let mut sharded = config;
        sharded.parallel.shard_optimizer = true;
        train(4, &sharded, &run(40));
        assert_eq!(artifacts(&run(40), 20), expected, "shards, {variant:?}");
    }
}

#[test]
fn models_of_all_kinds_have_the_bits_of_one_rank() {
    let variants: [&[&str]; 5] = [
        &["model.tied_head=false", "model.bias.head=true"],
        &["model.score_soft_cap=30.0"], // The backward pass is not divided.
        &[
            "model.position=rotary",
            "model.norm=rms",
            "model.feed_forward=swiglu",
            "model.n_kv_heads=1",
        ],
        &["model.architecture=encoder", "data.masked.rate=0.15"],
        &["checkpoint.every=2", "parallel.shard_optimizer=true"], // Moments are gathered during the run.
    ];
    for variant in variants {
        let set = [&["train.steps=4", "validation.every=2"], variant].concat();
        let config = config(&set);
        let folder = tempfile::tempdir().unwrap();
        let run = |ranks: usize| folder.path().join(ranks.to_string());
        let [expected, found] = [1, 2].map(|ranks| {
            train(ranks, &config, &run(ranks));
            artifacts(&run(ranks), 4)
        });
        assert_eq!(found, expected, "{variant:?}");
    }
}

/// Runs whose batches have rows of different lengths: packed conversations, and pairs of an encoder and a decoder.
const SAMPLES: [(&str, &str); 2] = [
    (
        "packed conversations",
        "builtin = 'stories_chat'\ndocuments = 40\ntokenizer.kind = 'bpe'\ntokenizer.vocab_size = 400\n\
         packing = 'samples'\nchat_template = 'plain'\nsplit.validation = 0.1\n[model]\ncontext_length = 160",
    ),
    (
        "pairs",
        "pairs = 'translation'\ndocuments = 60\ntokenizer.kind = 'word'\n[model]\ncontext_length = 32\n\
         architecture = 'encoder_decoder'",
    ),
];

#[test]
fn packed_conversations_and_pairs_train_on_ranks() {
    for (kind, data) in SAMPLES {
        let text = format!(
            "name = 'samples'\n[data]\n{data}\nn_layers = 1\nn_heads = 2\nd_model = 16\n\
             [model.dropout]\nresidual = 0.1\n\
             [train]\nsteps = 6\nbatch_size = 2\naccumulation = 4\nlanes = 4\nlog_every = 1\n\
             [schedule]\nkind = 'constant'\nwarmup_steps = 0\n[validation]\nevery = 3\ncompletions = 0\n"
        );
        let folder = tempfile::tempdir().unwrap();
        let run = |name: &str| folder.path().join(name);
        let mut config = parse_config(&text, Path::new("samples.toml"), &[]).unwrap();
        train(1, &config, &run("1"));
        let expected = artifacts(&run("1"), 6);
        assert_eq!(expected.2.len(), 8, "6 updates and 2 validations");
        train(2, &config, &run("2"));
        assert_eq!(artifacts(&run("2"), 6), expected, "{kind} on 2 ranks");
        config.parallel.shard_optimizer = true;
        train(4, &config, &run("4"));
        assert_eq!(artifacts(&run("4"), 6), expected, "{kind} in 4 shards");
    }
}

#[test]
fn one_lane_and_eight_add_in_different_orders() {
    let folder = tempfile::tempdir().unwrap();
    let [one, eight] = [1, 8].map(|lanes| {
        let run = folder.path().join(lanes.to_string());
        train(1, &config(&[&format!("train.lanes={lanes}")]), &run);
        artifacts(&run, 20)
    });
    assert_ne!(one.0, eight.0);
    let loss = |lines: &[Value]| lines.last().unwrap()["val_loss"].as_f64().unwrap();
    assert!((loss(&one.2) - loss(&eight.2)).abs() < 1e-3);
}

#[test]
fn a_run_continues_on_any_number_of_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    train(1, &config(&["schedule.end_step=20"]), &whole);
    train(
        1,
        &config(&["schedule.end_step=20", "train.steps=5"]),
        &parts,
    );
    for (ranks, steps) in [(4, 10), (2, 15), (1, 20)] {
        resume(ranks, steps, &parts);
    }
    let (weights, moments, _) = artifacts(&whole, 20);
    let (resumed_weights, resumed_moments, _) = artifacts(&parts, 20);
    assert_eq!((resumed_weights, resumed_moments), (weights, moments));
}

#[test]
fn a_run_with_shards_continues_on_any_number_of_ranks() {
    let folder = tempfile::tempdir().unwrap();
    for kind in ["adamw", "muon"] {
        let (whole, parts) = (
            folder.path().join(format!("{kind}-whole")),
            folder.path().join(format!("{kind}-parts")),
        );
        let kind = format!("optimizer.kind={kind}");
        train(1, &config(&["schedule.end_step=20", &kind]), &whole);
        let shards = [
            "schedule.end_step=20",
            &kind,
            "train.steps=5",
            "parallel.shard_optimizer=true",
        ];
        train(2, &config(&shards), &parts);
        for (ranks, steps) in [(8, 9), (1, 12), (4, 16), (2, 20)] {
            resume(ranks, steps, &parts);
        }
        let (weights, moments, _) = artifacts(&whole, 20);
        let (resumed_weights, resumed_moments, _) = artifacts(&parts, 20);
        assert_eq!((resumed_weights, resumed_moments), (weights, moments));
    }
}

#[test]
fn a_finetuned_run_and_its_adapter_train_on_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    train(1, &config(&["train.steps=2"]), &base);
    let start = format!("start_from={:?}", base.join("last").display().to_string());
    for lora in [None, Some("lora.rank=2")] {
        let set: Vec<&str> = ["train.steps=5", &start].into_iter().chain(lora).collect();
        let mut config = config(&set);
        config.model = nextword_model::ModelConfig::default();
        let weights = [(1, false), (4, false), (4, true)].map(|(ranks, shards)| {
            let name = format!("{ranks}-{shards}-{}", lora.is_some());
            let run = folder.path().join(name);
            config.parallel.shard_optimizer = shards;
            train(ranks, &config, &run);
            let file = if lora.is_some() { "adapter" } else { "model" };
            sha256(&run.join(format!("last/{file}.safetensors")))
        });
        assert_eq!(weights[0], weights[1], "{lora:?}");
        assert_eq!(weights[0], weights[2], "{lora:?} in shards");
    }
}

#[test]
fn ranks_that_cannot_share_a_step_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let ends = on_ranks(3, |group| {
        let run = folder.path().join("three");
        train_rank(group, config(&[]), &run)
            .unwrap_err()
            .to_string()
    });
    for error in ends {
        assert!(error.contains("3 ranks cannot share 8 lanes"), "{error}");
        assert!(error.contains("1, 2, 4 or 8 ranks"), "{error}");
    }
}

#[test]
fn other_data_or_settings_on_a_rank_end_the_run_on_all() {
    let folder = tempfile::tempdir().unwrap();
    for (other, subject) in [
        ("data.documents=11", "the data"),
        ("optimizer.weight_decay=0.2", "the configuration"),
        ("validation.every=7", "the configuration"),
    ] {
        let errors = on_ranks(2, |group| {
            let set = if group.rank() == 1 {
                other
            } else {
                "seed=1337"
            };
            let run = folder.path().join(other);
            train_rank(group, config(&[set]), &run).unwrap_err()
        });
        for error in errors {
            let is_named = matches!(
                &error,
                TrainError::Parallel(ParallelError::Differs { rank, subject: found, .. })
                    if rank.starts_with("rank 1") && found.starts_with(subject)
            );
            assert!(is_named, "{other}: {error}");
        }
    }
}

#[test]
fn a_stop_of_one_rank_stops_all_after_the_same_step() {
    let config = config(&["train.steps=100000", "validation.every=0"]);
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let reasons = on_ranks(2, |group| {
        let mut setup = prepare_run(config.clone()).unwrap();
        setup.group = group;
        let stop = StopFlag::default();
        if setup.group.is_first() {
            let folder = RunFolder::create(&run, &setup.config).unwrap();
            let trainer = Trainer::begin(setup, folder).unwrap();
            return trainer
                .run(&mut NullReporter, &mut NoHooks, &stop)
                .unwrap()
                .reason;
        }
        let flag = stop.clone();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                while !flag.has_stepped() {
                    std::thread::yield_now();
                }
                flag.raise();
            });
            Worker::new(setup).run(&stop).unwrap()
        })
    });
    assert_eq!(reasons, [StopReason::Interrupted; 2]);
    assert!(run.join("last/model.safetensors").is_file());
}

#[test]
fn a_diverging_run_names_the_same_tensor_on_all_ranks() {
    let config = config(&[
        "optimizer.kind=sgd",
        "schedule.learning_rate=1e30",
        "optimizer.clip_norm=0",
    ]);
    let folder = tempfile::tempdir().unwrap();
    let errors = on_ranks(4, |group| {
        let run = folder.path().join("run");
        let mut error = train_rank(group, config.clone(), &run).unwrap_err();
        assert!(matches!(error, TrainError::Diverged { .. }), "{error}");
        if let TrainError::Diverged { checkpoint, .. } = &mut error {
            *checkpoint = None; // Only rank 0 knows it.
        }
        error.to_string()
    });
    assert!(errors.iter().all(|error| *error == errors[0]), "{errors:?}");
}

#[test]
fn an_error_of_one_rank_ends_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let (run, copied) = (folder.path().join("run"), folder.path().join("copy"));
    train(1, &config(&["train.steps=2"]), &run);
    copy(&run, &copied);
    let ends = on_ranks(2, |group| {
        if group.rank() == 1 {
            group.abort(3); // As the program does after an error.
            return Ok(StopReason::Finished);
        }
        let (lock, mut config) = RunFolder::open(&copied).unwrap();
        drop(lock);
        config.train.steps = 4;
        train_rank(group, config, &copied)
    });
    let is_lost = matches!(
        ends[0],
        Err(TrainError::Parallel(ParallelError::Lost { .. }))
    );
    assert!(is_lost, "{:?}", ends[0]);
    resume(1, 4, &copied);
    resume(1, 4, &run);
    assert_eq!(artifacts(&copied, 4), artifacts(&run, 4));
}

#[test]
fn a_group_that_is_dropped_by_a_panic_ends_the_other_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let ends = on_ranks(2, |group| {
        if group.rank() == 1 {
            let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let dropped = group; // While the stack unwinds.
                assert!(dropped.is_first(), "a panic of the test");
            }));
            assert!(panicked.is_err());
            return Ok(StopReason::Finished);
        }
        train_rank(group, config(&[]), &run)
    });
    let is_lost = matches!(
        ends[0],
        Err(TrainError::Parallel(ParallelError::Lost { .. }))
    );
    assert!(is_lost, "{:?}", ends[0]);
}
