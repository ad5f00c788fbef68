//! Reads and writes run configurations. Errors name the line and the nearest known key.

use std::path::Path;

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
    let at_line = |e: &toml::de::Error| TrainError::ConfigFile {
        path: path.to_path_buf(),
        line: e.span().map(|span| line_number(text, span.start)),
        problem: with_nearest_key(e.message()),
    };
    // The text is parsed before overrides are applied, so that errors have line numbers.
    let mut config: RunConfig = toml::from_str(text).map_err(|e| at_line(&e))?;
    let mut table: Table = toml::from_str(text).map_err(|e| at_line(&e))?;
    if !overrides.is_empty() {
        for assignment in overrides {
            set(&mut table, assignment)?;
            config = RunConfig::deserialize(table.clone()).map_err(|e| {
                let problem = with_nearest_key(e.message());
                override_error(assignment, &problem)
            })?;
        }
        adapt_to_overrides(&mut config, overrides);
    }
    check_tokenizer_keys(&table)?;
    config.validate()?;
    Ok(config)
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

/// Overrides of these keys, or of keys below them, may change the number of parameters.
const SIZE_KEYS: [&str; 3] = ["model", "data", "start_from"];

/// Adjusts values of the file to the overrides: another model or text may change the number of
/// parameters, and a run shorter than its warmup gets a warmup of a tenth of its steps.
fn adapt_to_overrides(config: &mut RunConfig, overrides: &[String]) {
    let is_set = |key: &str| overrides.iter().any(|set| override_key(set) == key);
    let changes_size = |set: &&String| {
        let section = override_key(set).split('.').next().unwrap_or_default();
        SIZE_KEYS.contains(&section)
    };
    if !is_set("expect_parameters")
        && let Some(expected) = config.expect_parameters
        && let Some(set) = overrides.iter().find(changes_size)
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
mod tests {
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
    fn wrong_types_are_named_in_terms_of_toml() {
        for (set, message) in [
            (
                "train.steps=abc",
                "must be a whole number of at least 0, not string \"abc\"",
            ),
            ("model=3", "must be a table, not integer `3`"),
            ("model.residual=3", "must be true or false, not integer `3`"),
        ] {
            let error = error("", &[set]);
            assert!(error.contains(message), "{error}");
        }
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
        for set in ["name=x", "train.steps=200", "seed=2"] {
            let config = parse_config(text, Path::new("x.toml"), &[set.to_string()]).unwrap();
            assert_eq!(config.expect_parameters, Some(3), "{set}");
            assert!(config.warnings.is_empty(), "{set}");
        }
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
        assert_eq!(short(&["train.steps=600"]).unwrap(), 100);
        assert!(short(&["train.steps=60", "schedule.warmup_steps=80"]).is_err());
    }

    #[test]
    fn a_resolved_config_round_trips() {
        let config = RunConfig::default();
        let text = to_toml(&config).unwrap();
        let parsed = parse_config(&text, Path::new("x.toml"), &[]).unwrap();
        assert_eq!(parsed, config);
    }
}
