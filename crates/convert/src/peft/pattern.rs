//! Settings of single modules, by regular expressions for the end of their names.

use regex::bytes::{Regex, RegexBuilder};

use crate::ConvertError;
use crate::hf::fields::Fields;

/// Maximum number of patterns of an adapter, for ranks and alphas together: more than two for each module of a large
/// model.
const MAX_PATTERNS: usize = 2048;

/// Maximum size in bytes of a compiled pattern, which is enough for a name with all its parts.
const MAX_PATTERN_BYTES: usize = 64 << 10;

/// Numbers by pattern, in the order in which PEFT tries them: sorted, as it writes them.
#[derive(Debug)]
pub(super) struct Patterns(Vec<(Regex, f64)>);

impl Patterns {
    /// Reads the patterns for ranks and for alphas.
    pub(super) fn read_both(fields: &Fields) -> Result<[Self; 2], ConvertError> {
        let ranks = Self::read(fields, "rank_pattern", MAX_PATTERNS)?;
        let alphas = Self::read(fields, "alpha_pattern", MAX_PATTERNS - ranks.0.len())?;
        Ok([ranks, alphas])
    }

    /// Reads the object `name`, if there is one, of at most `limit` entries.
    fn read(fields: &Fields, name: &str, limit: usize) -> Result<Self, ConvertError> {
        let Some(patterns) = fields.object(name)? else {
            return Ok(Self(Vec::new()));
        };
        let keys: Vec<&str> = patterns.unread().map(|(key, _)| key).collect();
        if keys.len() > limit {
            let problem = format!(
                "but rank_pattern and alpha_pattern must have at most {MAX_PATTERNS} entries together"
            );
            return Err(fields.error(name, problem));
        }
        let compile = |key: &str| {
            let value = patterns.required_number(key)?;
            let regex = RegexBuilder::new(&format!(r"^(?:.*\.)?(?:{key})$"))
                .unicode(false) // Names of modules are ASCII, and Unicode's classes take far more memory.
                .size_limit(MAX_PATTERN_BYTES)
                .dfa_size_limit(MAX_PATTERN_BYTES)
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
        let found = self
            .0
            .iter()
            .find(|(regex, _)| regex.is_match(module.as_bytes()));
        found.map(|(_, value)| *value)
    }
}
