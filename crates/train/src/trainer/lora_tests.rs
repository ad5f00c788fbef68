//! Runs that train an adapter.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use nextword_base::hash::hash_file;
use nextword_model::{AdapterDir, Bits, DEFAULT_TEMPLATE, DeviceName, ModelDir};

use crate::{
    InMemoryTrainer, LoraSettings, NoHooks, NullReporter, Outcome, Reporter, RunConfig, RunFolder,
    StepReport, StopFlag, TrainError, Trainer, parse_config, prepare_run, prepare_stored_run,
};

/// Copies the small model of the documents to `base` in a temporary folder.
fn with_base() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    fs::create_dir(&base).unwrap();
    for file in [
        "config.json",
        "card.json",
        "tokenizer.json",
        "model.safetensors",
    ] {
        fs::copy(
            Path::new("../../docs/models/letters").join(file),
            base.join(file),
        )
        .unwrap();
    }
    folder
}

/// A `LoRA` run of six steps, as `change` has it.
fn config(folder: &Path, base: &str, change: impl FnOnce(&mut RunConfig)) -> RunConfig {
    let text = format!(
        "start_from = {:?}\nout = {:?}\n[data]\nbuiltin = 'stories'\ndocuments = 12\n\
         [train]\nsteps = 6\nbatch_size = 2\nsequence_length = 16\n[validation]\nevery = 2\nwindows = 2\n\
         [checkpoint]\nevery = 2\n[lora]\nrank = 2\ndropout = 0.1\n",
        folder.join(base),
        folder.join("run"),
    );
    let mut config = parse_config(&text, Path::new("x.toml"), &[]).unwrap();
    change(&mut config);
    config
}

/// Stops a run after an update.
struct StopAfter(u64, StopFlag);

impl Reporter for StopAfter {
    fn stepped(&mut self, report: &StepReport, _logged: bool) {
        if report.step == self.0 {
            self.1.raise();
        }
    }
}

/// Trains `config` in its folder until `last_step`.
fn train(config: RunConfig, last_step: u64) -> Result<Outcome, TrainError> {
    let setup = prepare_run(config)?;
    let folder = RunFolder::create(&setup.config.folder(), &setup.config)?;
    let stop = StopFlag::default();
    let mut reporter = StopAfter(last_step, stop.clone());
    Trainer::begin(setup, folder)?.run(&mut reporter, &mut NoHooks, &stop)
}

fn resume(run: &Path) -> Result<Outcome, TrainError> {
    let (folder, mut config) = RunFolder::open(run)?;
    folder.locate_base(&mut config)?;
    let trainer = Trainer::resume(prepare_stored_run(config)?, folder)?;
    trainer.run(&mut NullReporter, &mut NoHooks, &StopFlag::default())
}

fn hash(path: PathBuf) -> String {
    hash_file(&path).unwrap().hex()
}

/// The hashes of everything that the end of a run determines.
fn artifacts(run: &Path) -> [String; 4] {
    [
        "checkpoints/step-00000006/adapter.safetensors",
        "checkpoints/step-00000006/optimizer.safetensors",
        "last/adapter.safetensors",
        "best/adapter.safetensors",
    ]
    .map(|file| hash(run.join(file)))
}

#[test]
fn a_lora_run_saves_adapters_and_leaves_its_base_as_it_is() {
    let folder = with_base();
    let weights = folder.path().join("base/model.safetensors");
    let before = hash(weights.clone());
    let outcome = train(config(folder.path(), "base", |_| {}), 99).unwrap();
    assert_eq!(outcome.step, 6);
    assert_eq!(hash(weights), before);
    let run = folder.path().join("run");
    let base = ModelDir::open(&folder.path().join("base")).unwrap();
    let adapter = AdapterDir::open(&run.join("last")).unwrap();
    assert_eq!((adapter.card.step, adapter.config.rank), (6, 2));
    adapter.base.check(&base).unwrap();
    let adapter = adapter.load(&base.config).unwrap();
    assert!(
        adapter
            .modules
            .values()
            .all(|module| module.b.iter().any(|b| *b != 0.0))
    );

    // A checkpoint has the adapter, two moments of each of its parameters, and small files.
    let checkpoint = run.join("checkpoints/step-00000006");
    assert!(!checkpoint.join("model.safetensors").exists());
    let files = fs::read_dir(&checkpoint).unwrap();
    let bytes: u64 = files
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum();
    let exact = 12 * adapter.parameters() as u64;
    assert!(
        (exact..exact + 32_000).contains(&bytes),
        "{bytes} instead of {exact}"
    );
}

#[test]
fn a_resumed_lora_run_has_the_same_bits() {
    let [whole, stopped] = [with_base(), with_base()];
    train(config(whole.path(), "base", |_| {}), 99).unwrap();
    let outcome = train(config(stopped.path(), "base", |_| {}), 3).unwrap();
    assert_eq!(outcome.step, 3);
    let run = stopped.path().join("run");
    // A process that is killed leaves a checkpoint of step 2 and metrics after it.
    fs::remove_dir_all(run.join("checkpoints/step-00000003")).unwrap();
    assert_eq!(resume(&run).unwrap().step, 6);
    assert_eq!(artifacts(&run), artifacts(&whole.path().join("run")));
}

#[test]
fn a_run_in_memory_trains_the_same_adapter() {
    let folder = with_base();
    train(config(folder.path(), "base", |_| {}), 99).unwrap();
    let setup = prepare_run(config(folder.path(), "base", |_| {})).unwrap();
    let trainer = InMemoryTrainer::new(setup).unwrap();
    let trained = trainer
        .run(&mut NullReporter, &StopFlag::default())
        .unwrap();
    let saved = folder.path().join("saved");
    trained.save(&saved).unwrap();
    let last = folder.path().join("run/last/adapter.safetensors");
    assert_eq!(hash(saved.join("adapter.safetensors")), hash(last));
}

#[test]
fn another_base_is_refused() {
    let folder = with_base();
    train(config(folder.path(), "base", |_| {}), 2).unwrap();
    let weights = folder.path().join("base/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    let message = resume(&folder.path().join("run")).unwrap_err().to_string();
    assert!(
        message.contains("adapts `") && message.contains("…)"),
        "{message}"
    );
    let last = AdapterDir::open(&folder.path().join("run/last")).unwrap();
    let message = nextword_convert::find_base(&last, None)
        .unwrap_err()
        .to_string();
    assert!(message.contains("was made for"), "{message}");
}

#[test]
fn a_renamed_base_is_found_by_its_hash() {
    let folder = with_base();
    train(config(folder.path(), "base", |_| {}), 2).unwrap();
    let [base, renamed] = ["base", "renamed"].map(|name| folder.path().join(name));
    fs::rename(base, &renamed).unwrap();
    let run = folder.path().join("run");
    let last = AdapterDir::open(&run.join("last")).unwrap();
    let found = nextword_convert::find_base(&last, None).unwrap();
    assert_eq!(found.path, renamed);
    assert_eq!(resume(&run).unwrap().step, 6);
    fs::rename(renamed, tempfile::tempdir().unwrap().path()).unwrap();
    let message = nextword_convert::find_base(&last, None)
        .unwrap_err()
        .to_string();
    assert!(message.contains("was not found there; hint: "), "{message}");
}

#[test]
fn quantized_bases_are_adapted() {
    let folder = with_base();
    let device = DeviceName::Flex.open().unwrap();
    let base = ModelDir::open(&folder.path().join("base")).unwrap();
    let tokenizer = fs::read_to_string(base.tokenizer_path()).unwrap();
    for (bits, number) in [(Bits::Int8, 8), (Bits::Int4, 4)] {
        let model = base.load(&device).unwrap().quantize(bits);
        let name = format!("int{number}");
        ModelDir::save(&folder.path().join(&name), &model, &tokenizer, &base.card).unwrap();
        let run = folder.path().join(format!("run{number}"));
        let config = config(folder.path(), &name, |config| {
            config.out = Some(run.clone());
        });
        let outcome = train(config.clone(), 99).unwrap();
        assert!(outcome.validation.is_some_and(f64::is_finite));
        let last = AdapterDir::open(&run.join("last")).unwrap();
        assert_eq!(last.base.bits, Some(number));

        let full = RunConfig {
            lora: None,
            ..config
        };
        let message = prepare_run(full).unwrap_err().to_string();
        assert!(
            message.contains("cannot be trained") && message.contains("[lora]"),
            "{message}"
        );
    }
}

#[test]
fn training_continues_an_adapter() {
    let folder = with_base();
    train(config(folder.path(), "base", |_| {}), 99).unwrap();
    let last = folder.path().join("run/last");
    let first = AdapterDir::open(&last).unwrap();
    let base = ModelDir::open(&folder.path().join("base")).unwrap();
    let values = first.load(&base.config).unwrap();

    let more = config(folder.path(), "run", |config| {
        config.lora = None;
        config.out = Some(folder.path().join("more"));
        config.start_from = Some(last.clone());
    });
    let setup = prepare_run(more.clone()).unwrap();
    let start = setup.initial_model().unwrap().adapter().unwrap();
    assert_eq!(start.modules, values.modules);
    train(more, 99).unwrap();
    // From its first checkpoint on, the run needs the base only.
    fs::remove_dir_all(folder.path().join("run")).unwrap();
    assert_eq!(resume(&folder.path().join("more")).unwrap().step, 6);
    let more = AdapterDir::open(&folder.path().join("more/last")).unwrap();
    assert_ne!(more.load(&base.config).unwrap(), values);

    let with = |lora: LoraSettings| {
        prepare_run(config(folder.path(), "more", |config| {
            config.lora = Some(lora);
        }))
    };
    let partial = LoraSettings {
        dropout: 0.25,
        plus_ratio: 4.0,
        ..LoraSettings::default()
    };
    let taken = with(partial.clone()).unwrap().config.lora.unwrap();
    assert_eq!(
        taken,
        LoraSettings {
            rank: 2,
            ..partial.clone()
        }
    );
    let message = with(LoraSettings { rank: 1, ..partial })
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("differs from the settings of the adapter"),
        "{message}"
    );
}

#[test]
fn the_modules_of_a_continued_adapter_count() {
    let folder = with_base();
    train(config(folder.path(), "base", |_| {}), 99).unwrap();
    let base = ModelDir::open(&folder.path().join("base")).unwrap();
    let last = AdapterDir::open(&folder.path().join("run/last")).unwrap();
    let mut adapter = last.load(&base.config).unwrap();
    // As after an import: a module less, and a rank that is that of no module.
    adapter.modules.pop_first().unwrap();
    adapter.config.rank = 1000;
    let partial = folder.path().join("partial");
    AdapterDir::save(&partial, &adapter, &last.base, &last.card).unwrap();
    let more = config(folder.path(), "partial", |config| {
        config.lora = None;
        config.out = Some(folder.path().join("more"));
    });
    let setup = prepare_run(more.clone()).unwrap();
    let trained = setup.lora.as_ref().unwrap().trained_parameters;
    assert_eq!(trained, adapter.parameters());
    assert!(setup.initial_model().is_ok());
    train(more, 3).unwrap();
    assert_eq!(resume(&folder.path().join("more")).unwrap().step, 6);
}

/// A `LoRA` run on conversations, from the model or adapter in `start_from`.
fn on_conversations(folder: &Path, start_from: &str, out: &str, data: &str) -> RunConfig {
    let path = folder.join("support.jsonl");
    let line = |name: char| {
        format!(
            r#"{{"messages": [{{"role": "user", "content": "Who is {name}?"}}, {{"role": "assistant", "content": "It {name}."}}]}}"#
        )
    };
    let lines: Vec<String> = ('a'..='l').map(line).collect();
    fs::write(&path, lines.join("\n")).unwrap();
    let text = format!(
        "start_from = {:?}\nout = {:?}\n[data]\nconversations = {path:?}\nsplit.validation = 0.25\n{data}\n\
         [train]\nsteps = 6\nbatch_size = 2\n[validation]\nevery = 2\ncompletions = 0\n\
         [checkpoint]\nevery = 2\n[lora]\nrank = 2\n",
        folder.join(start_from),
        folder.join(out),
    );
    parse_config(&text, Path::new("x.toml"), &[]).unwrap()
}

#[test]
fn a_run_that_continues_an_adapter_resumes_with_the_template_of_the_adapter() {
    let folder = with_base();
    let template = "{% for m in messages %}{{ m.role }} says {{ m.content }}{{ eos_token }}{% endfor %}\
                    {% if add_generation_prompt %}assistant says {% endif %}";
    let file = folder.path().join("own.jinja");
    fs::write(&file, template).unwrap();
    let own = format!("chat_template = {file:?}");
    train(on_conversations(folder.path(), "base", "first", &own), 99).unwrap();
    train(on_conversations(folder.path(), "first/last", "more", ""), 3).unwrap();
    // From its first checkpoint on, the run needs the base only, which has no template.
    fs::remove_dir_all(folder.path().join("first")).unwrap();
    let more = folder.path().join("more");
    assert_eq!(resume(&more).unwrap().step, 6);
    let last = AdapterDir::open(&more.join("last")).unwrap();
    assert_eq!(last.card.chat_templates[DEFAULT_TEMPLATE], template);
}
