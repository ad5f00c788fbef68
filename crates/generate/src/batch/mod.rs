//! Continuous batching: requests join and leave a running batch between steps; token ids only.
//!
//! The sequences share the pages of one KV cache and grow by one page at a time. When no page is left,
//! cached prefixes are evicted, then the newest sequence is preempted and recomputed later. Each step
//! first computes at most [`BatchOptions::prefill_tokens`] prompt tokens, so that long prompts do not
//! stall the other sequences, and then decodes one token of every active sequence.
//!
//! Requests can have adapters: the rows of a step share the products with the weights of the model, and those
//! of an adapter then add its updates.
//!
//! Prompts of prefix models are computed as a whole and share no pages, since each of their tokens depends on all
//! of them. In encoder-decoder models the prompt is the source: the encoder reads it before the first step of the
//! decoder, whose cross-attention keeps its keys and values in the slot.
//!
//! The result of a request depends on that request alone. On flex a row of a matrix product does not
//! depend on the other rows, but short and long sequences use a different order of operations.
//! Therefore every prompt is computed separately, in chunks that end at multiples of
//! [`BatchOptions::chunk`], cached tokens are reused only where the rest is computed in the same order,
//! and a preempted sequence computes its generated tokens again in rows of one token.

mod forward;
mod memory;
mod prefix_cache;
mod request;
mod sequence;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod verify;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use nextword_kernels::parallel_for_each;
use nextword_model::{Architecture, KvCache, RowAdapter, Transformer};

use self::forward::{hidden, logits, prefill_hidden, select_rows};
use self::prefix_cache::PrefixCache;
pub use self::request::{
    BatchOptions, BatchRequest, CacheUsage, Event, ProposalCounts, RequestId, Score,
};
use self::sequence::{ActiveSequence, Sampled};
use self::verify::Verification;
use crate::speculation::Drafter;
use crate::{FinishReason, GenerateError, Overflow, Speculation};

/// Maximum number of generated tokens that a preempted sequence computes again in one step.
const REPLAYED_TOKENS: usize = 32;

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
///     adapter: None,
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
    prefixes: PrefixCache,
    /// The active sequences by slot.
    active: BTreeMap<usize, ActiveSequence>,
    next_id: u64,
    preemptions: u64,
    drafter: Option<Drafter>,
    proposals: ProposalCounts,
}

impl Batcher {
    /// Creates the cache. The model must not be on an autodiff device.
    pub fn new(model: Transformer, options: BatchOptions) -> Self {
        let options = BatchOptions {
            slots: options.slots.max(1),
            chunk: options.chunk.max(1),
            ..options
        };
        let (config, page_len) = (model.config(), options.page_len());
        let per_context = config.context_length.div_ceil(page_len);
        let pages = match options.cache_tokens {
            Some(tokens) => per_context.max(tokens / page_len),
            None => per_context * options.slots,
        };
        let cache = KvCache::with_pages(config, options.slots, page_len, pages, &model.device())
            .with_precision(options.cache_precision);
        Self {
            model,
            options,
            cache,
            prefixes: PrefixCache::default(),
            active: BTreeMap::new(),
            next_id: 0,
            preemptions: 0,
            drafter: None,
            proposals: ProposalCounts::default(),
        }
    }

    /// Decodes speculatively: the same tokens, several of them in one step where proposals are right. A
    /// draft model has a cache of its own, for as many tokens.
    ///
    /// # Errors
    /// [`GenerateError::Setting`] if a draft model has another number of tokens.
    pub fn with_speculation(self, speculation: &Speculation) -> Result<Self, GenerateError> {
        speculation.check(&self.model)?;
        let tokens = self.cache.pages() * self.cache.page_len();
        let drafter = Drafter::new(speculation, self.options.slots, tokens);
        Ok(Self {
            drafter: Some(drafter),
            ..self
        })
    }

    /// How many tokens were proposed and accepted in speculative decoding.
    pub fn proposal_counts(&self) -> ProposalCounts {
        self.proposals
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

    /// Validates `request` and assigns it a free slot and the pages of its prompt. Returns `None` if there
    /// are none (see [`can_admit`](Self::can_admit)). Computes nothing yet.
    ///
    /// # Errors
    /// [`GenerateError::Setting`], [`GenerateError::EmptyPrompt`], [`GenerateError::UnknownToken`],
    /// [`GenerateError::TooLong`] for a prompt that does not fit the context, [`GenerateError::Model`] for an
    /// adapter of another model, [`GenerateError::Encoder`] for an encoder, and [`GenerateError::Unsupported`] for
    /// scores of a prompt that the model does not predict.
    pub fn admit(&mut self, request: BatchRequest) -> Result<Option<RequestId>, GenerateError> {
        let config = self.model.config();
        if !config.architecture.generates() {
            return Err(GenerateError::Encoder);
        }
        if request.score_prompt && config.architecture != Architecture::Decoder {
            return Err(GenerateError::Unsupported {
                problem: format!(
                    "a model of architecture \"{}\" does not predict its prompt",
                    config.architecture
                ),
                hint: "only decoders can score a prompt; ask for the scores of the completion alone",
            });
        }
        if config.has_encoder() {
            crate::decode::check_prompt(0, &[self.options.start_id], config.vocab_size)?;
        }
        crate::decode::check_prompt(0, &request.prompt, config.vocab_size)?;
        if request.prompt.len() > config.context_length {
            return Err(GenerateError::TooLong {
                tokens: request.prompt.len(),
                context_length: config.context_length,
            });
        }
        if let Some(adapter) = &request.adapter {
            self.model.check_row_adapter(adapter)?;
        }
        let id = RequestId(self.next_id + 1);
        let can_admit = self.can_admit(&request);
        let root = self.root(request.adapter.as_ref());
        let context = self.first_tokens(&request).to_vec();
        let sequence = ActiveSequence::new(id, request, context, root)?;
        let slot = (0..self.options.slots).find(|slot| !self.active.contains_key(slot));
        let Some(slot) = slot.filter(|_| can_admit) else {
            return Ok(None);
        };
        self.next_id = id.0;
        self.active.insert(slot, sequence);
        self.take_pages(slot);
        let cached_tokens = self.cache.len(slot);
        if let Some(sequence) = self.active.get_mut(&slot) {
            sequence.cached_tokens = cached_tokens;
        }
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
        self.readmit();
        self.shift_contexts(&mut events);
        self.prefill(&mut events);
        self.decode(&mut events);
        events
    }

    fn release(&mut self, slot: usize) {
        self.drop_pages(slot);
        self.active.remove(&slot);
    }

    /// Shifts or ends every sequence whose context exceeds the model's.
    fn shift_contexts(&mut self, events: &mut Vec<(RequestId, Event)>) {
        let context_length = self.model.config().context_length;
        let full: Vec<usize> = self
            .active
            .iter()
            .filter(|(_, sequence)| {
                sequence.is_running() && sequence.context.len() > context_length
            })
            .map(|(slot, _)| *slot)
            .collect();
        for slot in full {
            self.drop_pages(slot);
            let Some(sequence) = self.active.get_mut(&slot) else {
                continue;
            };
            // The first half of a target cannot be dropped: the rest would look like its beginning.
            let is_target = self.model.config().has_encoder();
            if sequence.request.overflow == Overflow::Stop || is_target {
                events.push((sequence.id, Event::End(FinishReason::ContextFull)));
                self.release(slot);
                continue;
            }
            let max_len = (context_length / 2).max(1);
            crate::decode::truncate_left(&mut sequence.context, sequence.request.bos_id, max_len);
            sequence.prefill_len = max_len;
        }
    }

    /// Computes prompts within the step's budget, oldest request first.
    fn prefill(&mut self, events: &mut Vec<(RequestId, Event)>) {
        let mut waiting: Vec<(RequestId, usize)> = self
            .active
            .iter()
            .filter(|(slot, sequence)| {
                sequence.is_running() && self.cache.len(**slot) < sequence.prefill_len
            })
            .map(|(slot, sequence)| (sequence.id, *slot))
            .collect();
        waiting.sort_unstable();
        let full_budget = self.options.prefill_tokens.max(self.options.chunk);
        let mut budget = full_budget;
        for (id, slot) in waiting {
            loop {
                self.reuse_pages(slot);
                let Some(sequence) = self.active.get(&slot).filter(|s| !s.preempted) else {
                    break;
                };
                let start = self.cache.len(slot);
                let end = self.chunk_end(start, sequence.prefill_len);
                if start >= sequence.prefill_len {
                    break;
                }
                // A prompt that is computed as a whole may be longer than the budget of a step.
                if end - start > budget && budget < full_budget {
                    return;
                }
                if sequence.request.max_tokens == 0 && !sequence.request.score_prompt {
                    events.push((id, Event::End(FinishReason::Length)));
                    self.release(slot);
                    break;
                }
                if !self.reserve_pages(slot, end) {
                    break;
                }
                budget = budget.saturating_sub(end - start);
                self.prefill_chunk(slot, end, events);
            }
        }
    }

    /// Computes the context of `slot` up to `end`, and samples the first token after the prompt.
    fn prefill_chunk(&mut self, slot: usize, end: usize, events: &mut Vec<(RequestId, Event)>) {
        let Some(sequence) = self.active.get(&slot) else {
            return;
        };
        let (id, start) = (sequence.id, self.cache.len(slot));
        let is_complete = end == sequence.prefill_len;
        let is_sampled = end == sequence.context.len();
        let scores_prompt = sequence.scores_prompt();
        let tokens = &sequence.context[start..end];
        let adapters = self.adapters(&[slot]);
        let source = &sequence.request.prompt;
        let model = &self.model;
        let hidden = prefill_hidden(model, &mut self.cache, slot, &adapters, tokens, source);
        self.offer_pages(slot, start);
        if scores_prompt {
            let logits = logits(&self.model, hidden.clone());
            if let Some(sequence) = self.active.get_mut(&slot) {
                sequence.score_prompt(start, end, &logits, self.model.config().vocab_size);
            }
        }
        if !is_complete {
            return;
        }
        if scores_prompt && let Some(sequence) = self.active.get_mut(&slot) {
            events.push((id, Event::Prompt(std::mem::take(&mut sequence.scores))));
            if sequence.request.max_tokens == 0 {
                events.push((id, Event::End(FinishReason::Length)));
                return self.release(slot);
            }
        }
        // After a preemption, the next token is known.
        if is_sampled {
            let last = logits(&self.model, hidden.narrow(1, end - start - 1, 1));
            self.sample(&[(slot, &last)], events);
        }
    }

    /// Decodes one token of every sequence whose prompt is complete.
    fn decode(&mut self, events: &mut Vec<(RequestId, Event)>) {
        let context_length = self.model.config().context_length;
        let mut ready: Vec<(RequestId, usize, usize)> = self
            .active
            .iter()
            .filter(|(_, sequence)| {
                sequence.is_running() && sequence.context.len() <= context_length
            })
            .filter_map(|(slot, sequence)| {
                let len = self.cache.len(*slot);
                let count = sequence.context.len().saturating_sub(len);
                let is_ready = len >= sequence.prefill_len && count > 0;
                is_ready.then_some((sequence.id, *slot, len + count.min(REPLAYED_TOKENS)))
            })
            .collect();
        ready.sort_unstable(); // Older sequences get their pages first.
        for (_, slot, end) in &ready {
            let is_running = self.active.get(slot).is_some_and(|s| !s.preempted);
            if is_running {
                self.reserve_pages(*slot, *end);
            }
        }
        ready.retain(|(_, slot, _)| self.active.get(slot).is_some_and(|s| !s.preempted));
        let (mut rows, mut ids) = (Vec::new(), Vec::new());
        let (mut verifications, mut sampled_rows) = (Vec::new(), Vec::new());
        for (_, slot, end) in &ready {
            let proposed = self.propose(*slot, *end, ready.len());
            let Some(sequence) = self.active.get(slot) else {
                continue;
            };
            ids.extend_from_slice(&sequence.context[self.cache.len(*slot)..*end]);
            ids.extend_from_slice(&proposed);
            rows.resize(ids.len(), *slot);
            // Sequences that are computed again know their next token.
            if *end == sequence.context.len() {
                let first = sampled_rows.len();
                sampled_rows.extend(ids.len() - proposed.len() - 1..ids.len());
                verifications.push(Verification {
                    slot: *slot,
                    first,
                    proposed,
                });
            }
        }
        if rows.is_empty() {
            return;
        }
        let adapters = self.adapters(&rows);
        let hidden = hidden(&self.model, &mut self.cache, &rows, &adapters, &ids);
        if !verifications.is_empty() {
            let logits = logits(&self.model, select_rows(hidden, &sampled_rows));
            self.verify(verifications, &logits, events);
        }
    }

    /// The adapters of the sequences in `slots`.
    fn adapters(&self, slots: &[usize]) -> Vec<Option<RowAdapter>> {
        let adapter = |slot| self.active.get(slot)?.request.adapter.clone();
        slots.iter().map(adapter).collect()
    }

    /// Samples the next token of each slot from its logits. Frees slots that end. Returns the tokens of
    /// those that continue.
    fn sample(
        &mut self,
        rows: &[(usize, &[f32])],
        events: &mut Vec<(RequestId, Event)>,
    ) -> Vec<Option<u32>> {
        let results: Vec<OnceLock<Sampled>> = rows.iter().map(|_| OnceLock::new()).collect();
        parallel_for_each(
            rows.len(),
            OPS_PER_LOGIT * self.model.config().vocab_size,
            |row| {
                let (slot, logits) = rows[row];
                if let Some(sequence) = self.active.get(&slot) {
                    let _ = results[row].set(sequence.sample(logits)); // Each cell is set once.
                }
            },
        );
        let mut tokens = Vec::with_capacity(rows.len());
        for ((slot, _), sampled) in rows.iter().zip(results) {
            tokens.push(None);
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
                    } else if let Some(token) = tokens.last_mut() {
                        *token = Some(id);
                    }
                }
                Err(error) => {
                    events.push((request_id, Event::Failed(error)));
                    // The cached keys and values may not be finite either.
                    self.prefixes.remove(&sequence.page_keys, &mut self.cache);
                    self.release(*slot);
                }
            }
        }
        tokens
    }
}

/// Approximate cost of sampling in basic operations per logit.
const OPS_PER_LOGIT: usize = 16;
