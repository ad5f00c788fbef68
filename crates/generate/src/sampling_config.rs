//! Sampling settings.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::GenerateError;

/// How the next token is sampled from the model's logits.
///
/// Order: `logit_bias`, the three penalties, `temperature`, `top_k`, `top_p`, `min_p`, softmax over
/// the remaining tokens, one sample. The defaults sample from the model's own distribution.
///
/// # Example
///
/// ```
/// use nextword_generate::SamplingConfig;
///
/// let creative = SamplingConfig { temperature: 0.9, top_p: Some(0.95), seed: 7, ..Default::default() };
/// assert!(creative.validate().is_ok());
/// let error = SamplingConfig { top_p: Some(1.5), ..creative }.validate().unwrap_err();
/// assert!(error.to_string().contains("top_p"));
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingConfig {
    /// Divides the logits: below 1 is more predictable, above 1 more random. 0 is greedy: always the
    /// most probable token, ties go to the lowest id. Default 1.
    pub temperature: f64,
    /// Keeps the k most probable tokens (Fan et al. 2018); ties go to the lowest ids. Default: all.
    pub top_k: Option<usize>,
    /// Keeps the smallest set of most probable tokens whose total probability reaches p (nucleus
    /// sampling, Holtzman et al. 2019). Default: all.
    pub top_p: Option<f64>,
    /// Keeps tokens with at least this fraction of the top token's probability (Nguyen et al. 2024).
    /// Default: all.
    pub min_p: Option<f64>,
    /// Divides positive logits and multiplies negative logits of tokens in the prompt or the
    /// completion (CTRL, Keskar et al. 2019; as in Hugging Face's `transformers`). Default 1: off.
    pub repetition_penalty: f64,
    /// Subtracted once from the logit of each token already generated (`OpenAI`'s definition, over
    /// generated tokens only). Default 0.
    pub presence_penalty: f64,
    /// Subtracted from a token's logit once for each time it was generated (`OpenAI`'s definition,
    /// over generated tokens only). Default 0.
    pub frequency_penalty: f64,
    /// Added to the logits of these ids; negative infinity forbids a token. Default: none.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Seed of the random numbers. Default 0.
    pub seed: u64,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            seed: 0,
        }
    }
}

impl SamplingConfig {
    /// Greedy decoding: always the most probable token.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            ..Self::default()
        }
    }

    /// Checks that every value is valid.
    ///
    /// # Errors
    /// [`GenerateError::Setting`] with the first invalid field.
    pub fn validate(&self) -> Result<(), GenerateError> {
        let fail = |key, problem, hint| Err(GenerateError::Setting { key, problem, hint });
        let temperature = self.temperature;
        if !(temperature.is_finite() && temperature >= 0.0) {
            let hint = "use 0 for greedy decoding, 0.8 for more predictable text, 1 for the model's own distribution";
            return fail(
                "temperature",
                format!("must be a finite number of at least 0, but is {temperature}"),
                hint,
            );
        }
        if self.top_k == Some(0) {
            let hint = "omit it to keep all tokens, or use 1 for greedy decoding";
            return fail("top_k", "must be at least 1, but is 0".to_owned(), hint);
        }
        if let Some(p) = self.top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            let problem = format!("must be greater than 0 and at most 1, but is {p}");
            return fail("top_p", problem, "0.9 is typical");
        }
        if let Some(p) = self.min_p.filter(|p| !(0.0..=1.0).contains(p)) {
            return fail(
                "min_p",
                format!("must be from 0 to 1, but is {p}"),
                "0.05 is typical",
            );
        }
        let repetition = self.repetition_penalty;
        if !(repetition.is_finite() && repetition > 0.0) {
            let problem = format!("must be a positive number, but is {repetition}");
            return fail(
                "repetition_penalty",
                problem,
                "1 disables it, 1.1 is typical",
            );
        }
        let penalties = [
            ("presence_penalty", self.presence_penalty),
            ("frequency_penalty", self.frequency_penalty),
        ];
        for (key, value) in penalties {
            if !value.is_finite() {
                return fail(
                    key,
                    format!("must be a finite number, but is {value}"),
                    "0 disables it, 0.5 is typical",
                );
            }
        }
        if let Some((id, bias)) = self
            .logit_bias
            .iter()
            .find(|(_, b)| b.is_nan() || **b == f32::INFINITY)
        {
            let problem = format!(
                "must be a finite number or negative infinity, but is {bias} for token {id}"
            );
            return fail(
                "logit_bias",
                problem,
                "100 practically forces a token, -100 practically forbids it",
            );
        }
        Ok(())
    }

    /// Whether any penalty is active.
    pub(crate) fn has_penalties(&self) -> bool {
        (self.repetition_penalty - 1.0).abs() > 0.0
            || self.presence_penalty.abs() > 0.0
            || self.frequency_penalty.abs() > 0.0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn invalid_values_are_named() {
        let base = SamplingConfig::default;
        let bad = [
            (
                "temperature",
                SamplingConfig {
                    temperature: -0.1,
                    ..base()
                },
            ),
            (
                "temperature",
                SamplingConfig {
                    temperature: f64::NAN,
                    ..base()
                },
            ),
            (
                "top_k",
                SamplingConfig {
                    top_k: Some(0),
                    ..base()
                },
            ),
            (
                "top_p",
                SamplingConfig {
                    top_p: Some(0.0),
                    ..base()
                },
            ),
            (
                "top_p",
                SamplingConfig {
                    top_p: Some(1.5),
                    ..base()
                },
            ),
            (
                "min_p",
                SamplingConfig {
                    min_p: Some(f64::NAN),
                    ..base()
                },
            ),
            (
                "repetition_penalty",
                SamplingConfig {
                    repetition_penalty: 0.0,
                    ..base()
                },
            ),
            (
                "presence_penalty",
                SamplingConfig {
                    presence_penalty: f64::INFINITY,
                    ..base()
                },
            ),
            (
                "frequency_penalty",
                SamplingConfig {
                    frequency_penalty: f64::NAN,
                    ..base()
                },
            ),
            (
                "logit_bias",
                SamplingConfig {
                    logit_bias: [(3, f32::NAN)].into(),
                    ..base()
                },
            ),
        ];
        for (key, config) in bad {
            let message = config.validate().unwrap_err().to_string();
            assert!(message.starts_with(&format!("{key}: ")), "{message}");
            assert!(message.contains("; hint: "), "{message}");
        }
        assert!(base().validate().is_ok());
        assert!(SamplingConfig::greedy().validate().is_ok());
    }

    #[test]
    fn json_has_defaults_and_rejects_unknown_keys() {
        let json = r#"{"top_k": 5, "logit_bias": {"7": -1.5}}"#;
        let config: SamplingConfig = serde_json::from_str(json).unwrap();
        let expected = SamplingConfig {
            top_k: Some(5),
            logit_bias: [(7, -1.5)].into(),
            ..SamplingConfig::default()
        };
        assert_eq!(config, expected);
        let unknown = serde_json::from_str::<SamplingConfig>(r#"{"topk": 5}"#);
        assert!(unknown.unwrap_err().to_string().contains("topk"));
    }
}
