//! How the next token is chosen: the settings.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::GenerateError;

/// How the next token is chosen from the model's logits.
///
/// Applied in this order: `logit_bias`, the three penalties, `temperature`, `top_k`, `top_p`,
/// `min_p`, softmax over what is left, one draw. The defaults follow the model's own
/// probabilities.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingConfig {
    /// Logits are divided by it: below 1 is safer, above 1 is bolder. 0 is greedy: always the
    /// likeliest token, and of equals the one with the lowest id. Default 1.
    pub temperature: f64,
    /// Keep the k likeliest tokens (Fan et al. 2018). Of equals the lowest ids are kept. Default:
    /// all.
    pub top_k: Option<usize>,
    /// Keep the fewest likeliest tokens that have this probability together (nucleus sampling,
    /// Holtzman et al. 2019). Default: all.
    pub top_p: Option<f64>,
    /// Keep the tokens with at least this share of the likeliest one's probability (Nguyen et al.
    /// 2024). Default: all.
    pub min_p: Option<f64>,
    /// Logits of tokens in the prompt or the answer are divided by it if positive, multiplied if
    /// negative (CTRL, Keskar et al. 2019; as in Hugging Face's `transformers`). Default 1: off.
    pub repetition_penalty: f64,
    /// Taken from the logits of tokens that are in the answer already, once each (`OpenAI`'s
    /// definition, over generated tokens only). Default 0.
    pub presence_penalty: f64,
    /// Taken from a token's logit for each time that it is in the answer already (`OpenAI`'s
    /// definition, over generated tokens only). Default 0.
    pub frequency_penalty: f64,
    /// Added to the logits of these ids; negative infinity forbids a token. Default: none.
    pub logit_bias: BTreeMap<u32, f32>,
    /// The same seed gives the same draws. Default 0.
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
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            ..Self::default()
        }
    }

    /// Checks that every value can be used.
    ///
    /// # Errors
    /// [`GenerateError::Setting`] that names the first field at fault.
    pub fn validate(&self) -> Result<(), GenerateError> {
        let fail = |key, problem, hint| Err(GenerateError::Setting { key, problem, hint });
        let temperature = self.temperature;
        if !(temperature.is_finite() && temperature >= 0.0) {
            let hint = "use 0 for the likeliest token, 0.8 for careful and 1 for faithful draws";
            return fail(
                "temperature",
                format!("{temperature} is not a number of 0 or more"),
                hint,
            );
        }
        if self.top_k == Some(0) {
            let hint = "leave it out to keep all tokens, or use 1 for the likeliest";
            return fail("top_k", "0 keeps no token".to_owned(), hint);
        }
        if let Some(p) = self.top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            let problem = format!("{p} is not a probability above 0 and up to 1");
            return fail("top_p", problem, "0.9 is usual");
        }
        if let Some(p) = self.min_p.filter(|p| !(0.0..=1.0).contains(p)) {
            return fail(
                "min_p",
                format!("{p} is not between 0 and 1"),
                "0.05 is usual",
            );
        }
        let repetition = self.repetition_penalty;
        if !(repetition.is_finite() && repetition > 0.0) {
            let problem = format!("{repetition} is not a positive number");
            return fail("repetition_penalty", problem, "1 is none, 1.1 is usual");
        }
        let penalties = [
            ("presence_penalty", self.presence_penalty),
            ("frequency_penalty", self.frequency_penalty),
        ];
        for (key, value) in penalties {
            if !value.is_finite() {
                return fail(
                    key,
                    format!("{value} is not a finite number"),
                    "0 is none, 0.5 is usual",
                );
            }
        }
        if let Some((id, bias)) = self
            .logit_bias
            .iter()
            .find(|(_, b)| b.is_nan() || **b == f32::INFINITY)
        {
            let problem = format!("the bias of token {id} is {bias}");
            return fail(
                "logit_bias",
                problem,
                "100 nearly forces a token, -100 nearly forbids it",
            );
        }
        Ok(())
    }

    /// Whether what was said before changes the logits.
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
    fn each_impossible_value_is_named() {
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
    fn json_gives_defaults_to_what_it_leaves_out_and_refuses_unknown_keys() {
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
