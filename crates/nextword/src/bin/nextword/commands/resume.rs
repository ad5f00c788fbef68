//! `nextword resume RUN`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueHint};
use nextword_data::{DataConfig, DataError, is_template_name};
use nextword_parallel::Group;
use nextword_train::plan::Plan;
use nextword_train::{
    RunConfig, RunFolder, RunSetup, TrainError, Trainer, parse_stored_config, prepare_stored_run,
    to_toml,
};

use crate::ranks::RankArgs;
use crate::session::Session;
use crate::{exit, models, ranks, run_config};

/// `resume RUN`.
#[derive(Debug, Args)]
#[allow(clippy::doc_markdown)] // Doc comments are help texts, shown verbatim.
pub(crate) struct ResumeArgs {
    /// Run folder, e.g. runs/NAME
    #[arg(value_hint = ValueHint::DirPath)]
    run: PathBuf,
    #[command(flatten)]
    ranks: RankArgs,
    /// Device to run on [default: the run's]
    #[arg(long, short)]
    device: Option<String>,
    /// Override one key: train.steps, train.log_every, any key of checkpoint, validation, samples, probes
    /// and parallel, or data.path, data.paths, data.prepared, data.conversations, data.pairs, data.chat_template,
    /// data.tokenizer.file or start_from (the base of an adapter) of what was moved (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print only warnings and errors
    #[arg(long, short)]
    quiet: bool,
    /// Print events to standard output as JSON, one object per line
    #[arg(long)]
    json: bool,
}

/// Keys and sections that may change when a run is resumed.
const CHANGEABLE: [&str; 15] = [
    "train.steps",
    "train.log_every",
    "checkpoint.",
    "validation.",
    "samples.",
    "probes.",
    "parallel.",
    // The place of the base model of an adapter and of the data, not these themselves: hashes are checked.
    "start_from",
    "data.path",
    "data.paths",
    "data.prepared",
    "data.conversations",
    "data.pairs",
    "data.chat_template",
    "data.tokenizer.file",
];

/// Resumes a run.
pub(crate) fn run(args: &ResumeArgs) -> anyhow::Result<ExitCode> {
    let launched = args.ranks.launch(|| {
        let text =
            std::fs::read_to_string(args.run.join("run.toml")).map_err(|_| not_a_run(args))?;
        Ok(parse_stored_config(&text, &args.run.join("run.toml"), &[])?)
    })?;
    if let Some(code) = launched {
        return Ok(code);
    }
    let group = ranks::join()?;
    if !group.is_first() {
        return work(args, group);
    }
    if !models::is_run(&args.run) {
        if !args.run.exists() {
            return Err(models::missing(&args.run, "a run folder, e.g. runs/NAME"));
        }
        return Err(not_a_run(args));
    }
    check_keys(&args.set)?;
    let (folder, stored) = RunFolder::open(&args.run)?;
    check_start(&stored, &args.set)?;
    let mut changed = apply_overrides(&stored, &folder, &args.set)?;
    folder.locate_base(&mut changed)?;
    group.broadcast(to_toml(&changed)?.into_bytes())?;
    let setup = prepare(args, &changed, group)?;
    run_config::check_resources(&Plan::estimate(&setup), folder.path())?;
    let session = Session::new(&setup, args.quiet, args.json)?;
    let trainer = Trainer::resume(setup, folder)?;
    if changed != stored || stored.start_from.is_some() {
        // Stored so that the next resume uses the same overrides, but not this one's device.
        trainer.store_config(&changed)?;
    }
    session.run(trainer)
}

fn not_a_run(args: &ResumeArgs) -> anyhow::Error {
    exit::bad_file(format!(
        "`{}` is not a run folder (run.toml is missing); hint: pass a run folder, e.g. runs/NAME",
        args.run.display()
    ))
}

/// Prepares the run with the stored configuration `config`, on the device of this command.
fn prepare(args: &ResumeArgs, config: &RunConfig, group: Group) -> anyhow::Result<RunSetup> {
    let mut own = config.clone();
    if let Some(device) = &args.device {
        own.device.clone_from(device);
    }
    ranks::choose_device(&mut own);
    let mut setup = prepare_stored_run(own).map_err(|error| moved_data(error, config))?;
    setup.group = group;
    Ok(setup)
}

/// Resumes on a rank other than 0, with the configuration that rank 0 read.
fn work(args: &ResumeArgs, group: Group) -> anyhow::Result<ExitCode> {
    let text = group.broadcast(Vec::new())?;
    let path = args.run.join("run.toml");
    let config = RunConfig {
        run_folder: Some(args.run.clone()),
        ..parse_stored_config(&String::from_utf8_lossy(&text), &path, &[])?
    };
    ranks::work(prepare(args, &config, group)?)
}

/// Adds to the error of missing data how to name its new place.
fn moved_data(error: TrainError, config: &RunConfig) -> anyhow::Error {
    let missing = match &error {
        TrainError::Data(DataError::Missing { path }) => path,
        TrainError::Chat(_) | TrainError::Io { .. } => match missing_conversations(&config.data) {
            Some(path) => path,
            None => return error.into(),
        },
        _ => return error.into(),
    };
    exit::bad_file(format!(
        "`{}`, which this run reads, does not exist; hint: if it was moved, add --set {}",
        missing.display(),
        new_place(missing, config)
    ))
}

/// The first place of conversations, or of their template, that does not exist.
fn missing_conversations(data: &DataConfig) -> Option<&PathBuf> {
    let template = data.chat_template.iter();
    let template = template.filter(|path| !is_template_name(path));
    let mut places = data.conversations.iter().chain(template);
    places.find(|path| !path.exists())
}

/// The override that names the new place of the file in `path`.
fn new_place(path: &Path, config: &RunConfig) -> &'static str {
    let data = &config.data;
    // Of a prepared folder, a file in it may be missing.
    let is_in = |place: Option<&PathBuf>| place.is_some_and(|place| path.starts_with(place));
    let is_in_any = |places: &[PathBuf]| places.iter().any(|place| path.starts_with(place));
    let mut other_texts = config.validation.also.iter();
    if is_in(data.tokenizer.file.as_ref()) {
        "data.tokenizer.file=FILE"
    } else if is_in(data.prepared.as_ref()) {
        "data.prepared=FOLDER"
    } else if is_in(data.chat_template.as_ref()) {
        "data.chat_template=FILE"
    } else if is_in_any(&data.conversations) {
        one_or_all(
            &data.conversations,
            "data.conversations=FILE",
            "data.conversations='[\"FILE\", \"FILE\"]' with all files",
        )
    } else if is_in_any(&data.pairs) {
        one_or_all(
            &data.pairs,
            "data.pairs=FILE",
            "data.pairs='[\"FILE\", \"FILE\"]' with all files",
        )
    } else if other_texts.any(|text| is_in(Some(&text.path))) {
        "validation.also='[{ name = \"NAME\", path = \"FILE\" }]' with all texts"
    } else if data.paths.is_empty() {
        "data.path=FILE"
    } else {
        "data.paths='[\"FILE\", \"FILE\"]' with all files"
    }
}

/// The override `one` for a single place, `all` for several.
fn one_or_all(places: &[PathBuf], one: &'static str, all: &'static str) -> &'static str {
    if places.len() == 1 { one } else { all }
}

/// Returns the stored configuration with the `--set` overrides.
fn apply_overrides(
    stored: &RunConfig,
    folder: &RunFolder,
    set: &[String],
) -> anyhow::Result<RunConfig> {
    if set.is_empty() {
        return Ok(stored.clone());
    }
    let changed = parse_stored_config(&to_toml(stored)?, &folder.config_path(), set)?;
    Ok(RunConfig {
        run_folder: stored.run_folder.clone(),
        ..changed
    })
}

/// Refuses another model to start from, unless the run adapts it.
fn check_start(stored: &RunConfig, set: &[String]) -> anyhow::Result<()> {
    let assignment = set
        .iter()
        .find(|set| set.trim_start().starts_with("start_from"));
    match assignment {
        Some(assignment) if stored.lora.is_none() => Err(exit::usage(format!(
            "--set {assignment}: a resumed run continues its own weights; hint: only a run with [lora] needs the model \
             that it started from; to start a new run from another model, use `nextword train`"
        ))),
        _ => Ok(()),
    }
}

fn check_keys(set: &[String]) -> anyhow::Result<()> {
    for assignment in set {
        let key = assignment.split('=').next().unwrap_or_default().trim();
        let may_change =
            |known: &str| key == known || known.ends_with('.') && key.starts_with(known);
        // A missing `=` is reported by the parser, with a better message.
        if assignment.contains('=') && !CHANGEABLE.iter().any(|known| may_change(known)) {
            return Err(exit::usage(format!(
                "--set {assignment}: `{key}` cannot change when a run is resumed; hint: only \
                 train.steps, train.log_every, checkpoint.*, validation.*, samples.*, probes.*, parallel.* and the \
                 path of the data can; to start a new run from this model, set `start_from`"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use nextword_train::OtherText;

    use super::*;

    #[test]
    fn the_hint_about_missing_files_names_their_key() {
        let with = |change: fn(&mut RunConfig)| {
            let mut config = RunConfig::default();
            change(&mut config);
            config
        };
        let files: fn(&mut RunConfig) = |config| {
            config.data.path = Some("texts".into());
            config.validation.also = vec![OtherText {
                name: "general".to_string(),
                path: "general.txt".into(),
            }];
        };
        let list: fn(&mut RunConfig) =
            |config| config.data.paths = vec!["a.txt".into(), "b.txt".into()];
        let folder: fn(&mut RunConfig) = |config| config.data.prepared = Some("tokens".into());
        let tokenizer: fn(&mut RunConfig) = |config| {
            config.data.path = Some("texts".into());
            config.data.tokenizer.file = Some("texts/own.json".into());
        };
        let chats: fn(&mut RunConfig) = |config| {
            config.data.conversations = vec!["chats".into()];
            config.data.chat_template = Some("own.jinja".into());
        };
        let pairs: fn(&mut RunConfig) =
            |config| config.data.pairs = vec!["a.tsv".into(), "b.tsv".into()];
        for (config, path, key) in [
            (files, "texts", "data.path="),
            (files, "texts/a.txt", "data.path="),
            (files, "general.txt", "validation.also="),
            (list, "b.txt", "data.paths="),
            (chats, "chats/a.jsonl", "data.conversations=FILE"),
            (chats, "own.jinja", "data.chat_template="),
            (pairs, "b.tsv", "data.pairs='["),
            (folder, "tokens", "data.prepared="),
            (folder, "tokens/dataset.json", "data.prepared="),
            (tokenizer, "texts/own.json", "data.tokenizer.file="),
            (tokenizer, "texts", "data.path="),
        ] {
            let hint = new_place(Path::new(path), &with(config));
            assert!(hint.starts_with(key), "{path}: {hint}");
        }
    }

    #[test]
    fn the_first_missing_file_with_conversations_is_found() {
        let mut data = DataConfig {
            conversations: vec![env!("CARGO_MANIFEST_DIR").into()],
            chat_template: Some("chatml".into()),
            ..DataConfig::default()
        };
        assert_eq!(missing_conversations(&data), None);
        let moved = Path::new(env!("CARGO_MANIFEST_DIR")).join("moved.jsonl");
        data.conversations.push(moved.clone());
        assert_eq!(missing_conversations(&data), Some(&moved));
    }

    #[test]
    fn only_resumable_keys_may_change() {
        let check = |set: &str| check_keys(&[set.to_string()]);
        for allowed in [
            "train.steps=9",
            "checkpoint.every=5",
            "samples.prompts=[\"a\"]",
            "data.path=moved.txt",
            "parallel.timeout=7200",
        ] {
            assert!(check(allowed).is_ok(), "{allowed}");
        }
        for refused in [
            "train.batch_size=9",
            "seed=3",
            "model.n_layers=9",
            "train.stepsize=1",
            "data.seed=2",
            "data.pathology=x",
        ] {
            let message = check(refused).map_err(|e| e.to_string());
            assert!(
                message.is_err_and(|m| m.contains("cannot change")),
                "{refused}"
            );
        }
    }
}
