//! Reads and writes run configurations. Errors name the line and the nearest known key.

use std::path::Path;

use nextword_data::DataConfig;
use serde::Deserialize;
use toml::{Table, Value};

use crate::{RunConfig, TrainError};

/// The keys of `[data]` that select the data source; exactly one of them is set.
const SOURCE_KEYS: [&str; 4] = ["path", "paths", "builtin", "prepared"];

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
    let at_line = |e: &toml::de::Error| TrainError::ConfigFile {
        path: path.to_path_buf(),
        line: e.span().map(|span| line_number(text, span.start)),
        problem: with_nearest_key(e.message()),
    };
    // The text is parsed before overrides are applied, so that errors have line numbers.
    let mut config: RunConfig = toml::from_str(text).map_err(|e| at_line(&e))?;
    if !overrides.is_empty() {
        let mut table: Table = toml::from_str(text).map_err(|e| at_line(&e))?;
        let mut resized_by = None;
        for assignment in overrides {
            set(&mut table, assignment)?;
            let changed = RunConfig::deserialize(table.clone()).map_err(|e| {
                let problem = with_nearest_key(e.message());
                override_error(assignment, &problem)
            })?;
            if resized_by.is_none() && may_resize(&config, &changed) {
                resized_by = Some(assignment);
            }
            config = changed;
        }
        adapt_to_overrides(&mut config, overrides, resized_by);
    }
    config.validate()?;
    Ok(config)
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
    if config.schedule.warmup_steps >= steps && !is_set("schedule.warmup_steps") {
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
    toml::to_string_pretty(config)
        .map_err(|e| TrainError::config("config", e.to_string(), "use smaller values"))
}

fn override_error(assignment: &str, problem: &str) -> TrainError {
    TrainError::config(
        format!("--set {assignment}"),
        problem,
        "use --set section.key=value, for example --set train.steps=500",
    )
}

/// Sets `section.key=value` in `table`. A value that is not valid TOML is used as a string.
fn set(table: &mut Table, assignment: &str) -> Result<(), TrainError> {
    let Some((key, value)) = assignment.split_once('=') else {
        return Err(override_error(assignment, "missing `=`"));
    };
    let value = toml::from_str::<Table>(&format!("value = {value}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(value.to_string()));
    let mut parts: Vec<&str> = key.trim().split('.').collect();
    let Some(last) = parts.pop().filter(|last| !last.is_empty()) else {
        return Err(override_error(assignment, "missing key"));
    };
    if parts == ["data"] && SOURCE_KEYS.contains(&last) {
        // A new data source replaces that of the file.
        if let Some(Value::Table(data)) = table.get_mut("data") {
            data.retain(|key, _| SOURCE_KEYS.iter().all(|source| *source != key));
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

/// Adds the nearest known key to serde's "unknown field `x`, expected one of `a`, `b`".
fn with_nearest_key(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let is_unknown = message.starts_with("unknown field") || message.starts_with("unknown variant");
    let nearest = quoted.next().filter(|_| is_unknown).and_then(|unknown| {
        let known: Vec<&str> = quoted.collect();
        let best = known
            .into_iter()
            .max_by(|a, b| similarity(a, unknown).total_cmp(&similarity(b, unknown)))?;
        Some((unknown, best))
    });
    match nearest {
        Some((unknown, best)) => {
            let kind = if message.starts_with("unknown field") {
                "key"
            } else {
                "value"
            };
            let known = message
                .split_once("expected ")
                .map_or("", |(_, known)| known)
                .trim_start_matches("one of ");
            format!("unknown {kind} `{unknown}`; hint: did you mean `{best}`? (known: {known})")
        }
        None => wrong_type(message).unwrap_or_else(|| message.trim().to_string()),
    }
}

/// Rewrites serde's "invalid type: string "abc", expected u64" in terms of TOML.
fn wrong_type(message: &str) -> Option<String> {
    let (found, expected) = message
        .trim()
        .strip_prefix("invalid type: ")
        .or_else(|| message.trim().strip_prefix("invalid value: "))?
        .rsplit_once(", expected ")?;
    let expected = match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number of at least 0",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a string" | "path string" => "a string in quotes",
        structure if structure.starts_with("struct ") || structure == "a map" => "a table",
        other => other,
    };
    Some(format!("must be {expected}, not {found}"))
}

/// Similarity of two keys, with a bonus if one contains the other, such as `layers` and `n_layers`.
fn similarity(a: &str, b: &str) -> f64 {
    let contains = a.contains(b) || b.contains(a);
    strsim::jaro_winkler(a, b) + if contains { 0.3 } else { 0.0 }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
