//! Autoregressive decoding of a batch of prompts; token ids only.
//!
//! Each prompt fills its own slot of the [`KvCache`] (prefill). Then all unfinished rows decode one
//! token per step together. A finished row leaves the batch.

mod options;
mod source;
mod verify;

use std::collections::VecDeque;
use std::ops::ControlFlow;

use burn::tensor::{Int, Tensor, TensorData};
use nextword_model::{
    CachePrecision, ForwardContext, KvCache, NoProbe, PAGE_LEN, Probe, Transformer, weights,
};

pub use self::options::{DecodeOptions, FinishReason, Overflow};
use crate::speculation::{Drafter, Speculation};
use crate::{GenerateError, History, SampleKey, SampledToken, Sampler};

/// A token generated in a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Index of the prompt.
    pub row: usize,
    /// The token.
    pub sampled: SampledToken,
    /// Set if the completion ends with this token.
    pub finish: Option<FinishReason>,
}

/// One completion as ids.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequence {
    /// All generated tokens, including a final stop id.
    pub tokens: Vec<SampledToken>,
    /// Why the completion ended.
    pub finish: FinishReason,
    /// Number of prompt tokens [truncated](truncate_left): a prompt keeps at most
    /// `context_length - 1` tokens.
    pub truncated: usize,
    /// How often the full context was shifted to its last half.
    pub context_shifts: usize,
}

impl Sequence {
    /// The generated ids.
    pub fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }
}

/// The state of one prompt.
#[derive(Debug)]
struct Row {
    /// The input of the encoder in encoder-decoder models, otherwise empty.
    source: Vec<u32>,
    /// The model's context: the end of the prompt and the completion. A prefix of it is cached; the
    /// rest is still to be computed. In encoder-decoder models, the first token and the completion.
    context: Vec<u32>,
    history: History,
    tokens: Vec<SampledToken>,
    finish: Option<FinishReason>,
    truncated: usize,
    context_shifts: usize,
    /// Logits beyond the context, each with the proposed token that must come before it. The cache already
    /// has these tokens.
    lookahead: VecDeque<(u32, Vec<f32>)>,
}

/// Continues a batch of prompts by one token per unfinished row and [`step`](Self::step).
///
/// # Example
///
/// ```
/// use burn::tensor::Device;
/// use nextword_generate::{DecodeOptions, Decoder, FinishReason};
/// use nextword_model::presets;
///
/// let model = presets::shakespeare_char_cpu(65).init(&Device::flex(), 1)?;
/// let options = DecodeOptions { max_tokens: 3, ..DecodeOptions::default() };
/// let mut decoder = Decoder::new(&model, &[vec![1, 2], vec![3, 4, 5]], options)?;
/// while !decoder.is_done() {
///     let tokens = decoder.step()?; // one token of each prompt
///     assert_eq!(tokens.len(), 2);
/// }
/// let sequences = decoder.into_sequences();
/// assert_eq!((sequences[1].ids().len(), &sequences[1].finish), (3, &FinishReason::Length));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Decoder<'m> {
    model: &'m Transformer,
    sampler: Sampler,
    options: DecodeOptions,
    cache: KvCache,
    rows: Vec<Row>,
    drafter: Option<Drafter>,
}

impl<'m> Decoder<'m> {
    /// Creates a decoder for `prompts`, each of at least one id. Prompts longer than
    /// [`max_prompt_len`] are [truncated](truncate_left) (see [`Sequence::truncated`]). The model must
    /// not be on an autodiff device. Computes nothing yet.
    ///
    /// # Errors
    /// [`GenerateError::Setting`] for invalid settings; [`GenerateError::EmptyPrompt`] and
    /// [`GenerateError::UnknownToken`] for invalid prompts; [`GenerateError::Encoder`] for an encoder.
    pub fn new(
        model: &'m Transformer,
        prompts: &[Vec<u32>],
        options: DecodeOptions,
    ) -> Result<Self, GenerateError> {
        let sampler = Sampler::new(options.sampling.clone())?;
        let config = model.config();
        if !config.architecture.generates() {
            return Err(GenerateError::Encoder);
        }
        if let Some(start) = options.start_id {
            check_prompt(0, &[start], config.vocab_size)?;
        }
        for (row, prompt) in prompts.iter().enumerate() {
            check_prompt(row, prompt, config.vocab_size)?;
        }
        let new_row = |prompt: &Vec<u32>| {
            if config.has_encoder() {
                Row::from_source(prompt, config.context_length, &options)
            } else {
                Row::new(prompt, max_prompt_len(config.context_length), &options)
            }
        };
        let rows: Vec<Row> = prompts.iter().map(new_row).collect();
        let needed = rows.iter().map(|row| row.context.len()).max().unwrap_or(0);
        let capacity = needed.saturating_add(options.max_tokens);
        let cache = KvCache::with_capacity(config, rows.len(), capacity, &model.device());
        Ok(Self {
            model,
            sampler,
            options,
            cache,
            rows,
            drafter: None,
        })
    }

    /// Stores keys and values in this precision.
    ///
    /// # Panics
    /// After the first step.
    #[must_use]
    pub fn with_cache_precision(self, precision: CachePrecision) -> Self {
        Self {
            cache: self.cache.with_precision(precision),
            ..self
        }
    }

    /// Decodes speculatively: the same tokens, with fewer forward passes of this model. Passes with a probe
    /// are not speculative.
    ///
    /// # Errors
    /// [`GenerateError::Setting`] if a draft model has another number of tokens.
    ///
    /// ```
    /// use burn::tensor::Device;
    /// use nextword_generate::{DecodeOptions, Decoder, Speculation};
    /// use nextword_model::presets;
    ///
    /// let model = presets::shakespeare_char_cpu(65).init(&Device::flex(), 1)?;
    /// let tokens = |speculation: Option<&Speculation>| {
    ///     let options = DecodeOptions { max_tokens: 20, ..DecodeOptions::default() };
    ///     let decoder = Decoder::new(&model, &[vec![1, 2, 1, 2, 1]], options)?;
    ///     let mut decoder = match speculation {
    ///         Some(speculation) => decoder.with_speculation(speculation)?,
    ///         None => decoder,
    ///     };
    ///     while !decoder.is_done() {
    ///         decoder.step()?;
    ///     }
    ///     Ok::<_, nextword_generate::GenerateError>(decoder.into_sequences()[0].ids())
    /// };
    /// let lookup = Speculation::PromptLookup { max_tokens: 4 };
    /// assert_eq!(tokens(Some(&lookup))?, tokens(None)?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn with_speculation(self, speculation: &Speculation) -> Result<Self, GenerateError> {
        speculation.check(self.model)?;
        let (rows, capacity) = (self.rows.len(), self.cache.capacity());
        let drafter = Drafter::new(speculation, rows, rows * (capacity + PAGE_LEN));
        Ok(Self {
            drafter: Some(drafter),
            ..self
        })
    }

    /// Whether every row is finished.
    pub fn is_done(&self) -> bool {
        self.rows.iter().all(|row| row.finish.is_some())
    }

    /// Ends `row` for `reason` unless it has already ended.
    ///
    /// # Panics
    /// If `row` is out of range.
    pub fn finish(&mut self, row: usize, reason: FinishReason) {
        self.rows[row].finish.get_or_insert(reason);
    }

    /// Generates the next token of every unfinished row, in row order. A row may end without a token
    /// ([`FinishReason::ContextFull`]).
    ///
    /// # Errors
    /// [`GenerateError::NotFinite`] if the model produced NaN or infinity;
    /// [`GenerateError::AllTokensForbidden`].
    pub fn step(&mut self) -> Result<Vec<Token>, GenerateError> {
        self.step_with_probe(&mut NoProbe)
    }

    /// Like [`step`](Self::step), bit for bit, with `probe` attached to the forward passes. It
    /// receives the logits of the last token of each row only.
    ///
    /// # Errors
    /// The same as [`step`](Self::step).
    pub fn step_with_probe<P: Probe>(
        &mut self,
        probe: &mut P,
    ) -> Result<Vec<Token>, GenerateError> {
        self.shift_contexts();
        let logits = self.next_logits(probe);
        logits
            .iter()
            .map(|(row, logits)| self.sample_row(*row, logits))
            .collect()
    }

    /// The completions so far; unfinished ones count as cancelled.
    pub fn into_sequences(self) -> Vec<Sequence> {
        let rows = self.rows.into_iter();
        rows.map(|row| Sequence {
            tokens: row.tokens,
            finish: row.finish.unwrap_or(FinishReason::Cancelled),
            truncated: row.truncated,
            context_shifts: row.context_shifts,
        })
        .collect()
    }

    /// Shifts or ends every unfinished row whose context exceeds the model's.
    fn shift_contexts(&mut self) {
        let context_length = self.model.config().context_length;
        for (slot, row) in self.rows.iter_mut().enumerate() {
            if row.finish.is_some() || row.context.len() <= context_length {
                continue;
            }
            // The first half of a target cannot be dropped: the rest would look like its beginning.
            let is_target = self.model.config().has_encoder();
            if self.options.overflow == Overflow::Stop || is_target {
                row.finish = Some(FinishReason::ContextFull);
                continue;
            }
            let max_len = (context_length / 2).max(1);
            truncate_left(&mut row.context, self.options.bos_id, max_len);
            row.context_shifts += 1;
            row.lookahead.clear();
            self.cache.clear(slot);
        }
    }

    /// The logits of the last token of each unfinished row.
    fn next_logits<P: Probe>(&mut self, probe: &mut P) -> Vec<(usize, Vec<f32>)> {
        let mut logits = Vec::with_capacity(self.rows.len());
        for row in 0..self.rows.len() {
            logits.extend(self.verified_logits(row).map(|logits| (row, logits)));
        }
        let is_known = |row: &usize| logits.iter().any(|(known, _)| known == row);
        let active = (0..self.rows.len()).filter(|row| self.rows[*row].finish.is_none());
        let (decoding, prefilling): (Vec<usize>, Vec<usize>) = active
            .filter(|row| !is_known(row))
            .partition(|row| self.is_prefilled(*row));
        for row in prefilling {
            logits.append(&mut self.forward(&[row], probe));
        }
        if !decoding.is_empty() {
            let proposals = if P::ENABLED {
                Vec::new()
            } else {
                self.propose(&decoding)
            };
            if proposals.iter().all(Vec::is_empty) {
                logits.append(&mut self.forward(&decoding, probe));
            } else {
                logits.append(&mut self.verify(&decoding, &proposals));
            }
        }
        logits.sort_unstable_by_key(|(row, _)| *row);
        logits
    }

    /// Computes the uncached tokens of `rows`, the same number for each row. Returns the logits of the
    /// last token of each row.
    fn forward<P: Probe>(&mut self, rows: &[usize], probe: &mut P) -> Vec<(usize, Vec<f32>)> {
        let uncached = rows
            .iter()
            .map(|row| &self.rows[*row].context[self.cache.len(*row)..]);
        let ids: Vec<i32> = uncached.flatten().map(|id| id.cast_signed()).collect();
        let seq = ids.len() / rows.len();
        let data = TensorData::new(ids, [rows.len(), seq]);
        let tokens = Tensor::<2, Int>::from_data(data, &self.model.device());
        let (mask, source) = (self.prefix_mask(rows, seq), self.new_source(rows));
        let mut ctx = ForwardContext::with_probe(probe).with_cache(&mut self.cache, rows);
        if let Some(mask) = mask {
            ctx = ctx.with_mask(mask);
        }
        if let Some(source) = source {
            let len = source.dims()[1];
            ctx = ctx.with_source(source, vec![len]);
        }
        let hidden = self.model.hidden_states(tokens, &mut ctx);
        // The prompt's other logits are not needed and would take seq * vocab_size elements.
        let last = hidden.narrow(1, seq - 1, 1); // [rows, 1, d_model]
        let logits = self.model.logits(last, &mut ctx); // [rows, 1, vocab_size]
        let logits = weights::to_f32_vec(logits.into_data());
        let rows_of_logits = logits
            .chunks(self.model.config().vocab_size)
            .map(<[f32]>::to_vec);
        rows.iter().copied().zip(rows_of_logits).collect()
    }

    fn sample_row(&mut self, row: usize, logits: &[f32]) -> Result<Token, GenerateError> {
        let state = &mut self.rows[row];
        let key = sample_key(&self.options, row, state);
        let sampled = self.sampler.sample(logits, &state.history, key)?;
        state.tokens.push(sampled);
        state.history.push(sampled.id);
        state.context.push(sampled.id);
        if self.options.stop_ids.contains(&sampled.id) {
            state.finish = Some(FinishReason::Eos);
        } else if state.tokens.len() >= self.options.max_tokens {
            state.finish = Some(FinishReason::Length);
        }
        Ok(Token {
            row,
            sampled,
            finish: state.finish.clone(),
        })
    }
}

impl Row {
    fn new(prompt: &[u32], max_len: usize, options: &DecodeOptions) -> Self {
        let mut context = prompt.to_vec();
        let truncated = truncate_left(&mut context, options.bos_id, max_len);
        Self {
            source: Vec::new(),
            context,
            history: History::new(prompt),
            tokens: Vec::new(),
            finish: (options.max_tokens == 0).then_some(FinishReason::Length),
            truncated,
            context_shifts: 0,
            lookahead: VecDeque::new(),
        }
    }
}

/// The key of the next token of row `index`.
fn sample_key(options: &DecodeOptions, index: usize, row: &Row) -> SampleKey {
    SampleKey {
        sequence: options.first_sequence.wrapping_add(index as u64),
        position: row.tokens.len() as u64,
    }
}

/// Maximum length of a prompt when the context can shift: one position is left for the completion.
pub fn max_prompt_len(context_length: usize) -> usize {
    (context_length - 1).max(1)
}

/// Removes the oldest of `ids` beyond `max_len`, but keeps a leading `bos` if more than one id stays.
/// Returns how many were removed.
///
/// # Example
///
/// ```
/// use nextword_generate::truncate_left;
///
/// let mut ids = vec![0, 11, 12, 13, 14];
/// assert_eq!(truncate_left(&mut ids, Some(0), 3), 2); // 0 is the BOS token
/// assert_eq!(ids, [0, 13, 14]);
/// ```
pub fn truncate_left(ids: &mut Vec<u32>, bos: Option<u32>, max_len: usize) -> usize {
    let keeps_bos = max_len > 1 && bos.is_some() && ids.first().copied() == bos;
    let start = usize::from(keeps_bos);
    let removed = ids.len().saturating_sub(max_len);
    ids.drain(start..start + removed);
    removed
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

/// Continues `prompts` until every completion ends, and returns them in the same order.
/// `on_token` receives every token as it is generated; breaking ends that token's row as
/// [`FinishReason::Cancelled`].
///
/// # Errors
/// Those of [`Decoder::new`] and [`Decoder::step`].
///
/// # Example
///
/// ```
/// use std::ops::ControlFlow;
///
/// use burn::tensor::Device;
/// use nextword_generate::{DecodeOptions, FinishReason, generate_ids};
/// use nextword_model::presets;
///
/// let model = presets::shakespeare_char_cpu(65).init(&Device::flex(), 1)?;
/// let mut count = 0;
/// let sequences = generate_ids(&model, &[vec![1, 2]], DecodeOptions::default(), |_token| {
///     count += 1;
///     if count < 4 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
/// })?;
/// assert_eq!(sequences[0].tokens.len(), 4);
/// assert_eq!(sequences[0].finish, FinishReason::Cancelled);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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
                decoder.finish(token.row, FinishReason::Cancelled);
            }
        }
    }
    Ok(decoder.into_sequences())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
