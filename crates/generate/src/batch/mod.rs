//! Continuous batching: requests join and leave a running batch between steps; token ids only.
//!
//! The cache is a fixed number of slots. Each step first computes at most
//! [`BatchOptions::prefill_tokens`] tokens of prompts, so that running answers are not held up, then
//! one token of every running answer.
//!
//! What a request gets depends on the request alone. On flex a row's numbers do not depend on the
//! other rows of a product, but a sequence of a few places is multiplied in another order than a longer
//! one. So prompts are computed each by itself in pieces that begin at multiples of
//! [`BatchOptions::chunk`], and a slot's tokens are used again only in such whole pieces of a prompt.

mod slots;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use burn::tensor::{Int, Tensor, TensorData};
use nextword_kernels::cpu::for_each;
use nextword_model::{KvCache, Pass, Transformer, weights};

use self::slots::Slots;
use crate::sampler::log_sum_exp;
use crate::{FinishReason, GenerateError, History, Overflow, Place, Sampler, SamplingConfig};

/// The sizes of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchOptions {
    /// Answers that can be under way at once; each has a slot of the cache as long as the model's
    /// context.
    pub slots: usize,
    /// Tokens of a prompt that are computed at once. Default 32.
    pub chunk: usize,
    /// Tokens of prompts in one step, at least one chunk. Default 128.
    pub prefill_tokens: usize,
}

impl Default for BatchOptions {
    fn default() -> Self {
        Self {
            slots: 8,
            chunk: 32,
            prefill_tokens: 128,
        }
    }
}

/// Ids to be continued.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchRequest {
    /// At least one id, at most the model's context.
    pub prompt: Vec<u32>,
    /// How each token is chosen.
    pub sampling: SamplingConfig,
    /// The most tokens of the answer.
    pub max_tokens: usize,
    /// The answer ends with the first of these, as its last token.
    pub stop_ids: Vec<u32>,
    /// What happens at the end of the context.
    pub overflow: Overflow,
    /// As [`DecodeOptions::first_id`](crate::DecodeOptions::first_id).
    pub first_id: Option<u32>,
    /// Number of the answer for the random draws.
    pub sequence: u64,
    /// How many of the likeliest tokens are told with each token and its score; `None`: no score is.
    pub top: Option<usize>,
    /// Whether the prompt's own tokens are scored too. No cached token is used then.
    pub score_prompt: bool,
}

/// Names a request of a [`Batcher`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(u64);

/// A token and how likely the model found it, by itself: before bias, penalties and temperature.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// The token.
    pub id: u32,
    /// `ln p` in nats.
    pub logprob: f64,
    /// The likeliest tokens in its place with their `ln p`, the likeliest first.
    pub top: Vec<(u32, f64)>,
}

/// What happened to a request in a step.
#[derive(Debug)]
pub enum Event {
    /// The prompt's tokens but the first, scored. Comes before the first token.
    Prompt(Vec<Score>),
    /// The next token of the answer, scored if that was asked for; `finish` is set if it is the last.
    Token {
        /// The token.
        id: u32,
        /// How likely the model found it.
        score: Option<Score>,
        /// Why the answer ends with it.
        finish: Option<FinishReason>,
    },
    /// The answer ended without a further token.
    End(FinishReason),
    /// The answer cannot go on.
    Failed(GenerateError),
}

/// An answer under way, in a slot.
#[derive(Debug)]
struct Running {
    id: RequestId,
    request: BatchRequest,
    sampler: Sampler,
    /// What the model sees. The cache holds the first of these.
    context: Vec<u32>,
    /// Tokens of the context that are computed as a prompt.
    prompt: usize,
    /// Tokens of the context that were found in the cache.
    reused: usize,
    history: History,
    tokens: usize,
    scores: Vec<Score>,
    /// Whether it waits for its reader.
    held: bool,
}

/// Continues requests together, one step at a time.
#[derive(Debug)]
pub struct Batcher {
    model: Transformer,
    options: BatchOptions,
    cache: KvCache,
    slots: Slots,
    running: BTreeMap<usize, Running>,
    next_id: u64,
}

impl Batcher {
    /// Takes the memory for all slots. The model must not be on an autodiff device.
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
            running: BTreeMap::new(),
            next_id: 0,
        }
    }

    /// Slots without an answer.
    pub fn free_slots(&self) -> usize {
        self.options.slots - self.running.len()
    }

    /// Whether no answer is under way.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty()
    }

    /// Tokens of the prompt of `id` that were found in the cache.
    pub fn reused(&self, id: RequestId) -> usize {
        let mut running = self.running.values();
        running
            .find(|running| running.id == id)
            .map_or(0, |running| running.reused)
    }

    /// Checks `request` and gives it a free slot; `None` if there is none. Nothing is computed yet.
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
        let Some(found) = self.slots.take(&request.prompt, request.score_prompt) else {
            return Ok(None);
        };
        match found.copy_from {
            Some(from) => self.cache.copy_prefix(from, found.slot, found.len),
            None => self.cache.truncate(found.slot, found.len),
        }
        self.next_id += 1;
        let id = RequestId(self.next_id);
        let running = Running {
            id,
            sampler,
            context: request.prompt.clone(),
            prompt: request.prompt.len(),
            reused: found.len,
            history: History::new(&request.prompt),
            tokens: 0,
            scores: Vec::new(),
            held: false,
            request,
        };
        self.running.insert(found.slot, running);
        Ok(Some(id))
    }

    /// Ends a request; its slot is free at once. Nothing happens if it has ended already.
    pub fn cancel(&mut self, id: RequestId) {
        let found = self.running.iter().find(|(_, running)| running.id == id);
        if let Some(slot) = found.map(|(slot, _)| *slot) {
            self.free(slot);
        }
    }

    /// Leaves a request out of the next steps, as long as `held`: nobody takes its tokens.
    pub fn hold(&mut self, id: RequestId, held: bool) {
        let mut all = self.running.values_mut();
        if let Some(running) = all.find(|running| running.id == id) {
            running.held = held;
        }
    }

    /// One step of all requests under way that are not held; tells what happened to which.
    pub fn step(&mut self) -> Vec<(RequestId, Event)> {
        let mut events = Vec::new();
        self.make_room(&mut events);
        self.prefill(&mut events);
        self.decode(&mut events);
        events
    }

    fn free(&mut self, slot: usize) {
        self.running.remove(&slot);
        self.slots.free(slot);
    }

    /// Sees to it that each context fits the model.
    fn make_room(&mut self, events: &mut Vec<(RequestId, Event)>) {
        let context_length = self.model.config().context_length;
        let full: Vec<usize> = self
            .running
            .iter()
            .filter(|(_, running)| !running.held && running.context.len() > context_length)
            .map(|(slot, _)| *slot)
            .collect();
        for slot in full {
            let Some(running) = self.running.get_mut(&slot) else {
                continue;
            };
            if running.request.overflow == Overflow::Stop {
                events.push((running.id, Event::End(FinishReason::ContextFull)));
                self.free(slot);
                continue;
            }
            let most = (context_length / 2).max(1);
            crate::decode::shorten(&mut running.context, running.request.first_id, most);
            running.prompt = most;
            self.cache.clear(slot);
            self.slots.forget(slot);
        }
    }

    /// Computes prompts, the oldest request first.
    fn prefill(&mut self, events: &mut Vec<(RequestId, Event)>) {
        let mut waiting: Vec<(RequestId, usize)> = self
            .running
            .iter()
            .filter(|(slot, running)| !running.held && self.cache.len(**slot) < running.prompt)
            .map(|(slot, running)| (running.id, *slot))
            .collect();
        waiting.sort_unstable();
        let mut budget = self.options.prefill_tokens.max(self.options.chunk);
        for (id, slot) in waiting {
            while let Some(running) = self.running.get(&slot) {
                let start = self.cache.len(slot);
                let end = running.prompt.min(start + self.options.chunk);
                if start == running.prompt {
                    break;
                }
                if end - start > budget {
                    return;
                }
                budget -= end - start;
                if running.request.max_tokens == 0 && !running.request.score_prompt {
                    events.push((id, Event::End(FinishReason::Length)));
                    self.free(slot);
                    break;
                }
                self.prefill_piece(slot, end, events);
            }
        }
    }

    /// Computes the context of `slot` up to `end`, and the first token behind a whole prompt.
    fn prefill_piece(&mut self, slot: usize, end: usize, events: &mut Vec<(RequestId, Event)>) {
        let Some(running) = self.running.get(&slot) else {
            return;
        };
        let start = self.cache.len(slot);
        let piece = &running.context[start..end];
        self.slots.fill(slot, start, piece);
        let whole = end == running.prompt;
        let score = running.request.score_prompt && running.tokens == 0;
        let hidden = hidden(&self.model, &mut self.cache, &[slot], piece);
        if score {
            let logits = logits(&self.model, hidden.clone());
            if let Some(running) = self.running.get_mut(&slot) {
                running.score_prompt(start, end, &logits, self.model.config().vocab_size);
            }
        }
        if !whole {
            return;
        }
        let id = running_id(&self.running, slot);
        if score && let Some(running) = self.running.get_mut(&slot) {
            events.push((id, Event::Prompt(std::mem::take(&mut running.scores))));
            if running.request.max_tokens == 0 {
                events.push((id, Event::End(FinishReason::Length)));
                return self.free(slot);
            }
        }
        let last = logits(&self.model, hidden.narrow(1, end - start - 1, 1));
        self.choose(&[slot], &last, events);
    }

    /// One token of every answer whose prompt is computed.
    fn decode(&mut self, events: &mut Vec<(RequestId, Event)>) {
        let ready: Vec<usize> = self
            .running
            .iter()
            .filter(|(slot, running)| {
                let len = self.cache.len(**slot);
                len >= running.prompt && len + 1 == running.context.len()
            })
            .filter(|(_, running)| running.context.len() <= self.model.config().context_length)
            .filter(|(_, running)| !running.held)
            .map(|(slot, _)| *slot)
            .collect();
        if ready.is_empty() {
            return;
        }
        let newest = ready
            .iter()
            .filter_map(|slot| self.running.get(slot)?.context.last());
        let ids: Vec<u32> = newest.copied().collect();
        let hidden = hidden(&self.model, &mut self.cache, &ready, &ids);
        let logits = logits(&self.model, hidden);
        self.choose(&ready, &logits, events);
    }

    /// Draws the next token of each of `slots`, by its row of `logits`, and frees those that end.
    fn choose(&mut self, slots: &[usize], logits: &[f32], events: &mut Vec<(RequestId, Event)>) {
        let rows: Vec<&[f32]> = logits.chunks(self.model.config().vocab_size).collect();
        let all: Vec<OnceLock<Drawn>> = slots.iter().map(|_| OnceLock::new()).collect();
        for_each(slots.len(), SAMPLING * rows[0].len(), |row| {
            if let Some(running) = self.running.get(&slots[row]) {
                let _ = all[row].set(running.draw(rows[row])); // Each is set once.
            }
        });
        for (slot, drawn) in slots.iter().zip(all) {
            let (Some(running), Some(drawn)) = (self.running.get_mut(slot), drawn.into_inner())
            else {
                continue;
            };
            let running_id = running.id;
            match drawn {
                Ok((id, score)) => {
                    let finish = running.push(id);
                    let ends = finish.is_some();
                    events.push((running_id, Event::Token { id, score, finish }));
                    if ends {
                        self.free(*slot);
                    }
                }
                Err(error) => {
                    events.push((running_id, Event::Failed(error)));
                    // What the cache holds of it may be no numbers either.
                    self.slots.forget(*slot);
                    self.free(*slot);
                }
            }
        }
    }
}

/// A token, and its score if that was asked for.
type Drawn = Result<(u32, Option<Score>), GenerateError>;

/// About how many basic operations a logit costs in sampling.
const SAMPLING: usize = 16;

impl Running {
    fn draw(&self, logits: &[f32]) -> Drawn {
        let place = Place {
            sequence: self.request.sequence,
            position: self.tokens as u64,
        };
        let (id, _) = self.sampler.choose(logits, &self.history, place)?;
        Ok((id, self.request.top.map(|top| score(id, logits, top))))
    }

    /// Takes `id` as the next token; says why the answer ends with it, if it does.
    fn push(&mut self, id: u32) -> Option<FinishReason> {
        self.history.push(id);
        self.context.push(id);
        self.tokens += 1;
        if self.request.stop_ids.contains(&id) {
            Some(FinishReason::Eos)
        } else if self.tokens >= self.request.max_tokens {
            Some(FinishReason::Length)
        } else {
            None
        }
    }

    /// Scores the prompt's tokens after those at `start..end`, whose logits these are.
    fn score_prompt(&mut self, start: usize, end: usize, logits: &[f32], vocab_size: usize) {
        for (place, logits) in (start..end).zip(logits.chunks(vocab_size)) {
            let Some(id) = self.context[..self.prompt].get(place + 1).copied() else {
                return;
            };
            self.scores
                .push(score(id, logits, self.request.top.unwrap_or(0)));
        }
    }
}

fn running_id(running: &BTreeMap<usize, Running>, slot: usize) -> RequestId {
    running
        .get(&slot)
        .map_or(RequestId(0), |running| running.id)
}

/// What enters the output layer for the next `ids` of `slots`, the same number for each.
fn hidden(model: &Transformer, cache: &mut KvCache, slots: &[usize], ids: &[u32]) -> Tensor<3> {
    let signed: Vec<i32> = ids.iter().map(|id| id.cast_signed()).collect();
    let data = TensorData::new(signed, [slots.len(), ids.len() / slots.len()]);
    let tokens = Tensor::<2, Int>::from_data(data, &model.device());
    model.hidden(tokens, &mut Pass::plain().continuing(cache, slots))
}

fn logits(model: &Transformer, hidden: Tensor<3>) -> Vec<f32> {
    weights::floats(model.logits(hidden, &mut Pass::plain()).into_data())
}

/// The score of token `id`, with those of the `count` largest logits: the largest first, of equals the
/// lowest id.
fn score(id: u32, logits: &[f32], count: usize) -> Score {
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
