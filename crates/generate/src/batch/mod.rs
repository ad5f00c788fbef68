//! Continuous batching: requests join and leave a running batch between steps; token ids only.
//!
//! The cache has a fixed number of slots. Each step first computes at most
//! [`BatchOptions::prefill_tokens`] prompt tokens, so that long prompts do not stall the other
//! sequences, and then decodes one token of every active sequence.
//!
//! The result of a request depends on that request alone. On flex a row of a matrix product does not
//! depend on the other rows, but short and long sequences use a different order of operations.
//! Therefore every prompt is computed separately, in chunks that start at multiples of
//! [`BatchOptions::chunk`], and cached tokens are reused only in whole chunks.

mod request;
mod slots;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::OnceLock;

use burn::tensor::{Int, Tensor, TensorData};
use nextword_kernels::parallel_for_each;
use nextword_model::{ForwardContext, KvCache, Transformer, weights};

pub use self::request::{BatchOptions, BatchRequest, Event, RequestId, Score};
use self::slots::Slots;
use crate::sampler::log_sum_exp;
use crate::{FinishReason, GenerateError, History, Overflow, SampleKey, Sampler};

/// A request in a slot.
#[derive(Debug)]
struct ActiveSequence {
    id: RequestId,
    request: BatchRequest,
    sampler: Sampler,
    /// The model's context. A prefix of it is cached.
    context: Vec<u32>,
    /// Length of the context that is computed by prefill.
    prefill_len: usize,
    /// Number of prompt tokens that were found in the cache.
    cached_tokens: usize,
    history: History,
    /// Number of generated tokens.
    generated: usize,
    scores: Vec<Score>,
    /// Whether steps skip this sequence.
    paused: bool,
}

/// Continues many requests together, one step at a time.
///
/// # Example
///
/// ```
/// use burn::tensor::Device;
/// use nextword_generate::{BatchOptions, BatchRequest, Batcher, Event, Overflow, SamplingConfig};
/// use nextword_model::presets;
///
/// let model = presets::shakespeare_char_cpu(65).init(&Device::flex(), 1)?;
/// let mut batcher = Batcher::new(model, BatchOptions { slots: 2, ..BatchOptions::default() });
/// let request = |prompt, sequence| BatchRequest {
///     prompt, sequence, sampling: SamplingConfig::greedy(), max_tokens: 4, stop_ids: Vec::new(),
///     min_tokens: 0, overflow: Overflow::Stop, bos_id: None, top_logprobs: None, score_prompt: false,
/// };
/// let first = batcher.admit(request(vec![1, 2, 3], 0))?.ok_or("all slots are taken")?;
/// let mut events = batcher.step();
/// let second = batcher.admit(request(vec![4], 1))?; // joins between two steps
/// while !batcher.is_idle() {
///     events.extend(batcher.step());
/// }
/// let tokens = events.iter().filter(|(id, event)| *id == first && matches!(event, Event::Token { .. }));
/// assert_eq!(tokens.count(), 4);
/// assert_eq!(events.last().map(|(id, _)| *id), second); // the one that ended last
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Batcher {
    model: Transformer,
    options: BatchOptions,
    cache: KvCache,
    slots: Slots,
    /// The active sequences by slot.
    active: BTreeMap<usize, ActiveSequence>,
    next_id: u64,
}

impl Batcher {
    /// Allocates the cache of all slots. The model must not be on an autodiff device.
    pub fn new(model: Transformer, options: BatchOptions) -> Self {
        let options = BatchOptions {
            slots: options.slots.max(1),
            chunk: options.chunk.max(1),
            ..options
        };
        let cache = KvCache::new(model.config(), options.slots, &model.device());
        Self {
            slots: Slots::new(options.slots, options.chunk),
            model,
            options,
            cache,
            active: BTreeMap::new(),
            next_id: 0,
        }
    }

    /// Number of free slots.
    pub fn free_slots(&self) -> usize {
        self.options.slots - self.active.len()
    }

    /// Whether no sequence is active.
    pub fn is_idle(&self) -> bool {
        self.active.is_empty()
    }

    /// Number of prompt tokens of request `id` that were found in the cache.
    pub fn cached_tokens(&self, id: RequestId) -> usize {
        let mut active = self.active.values();
        active
            .find(|sequence| sequence.id == id)
            .map_or(0, |sequence| sequence.cached_tokens)
    }

    /// Validates `request` and assigns it a free slot. Returns `None` if no slot is free. Computes
    /// nothing yet.
    ///
    /// # Errors
    /// [`GenerateError::Setting`], [`GenerateError::EmptyPrompt`], [`GenerateError::UnknownToken`],
    /// and [`GenerateError::TooLong`] for a prompt that does not fit the context.
    pub fn admit(&mut self, request: BatchRequest) -> Result<Option<RequestId>, GenerateError> {
        let sampler = Sampler::new(request.sampling.clone())?;
        let config = self.model.config();
        crate::decode::check_prompt(0, &request.prompt, config.vocab_size)?;
        if request.prompt.len() > config.context_length {
            return Err(GenerateError::TooLong {
                tokens: request.prompt.len(),
                context_length: config.context_length,
            });
        }
        let Some(assignment) = self.slots.assign(&request.prompt, request.score_prompt) else {
            return Ok(None);
        };
        match assignment.copy_from {
            Some(from) => self
                .cache
                .copy_prefix(from, assignment.slot, assignment.cached_len),
            None => self.cache.truncate(assignment.slot, assignment.cached_len),
        }
        self.next_id += 1;
        let id = RequestId(self.next_id);
        let sequence = ActiveSequence {
            id,
            sampler,
            context: request.prompt.clone(),
            prefill_len: request.prompt.len(),
            cached_tokens: assignment.cached_len,
            history: History::new(&request.prompt),
            generated: 0,
            scores: Vec::new(),
            paused: false,
            request,
        };
        self.active.insert(assignment.slot, sequence);
        Ok(Some(id))
    }

    /// Ends a request and frees its slot. Does nothing if the request has already ended.
    pub fn cancel(&mut self, id: RequestId) {
        let found = self.active.iter().find(|(_, sequence)| sequence.id == id);
        if let Some(slot) = found.map(|(slot, _)| *slot) {
            self.release(slot);
        }
    }

    /// Pauses or resumes a request. Steps skip paused requests.
    pub fn set_paused(&mut self, id: RequestId, paused: bool) {
        let mut active = self.active.values_mut();
        if let Some(sequence) = active.find(|sequence| sequence.id == id) {
            sequence.paused = paused;
        }
    }

    /// Runs one step of all requests that are not paused and returns their events.
    pub fn step(&mut self) -> Vec<(RequestId, Event)> {
        let mut events = Vec::new();
        self.shift_contexts(&mut events);
        self.prefill(&mut events);
        self.decode(&mut events);
        events
    }

    fn release(&mut self, slot: usize) {
        self.active.remove(&slot);
        self.slots.release(slot);
    }

    /// Shifts or ends every sequence whose context exceeds the model's.
    fn shift_contexts(&mut self, events: &mut Vec<(RequestId, Event)>) {
        let context_length = self.model.config().context_length;
        let full: Vec<usize> = self
            .active
            .iter()
            .filter(|(_, sequence)| !sequence.paused && sequence.context.len() > context_length)
            .map(|(slot, _)| *slot)
            .collect();
        for slot in full {
            let Some(sequence) = self.active.get_mut(&slot) else {
                continue;
            };
            if sequence.request.overflow == Overflow::Stop {
                events.push((sequence.id, Event::End(FinishReason::ContextFull)));
                self.release(slot);
                continue;
            }
            let max_len = (context_length / 2).max(1);
            crate::decode::truncate_left(&mut sequence.context, sequence.request.bos_id, max_len);
            sequence.prefill_len = max_len;
            self.cache.clear(slot);
            self.slots.invalidate(slot);
        }
    }

    /// Computes prompts within the step's budget, oldest request first.
    fn prefill(&mut self, events: &mut Vec<(RequestId, Event)>) {
        let mut waiting: Vec<(RequestId, usize)> = self
            .active
            .iter()
            .filter(|(slot, sequence)| {
                !sequence.paused && self.cache.len(**slot) < sequence.prefill_len
            })
            .map(|(slot, sequence)| (sequence.id, *slot))
            .collect();
        waiting.sort_unstable();
        let mut budget = self.options.prefill_tokens.max(self.options.chunk);
        for (id, slot) in waiting {
            while let Some(sequence) = self.active.get(&slot) {
                let start = self.cache.len(slot);
                let end = sequence.prefill_len.min(start + self.options.chunk);
                if start == sequence.prefill_len {
                    break;
                }
                if end - start > budget {
                    return;
                }
                budget -= end - start;
                if sequence.request.max_tokens == 0 && !sequence.request.score_prompt {
                    events.push((id, Event::End(FinishReason::Length)));
                    self.release(slot);
                    break;
                }
                self.prefill_chunk(slot, end, events);
            }
        }
    }

    /// Computes the context of `slot` up to `end`, and samples the first token after the prompt.
    fn prefill_chunk(&mut self, slot: usize, end: usize, events: &mut Vec<(RequestId, Event)>) {
        let Some(sequence) = self.active.get(&slot) else {
            return;
        };
        let start = self.cache.len(slot);
        let tokens = &sequence.context[start..end];
        self.slots.record_chunk(slot, start, tokens);
        let is_complete = end == sequence.prefill_len;
        let scores_prompt = sequence.request.score_prompt && sequence.generated == 0;
        let hidden = hidden(&self.model, &mut self.cache, &[slot], tokens);
        if scores_prompt {
            let logits = logits(&self.model, hidden.clone());
            if let Some(sequence) = self.active.get_mut(&slot) {
                sequence.score_prompt(start, end, &logits, self.model.config().vocab_size);
            }
        }
        if !is_complete {
            return;
        }
        let id = request_id(&self.active, slot);
        if scores_prompt && let Some(sequence) = self.active.get_mut(&slot) {
            events.push((id, Event::Prompt(std::mem::take(&mut sequence.scores))));
            if sequence.request.max_tokens == 0 {
                events.push((id, Event::End(FinishReason::Length)));
                return self.release(slot);
            }
        }
        let last = logits(&self.model, hidden.narrow(1, end - start - 1, 1));
        self.sample(&[slot], &last, events);
    }

    /// Decodes one token of every sequence whose prompt is complete.
    fn decode(&mut self, events: &mut Vec<(RequestId, Event)>) {
        let ready: Vec<usize> = self
            .active
            .iter()
            .filter(|(slot, sequence)| {
                let len = self.cache.len(**slot);
                len >= sequence.prefill_len && len + 1 == sequence.context.len()
            })
            .filter(|(_, sequence)| sequence.context.len() <= self.model.config().context_length)
            .filter(|(_, sequence)| !sequence.paused)
            .map(|(slot, _)| *slot)
            .collect();
        if ready.is_empty() {
            return;
        }
        let newest = ready
            .iter()
            .filter_map(|slot| self.active.get(slot)?.context.last());
        let ids: Vec<u32> = newest.copied().collect();
        let hidden = hidden(&self.model, &mut self.cache, &ready, &ids);
        let logits = logits(&self.model, hidden);
        self.sample(&ready, &logits, events);
    }

    /// Samples the next token of each of `slots` from its row of `logits`. Frees slots that end.
    fn sample(&mut self, slots: &[usize], logits: &[f32], events: &mut Vec<(RequestId, Event)>) {
        let rows: Vec<&[f32]> = logits.chunks(self.model.config().vocab_size).collect();
        let results: Vec<OnceLock<Sampled>> = slots.iter().map(|_| OnceLock::new()).collect();
        parallel_for_each(slots.len(), OPS_PER_LOGIT * rows[0].len(), |row| {
            if let Some(sequence) = self.active.get(&slots[row]) {
                let _ = results[row].set(sequence.sample(rows[row])); // Each cell is set once.
            }
        });
        for (slot, sampled) in slots.iter().zip(results) {
            let (Some(sequence), Some(sampled)) = (self.active.get_mut(slot), sampled.into_inner())
            else {
                continue;
            };
            let request_id = sequence.id;
            match sampled {
                Ok((id, score)) => {
                    let finish = sequence.push(id);
                    let ends = finish.is_some();
                    events.push((request_id, Event::Token { id, score, finish }));
                    if ends {
                        self.release(*slot);
                    }
                }
                Err(error) => {
                    events.push((request_id, Event::Failed(error)));
                    // The cached keys and values may not be finite either.
                    self.slots.invalidate(*slot);
                    self.release(*slot);
                }
            }
        }
    }
}

/// A token and, if requested, its score.
type Sampled = Result<(u32, Option<Score>), GenerateError>;

/// Approximate cost of sampling in basic operations per logit.
const OPS_PER_LOGIT: usize = 16;

impl ActiveSequence {
    fn sample(&self, logits: &[f32]) -> Sampled {
        let key = SampleKey {
            sequence: self.request.sequence,
            position: self.generated as u64,
        };
        let allowed = self.without_stop_ids(logits);
        let (id, _) = self.sampler.sample_id(&allowed, &self.history, key)?;
        Ok((
            id,
            self.request
                .top_logprobs
                .map(|top| score_token(id, logits, top)),
        ))
    }

    /// `logits`, in which the stop ids are forbidden until there are enough tokens.
    fn without_stop_ids<'l>(&self, logits: &'l [f32]) -> Cow<'l, [f32]> {
        let stop_ids = &self.request.stop_ids;
        if self.generated >= self.request.min_tokens || stop_ids.is_empty() {
            return Cow::Borrowed(logits);
        }
        let mut allowed = logits.to_vec();
        for id in stop_ids {
            if let Some(logit) = allowed.get_mut(*id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Cow::Owned(allowed)
    }

    /// Appends the generated token `id`. Returns why the completion ends with it, if it does.
    fn push(&mut self, id: u32) -> Option<FinishReason> {
        self.history.push(id);
        self.context.push(id);
        self.generated += 1;
        if self.request.stop_ids.contains(&id) {
            Some(FinishReason::Eos)
        } else if self.generated >= self.request.max_tokens {
            Some(FinishReason::Length)
        } else {
            None
        }
    }

    /// Scores the prompt tokens at `start + 1..=end`, given the logits at `start..end`.
    fn score_prompt(&mut self, start: usize, end: usize, logits: &[f32], vocab_size: usize) {
        for (position, logits) in (start..end).zip(logits.chunks(vocab_size)) {
            let Some(id) = self.context[..self.prefill_len].get(position + 1).copied() else {
                return;
            };
            self.scores.push(score_token(
                id,
                logits,
                self.request.top_logprobs.unwrap_or(0),
            ));
        }
    }
}

fn request_id(active: &BTreeMap<usize, ActiveSequence>, slot: usize) -> RequestId {
    active
        .get(&slot)
        .map_or(RequestId(0), |sequence| sequence.id)
}

/// The final hidden states of the next `ids` of `slots`, the same number for each slot.
fn hidden(model: &Transformer, cache: &mut KvCache, slots: &[usize], ids: &[u32]) -> Tensor<3> {
    let signed: Vec<i32> = ids.iter().map(|id| id.cast_signed()).collect();
    let data = TensorData::new(signed, [slots.len(), ids.len() / slots.len()]);
    let tokens = Tensor::<2, Int>::from_data(data, &model.device());
    model.hidden_states(
        tokens,
        &mut ForwardContext::inference().with_cache(cache, slots),
    )
}

fn logits(model: &Transformer, hidden: Tensor<3>) -> Vec<f32> {
    weights::to_f32_vec(
        model
            .logits(hidden, &mut ForwardContext::inference())
            .into_data(),
    )
}

/// The score of token `id`, with the `count` most probable tokens in falling order; ties go to the
/// lowest id.
fn score_token(id: u32, logits: &[f32], count: usize) -> Score {
    let sum = log_sum_exp(logits);
    let logprob = |logit: f32| f64::from(logit) - sum;
    let mut score = Score {
        id,
        logprob: logprob(logits[id as usize]),
        top: Vec::new(),
    };
    if count == 0 {
        return score;
    }
    let mut all: Vec<(u32, f32)> = (0_u32..).zip(logits.iter().copied()).collect();
    let larger = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if count < all.len() {
        all.select_nth_unstable_by(count, larger);
        all.truncate(count);
    }
    all.sort_unstable_by(larger);
    let top = all.into_iter().map(|(id, logit)| (id, logprob(logit)));
    score.top = top.collect();
    score
}
