//! Reads and writes run configurations. Errors name the line and the nearest known key.

use std::path::Path;

use nextword_data::DataConfig;
use serde::Deserialize;
use toml::{Table, Value};

use crate::config_key::key_at;
use crate::config_problem::{Problem, expects_string};
use crate::conversation_defaults;
use crate::{RunConfig, ScheduleConfig, TrainError, UnsetKeys};

/// The keys of `[data]` that select the data source; exactly one of them is set.
const SOURCE_KEYS: [&str; 6] = [
    "path",
    "paths",
    "builtin",
    "prepared",
    "conversations",
    "pairs",
];

/// The keys of `[train]` for the length of a run; at most one of them is set.
const LENGTH_KEYS: [&str; 2] = ["steps", "epochs"];

/// Reads the configuration in `path` and applies `overrides` of the form `section.key=value`.
///
/// # Errors
/// [`TrainError::Io`] if the file cannot be read, and the errors of [`parse_config`].
pub fn read_config(path: &Path, overrides: &[String]) -> Result<RunConfig, TrainError> {
    let text = std::fs::read_to_string(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::InvalidData => {
            TrainError::run(path, "not UTF-8 text; hint: a configuration is a TOML file")
        }
        _ => TrainError::io(path, "read")(source),
    })?;
    parse_config(&text, path, overrides)
}

/// Parses a configuration; `path` is used in error messages.
///
/// # Errors
/// [`TrainError::ConfigFile`] with the line and, for an unknown key, the nearest known one;
/// [`TrainError::Config`] for an invalid override; the errors of [`RunConfig::validate`].
///
/// # Example
///
/// ```
/// use nextword_train::parse_config;
///
/// let text = "
///     data.builtin = 'stories'
///     train.steps = 500
///     schedule.learning_rate = 2e-3
/// ";
/// let config = parse_config(text, "run.toml".as_ref(), &["train.batch_size=8".to_owned()])?;
/// assert_eq!((config.train.steps, config.train.batch_size), (500, 8));
/// assert_eq!(config.model.n_layers, 4); // a default
///
/// let error = parse_config("train.step = 500", "run.toml".as_ref(), &[]).unwrap_err();
/// assert!(error.to_string().contains("`steps`")); // the nearest known key
/// # Ok::<(), nextword_train::TrainError>(())
/// ```
pub fn parse_config(
    text: &str,
    path: &Path,
    overrides: &[String],
) -> Result<RunConfig, TrainError> {
    let config = parse_stored_config(text, path, overrides)?;
    config.validate_peak()?;
    Ok(config)
}

/// Parses the configuration of an existing run, which may be of an earlier version: as [`parse_config`], without
/// the checks that were added since.
///
/// # Errors
/// The errors of [`parse_config`].
pub fn parse_stored_config(
    text: &str,
    path: &Path,
    overrides: &[String],
) -> Result<RunConfig, TrainError> {
    let at_line = |e: &toml::de::Error| {
        let key = e.span().and_then(|span| key_at(text, span.start));
        TrainError::ConfigFile {
            path: path.to_path_buf(),
            line: e.span().map(|span| line_number(text, span.start)),
            problem: Problem::new(e.message(), key.as_deref()).into_text(),
        }
    };
    // The text is parsed before overrides are applied, so that errors have line numbers.
    let mut config: RunConfig = toml::from_str(text).map_err(|e| at_line(&e))?;
    let mut table: Table = toml::from_str(text).map_err(|e| at_line(&e))?;
    if !overrides.is_empty() {
        let mut resized_by = None;
        for assignment in overrides {
            let changed;
            (table, changed) = with_override(&table, assignment)?;
            if resized_by.is_none() && may_resize(&config, &changed) {
                resized_by = Some(assignment);
            }
            config = changed;
        }
        adapt_to_overrides(&mut config, overrides, resized_by);
    }
    check_tokenizer_keys(&table)?;
    conversation_defaults::check_length_keys(&table)?;
    conversation_defaults::apply(&mut config, &table);
    let unset = UnsetKeys::of(&table);
    if unset.warmup_steps && config.train.epochs.is_none() {
        config.schedule.warmup_steps = ScheduleConfig::default_warmup(config.train.steps);
    }
    config.unset = keys_with_other_defaults(&config, unset);
    config.apply_lora_defaults(None);
    config.check_lora_base()?;
    config.validate()?;
    Ok(config)
}

/// The keys of `unset` for which `config` has other defaults than a run from random weights for a number of steps.
fn keys_with_other_defaults(config: &RunConfig, unset: UnsetKeys) -> UnsetKeys {
    if config.start_from.is_some() {
        return unset;
    }
    UnsetKeys {
        warmup_steps: unset.warmup_steps && config.train.epochs.is_some(),
        ..UnsetKeys::default()
    }
}

/// Rejects keys for building a tokenizer beside `start_from`, whose model has one.
fn check_tokenizer_keys(table: &Table) -> Result<(), TrainError> {
    let data = table.get("data").and_then(Value::as_table);
    let tokenizer = data.and_then(|data| data.get("tokenizer")?.as_table());
    let (Some(model), Some(tokenizer)) = (table.get("start_from"), tokenizer) else {
        return Ok(());
    };
    // The file that a run itself writes names the model's tokenizer file, and then no other key counts.
    if tokenizer.contains_key("file") {
        return Ok(());
    }
    let keys = ["kind", "vocab_size", "unk", "pad", "sample_bytes"];
    let given = keys
        .iter()
        .find_map(|key| Some((key, tokenizer.get(*key)?)));
    given.map_or(Ok(()), |(key, value)| {
        Err(TrainError::config(
            format!("data.tokenizer.{key}"),
            format!("{value} has no effect with start_from = {model}, whose tokenizer is used"),
            format!("remove data.tokenizer.{key} to finetune that model, or start_from to train a new one"),
        ))
    })
}

/// Whether an override may change the number of parameters.
fn may_resize(before: &RunConfig, after: &RunConfig) -> bool {
    let size = |config: &RunConfig| {
        let mut model = config.model.clone();
        model.vocab_size = model.vocab_size.max(1);
        let is_valid = model.validate().is_ok();
        is_valid.then(|| model.parameter_counts().total())
    };
    if before.start_from != after.start_from
        || before.model.vocab_size != after.model.vocab_size
        || size(before) != size(after)
    {
        return true;
    }
    if after.model.vocab_size > 0 {
        return false;
    }
    // Text and tokenizer determine the vocabulary.
    let (before, after) = (&before.data, &after.data);
    let unrelated = DataConfig {
        split: before.split,
        order: before.order,
        packing: before.packing,
        ..after.clone()
    };
    unrelated != *before
}

/// Adjusts values of the file to the overrides: `resized_by` may change the number of parameters, and a run
/// shorter than its warmup gets a warmup of a tenth of its steps.
fn adapt_to_overrides(config: &mut RunConfig, overrides: &[String], resized_by: Option<&String>) {
    let is_set = |key: &str| overrides.iter().any(|set| override_key(set) == key);
    if !is_set("expect_parameters")
        && let (Some(expected), Some(set)) = (config.expect_parameters, resized_by)
    {
        config.warnings.push(format!(
            "expect_parameters = {expected} is not checked, because --set {set} may change the number of \
             parameters"
        ));
        config.expect_parameters = None;
    }
    let steps = config.train.steps;
    let knows_steps = config.train.epochs.is_none();
    if knows_steps && config.schedule.warmup_steps >= steps && !is_set("schedule.warmup_steps") {
        config.schedule.warmup_steps = steps / 10;
    }
}

fn override_key(assignment: &str) -> &str {
    assignment.split('=').next().unwrap_or_default().trim()
}

/// Formats the configuration as TOML.
///
/// # Errors
/// [`TrainError::Config`] for integers that TOML cannot represent.
///
/// # Example
///
/// ```
/// use nextword_train::{parse_config, to_toml};
///
/// let config = parse_config("data.builtin = 'stories'", "run.toml".as_ref(), &[])?;
/// let text = to_toml(&config)?; // with every default
/// assert!(text.contains("learning_rate"));
/// assert_eq!(parse_config(&text, "run.toml".as_ref(), &[])?, config);
/// # Ok::<(), nextword_train::TrainError>(())
/// ```
pub fn to_toml(config: &RunConfig) -> Result<String, TrainError> {
    let to_error =
        |e: toml::ser::Error| TrainError::config("config", e.to_string(), "use smaller values");
    if config.train.epochs.is_none() {
        return toml::to_string_pretty(config).map_err(to_error);
    }
    let mut table = Table::try_from(config).map_err(to_error)?;
    if let Some(Value::Table(train)) = table.get_mut("train") {
        train.remove("steps"); // They follow from the epochs.
    }
    toml::to_string_pretty(&table).map_err(to_error)
}

fn override_error(assignment: &str, problem: &str) -> TrainError {
    TrainError::config(
        format!("--set {assignment}"),
        problem,
        "use --set section.key=value, for example --set train.steps=500",
    )
}

/// Sets `section.key=value` in a copy of `table` and reads the configuration. A value that is not valid
/// TOML is a string, and so is one where the key takes a string: `name=2024`.
fn with_override(table: &Table, assignment: &str) -> Result<(Table, RunConfig), TrainError> {
    let Some((key, text)) = assignment.split_once('=') else {
        return Err(override_error(assignment, "missing `=`"));
    };
    let string = Value::String(string_of(key.trim(), text));
    let value = toml::from_str::<Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| string.clone());
    let read = |value: Value| {
        let mut table = table.clone();
        set(&mut table, assignment, key, value)?;
        let config = RunConfig::deserialize(table.clone());
        Ok::<_, TrainError>(config.map(|config| (table, config)))
    };
    let error = match read(value)? {
        Ok(read) => return Ok(read),
        Err(error) => error,
    };
    if expects_string(error.message())
        && let Ok(read) = read(string)?
    {
        return Ok(read);
    }
    let problem = Problem::new(error.message(), Some(key.trim()));
    Err(match problem.hint {
        Some(hint) => TrainError::config(format!("--set {assignment}"), problem.problem, hint),
        None => override_error(assignment, &problem.problem),
    })
}

/// Keys of texts in which a line break is likely, and a backslash otherwise is not.
const ESCAPED_KEYS: [&str; 2] = ["data.separator", "samples.prompt_template"];

/// The string that `text`, which is not a TOML value, stands for. A separator may be written with the escapes of a
/// TOML string, such as `\n`, as the option `--separator` of other commands.
fn string_of(key: &str, text: &str) -> String {
    let unescaped = ESCAPED_KEYS
        .contains(&key)
        .then(|| toml::from_str::<Table>(&format!("value = \"{text}\"")))
        .and_then(Result::ok)
        .and_then(|table| Some(table.get("value")?.as_str()?.to_string()));
    unescaped.unwrap_or_else(|| text.to_string())
}

/// Sets `key` to `value` in `table`.
fn set(table: &mut Table, assignment: &str, key: &str, value: Value) -> Result<(), TrainError> {
    let mut parts: Vec<&str> = key.trim().split('.').collect();
    let Some(last) = parts.pop().filter(|last| !last.is_empty()) else {
        return Err(override_error(assignment, "missing key"));
    };
    // A new data source replaces that of the file, and so does a new length.
    let exclusive: [(&str, &[&str]); 2] = [("data", &SOURCE_KEYS), ("train", &LENGTH_KEYS)];
    for (section, keys) in exclusive {
        if parts == [section]
            && keys.contains(&last)
            && let Some(Value::Table(values)) = table.get_mut(section)
        {
            values.retain(|key, _| keys.iter().all(|replaced| *replaced != key));
        }
    }
    let mut current = table;
    for part in parts {
        let section = current
            .entry(part)
            .or_insert_with(|| Value::Table(Table::new()));
        let Value::Table(section) = section else {
            return Err(override_error(
                assignment,
                &format!("`{part}` is not a table"),
            ));
        };
        current = section;
    }
    current.insert(last.to_string(), value);
    Ok(())
}

fn line_number(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|b| *b == b'\n').count() + 1
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
