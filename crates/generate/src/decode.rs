//! Many tokens, one step at a time; token ids only.
//!
//! Each prompt fills its own slot of the [`KvCache`] (prefill), then all unfinished rows take one
//! step together. A finished row leaves the batch.

use std::ops::ControlFlow;

use burn::tensor::{Int, Tensor, TensorData};
use nextword_model::{KvCache, NoProbe, Pass, Probe, Transformer, weights};
use serde::{Deserialize, Serialize};

use crate::{Choice, GenerateError, History, Place, Sampler, SamplingConfig};

/// What happens when a sequence is as long as the model's context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overflow {
    /// Go on with the last `context_length / 2` tokens (at least one) as a new beginning. They are
    /// computed anew, since their places change.
    #[default]
    Slide,
    /// Stop with [`FinishReason::ContextFull`].
    Stop,
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model gave one of the `stop_ids`.
    Eos,
    /// This stop string was in the text.
    Stop(String),
    /// `max_tokens` were generated.
    Length,
    /// The context was full ([`Overflow::Stop`]).
    ContextFull,
    /// The caller wanted no more.
    Cancelled,
}

/// How ids are continued.
#[derive(Clone, Debug, PartialEq)]
pub struct DecodeOptions {
    /// How each token is chosen.
    pub sampling: SamplingConfig,
    /// The most tokens of an answer.
    pub max_tokens: usize,
    /// An answer ends with the first of these, as its last token.
    pub stop_ids: Vec<u32>,
    /// What happens at the end of the context.
    pub overflow: Overflow,
    /// Where this token begins a prompt, it stays when older tokens are left out: a model that has
    /// always seen one attends to it.
    pub first_id: Option<u32>,
    /// Number of the first prompt for the random draws: prompt i draws as sequence
    /// `first_sequence + i`.
    pub first_sequence: u64,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        Self {
            sampling: SamplingConfig::default(),
            max_tokens: 256,
            stop_ids: Vec::new(),
            overflow: Overflow::default(),
            first_id: None,
            first_sequence: 0,
        }
    }
}

/// A token of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Number of the prompt.
    pub row: usize,
    /// The token.
    pub choice: Choice,
    /// Set if the answer ends with this token.
    pub finish: Option<FinishReason>,
}

/// One answer in ids.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequence {
    /// All tokens that were drawn, an ending stop id included.
    pub tokens: Vec<Choice>,
    /// Why it ended.
    pub finish: FinishReason,
    /// So many tokens of the prompt were left out: a prompt is [cut](shorten) to
    /// `context_length - 1` tokens.
    pub truncated: usize,
    /// How often the context was full and began anew with its last half.
    pub slides: usize,
}

impl Sequence {
    /// The ids of its tokens.
    pub fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }
}

/// One prompt on its way.
#[derive(Debug)]
struct Row {
    /// What the model sees: the end of the prompt and the answer. The cache holds the first of
    /// these; the others are still to be computed.
    context: Vec<u32>,
    history: History,
    tokens: Vec<Choice>,
    finish: Option<FinishReason>,
    truncated: usize,
    slides: usize,
}

/// Continues a batch of prompts, one token of each unfinished row a [`step`](Self::step).
#[derive(Debug)]
pub struct Decoder<'m> {
    model: &'m Transformer,
    sampler: Sampler,
    options: DecodeOptions,
    cache: KvCache,
    rows: Vec<Row>,
}

impl<'m> Decoder<'m> {
    /// Takes in `prompts`, each of at least one id. Prompts longer than [`longest_prompt`] are
    /// [cut](shorten) (see [`Sequence::truncated`]). The model must not be
    /// on an autodiff device. Nothing is computed yet.
    ///
    /// # Errors
    /// [`GenerateError::Setting`] for impossible settings; [`GenerateError::EmptyPrompt`] and
    /// [`GenerateError::UnknownToken`] for prompts that the model cannot read.
    pub fn new(
        model: &'m Transformer,
        prompts: &[Vec<u32>],
        options: DecodeOptions,
    ) -> Result<Self, GenerateError> {
        let sampler = Sampler::new(options.sampling.clone())?;
        let config = model.config();
        for (row, prompt) in prompts.iter().enumerate() {
            check_prompt(row, prompt, config.vocab_size)?;
        }
        let longest = longest_prompt(config.context_length);
        let rows: Vec<Row> = prompts
            .iter()
            .map(|prompt| Row::new(prompt, longest, &options))
            .collect();
        let needed = rows.iter().map(|row| row.context.len()).max().unwrap_or(0);
        let capacity = needed.saturating_add(options.max_tokens);
        let cache = KvCache::with_capacity(config, rows.len(), capacity, &model.device());
        Ok(Self {
            model,
            sampler,
            options,
            cache,
            rows,
        })
    }

    /// Whether every row is finished.
    pub fn is_done(&self) -> bool {
        self.rows.iter().all(|row| row.finish.is_some())
    }

    /// Ends `row` for `reason`, if it has not ended already.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn end(&mut self, row: usize, reason: FinishReason) {
        self.rows[row].finish.get_or_insert(reason);
    }

    /// The next token of every unfinished row, in the order of rows. A row may end without a token
    /// ([`FinishReason::ContextFull`]).
    ///
    /// # Errors
    /// [`GenerateError::NotFinite`] if the model computes what is no number.
    pub fn step(&mut self) -> Result<Vec<Token>, GenerateError> {
        self.step_watched(&mut NoProbe)
    }

    /// As [`step`](Self::step), with the same bits, while `probe` watches the forward passes. Of the
    /// logits it sees those after the last token of each row.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn step_watched<P: Probe>(&mut self, probe: &mut P) -> Result<Vec<Token>, GenerateError> {
        self.make_room();
        let logits = self.next_logits(probe);
        logits
            .iter()
            .map(|(row, logits)| self.choose(*row, logits))
            .collect()
    }

    /// The answers so far; unfinished ones count as cancelled.
    pub fn into_sequences(self) -> Vec<Sequence> {
        let rows = self.rows.into_iter();
        rows.map(|row| Sequence {
            tokens: row.tokens,
            finish: row.finish.unwrap_or(FinishReason::Cancelled),
            truncated: row.truncated,
            slides: row.slides,
        })
        .collect()
    }

    /// Sees to it that the context of each unfinished row fits the model.
    fn make_room(&mut self) {
        let context_length = self.model.config().context_length;
        for (slot, row) in self.rows.iter_mut().enumerate() {
            if row.finish.is_some() || row.context.len() <= context_length {
                continue;
            }
            if self.options.overflow == Overflow::Stop {
                row.finish = Some(FinishReason::ContextFull);
                continue;
            }
            let most = (context_length / 2).max(1);
            shorten(&mut row.context, self.options.first_id, most);
            row.slides += 1;
            self.cache.clear(slot);
        }
    }

    /// For each unfinished row the logits after its last token.
    fn next_logits<P: Probe>(&mut self, probe: &mut P) -> Vec<(usize, Vec<f32>)> {
        let active = (0..self.rows.len()).filter(|row| self.rows[*row].finish.is_none());
        let (together, alone): (Vec<usize>, Vec<usize>) =
            active.partition(|row| self.rows[*row].context.len() == self.cache.len(*row) + 1);
        let mut logits = Vec::with_capacity(together.len() + alone.len());
        for row in alone {
            logits.append(&mut self.forward(&[row], probe));
        }
        if !together.is_empty() {
            logits.append(&mut self.forward(&together, probe));
        }
        logits.sort_unstable_by_key(|(row, _)| *row);
        logits
    }

    /// Computes what the cache does not hold yet of `rows`, for all of them the same number of
    /// tokens; gives the logits after the last.
    fn forward<P: Probe>(&mut self, rows: &[usize], probe: &mut P) -> Vec<(usize, Vec<f32>)> {
        let new = rows
            .iter()
            .map(|row| &self.rows[*row].context[self.cache.len(*row)..]);
        let ids: Vec<i32> = new.flatten().map(|id| id.cast_signed()).collect();
        let seq = ids.len() / rows.len();
        let data = TensorData::new(ids, [rows.len(), seq]);
        let tokens = Tensor::<2, Int>::from_data(data, &self.model.device());
        let mut pass = Pass::watched(probe).continuing(&mut self.cache, rows);
        let hidden = self.model.hidden(tokens, &mut pass);
        // The prompt's other logits are not needed, and are many: seq * vocab_size.
        let last = hidden.narrow(1, seq - 1, 1); // [rows, 1, d_model]
        let logits = self.model.logits(last, &mut pass); // [rows, 1, vocab_size]
        let logits = weights::floats(logits.into_data());
        let each = logits
            .chunks(self.model.config().vocab_size)
            .map(<[f32]>::to_vec);
        rows.iter().copied().zip(each).collect()
    }

    fn choose(&mut self, row: usize, logits: &[f32]) -> Result<Token, GenerateError> {
        let state = &mut self.rows[row];
        let place = Place {
            sequence: self.options.first_sequence.wrapping_add(row as u64),
            position: state.tokens.len() as u64,
        };
        let choice = self.sampler.sample(logits, &state.history, place)?;
        state.tokens.push(choice);
        state.history.push(choice.id);
        state.context.push(choice.id);
        if self.options.stop_ids.contains(&choice.id) {
            state.finish = Some(FinishReason::Eos);
        } else if state.tokens.len() >= self.options.max_tokens {
            state.finish = Some(FinishReason::Length);
        }
        Ok(Token {
            row,
            choice,
            finish: state.finish.clone(),
        })
    }
}

impl Row {
    fn new(prompt: &[u32], longest: usize, options: &DecodeOptions) -> Self {
        let mut context = prompt.to_vec();
        let truncated = shorten(&mut context, options.first_id, longest);
        Self {
            context,
            history: History::new(prompt),
            tokens: Vec::new(),
            finish: (options.max_tokens == 0).then_some(FinishReason::Length),
            truncated,
            slides: 0,
        }
    }
}

/// The most tokens of a prompt that a sliding context takes: one place is for the answer.
pub fn longest_prompt(context_length: usize) -> usize {
    (context_length - 1).max(1)
}

/// Leaves out the oldest of `ids` so that `most` stay, but not `first` at the beginning. Says how many
/// were left out.
pub fn shorten(ids: &mut Vec<u32>, first: Option<u32>, most: usize) -> usize {
    let begins = most > 1 && first.is_some() && ids.first().copied() == first;
    let keeps = usize::from(begins);
    let out = ids.len().saturating_sub(most);
    ids.drain(keeps..keeps + out);
    out
}

pub(crate) fn check_prompt(
    row: usize,
    prompt: &[u32],
    vocab_size: usize,
) -> Result<(), GenerateError> {
    if prompt.is_empty() {
        return Err(GenerateError::EmptyPrompt { row });
    }
    match prompt.iter().find(|id| **id as usize >= vocab_size) {
        Some(&id) => Err(GenerateError::UnknownToken {
            row,
            id,
            vocab_size,
        }),
        None => Ok(()),
    }
}

/// Continues `prompts` until each answer ends; gives the answers in the order of prompts.
/// `on_token` sees every token as it comes; breaking ends that token's row as
/// [`FinishReason::Cancelled`].
///
/// # Errors
/// As [`Decoder::new`] and [`Decoder::step`].
pub fn generate_ids(
    model: &Transformer,
    prompts: &[Vec<u32>],
    options: DecodeOptions,
    mut on_token: impl FnMut(&Token) -> ControlFlow<()>,
) -> Result<Vec<Sequence>, GenerateError> {
    let mut decoder = Decoder::new(model, prompts, options)?;
    while !decoder.is_done() {
        for token in decoder.step()? {
            if on_token(&token).is_break() {
                decoder.end(token.row, FinishReason::Cancelled);
            }
        }
    }
    Ok(decoder.into_sequences())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
