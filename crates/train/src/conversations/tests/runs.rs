//! Runs on conversations: their length, defaults, validation and loss.

use super::*;

#[test]
fn epochs_become_steps() {
    let lines = exchanges(64);
    let (_folder, mut config) = config(&lines, "data.split.validation = 0.0");
    assert_eq!(
        (config.train.epochs, config.train.batch_size),
        (Some(3.0), 16)
    );
    config.device = "flex".to_string();
    let setup = prepare_run(config).unwrap();
    // 3 epochs of 64 samples, 16 per step; a warmup of 5 steps.
    assert_eq!(
        (setup.config.train.steps, setup.config.train.epochs),
        (12, None)
    );
    assert_eq!(setup.config.schedule.warmup_steps, 5);
    // "### User:\nWho is 10?\n\n### Assistant:\nNumber 10." has 47 bytes: rows of 64 tokens suffice.
    assert_eq!(setup.config.sequence_length(), 64);
    assert_eq!(setup.loader.batch(0, 0).unwrap().seq, 64);
    assert!(setup.chat_templates[DEFAULT_TEMPLATE].contains("### "));
    assert!(setup.data_fingerprint().contains("training samples"));
    assert!(
        setup
            .data_description()
            .contains("64 training and 0 validation conversations")
    );
}

#[test]
fn the_default_warmup_is_the_same_for_epochs_and_steps() {
    let base = PathBuf::from("../../docs/models/letters");
    for (count, steps, warmup) in [(32, 2, 0), (96, 6, 5), (160, 10, 5)] {
        for lora in [false, true] {
            let mut more = "data.split.validation = 0.0\ntrain.epochs = 1\n".to_string();
            let (_folder, path) = support(&exchanges(count));
            let text = if lora {
                format!(
                    "start_from = {base:?}\ndata.conversations = {path:?}\n{more}[lora]\nrank = 2"
                )
            } else {
                more.push_str("model.context_length = 128");
                format!("data.conversations = {path:?}\ndata.tokenizer.kind = 'byte'\n{more}")
            };
            let config = parse_config(&text, "x.toml".as_ref(), &[]).unwrap();
            let config = prepare_run(config).unwrap().config;
            assert_eq!(
                (config.train.steps, config.schedule.warmup_steps),
                (steps, warmup),
                "{text}"
            );
            if lora {
                let text = text.replace("train.epochs = 1", &format!("train.steps = {steps}"));
                let config = parse_config(&text, "x.toml".as_ref(), &[]).unwrap();
                assert_eq!(config.schedule.warmup_steps, warmup, "{text}");
            }
        }
    }
}

#[test]
fn steps_and_epochs_exclude_each_other() {
    let parse = |text: &str, set: &[&str]| {
        let set: Vec<String> = set.iter().map(ToString::to_string).collect();
        parse_config(text, "x.toml".as_ref(), &set)
    };
    let both = "data.builtin = 'stories'\n[train]\nsteps = 500\nepochs = 2";
    let error = parse(both, &[]).unwrap_err().to_string();
    assert!(
        error.contains("train.epochs") && error.contains("hint"),
        "{error}"
    );
    let steps = "data.builtin = 'stories'\ntrain.steps = 500";
    let config = parse(steps, &["train.epochs=2"]).unwrap();
    assert_eq!(config.train.epochs, Some(2.0));
    let epochs = "data.builtin = 'stories'\ntrain.epochs = 2";
    let config = parse(epochs, &["train.steps=700"]).unwrap();
    assert_eq!((config.train.epochs, config.train.steps), (None, 700));
    let config = parse(epochs, &["schedule.warmup_steps=3"]).unwrap();
    let text = crate::to_toml(&config).unwrap();
    assert_eq!(parse(&text, &[]).unwrap(), config);
    for bad in ["0", "-1", "nan", "inf"] {
        let error = parse(epochs, &[&format!("train.epochs={bad}")]).unwrap_err();
        assert!(error.to_string().contains("train.epochs"), "{bad}: {error}");
    }
}

#[test]
fn defaults_of_other_data_stay() {
    let config = parse_config("data.builtin = 'stories'", "x.toml".as_ref(), &[]).unwrap();
    let mut plain = RunConfig::default();
    plain.data.builtin = Some(Builtin::Stories);
    assert_eq!(config, plain);
    let text = "[data]\nbuiltin = 'stories_chat'\nsplit.validation = 0.1\n[train]\nbatch_size = 4\nsteps = 7\n\
                [schedule]\nwarmup_steps = 0";
    let config = parse_config(text, "x.toml".as_ref(), &[]).unwrap();
    assert!((config.data.split.validation - 0.1).abs() < 1e-12);
    assert_eq!(
        (
            config.train.batch_size,
            config.train.steps,
            config.train.epochs
        ),
        (4, 7, None)
    );
    assert_eq!(config.validation.every, 50);
}

#[test]
fn validations_measure_completions_of_held_out_conversations() {
    let more = "data.split.validation = 0.4\ntrain.steps = 2\nschedule.warmup_steps = 0\nvalidation.completions = 4";
    let (folder, mut config) = config(&exchanges(20), more);
    config.out = Some(folder.path().join("run"));
    config.validation.every = 1;
    config.samples.every = 2;
    let setup = prepare_run(config).unwrap();
    let run = crate::RunFolder::create(&folder.path().join("run"), &setup.config).unwrap();
    let trainer = crate::Trainer::begin(setup, run).unwrap();
    let mut hooks = Fixed { calls: 0 };
    trainer
        .run(&mut NullReporter, &mut hooks, &StopFlag::default())
        .unwrap();
    let metrics = std::fs::read_to_string(folder.path().join("run/metrics.jsonl")).unwrap();
    let validations: Vec<crate::MetricsLine> = metrics
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &crate::MetricsLine| line.val_loss.is_some())
        .collect();
    assert_eq!(validations.len(), 2);
    for line in validations {
        // Every second one ends by itself, and those are exact.
        assert_eq!((line.ended, line.exact), (Some(0.5), Some(0.5)));
    }
    assert_eq!(hooks.calls, 2 * 4 + 3); // Three are shown at the end.
    let shown =
        std::fs::read_to_string(folder.path().join("run/samples/step-00000002.txt")).unwrap();
    assert_eq!(
        shown.matches("--- in the data:\nNumber ").count(),
        3,
        "{shown}"
    );
    // The model is saved with the template that it was trained with.
    let saved = ModelDir::open(&folder.path().join("run/last")).unwrap();
    assert!(saved.card.chat_templates[DEFAULT_TEMPLATE].contains("### "));
}

#[test]
fn the_loss_is_that_of_trained_tokens_for_every_split_of_a_step() {
    let losses: Vec<f64> = [(8, 1), (4, 2), (1, 8)]
        .into_iter()
        .map(|(rows, accumulation)| {
            let more = format!(
                "data.split.validation = 0.25\ntrain.steps = 3\nmodel.dropout.residual = 0.2\ntrain.batch_size = {rows}\ntrain.accumulation = \
                 {accumulation}\nschedule.warmup_steps = 0\n"
            );
            let lines: Vec<_> = (0..40)
                .map(|i| exchange(&"q".repeat(1 + i), &"r".repeat(1 + i % 7)))
                .collect();
            let (_folder, config) = config(&lines, &more);
            let setup = prepare_run(config).unwrap();
            let counted: usize = (0..accumulation)
                .map(|micro| setup.loader.batch(0, micro).unwrap())
                .flat_map(|batch| batch.targets)
                .filter(|target| *target != IGNORE)
                .count();
            assert!((16..=64).contains(&counted), "{counted}");
            let trainer = InMemoryTrainer::new(setup).unwrap();
            let trained = trainer.run(&mut NullReporter, &StopFlag::default()).unwrap();
            trained.card.validation_loss.unwrap()
        })
        .collect();
    for loss in &losses[1..] {
        assert!((loss - losses[0]).abs() < 1e-4, "{losses:?}");
    }
}

#[test]
fn built_in_conversations_need_no_file() {
    let text = "[data]\nbuiltin = 'stories_chat'\ndocuments = 50\ntokenizer.kind = 'bpe'\ntokenizer.vocab_size = 400\n\
                train_on = 'assistant'\n[model]\ncontext_length = 512";
    let config = parse_config(text, "x.toml".as_ref(), &[]).unwrap();
    assert_eq!(config.data.train_on, TrainOn::Assistant);
    let read = read(config);
    assert_eq!(read.report.train + read.report.validation, 50);
    assert!(read.report.left_out.is_empty(), "{:?}", read.report);
    assert!(
        read.description().starts_with("builtin stories_chat"),
        "{}",
        read.description()
    );
}
