//! Words for what serde finds wrong with a configuration: the key, the expected type, the nearest known key.

use serde::Deserialize;
use toml::{Table, Value};

use crate::RunConfig;

/// Minimum similarity of a key that is suggested.
const MIN_SIMILARITY: f64 = 0.75;

/// What is wrong with a configuration.
#[derive(Debug)]
pub(crate) struct Problem {
    /// What is wrong.
    pub(crate) problem: String,
    /// How to fix it, where that is known.
    pub(crate) hint: Option<String>,
}

impl Problem {
    /// Rewrites serde's message about the value of `key`, such as `train.steps`, where it is known.
    pub(crate) fn new(message: &str, key: Option<&str>) -> Self {
        let message = message.trim();
        unknown_name(message, key)
            .or_else(|| wrong_type(message, key))
            .unwrap_or_else(|| {
                let (problem, hint) = match message.split_once("; hint: ") {
                    Some((problem, hint)) => (problem, Some(hint.to_string())),
                    None => (message, None),
                };
                Self {
                    problem: problem.to_string(),
                    hint,
                }
            })
    }

    /// The problem and its hint as one text.
    pub(crate) fn into_text(self) -> String {
        match self.hint {
            Some(hint) => format!("{}; hint: {hint}", self.problem),
            None => self.problem,
        }
    }
}

/// Whether serde expected a string, so that a value of another type was meant as one.
pub(crate) fn expects_string(message: &str) -> bool {
    let message = message.trim();
    message.starts_with("invalid type: ")
        && (message.ends_with("expected a string") || message.ends_with("expected path string"))
}

/// Rewrites "unknown field `x`, expected one of `a`, `b`", and the same of a value.
fn unknown_name(message: &str, key: Option<&str>) -> Option<Problem> {
    let is_key = message.starts_with("unknown field");
    if !is_key && !message.starts_with("unknown variant") {
        return None;
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    let unknown = quoted.next()?;
    let known: Vec<&str> = quoted.collect();
    let mut nearest =
        nearest(&known, unknown).map(|(best, similarity)| (best.to_string(), similarity));
    if is_key {
        let section = key.map_or_else(Vec::new, |key| {
            key.split('.').take_while(|part| *part != unknown).collect()
        });
        nearest = key_of_another_section(unknown, &section.join("."))
            .filter(|(_, similarity)| nearest.as_ref().is_none_or(|(_, near)| similarity > near))
            .or(nearest);
    }
    let listed = message
        .split_once("expected ")
        .map_or("", |(_, known)| known);
    let listed = listed.trim_start_matches("one of ");
    let suggestion = nearest
        .filter(|(_, similarity)| !is_key || *similarity >= MIN_SIMILARITY)
        .map_or_else(
            || format!("known: {listed}"),
            |(best, _)| format!("did you mean `{best}`? (known: {listed})"),
        );
    Some(Problem {
        problem: format!(
            "unknown {} `{unknown}`",
            if is_key { "key" } else { "value" }
        ),
        hint: Some(suggestion),
    })
}

/// The name that is most similar to `unknown`, with its similarity.
fn nearest<'a>(known: &[&'a str], unknown: &str) -> Option<(&'a str, f64)> {
    let scored = known.iter().map(|name| (*name, similarity(name, unknown)));
    scored.max_by(|(_, a), (_, b)| a.total_cmp(b))
}

/// The key outside `section` whose last part is most similar to `unknown`, with all its sections.
fn key_of_another_section(unknown: &str, section: &str) -> Option<(String, f64)> {
    let mut keys = Vec::new();
    collect_keys("", &mut keys);
    let elsewhere = keys.into_iter().filter_map(|key| {
        let (own, name) = key.rsplit_once('.').unwrap_or(("", &key));
        // Slightly less than a key of the same section.
        let score = similarity(name, unknown) - 0.02 - 0.001 * own.len() as f64 / 100.0;
        let contains_section = section == key || section.starts_with(&format!("{key}."));
        (own != section && !contains_section).then_some((key, score))
    });
    elsewhere.max_by(|(_, a), (_, b)| a.total_cmp(b))
}

/// Collects the keys of `section` and of the sections in it.
fn collect_keys(section: &str, keys: &mut Vec<String>) {
    // serde lists the known keys in its error about one that cannot exist.
    let mut value = Value::Table(Table::from_iter([("?".to_string(), Value::Boolean(true))]));
    for part in section.rsplit('.').filter(|part| !part.is_empty()) {
        value = Value::Table(Table::from_iter([(part.to_string(), value)]));
    }
    let Err(error) = RunConfig::deserialize(value) else {
        return;
    };
    let message = error.message();
    if !message.trim().starts_with("unknown field `?`") {
        return;
    }
    for name in message.split('`').skip(3).step_by(2) {
        let key = if section.is_empty() {
            name.to_string()
        } else {
            format!("{section}.{name}")
        };
        collect_keys(&key, keys);
        keys.push(key);
    }
}

/// Similarity of two names, with a bonus if one contains the other, such as `layers` and `n_layers`.
fn similarity(a: &str, b: &str) -> f64 {
    let contains = a.contains(b) || b.contains(a);
    strsim::jaro_winkler(a, b) + if contains { 0.3 } else { 0.0 }
}

/// Rewrites serde's "invalid type: string "abc", expected u64" in terms of TOML.
fn wrong_type(message: &str, key: Option<&str>) -> Option<Problem> {
    let (found, expected) = message
        .strip_prefix("invalid type: ")
        .or_else(|| message.strip_prefix("invalid value: "))?
        .rsplit_once(", expected ")?;
    let found = readable(found);
    let (expected, example) = match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" if found.starts_with('-') => {
            ("a whole number of at least 0", "500")
        }
        "u8" | "u16" | "u32" | "u64" | "usize" | "i8" | "i16" | "i32" | "i64" | "isize" => {
            ("a whole number", "500")
        }
        "f32" | "f64" => ("a number", "0.5"),
        "a boolean" => ("true or false", "true"),
        "a sequence" => ("a list", "'[\"a\", \"b\"]'"),
        "a string" | "path string" => ("a string", "abc"),
        table if table.starts_with("struct ") || table == "a map" => ("a table", ""),
        other => (other, ""),
    };
    let example = key
        .filter(|_| !example.is_empty())
        .map(|key| format!("for example, {key} = {example}"));
    let expected = match (expected, key) {
        ("a table", Some(key)) => format!("a table [{key}]"),
        _ => expected.to_string(),
    };
    Some(Problem {
        problem: match key {
            Some(key) => format!("{key} must be {expected}, not {found}"),
            None => format!("must be {expected}, not {found}"),
        },
        hint: example,
    })
}

/// Rewrites serde's "string "abc"", "integer `3`" and the like as TOML writes them.
fn readable(found: &str) -> String {
    let value = found.split_once(' ').map(|(_, value)| value);
    match (found, value) {
        ("sequence", _) => "a list".to_string(),
        ("map", _) => "a table".to_string(),
        (_, Some(value)) if found.starts_with("string ") => value.to_string(),
        _ => match found.split('`').nth(1) {
            Some(value) => value.to_string(),
            None => found.to_string(),
        },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::parse_config;

    #[test]
    fn names_of_other_programs_lead_to_the_keys_of_an_adapter() {
        for (name, key) in [
            ("lora_alpha", "alpha"),
            ("lora_dropout", "dropout"),
            ("lora_rank", "rank"),
            ("r", "rank"),
            ("targets", "target_modules"),
        ] {
            let text = format!("start_from = \"x\"\n[lora]\n{name} = 8\n");
            let error = parse_config(&text, Path::new("x.toml"), &[]).unwrap_err();
            let error = error.to_string();
            let expected = format!("unknown key `{name}`; hint: did you mean `{key}`?");
            assert!(error.contains(&expected), "{error}");
        }
    }

    fn error(text: &str, overrides: &[&str]) -> String {
        let overrides: Vec<_> = overrides.iter().map(ToString::to_string).collect();
        parse_config(text, Path::new("x.toml"), &overrides)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn wrong_types_are_named_in_terms_of_toml() {
        for (set, message) in [
            (
                "train.steps=abc",
                "train.steps must be a whole number, not \"abc\"",
            ),
            (
                "train.steps=-3",
                "train.steps must be a whole number of at least 0, not -3",
            ),
            (
                "train.steps=1.5",
                "train.steps must be a whole number, not 1.5",
            ),
            (
                "schedule.learning_rate=fast",
                "schedule.learning_rate must be a number, not \"fast\"",
            ),
            (
                "samples.prompts=a",
                "samples.prompts must be a list, not \"a\"",
            ),
            ("model=3", "a table [model], not 3"),
            (
                "model.residual=3",
                "model.residual must be true or false, not 3",
            ),
        ] {
            let error = error("", &[set]);
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn strings_that_look_like_numbers_are_strings() {
        let base = "data.builtin = 'stories'";
        for value in [
            "2024",
            "-7",
            "1.10",
            "1e5",
            "true",
            "false",
            "inf",
            "nan",
            "0x10",
            "1_000",
            "2024-01-31",
            "07:32:00",
            "[1]",
            "{a=1}",
            "\"2024\"",
            "007",
            "1.2.3",
            "abc",
            "+1",
            "0b1",
            "0o7",
        ] {
            let config =
                parse_config(base, Path::new("x.toml"), &[format!("name={value}")]).unwrap();
            assert_eq!(config.name, value.trim_matches('"'));
            let config =
                parse_config(base, Path::new("x.toml"), &[format!("data.path={value}")]).unwrap();
            assert_eq!(
                config.data.path.as_deref(),
                Some(Path::new(value.trim_matches('"')))
            );
            let set = [
                format!("start_from={value}"),
                format!("samples.prompts=['{}']", 1),
            ];
            let config = parse_config(base, Path::new("x.toml"), &set).unwrap();
            assert_eq!(
                config.start_from.as_deref(),
                Some(Path::new(value.trim_matches('"')))
            );
        }
        let message = error(base, &["samples.prompts=[1]"]);
        assert!(message.contains("must be a string, not 1"), "{message}");
    }

    #[test]
    fn a_wrong_type_in_a_file_names_the_key() {
        for (text, problem) in [
            (
                "[train]\nsteps = \"many\"\n",
                "x.toml:2: train.steps must be a whole number, not \"many\"",
            ),
            (
                "[data.split]\nvalidation = true\n",
                "x.toml:2: data.split.validation must be a number, not true",
            ),
            ("\nname = 3\n", "x.toml:2: name must be a string, not 3"),
        ] {
            let message = error(text, &[]);
            assert!(message.starts_with(problem), "{message}");
        }
    }

    #[test]
    fn a_hint_is_given_once() {
        for set in [
            "learning_rate=1",
            "train.step=7",
            "train.steps=abc",
            "xyzzy=1",
        ] {
            let message = error("", &[set]);
            assert_eq!(message.matches("hint:").count(), 1, "{message}");
        }
    }

    #[test]
    fn every_key_is_found_with_its_sections() {
        let mut keys = Vec::new();
        collect_keys("", &mut keys);
        for key in [
            "name",
            "train.steps",
            "schedule.learning_rate",
            "data.tokenizer.vocab_size",
            "model.bias.qkv",
        ] {
            assert!(keys.iter().any(|found| found == key), "{key}: {keys:?}");
        }
        assert!(keys.len() > 60, "{}", keys.len());
    }

    #[test]
    fn a_key_of_another_section_is_suggested_with_it() {
        let hint = |message: &str, key: &str| Problem::new(message, Some(key)).hint.unwrap();
        for (unknown, key, suggestion) in [
            ("learning_rate", "learning_rate", "`schedule.learning_rate`"),
            (
                "learning_rate",
                "train.learning_rate",
                "`schedule.learning_rate`",
            ),
            ("n_layers", "n_layers", "`model.n_layers`"),
            ("batch_size", "batch_size", "`train.batch_size`"),
            ("warmup", "train.warmup", "`schedule.warmup_steps`"),
            (
                "vocab_size",
                "data.vocab_size",
                "`data.tokenizer.vocab_size`",
            ),
            ("step", "train.step", "`steps`"),
        ] {
            let message = match key.split_once('.') {
                Some(("train", _)) => {
                    format!("unknown field `{unknown}`, expected one of `steps`, `batch_size`")
                }
                _ => format!(
                    "unknown field `{unknown}`, expected one of `name`, `out`, `expect_parameters`"
                ),
            };
            let hint = hint(&message, key);
            // `batch_size` and `vocab_size` exist in two sections.
            let either = match unknown {
                "batch_size" => hint.contains("`validation.batch_size`"),
                "vocab_size" => hint.contains("`model.vocab_size`"),
                _ => false,
            };
            assert!(hint.contains(suggestion) || either, "{key}: {hint}");
        }
        let nothing = hint("unknown field `xyzzy`, expected `name` or `out`", "xyzzy");
        assert!(!nothing.contains("did you mean"), "{nothing}");
    }

    #[test]
    fn found_values_are_written_as_in_toml() {
        for (found, written) in [
            ("string \"abc\"", "\"abc\""),
            ("integer `-3`", "-3"),
            ("boolean `true`", "true"),
            ("floating point `1.5`", "1.5"),
            ("sequence", "a list"),
            ("map", "a table"),
        ] {
            assert_eq!(readable(found), written);
        }
    }
}
