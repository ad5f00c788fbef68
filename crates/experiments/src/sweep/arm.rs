//! Arms: the combinations of settings that a sweep compares.

use std::str::FromStr;

use nextword_base::hash::sha256_hex;
use serde::{Deserialize, Serialize};

use crate::ExperimentError;

/// Keys that a sweep itself sets.
const RESERVED: [(&str, &str); 3] = [
    ("seed", "set the number of seeds with --seeds"),
    ("name", "the folder of a run follows from its settings"),
    ("out", "the folder of a run follows from its settings"),
];

/// Bytes of a folder name from which on it is shortened.
const MAX_FOLDER_NAME: usize = 100;

/// A key of the configuration and the values that a sweep gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variation {
    /// The key, such as `model.n_layers`.
    pub key: String,
    /// The values as text. Each gets the type that `--set` gives it.
    pub values: Vec<String>,
}

impl FromStr for Variation {
    type Err = ExperimentError;

    /// Parses `KEY=VALUE,VALUE`. Commas in quotes, brackets or braces do not separate values.
    ///
    /// ```
    /// use nextword_experiments::Variation;
    ///
    /// let variation: Variation = "model.windows=[8,0],[0,0]".parse()?;
    /// assert_eq!(variation.values, ["[8,0]", "[0,0]"]);
    /// assert!("model.n_layers".parse::<Variation>().is_err());
    /// # Ok::<(), nextword_experiments::ExperimentError>(())
    /// ```
    fn from_str(text: &str) -> Result<Self, ExperimentError> {
        let option = || format!("--vary {text}");
        let example = "use --vary KEY=VALUE,VALUE, for example --vary model.n_layers=2,4";
        let Some((key, values)) = text.split_once('=') else {
            return Err(ExperimentError::option(option(), "missing `=`", example));
        };
        let (key, values) = (key.trim().to_string(), split_values(values));
        if key.is_empty() || values.iter().any(String::is_empty) {
            let problem = "the key and each value must not be empty";
            return Err(ExperimentError::option(option(), problem, example));
        }
        if let Some((_, hint)) = RESERVED.iter().find(|(reserved, _)| *reserved == key) {
            let problem = format!("a sweep sets `{key}` itself");
            return Err(ExperimentError::option(option(), problem, *hint));
        }
        let repeated = (1..values.len()).find(|at| values[..*at].contains(&values[*at]));
        if let Some(at) = repeated {
            let problem = format!("{} occurs twice", values[at]);
            return Err(ExperimentError::option(
                option(),
                problem,
                "name each value once",
            ));
        }
        Ok(Self { key, values })
    }
}

/// Splits at commas outside of quotes and brackets.
fn split_values(text: &str) -> Vec<String> {
    let (mut values, mut value) = (Vec::new(), String::new());
    let (mut depth, mut quote) = (0_usize, None);
    for c in text.chars() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, '[' | '{') => depth += 1,
            (None, ']' | '}') => depth = depth.saturating_sub(1),
            (None, ',') if depth == 0 => {
                values.push(std::mem::take(&mut value).trim().to_string());
                continue;
            }
            _ => {}
        }
        value.push(c);
    }
    values.push(value.trim().to_string());
    values
}

/// One combination of settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arm {
    /// The settings as `KEY=VALUE`, in the order of the variations; empty if nothing is varied.
    pub settings: Vec<String>,
}

impl Arm {
    /// The name in tables: the settings, or `base`.
    pub fn name(&self) -> String {
        match self.settings.as_slice() {
            [] => "base".to_string(),
            settings => settings.join(" "),
        }
    }

    /// The name of the folder: unique among all arms, for any value.
    pub fn folder_name(&self) -> String {
        let name = self.name();
        let safe = |c: char| c.is_ascii_alphanumeric() || "._=+-".contains(c);
        let mut folder: String = name.replace(' ', ",");
        if folder.len() <= MAX_FOLDER_NAME && folder.chars().all(|c| safe(c) || c == ',') {
            return folder;
        }
        // What is replaced could differ between arms, so that a hash tells them apart.
        folder = folder
            .chars()
            .map(|c| if safe(c) || c == ',' { c } else { '_' })
            .take(MAX_FOLDER_NAME)
            .collect();
        format!("{folder}-{}", &sha256_hex(name.as_bytes())[..8])
    }
}

/// All combinations; the values of the last variation change first.
pub(crate) fn combinations(variations: &[Variation]) -> Result<Vec<Arm>, ExperimentError> {
    for (at, variation) in variations.iter().enumerate() {
        if variations[..at]
            .iter()
            .any(|other| other.key == variation.key)
        {
            return Err(ExperimentError::option(
                format!("--vary {}", variation.key),
                "this key is varied twice",
                "name all of its values in one --vary",
            ));
        }
    }
    let mut arms = vec![Arm {
        settings: Vec::new(),
    }];
    for Variation { key, values } in variations {
        let extend = |arm: &Arm| {
            let arms = values.iter().map(|value| {
                let mut settings = arm.settings.clone();
                settings.push(format!("{key}={value}"));
                Arm { settings }
            });
            arms.collect::<Vec<_>>()
        };
        arms = arms.iter().flat_map(extend).collect();
    }
    Ok(arms)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Variation {
        text.parse().unwrap()
    }

    #[test]
    fn values_are_separated_by_commas_outside_of_quotes_and_brackets() {
        let variation = parse("a.b= 1, 'x,y' ,[1,{c=2}]");
        assert_eq!(variation.key, "a.b");
        assert_eq!(variation.values, ["1", "'x,y'", "[1,{c=2}]"]);
    }

    #[test]
    fn unusable_variations_are_refused() {
        for (text, part) in [
            ("model.n_layers", "missing `=`"),
            ("a=1,", "must not be empty"),
            ("=1", "must not be empty"),
            ("seed=1,2", "--seeds"),
            ("a=1,2,1", "occurs twice"),
        ] {
            let error = text.parse::<Variation>().unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("hint"), "{error}");
        }
        assert!(combinations(&[parse("a=1"), parse("a=2")]).is_err());
    }

    #[test]
    fn every_combination_occurs_once_and_the_first_values_come_first() {
        let arms = combinations(&[parse("a=1,2"), parse("b=x,y,z")]).unwrap();
        let names: Vec<String> = arms.iter().map(Arm::name).collect();
        assert_eq!(names[..4], ["a=1 b=x", "a=1 b=y", "a=1 b=z", "a=2 b=x"]);
        assert_eq!(names.len(), 6);
        assert_eq!(combinations(&[]).unwrap()[0].name(), "base");
    }

    #[test]
    fn folder_names_are_safe_and_unique() {
        let arms = combinations(&[parse("a=../x,..:x,\"..?x\",b c"), parse("b=1")]).unwrap();
        let folders: std::collections::BTreeSet<String> =
            arms.iter().map(Arm::folder_name).collect();
        assert_eq!(folders.len(), 4);
        let safe = |name: &String| !name.contains(['/', ':', '?', ' ', '"']);
        assert!(folders.iter().all(safe), "{folders:?}");
        let long = Arm {
            settings: vec![format!("a={}", "x".repeat(500))],
        };
        assert!(long.folder_name().len() < 120);
    }
}
