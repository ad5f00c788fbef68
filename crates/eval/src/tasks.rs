//! Tasks in JSON Lines: multiple-choice questions and texts.
//!
//! Scores follow `lm-evaluation-harness`. The endings of a question are compared by the sum of their
//! tokens' log-probabilities after the context. A text is evaluated in windows as long as the model's
//! context, each token once. (The harness's API models use windows two tokens shorter than the
//! configured length.)

use std::collections::BTreeSet;
use std::io::BufRead;

use burn::tensor::{Int, Tensor, TensorData};
use nextword_data::{DataError, Encoding, IGNORE, TokenBatch, Tokenizer, first_window_targets};
use nextword_model::{ForwardContext, KvCache, ModelTokens, Transformer, weights};
use serde::Serialize;
use serde_json::Value;

use crate::loss::batch_loss;
use crate::text::{byte_count, check_scorable};
use crate::{EvalError, EvalProgress};

/// A line of a task file.
enum Item {
    /// A multiple-choice question, as in `HellaSwag`. A space joins an ending to the context; `label` is
    /// the index of the correct ending.
    Question {
        context: String,
        endings: Vec<String>,
        label: usize,
    },
    /// A text to predict.
    Text(String),
}

impl Item {
    /// Parses a line with `text`, or with `endings`, `label` and `context` (`ctx` in `HellaSwag`'s
    /// files). Ignores other fields.
    fn parse(line: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(line.trim_end()).map_err(|e| {
            let text = e.to_string();
            // Its line is always the first.
            let problem = text.split(" at line ").next().unwrap_or_default();
            format!("invalid JSON ({problem} at column {})", e.column())
        })?;
        let text = |name: &str| value[name].as_str().map(str::to_owned);
        if value["endings"].is_null() {
            return text("text")
                .map(Self::Text)
                .ok_or_else(|| "neither `text` nor `endings` found".into());
        }
        let context = text("context").or_else(|| text("ctx"));
        let context = context.ok_or("`context` must be a string")?;
        let endings = value["endings"].as_array();
        let endings: Option<Vec<String>> = endings.and_then(|list| {
            let texts = list.iter().map(|ending| Some(ending.as_str()?.to_owned()));
            texts.collect()
        });
        let endings = endings.ok_or("`endings` must be a list of strings")?;
        let label = &value["label"];
        let parse = || label.as_str()?.parse().ok();
        let label = label.as_u64().or_else(parse);
        let label = label.ok_or("`label` must be a whole number")? as usize;
        if label >= endings.len() {
            return Err(format!(
                "label {label} is out of range for {} ending{}",
                endings.len(),
                if endings.len() == 1 { "" } else { "s" }
            ));
        }
        Ok(Self::Question {
            context,
            endings,
            label,
        })
    }
}

/// The result of a task.
///
/// # Example
///
/// ```
/// use burn::tensor::Device;
/// use nextword_data::load_tokenizer;
/// use nextword_eval::evaluate_task;
/// use nextword_model::ModelDir;
///
/// let folder = ModelDir::open("../../docs/models/letters".as_ref())?;
/// let model = folder.load(&Device::flex())?;
/// let tokenizer = load_tokenizer(folder.tokenizer_path())?;
/// let text = r#"{"text": "The cat saw a bird."}"#; // a text to predict, without question
/// let report = evaluate_task(&model, &*tokenizer, &folder.card.special, text.as_bytes())?;
/// assert_eq!((report.texts, report.questions, report.accuracy), (1, 0, None));
/// assert!(report.bits_per_byte.unwrap() < 5.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TaskReport {
    /// Number of questions.
    pub questions: usize,
    /// Fraction of questions answered correctly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Standard error of `accuracy`, for at least two questions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy_stderr: Option<f64>,
    /// Accuracy when endings are compared by log-probability per character (Unicode scalar): the
    /// harness's `acc_norm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy_by_characters: Option<f64>,
    /// Accuracy when endings are compared by log-probability per byte: the harness's `acc_bytes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy_by_bytes: Option<f64>,
    /// Number of texts.
    pub texts: usize,
    /// Bits per byte of text that the predicted tokens stand for, counted as in
    /// [`TextReport::bytes`](crate::TextReport::bytes).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits_per_byte: Option<f64>,
    /// `exp` of the nats per word. A text has one word more than it has runs of white space. Words
    /// that the tokenizer drops are not counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub word_perplexity: Option<f64>,
    /// Distinct characters or words of the task that are not in the vocabulary, at most
    /// [`Encoding::MAX_UNKNOWN`].
    pub unknown: usize,
}

/// Runs the task in `lines`, skipping empty lines. `model` must not be on an autodiff device. `special` are
/// the special tokens of the model's card: [`ModelTokens::prefix`] is put before every context,
/// [`ModelTokens::evaluation_prefix`] before a text without context.
///
/// # Errors
/// [`EvalError::Task`] for an invalid line, or one whose score is NaN;
/// [`EvalError::WrongTokenizer`]; [`EvalError::EmptyTask`] for an empty task.
///
/// # Example
///
/// ```
/// use burn::tensor::Device;
/// use nextword_data::load_tokenizer;
/// use nextword_eval::evaluate_task;
/// use nextword_model::ModelDir;
///
/// let folder = ModelDir::open("../../docs/models/letters".as_ref())?;
/// let model = folder.load(&Device::flex())?;
/// let tokenizer = load_tokenizer(folder.tokenizer_path())?;
/// let lines = r#"
///     {"context": "The cat", "endings": ["saw a bird.", "zqx wvk j."], "label": 0}
///     {"context": "Once upon a", "endings": ["etim", "time"], "label": 1}
/// "#;
/// let report = evaluate_task(&model, &*tokenizer, &folder.card.special, lines.as_bytes())?;
/// assert_eq!((report.questions, report.accuracy), (2, Some(1.0)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn evaluate_task(
    model: &Transformer,
    tokenizer: &dyn Tokenizer,
    special: &ModelTokens,
    lines: impl BufRead,
) -> Result<TaskReport, EvalError> {
    evaluate_task_with(model, tokenizer, special, lines, &mut |_| {})
}

/// As [`evaluate_task`]. `on_progress` is called after each question and text.
///
/// # Errors
/// As [`evaluate_task`].
pub fn evaluate_task_with(
    model: &Transformer,
    tokenizer: &dyn Tokenizer,
    special: &ModelTokens,
    lines: impl BufRead,
    on_progress: &mut dyn FnMut(EvalProgress),
) -> Result<TaskReport, EvalError> {
    check_scorable(model, tokenizer)?;
    let mut scorer = Scorer {
        model,
        tokenizer,
        special,
        unknown: BTreeSet::new(),
    };
    let mut report = TaskReport::default();
    let mut correct = [0; 3]; // By sum, per character, per byte.
    let (mut nats, mut bytes, mut words) = (0.0, 0, 0);
    for (number, line) in lines.lines().enumerate() {
        let error = |problem: String| EvalError::Task {
            line: number + 1,
            problem,
        };
        let line = line.map_err(|e| error(e.to_string()))?;
        if line.trim().is_empty() {
            continue;
        }
        let nan_error = || error("the model produced NaN or infinity".into());
        match Item::parse(&line).map_err(error)? {
            Item::Question {
                context,
                endings,
                label,
            } => {
                let sums = scorer.score_endings(&context, &endings)?;
                if sums.iter().any(|sum| sum.is_nan()) {
                    return Err(nan_error());
                }
                let normalized = |length: fn(&String) -> usize| -> Vec<f64> {
                    let pairs = sums.iter().zip(&endings);
                    pairs
                        .map(|(sum, e)| sum / length(e).max(1) as f64)
                        .collect()
                };
                let by_characters = normalized(|ending| ending.chars().count());
                let by_bytes = normalized(String::len);
                report.questions += 1;
                for (correct, scores) in correct.iter_mut().zip([&sums, &by_characters, &by_bytes])
                {
                    *correct += usize::from(best(scores) == Some(label));
                }
            }
            Item::Text(text) => {
                let ids = scorer.encode(&text)?;
                nats -= scorer.score_text(&ids)?;
                if nats.is_nan() {
                    return Err(nan_error());
                }
                let scored = scorer.without_dropped_text(&text);
                // lm-evaluation-harness divides by the bytes of the text, `evaluate_text` by those that
                // its tokens cover; they differ if text is dropped.
                bytes += if scored == text {
                    text.len()
                } else {
                    byte_count(tokenizer, &ids)
                };
                words += word_count(&scored);
                report.texts += 1;
            }
        }
        let done = (report.questions + report.texts) as u64;
        on_progress(EvalProgress::Items { done });
    }
    if report.questions + report.texts == 0 {
        return Err(EvalError::EmptyTask);
    }
    let questions = report.questions as f64;
    let [accuracy, accuracy_by_characters, accuracy_by_bytes] =
        correct.map(|n| (report.questions > 0).then(|| n as f64 / questions));
    let stderr = |p: f64| (p * (1.0 - p) / (questions - 1.0)).sqrt();
    Ok(TaskReport {
        accuracy,
        accuracy_stderr: accuracy.filter(|_| report.questions > 1).map(stderr),
        accuracy_by_characters,
        accuracy_by_bytes,
        bits_per_byte: (bytes > 0).then(|| nats / std::f64::consts::LN_2 / bytes as f64),
        word_perplexity: (words > 0).then(|| (nats / words as f64).exp()),
        unknown: scorer.unknown.len(),
        ..report
    })
}

/// The number of runs of white space plus one, as the harness counts words.
fn word_count(text: &str) -> usize {
    let mut was_space = false;
    let starts = text.chars().filter(|c| {
        let is_start = c.is_whitespace() && !was_space;
        was_space = c.is_whitespace();
        is_start
    });
    1 + starts.count()
}

/// The index of the largest score, the first one of a tie. `None` if all are negative infinity.
fn best(scores: &[f64]) -> Option<usize> {
    let mut best = None;
    let mut largest = f64::NEG_INFINITY;
    for (index, score) in scores.iter().enumerate() {
        if *score > largest {
            (best, largest) = (Some(index), *score);
        }
    }
    best
}

struct Scorer<'a> {
    model: &'a Transformer,
    tokenizer: &'a dyn Tokenizer,
    special: &'a ModelTokens,
    /// Distinct characters or words of the task that are not in the vocabulary.
    unknown: BTreeSet<String>,
}

impl Scorer<'_> {
    /// The ids of `text`. Adds characters or words that are not in the vocabulary to `unknown`.
    fn encode(&mut self, text: &str) -> Result<Vec<u32>, DataError> {
        let Encoding { ids, unknown, .. } = self.tokenizer.try_encode(text)?;
        for entry in unknown {
            if self.unknown.len() < Encoding::MAX_UNKNOWN {
                self.unknown.insert(entry);
            }
        }
        Ok(ids)
    }

    /// `text` without the parts that the tokenizer drops.
    fn without_dropped_text(&self, text: &str) -> String {
        let encoding = self.tokenizer.encode(text);
        let drops = self.tokenizer.special_tokens().unk.is_none() && !encoding.unknown.is_empty();
        if drops {
            self.tokenizer.decode(&encoding.ids)
        } else {
            text.to_owned()
        }
    }

    /// The log-probability of each of `endings` after `context` and a space. White space at the end of
    /// the context counts as part of the ending, as tokenizers attach it to the next word.
    ///
    /// An ending that is empty, or that the tokenizer drops in part or as a whole, scores negative
    /// infinity: the model cannot generate it, and the sum over the rest alone would beat endings that
    /// are scored completely.
    fn score_endings(&mut self, context: &str, endings: &[String]) -> Result<Vec<f64>, EvalError> {
        let encoded = self.encode(context.trim_end())?;
        let mut after = Vec::with_capacity(endings.len());
        for ending in endings {
            let full = self.encode(&format!("{context} {ending}"))?;
            let is_empty = ending.trim().is_empty();
            let is_dropped = self.without_dropped_text(ending) != *ending;
            let ids = full
                .get(encoded.len()..)
                .filter(|_| !is_empty && !is_dropped);
            after.push(ids.unwrap_or_default().to_vec());
        }
        let prefix = if encoded.is_empty() {
            self.start()
        } else {
            self.special.prefix().to_vec()
        };
        self.score_continuations(&[prefix, encoded].concat(), &after)
    }

    /// The log-probability of each of `endings` after the tokens of `context`. The shared context is
    /// computed only once if everything fits the model's context.
    fn score_continuations(
        &self,
        context: &[u32],
        endings: &[Vec<u32>],
    ) -> Result<Vec<f64>, EvalError> {
        let longest = endings.iter().map(Vec::len).max().unwrap_or(0);
        let fits = context.len() + longest <= self.model.config().context_length + 1;
        let Some((last, prefix)) = context.split_last().filter(|_| fits) else {
            let score = |ending: &Vec<u32>| match ending.len() {
                0 => Ok(f64::NEG_INFINITY),
                len => self.score(&[context, ending.as_slice()].concat(), len),
            };
            return endings.iter().map(score).collect();
        };
        let device = self.model.device();
        let capacity = context.len() + longest;
        let mut cache = KvCache::with_capacity(self.model.config(), 1, capacity, &device);
        let ids = |ids: &[u32]| {
            let values: Vec<i32> = ids.iter().map(|id| id.cast_signed()).collect();
            let shape = [1, values.len()];
            Tensor::<2, Int>::from_data(TensorData::new(values, shape), &device)
        };
        if !prefix.is_empty() {
            let _ = self.model.hidden_states(
                ids(prefix),
                &mut ForwardContext::inference().with_cache(&mut cache, &[0]),
            );
        }
        let mut sums = Vec::new();
        for ending in endings {
            let Some((_, inputs)) = ending.split_last() else {
                sums.push(f64::NEG_INFINITY);
                continue;
            };
            let tokens = ids(&[&[*last], inputs].concat());
            let mut ctx = ForwardContext::inference().with_cache(&mut cache, &[0]);
            let nats = self.model.loss_sum(tokens, ending, &mut ctx);
            sums.push(-f64::from(weights::to_f32_vec(nats.into_data())[0]));
            cache.truncate(0, prefix.len());
        }
        Ok(sums)
    }

    /// The log-probability of all tokens of a text.
    fn score_text(&self, text: &[u32]) -> Result<f64, EvalError> {
        let start = self.start();
        let ids = [start.as_slice(), text].concat();
        let context_length = self.model.config().context_length;
        let (mut sum, mut done) = (0.0, start.len());
        let mut targets = first_window_targets(context_length, start.len());
        while done < ids.len() {
            let end = ids.len().min(done + targets);
            targets = context_length;
            // Later windows include as much left context as fits.
            sum += self.score(
                &ids[end.saturating_sub(context_length + 1)..end],
                end - done,
            )?;
            done = end;
        }
        Ok(sum)
    }

    /// The tokens before a text without context.
    fn start(&self) -> Vec<u32> {
        let eos = self.tokenizer.special_tokens().eos;
        let prefix = self.special.evaluation_prefix(eos);
        if prefix.is_empty() { vec![0] } else { prefix }
    }

    /// The log-probability of the last `count` of `ids`, truncated on the left to fit the context.
    fn score(&self, ids: &[u32], count: usize) -> Result<f64, EvalError> {
        let context_length = self.model.config().context_length;
        let ids = &ids[ids.len().saturating_sub(context_length + 1)..];
        if ids.len() < 2 || count == 0 {
            return Ok(0.0);
        }
        let seq = ids.len() - 1;
        let mut targets = ids[1..].to_vec();
        let ignored = seq.saturating_sub(count);
        targets[..ignored].fill(IGNORE);
        let batch = TokenBatch {
            batch: 1,
            seq,
            inputs: ids[..seq].to_vec(),
            targets,
            ..TokenBatch::default()
        };
        Ok(-batch_loss(self.model, batch)?.0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
