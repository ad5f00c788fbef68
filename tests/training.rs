//! Training: lengths of sequences, counts of tokens, gradients that are zero, and divergence.

use std::path::Path;
use std::process::Output;

use burn::module::Module;
use nextword_data::{Builtin, DataConfig, Dataset, Packing, TokenizerConfig, TokenizerKind};
use nextword_model::{
    CounterRng, DropoutConfig, ModelCard, ModelConfig, ModelDir, Position, presets, weights,
};
use nextword_train::plan::Plan;
use nextword_train::{
    InMemoryTrainer, NullReporter, RunConfig, RunSetup, StopFlag, TrainedModel, forward_backward,
    parse_config, prepare_run,
};

use crate::test_dir::{DIVERGED, TestDir, USAGE, assert_one_error};
use crate::util::{batch, flex, stderr};

/// Runs the program with `args` and one `--set` for each of `set`.
pub(crate) fn run(dir: &TestDir, args: &[&str], set: &[&str]) -> Output {
    let set = set.iter().flat_map(|set| ["--set", *set]);
    dir.run(&args.iter().copied().chain(set).collect::<Vec<_>>())
}

pub(crate) fn succeeds(dir: &TestDir, args: &[&str], set: &[&str]) -> Output {
    let output = run(dir, args, set);
    assert!(
        output.status.success(),
        "{args:?} {set:?}: {}",
        stderr(&output)
    );
    output
}

/// Trains the tiny model of [`crate::resume::TINY`].
pub(crate) fn train(dir: &TestDir, set: &[&str]) -> Output {
    let args = dir.train_with(set);
    dir.run(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The number after `before` in `text`.
fn number_after(text: &str, before: &str) -> Option<String> {
    let (_, rest) = text.split_once(before)?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    (!digits.is_empty()).then_some(digits)
}

#[test]
fn a_model_with_a_long_context_finetunes_on_a_shorter_text() {
    let dir = TestDir::new();
    let text = "What a day. ".repeat(670);
    let data = Dataset::from_text(&text, &TokenizerConfig::bytes()).unwrap();
    let config = ModelConfig {
        vocab_size: data.tokenizer.vocab_size(),
        context_length: 8192,
        n_layers: 1,
        n_heads: 2,
        d_model: 8,
        position: Position::Rotary,
        ..ModelConfig::default()
    };
    let model = config.init(&flex(), 3).unwrap();
    let json = data.tokenizer.to_json().unwrap();
    ModelDir::save(&dir.path("base"), &model, &json, &ModelCard::default()).unwrap();
    dir.write("text.txt", &text);
    dir.write(
        "tune.toml",
        "name = 'tuned'\nstart_from = 'base'\ndata.path = 'text.txt'\n\
         [train]\nsteps = 2\nbatch_size = 1\n[schedule]\nwarmup_steps = 0\n[validation]\nwindows = 1\n",
    );
    let tokens = data.train.len();
    assert!((7000..8000).contains(&tokens)); // Less than the context.
    dir.rejects(
        &["train", "tune.toml"],
        USAGE,
        &[&format!("{tokens} tokens"), "8192"],
    );
    let error = stderr(&run(&dir, &["train", "tune.toml"], &[]));
    let length = number_after(&error, "set train.sequence_length to ").unwrap();
    let set = format!("train.sequence_length={length}");
    succeeds(&dir, &["train", "tune.toml"], &[&set, "name=hint"]);

    succeeds(&dir, &["train", "tune.toml"], &["train.sequence_length=64"]);
    let saved = ModelDir::open(&dir.path("runs/tuned/last")).unwrap();
    assert_eq!(saved.config.context_length, 8192);
    assert_eq!(saved.card.tokens, 2 * 64);
    succeeds(&dir, &["resume", "runs/tuned"], &["train.steps=3"]);
    // The context is the model's; the message names the key for the other wish.
    let set = ["model.context_length=100", "name=no"];
    let error = stderr(&run(&dir, &["train", "tune.toml"], &set));
    assert!(error.contains("train.sequence_length = 100"), "{error}");
    let error = stderr(&run(
        &dir,
        &["train", "tune.toml"],
        &["train.sequence_length=8193", "name=longer"],
    ));
    assert!(error.contains("set it from 1 to 8192"), "{error}");
}

/// Applies the hints of errors about lengths until there are no more.
#[test]
fn hints_about_lengths_are_accepted() {
    let dir = TestDir::new();
    let mut hints = 0;
    for length in (2..40).chain([63, 64, 65, 71, 72, 100]) {
        for packing in ["packed", "documents"] {
            let file = dir.write(
                "text.txt",
                "ab c".chars().cycle().take(length).collect::<String>(),
            );
            let text = format!(
                "[data]\npath = {file:?}\npacking = \"{packing}\"\n[model]\nn_layers = 1\nd_model = 8\n\
                 [train]\nsteps = 1\n[schedule]\nwarmup_steps = 0\n"
            );
            let mut set: Vec<String> = Vec::new();
            let setup = loop {
                let config = parse_config(&text, Path::new("x.toml"), &set).unwrap();
                let error = match prepare_run(config) {
                    Ok(setup) => break setup,
                    Err(error) => error.to_string(),
                };
                hints += 1;
                let hint = if let Some(n) = number_after(&error, "set train.sequence_length to ") {
                    format!("train.sequence_length={n}")
                } else if error.contains("data.split.validation (0 trains without validation)")
                    || error.contains("set data.split.validation = 0 ")
                {
                    "data.split.validation=0.0".to_string()
                } else if error.contains("data.packing = \"packed\"") {
                    "data.packing=packed".to_string()
                } else if error.contains("hint: give more text") {
                    break dir_setup(&dir);
                } else {
                    panic!("{length} {packing} {set:?}: {error}");
                };
                assert!(
                    !set.contains(&hint),
                    "{length}: {hint} was not enough: {error}"
                );
                set.push(hint);
            };
            let trained = InMemoryTrainer::new(setup).unwrap();
            trained
                .run(&mut NullReporter, &StopFlag::default())
                .unwrap();
        }
    }
    assert!(hints >= 40, "{hints}");
}

/// A setup with enough text.
fn dir_setup(dir: &TestDir) -> RunSetup {
    let file = dir.write("enough.txt", "abc ".repeat(100));
    let text = format!(
        "data.path = {file:?}\ntrain.steps = 1\nschedule.warmup_steps = 0\nmodel.d_model = 8\n"
    );
    prepare_run(parse_config(&text, Path::new("x.toml"), &[]).unwrap()).unwrap()
}

fn train_in_memory(change: impl FnOnce(&mut RunConfig)) -> TrainedModel {
    let dataset = Dataset::from_text(&"to be or not to be ".repeat(50), &TokenizerConfig::chars());
    let mut config = RunConfig {
        model: ModelConfig {
            context_length: 16,
            n_layers: 2,
            n_heads: 2,
            d_model: 16,
            position: Position::Rotary,
            ..ModelConfig::default()
        },
        ..RunConfig::default()
    };
    config.train.steps = 4;
    config.schedule.warmup_steps = 0;
    change(&mut config);
    let setup = RunSetup::from_dataset(config, dataset.unwrap()).unwrap();
    let trainer = InMemoryTrainer::new(setup).unwrap();
    trainer
        .run(&mut NullReporter, &StopFlag::default())
        .unwrap()
}

fn weight_bits(trained: &TrainedModel) -> Vec<u32> {
    let mut bits = Vec::new();
    weights::for_each(&trained.model, |_, data| {
        bits.extend(
            weights::to_f32_vec(data)
                .iter()
                .map(|value| value.to_bits()),
        );
    });
    bits
}

#[test]
fn shorter_sequences_train_like_a_model_with_that_context() {
    let whole = train_in_memory(|_| {});
    let same = train_in_memory(|config| config.train.sequence_length = Some(16));
    assert!(weight_bits(&whole) == weight_bits(&same));
    let longer = train_in_memory(|config| {
        config.model.context_length = 64;
        config.train.sequence_length = Some(16);
    });
    assert!(weight_bits(&whole) == weight_bits(&longer));
    assert_eq!(whole.card.validation_loss, longer.card.validation_loss);
    assert_eq!(longer.model.config().context_length, 64);
    let shorter = train_in_memory(|config| config.train.sequence_length = Some(8));
    assert!(weight_bits(&whole) != weight_bits(&shorter));
    assert_eq!(shorter.card.tokens * 2, whole.card.tokens);
}

#[test]
fn padding_does_not_count_as_trained_tokens() {
    for (packing, per_sequence) in [(Packing::Documents, 5), (Packing::Packed, 8)] {
        let mut config = RunConfig {
            model: ModelConfig {
                context_length: 8,
                ..presets::statquest(5)
            },
            data: DataConfig {
                builtin: Some(Builtin::Statquest),
                packing,
                tokenizer: TokenizerConfig {
                    kind: TokenizerKind::Word,
                    unk: String::new(),
                    ..TokenizerConfig::default()
                },
                ..DataConfig::default()
            },
            ..RunConfig::default()
        };
        config.data.split.validation = 0.0;
        config.train.steps = 3;
        config.train.batch_size = 2;
        config.train.accumulation = 2;
        config.schedule.warmup_steps = 0;
        let setup = prepare_run(config).unwrap();
        let plan = Plan::estimate(&setup);
        assert_eq!(plan.data.tokens_per_step, 4 * per_sequence);
        let trainer = InMemoryTrainer::new(setup).unwrap();
        let trained = trainer
            .run(&mut NullReporter, &StopFlag::default())
            .unwrap();
        assert_eq!(
            trained.card.tokens,
            3 * 4 * per_sequence as u64,
            "{packing:?}"
        );
    }
}

#[test]
fn a_single_visible_key_gives_its_score_no_gradient() {
    for trial in 0..24 {
        let rng = CounterRng::new(trial).named("window");
        let pick = |index, from: usize, to: usize| from + (rng.at(index) as usize) % (to - from);
        let heads = [1, 2, 4][pick(0, 0, 3)];
        let by_window = trial % 3 > 0;
        let config = ModelConfig {
            vocab_size: 11,
            context_length: 80,
            n_layers: 2,
            n_heads: heads,
            d_model: 8 * heads,
            position: [Position::Rotary, Position::Alibi, Position::Learned][pick(1, 0, 3)],
            windows: if by_window { vec![1] } else { Vec::new() },
            score_soft_cap: (trial % 4 == 1).then_some(5.0),
            dropout: DropoutConfig {
                attention: if trial % 2 == 0 { 0.2 } else { 0.0 },
                ..DropoutConfig::default()
            },
            ..ModelConfig::default()
        };
        let model = config.init(&flex(), trial).unwrap().train();
        let seq = if by_window { pick(2, 1, 80) } else { 1 };
        let batch = batch(pick(3, 1, 4), seq, 11, trial);
        if batch.target_count() == 0 {
            continue;
        }
        let (_, gradients) = forward_backward(&model, &[batch], 7, 0, false);
        let mut nonzero = 0;
        for (name, gradient) in gradients.iter() {
            let values = weights::to_f32_vec(gradient.to_data());
            if name.contains(".query.") || name.contains(".key.") {
                assert!(values.iter().all(|value| *value == 0.0), "{trial} {name}");
            } else if name.contains(".value.weight") {
                nonzero += values.iter().filter(|value| **value != 0.0).count();
            }
        }
        assert!(nonzero > 0 || config.dropout.attention > 0.0, "{trial}");
    }
}

#[test]
fn a_diverged_run_claims_only_what_is_true() {
    let dir = TestDir::new();
    // (settings, parts of the message, parts that it must not have)
    let cases: [(&[&str], &[&str], &[&str]); 3] = [
        (
            &["model.init.std=1e30"],
            &["diverged at step 1:"],
            &["gradient norms", "intact"],
        ),
        (
            &[
                "schedule.learning_rate=1e30",
                "validation.every=1",
                "checkpoint.every=0",
            ],
            &["the validation loss is not finite, because"],
            &["intact"],
        ),
        (
            &[
                "schedule.learning_rate=1e30",
                "validation.every=0",
                "checkpoint.every=1",
                "name=kept",
            ],
            &[
                "diverged at step 2:",
                "gradient norms of the last steps: ",
                "the checkpoint of step 1 is intact",
            ],
            &["steps: ;"],
        ),
    ];
    for (n, (set, expected, unexpected)) in cases.into_iter().enumerate() {
        let name = format!("name=case{n}");
        let output = train(&dir, &[&[name.as_str()], set].concat());
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(DIVERGED), "{error}");
        assert_one_error(&error);
        for part in expected {
            assert!(error.contains(part), "`{part}` is missing from {error}");
        }
        for part in unexpected {
            assert!(!error.contains(part), "`{part}` is in {error}");
        }
    }
    // The first step after a resume has no earlier norms.
    let error = stderr(&dir.run(&["resume", "runs/kept"]));
    assert!(
        error.contains("the checkpoint of step 1 is intact"),
        "{error}"
    );
    assert!(!error.contains("gradient norms"), "{error}");
}
