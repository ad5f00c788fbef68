use super::*;

fn error(text: &str, overrides: &[&str]) -> String {
    let overrides: Vec<_> = overrides.iter().map(ToString::to_string).collect();
    parse_config(text, Path::new("x.toml"), &overrides)
        .unwrap_err()
        .to_string()
}

#[test]
fn unknown_key_error_has_line_and_nearest_key() {
    let message = error("[model]\nd_model = 128\nn_layer = 2\n", &[]);
    assert!(
        message.starts_with("x.toml:3: unknown key `n_layer`"),
        "{message}"
    );
    assert!(message.contains("did you mean `n_layers`?"), "{message}");
}

#[test]
fn tokenizer_settings_beside_start_from_are_errors() {
    let text = "start_from = 'models/mine'\ndata.builtin = 'stories'\n";
    for (key, value) in [
        ("kind", "char"),
        ("kind", "bpe"),
        ("vocab_size", "300"),
        ("unk", "<unk>"),
        ("pad", "<pad>"),
    ] {
        let message = error(text, &[&format!("data.tokenizer.{key}={value}")]);
        assert!(
            message.contains(&format!("data.tokenizer.{key}")),
            "{message}"
        );
        assert!(
            message.contains("start_from = \"models/mine\""),
            "{message}"
        );
    }
    let message = error(&format!("{text}[data.tokenizer]\nkind = 'char'\n"), &[]);
    assert!(message.contains("data.tokenizer.kind"), "{message}");
    // A run's own file has all keys, and the model's tokenizer file.
    let own = format!("{text}[data.tokenizer]\nkind = 'char'\nfile = 'tokenizer.json'\n");
    assert!(parse_config(&own, Path::new("run.toml"), &[]).is_ok());
}

#[test]
fn wrong_type_error_has_the_line() {
    let message = error("[train]\nsteps = \"many\"\n", &[]);
    assert!(message.starts_with("x.toml:2: "), "{message}");
}

#[test]
fn overrides_replace_values_and_are_validated() {
    let set = ["train.steps=7".to_string(), "name=other".to_string()];
    let text = "[train]\nsteps = 9\n[schedule]\nwarmup_steps = 0\n";
    let config = parse_config(text, Path::new("x.toml"), &set).unwrap();
    assert_eq!((config.train.steps, config.name.as_str()), (7, "other"));
    let message = error("", &["train.step=7"]);
    assert!(message.contains("did you mean `steps`?"), "{message}");
    assert!(error("", &["train.steps"]).contains("missing `=`"));
}

#[test]
fn a_data_source_override_replaces_the_files_source() {
    let text = "expect_parameters = 3\n[data]\nbuiltin = \"stories\"\ndocuments = 7\n";
    let set = ["data.path=my.txt".to_string()];
    let config = parse_config(text, Path::new("x.toml"), &set).unwrap();
    assert_eq!((config.data.builtin, config.data.documents), (None, 7));
    assert_eq!(config.data.path.as_deref(), Some(Path::new("my.txt")));
    assert_eq!(config.expect_parameters, None);
}

#[test]
fn unrelated_overrides_keep_expect_parameters() {
    let text = "expect_parameters = 3\n[data]\nbuiltin = \"stories\"\n";
    let kept = |text: &str, set: &str| {
        let config = parse_config(text, Path::new("x.toml"), &[set.to_string()]).unwrap();
        assert_eq!(
            config.warnings.is_empty(),
            config.expect_parameters.is_some()
        );
        config.expect_parameters == Some(3)
    };
    for set in [
        "name=x",
        "train.steps=200",
        "seed=2",
        "device=auto",
        "train.sequence_length=8",
        "train.precision=bf16",
        "optimizer.kind=sgd",
        "schedule.warmup_steps=2",
        "validation.every=3",
        "data.order=epoch",
        "data.packing=documents",
        "data.split.validation=0.2",
        "model.dropout.residual=0.1",
        "model.windows=[8, 0]",
        "model.init.std=0.05",
        "model.position=learned",
        "model.n_layers=4",
        "model.rotary.base=500.0",
    ] {
        assert!(kept(text, set), "{set}");
    }
    for set in [
        "model.n_layers=2",
        "model.d_model=64",
        "model.position=rotary",
        "model.bias.head=true",
        "model.tied_head=false",
        "model.vocab_size=100",
        "data.path=x.txt",
        "data.seed=1",
        "data.documents=20",
        "data.tokenizer.kind=byte",
        "start_from=models/x",
    ] {
        assert!(!kept(text, set), "{set}");
    }
    let sized = format!("{text}[model]\nvocab_size = 300\n");
    assert!(kept(&sized, "data.path=x.txt"));
    assert!(!kept(&sized, "model.vocab_size=0"));
}

#[test]
fn an_override_that_drops_expect_parameters_warns() {
    let text = "expect_parameters = 3\n[data]\nbuiltin = \"stories\"\n";
    let set = ["model.n_layers=2".to_string()];
    let config = parse_config(text, Path::new("x.toml"), &set).unwrap();
    assert_eq!(config.expect_parameters, None);
    assert_eq!(config.warnings.len(), 1);
    assert!(config.warnings[0].contains("--set model.n_layers=2"));
}

#[test]
fn shortened_run_gets_a_warmup_of_a_tenth() {
    let short = |set: &[&str]| {
        let set: Vec<_> = set.iter().map(ToString::to_string).collect();
        parse_config("", Path::new("x.toml"), &set).map(|c| c.schedule.warmup_steps)
    };
    assert_eq!(short(&["train.steps=60"]).unwrap(), 6);
    // Also where 100 steps, the default of longer runs, would fit.
    assert_eq!(short(&["train.steps=600"]).unwrap(), 60);
    assert!(short(&["train.steps=60", "schedule.warmup_steps=80"]).is_err());
}

#[test]
fn a_resolved_config_round_trips() {
    let config = RunConfig::default();
    let text = to_toml(&config).unwrap();
    let parsed = parse_config(&text, Path::new("x.toml"), &[]).unwrap();
    assert_eq!(parsed, config);
}

#[test]
fn a_schedule_that_ends_within_its_warmup_is_refused_for_new_runs() {
    for kind in ["linear", "cosine", "wsd"] {
        for (warmup, end, is_valid) in [
            (10, 10, false),
            (10, 3, false),
            (0, 0, false),
            (10, 11, true),
            (0, 1, true),
        ] {
            let text = format!(
                "[schedule]\nkind = \"{kind}\"\nwarmup_steps = {warmup}\nend_step = {end}\n"
            );
            let parsed = parse_config(&text, Path::new("x.toml"), &[]);
            assert_eq!(parsed.is_ok(), is_valid, "{text}");
            assert!(parse_stored_config(&text, Path::new("x.toml"), &[]).is_ok());
            let Err(error) = parsed else { continue };
            // The value of the hint is accepted.
            let message = error.to_string();
            let (_, value) = message.split_once("set it to ").unwrap();
            let value = value.split(' ').next().unwrap();
            let set = [format!("schedule.end_step={value}")];
            parse_config(&text, Path::new("x.toml"), &set).unwrap();
        }
    }
    let text = "[schedule]\nkind = \"constant\"\nwarmup_steps = 9\nend_step = 3\n";
    assert!(parse_config(text, Path::new("x.toml"), &[]).is_ok());
}

#[test]
fn sequences_fit_into_the_context() {
    let check = |length: usize| {
        let text = format!("train.sequence_length = {length}\nmodel.context_length = 32\n");
        parse_config(&text, Path::new("x.toml"), &[])
    };
    assert_eq!(check(32).unwrap().sequence_length(), 32);
    assert_eq!(check(1).unwrap().sequence_length(), 1);
    for length in [0, 33, 1000] {
        let message = check(length).unwrap_err().to_string();
        assert!(message.ends_with("hint: set it from 1 to 32"), "{message}");
    }
    // The context is that of the model.
    let text = "start_from = 'm'\ntrain.sequence_length = 500\n";
    assert!(parse_config(text, Path::new("x.toml"), &[]).is_ok());
    let text = "start_from = 'm'\ntrain.sequence_length = 0\n";
    let error = parse_config(text, Path::new("x.toml"), &[]).unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("must be at least 1, but is 0"),
        "{message}"
    );
    assert!(
        message.contains("context of the model in start_from"),
        "{message}"
    );
    // The default context is another one.
    let default = RunConfig::default().model.context_length.to_string();
    assert!(!message.contains(&default), "{message}");
}

#[test]
fn a_separator_may_be_escaped() {
    let separator = |text: &str| {
        let overrides = [format!("data.separator={text}")];
        let config = parse_config("data.path = 'x.txt'", "x.toml".as_ref(), &overrides).unwrap();
        config.data.separator.unwrap()
    };
    for (text, expected) in [
        ("\\n", "\n"),
        ("\\n\\n", "\n\n"),
        ("\\t", "\t"),
        ("\"\\n\"", "\n"),
        ("'\\n'", "\\n"), // A literal string of TOML.
        ("---", "---"),
        ("\n", "\n"),
        ("\\x", "\\x"), // No escape of TOML.
        ("a\"b", "a\"b"),
        ("\\\\n", "\\n"),
        ("<EOS>", "<EOS>"),
    ] {
        assert_eq!(separator(text), expected, "{text}");
    }
    let overrides = ["data.path=C:\\new\\text.txt".to_string()];
    let config = parse_config("", "x.toml".as_ref(), &overrides).unwrap();
    assert_eq!(
        config.data.path.unwrap().to_str(),
        Some("C:\\new\\text.txt")
    );
}

#[test]
fn a_warmup_that_is_left_out_is_a_tenth_of_the_run_up_to_100_steps() {
    for (steps, expected) in [
        (1, 0),
        (9, 0),
        (20, 2),
        (101, 10),
        (999, 99),
        (1000, 100),
        (5000, 100),
    ] {
        let text = format!("data.builtin = 'stories'\ntrain.steps = {steps}");
        let config = parse_config(&text, "x.toml".as_ref(), &[]).unwrap();
        assert_eq!(config.schedule.warmup_steps, expected, "{steps}");
        let set = [format!("train.steps={steps}")];
        let config = parse_config("data.builtin = 'stories'", "x.toml".as_ref(), &set).unwrap();
        assert_eq!(config.schedule.warmup_steps, expected, "{steps} by --set");
        // A stored configuration has the number, and a resumed run keeps it.
        let stored = to_toml(&config).unwrap();
        let longer = ["train.steps=6000".to_string()];
        let resumed = parse_stored_config(&stored, "run.toml".as_ref(), &longer).unwrap();
        assert_eq!(resumed.schedule.warmup_steps, expected, "{steps} resumed");
        let text = format!("{text}\nschedule.warmup_steps = 0");
        let config = parse_config(&text, "x.toml".as_ref(), &[]).unwrap();
        assert_eq!(config.schedule.warmup_steps, 0, "{steps} set");
    }
    let text = "data.builtin = 'stories'\ntrain.steps = 20\nschedule.warmup_steps = 100";
    assert!(parse_config(text, "x.toml".as_ref(), &[]).is_err()); // what the file says is not changed
}
