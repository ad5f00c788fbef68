//! Tasks from lines of JSON: questions with several endings, and texts.
//!
//! Scores are those of `lm-evaluation-harness`: a question's endings are compared by
//! the sum of their tokens' `ln p` after the context, a text is measured in windows as long as the
//! model's context, each token once.

use std::io::BufRead;

use nextword_data::{IGNORE, TokenBatch, Tokenizer};
use nextword_model::Transformer;
use serde::{Deserialize, Serialize};

use crate::EvalError;
use crate::loss::batch_loss;

/// A line of a task's file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Item {
    /// A question, as in `HellaSwag`.
    Choice {
        /// What stands before each ending.
        context: String,
        /// The choices. A space joins them to the context.
        endings: Vec<String>,
        /// Number of the right ending, from 0.
        label: usize,
    },
    /// A text to be predicted.
    Text {
        /// The text.
        text: String,
    },
}

/// How well a model does a task.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TaskReport {
    /// Questions.
    pub questions: usize,
    /// The part whose right ending was the likeliest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// The part whose right ending was the likeliest by `ln p` for each byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy_by_bytes: Option<f64>,
    /// Texts.
    pub texts: usize,
    /// Bits for each byte of the texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits_per_byte: Option<f64>,
    /// `exp` of the nats for each word between white space.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub word_perplexity: Option<f64>,
}

/// Runs the task that `lines` describe; empty lines count for nothing. `model` must not be on an
/// autodiff device.
///
/// # Errors
/// [`EvalError::Task`] with the line that is no item; [`EvalError::WrongTokenizer`].
pub fn evaluate_task(
    model: &Transformer,
    tokenizer: &dyn Tokenizer,
    lines: impl BufRead,
) -> Result<TaskReport, EvalError> {
    let (tokens, vocab_size) = (tokenizer.vocab_size(), model.config().vocab_size);
    if tokens != vocab_size {
        return Err(EvalError::WrongTokenizer { tokens, vocab_size });
    }
    let scorer = Scorer { model, tokenizer };
    let mut report = TaskReport::default();
    let (mut right, mut right_by_bytes) = (0, 0);
    let (mut nats, mut bytes, mut words) = (0.0, 0, 0);
    for (number, line) in lines.lines().enumerate() {
        let line = line.map_err(|e| task_error(number, &e))?;
        if line.trim().is_empty() {
            continue;
        }
        match serde_json::from_str(&line).map_err(|e| task_error(number, &e))? {
            Item::Choice {
                context,
                endings,
                label,
            } => {
                if label >= endings.len() {
                    let problem = format!("label {label} is none of {} endings", endings.len());
                    return Err(task_error(number, &problem));
                }
                let logprobs = endings.iter().map(|ending| scorer.ending(&context, ending));
                let logprobs = logprobs.collect::<Result<Vec<f64>, _>>()?;
                let by_bytes = logprobs.iter().zip(&endings);
                let by_bytes = by_bytes.map(|(sum, text)| sum / text.len().max(1) as f64);
                report.questions += 1;
                right += usize::from(best(&logprobs) == label);
                right_by_bytes += usize::from(best(&by_bytes.collect::<Vec<_>>()) == label);
            }
            Item::Text { text } => {
                nats -= scorer.text(&text)?;
                bytes += text.len();
                words += text.split_whitespace().count();
                report.texts += 1;
            }
        }
    }
    if report.questions + report.texts == 0 {
        return Err(EvalError::TooShort { tokens: 0 });
    }
    let part = |n: usize| (report.questions > 0).then(|| n as f64 / report.questions as f64);
    Ok(TaskReport {
        accuracy: part(right),
        accuracy_by_bytes: part(right_by_bytes),
        bits_per_byte: (bytes > 0).then(|| nats / std::f64::consts::LN_2 / bytes as f64),
        word_perplexity: (words > 0).then(|| (nats / words as f64).exp()),
        ..report
    })
}

fn task_error(number: usize, problem: &impl ToString) -> EvalError {
    EvalError::Task {
        line: number + 1,
        problem: problem.to_string(),
    }
}

/// The first of the largest.
fn best(scores: &[f64]) -> usize {
    let mut best = 0;
    for (at, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = at;
        }
    }
    best
}

struct Scorer<'a> {
    model: &'a Transformer,
    tokenizer: &'a dyn Tokenizer,
}

impl Scorer<'_> {
    /// `ln p` of `ending` after `context` and a space. White space at the end of the context belongs
    /// to the ending, where tokenizers have it.
    fn ending(&self, context: &str, ending: &str) -> Result<f64, EvalError> {
        let kept = context.trim_end();
        let ending = format!("{} {ending}", &context[kept.len()..]);
        let before = if kept.is_empty() {
            vec![self.beginning()]
        } else {
            self.tokenizer.encode(kept).ids
        };
        let after = if kept.is_empty() {
            self.tokenizer.encode(&ending).ids
        } else {
            let whole = self.tokenizer.encode(&format!("{kept}{ending}")).ids;
            whole.get(before.len()..).unwrap_or_default().to_vec()
        };
        let counted = after.len();
        self.score(&[before, after].concat(), counted)
    }

    /// `ln p` of a text from its beginning.
    fn text(&self, text: &str) -> Result<f64, EvalError> {
        let mut ids = vec![self.beginning()];
        ids.extend(self.tokenizer.encode(text).ids);
        let most = self.model.config().context_length;
        let (mut sum, mut done) = (0.0, 1);
        while done < ids.len() {
            let end = ids.len().min(done + most);
            // Later windows see as much before them as fits.
            sum += self.score(&ids[end.saturating_sub(most + 1)..end], end - done)?;
            done = end;
        }
        Ok(sum)
    }

    /// What a text without context begins after.
    fn beginning(&self) -> u32 {
        self.tokenizer.specials().eos.unwrap_or(0)
    }

    /// `ln p` of the last `counted` of `ids`; what does not fit the context at the beginning is left
    /// out.
    fn score(&self, ids: &[u32], counted: usize) -> Result<f64, EvalError> {
        let most = self.model.config().context_length;
        let ids = &ids[ids.len().saturating_sub(most + 1)..];
        if ids.len() < 2 || counted == 0 {
            return Ok(0.0);
        }
        let seq = ids.len() - 1;
        let mut targets = ids[1..].to_vec();
        let uncounted = seq.saturating_sub(counted);
        targets[..uncounted].fill(IGNORE);
        let batch = TokenBatch {
            batch: 1,
            seq,
            inputs: ids[..seq].to_vec(),
            targets,
        };
        Ok(-batch_loss(self.model, batch)?.0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use nextword_data::{TokenizerConfig, TokenizerKind, build_tokenizer};

    use super::*;
    use crate::loss::tests::{model, naive};

    fn letters() -> std::sync::Arc<dyn Tokenizer> {
        tokenizer(TokenizerKind::Char)
    }

    fn tokenizer(kind: TokenizerKind) -> std::sync::Arc<dyn Tokenizer> {
        let config = TokenizerConfig {
            kind,
            ..TokenizerConfig::default()
        };
        let text = "abcdefgh ".to_owned();
        build_tokenizer(&config, std::iter::once(Ok(text))).unwrap()
    }

    #[test]
    fn the_likeliest_ending_is_chosen_as_a_computation_by_hand_does() {
        let tokenizer = letters();
        let model = model(tokenizer.vocab_size());
        let nats = |text: &str| naive(&model, &tokenizer.encode(text).ids);
        let score = |ending: &str| nats("ab c") - nats(&format!("ab c {ending}"));
        let endings = ["dd", "e", "fgh"];
        let scores = endings.map(score);
        let by_bytes: Vec<f64> = scores
            .iter()
            .zip(endings)
            .map(|(s, e)| s / e.len() as f64)
            .collect();
        let line = |label: usize| {
            serde_json::json!({"context": "ab c", "endings": endings, "label": label}).to_string()
        };
        for label in 0..3 {
            let report = evaluate_task(&model, &*tokenizer, line(label).as_bytes()).unwrap();
            let right = |scores: &[f64]| f64::from(u8::from(best(scores) == label));
            assert_eq!(report.accuracy, Some(right(&scores)), "{scores:?}");
            assert_eq!(
                report.accuracy_by_bytes,
                Some(right(&by_bytes)),
                "{by_bytes:?}"
            );
        }
    }

    #[test]
    fn each_token_of_a_text_longer_than_the_context_counts_once() {
        let tokenizer = letters();
        let model = model(tokenizer.vocab_size()); // a context of 8
        let text = "abc deaf hgab feed";
        let ids = tokenizer.encode(text).ids;
        let eos = tokenizer.specials().eos.unwrap();
        let all = [vec![eos], ids].concat();
        let last = |window: &[u32], counted: usize| {
            let before = window.len() - counted;
            naive(&model, window)
                - if before > 1 {
                    naive(&model, &window[..before])
                } else {
                    0.0
                }
        };
        let expected = last(&all[..9], 8) + last(&all[8..17], 8) + last(&all[10..19], 2);
        let line = serde_json::json!({ "text": text }).to_string();
        let report = evaluate_task(&model, &*tokenizer, line.as_bytes()).unwrap();
        let bits = report.bits_per_byte.unwrap();
        let by_hand = expected / std::f64::consts::LN_2 / text.len() as f64;
        assert!((bits - by_hand).abs() < 1e-4, "{bits} {by_hand}");
        assert_eq!(
            (report.texts, report.questions, report.accuracy),
            (1, 0, None)
        );
    }

    #[test]
    fn a_line_that_is_no_item_is_named() {
        let tokenizer = letters();
        let model = model(tokenizer.vocab_size());
        for (lines, says) in [
            ("\n{\"text\": 3}\n", "line 2"),
            (
                "{\"context\": \"a\", \"endings\": [\"b\"], \"label\": 1}",
                "label 1",
            ),
            ("", "0 tokens"),
        ] {
            let error = evaluate_task(&model, &*tokenizer, lines.as_bytes()).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
        let other = self::tokenizer(TokenizerKind::Byte);
        assert!(evaluate_task(&model, &*other, "".as_bytes()).is_err());
    }
}
