//! Settings of single modules, by regular expressions for the end of their names.

use regex::{Regex, RegexBuilder};

use crate::ConvertError;
use crate::hf::fields::Fields;

/// More patterns than any model has modules.
const MAX_PATTERNS: usize = 4096;

/// Maximum size in bytes of a compiled pattern.
const MAX_PATTERN_BYTES: usize = 1 << 20;

/// Numbers by pattern, in the order in which PEFT tries them: sorted, as it writes them.
#[derive(Debug)]
pub(super) struct Patterns(Vec<(Regex, f64)>);

impl Patterns {
    /// Reads the object `name`, if there is one.
    pub(super) fn read(fields: &Fields, name: &str) -> Result<Self, ConvertError> {
        let Some(patterns) = fields.object(name)? else {
            return Ok(Self(Vec::new()));
        };
        let keys: Vec<&str> = patterns.unread().map(|(key, _)| key).collect();
        if keys.len() > MAX_PATTERNS {
            let problem = format!("but must have at most {MAX_PATTERNS} entries");
            return Err(fields.error(name, problem));
        }
        let compile = |key: &str| {
            let value = patterns.required_number(key)?;
            let regex = RegexBuilder::new(&format!(r"^(?:.*\.)?(?:{key})$"))
                .size_limit(MAX_PATTERN_BYTES)
                .build();
            let problem = "whose name is not a regular expression that nextword supports";
            Ok((regex.map_err(|_| patterns.error(key, problem))?, value))
        };
        keys.into_iter()
            .map(compile)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The number of the first pattern that matches the end of `module`.
    pub(super) fn find(&self, module: &str) -> Option<f64> {
        let found = self.0.iter().find(|(regex, _)| regex.is_match(module));
        found.map(|(_, value)| *value)
    }
}
