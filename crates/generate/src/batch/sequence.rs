//! The state of one request.

use std::borrow::Cow;

use super::prefix_cache::PageKey;
use super::request::{BatchRequest, RequestId, Score};
use crate::sampler::log_sum_exp;
use crate::speculation::DraftSampling;
use crate::{FinishReason, GenerateError, History, SampleKey, Sampler};

/// A request in a slot.
#[derive(Debug)]
pub(super) struct ActiveSequence {
    pub(super) id: RequestId,
    pub(super) request: BatchRequest,
    sampler: Sampler,
    /// The model's context. A prefix of it is cached.
    pub(super) context: Vec<u32>,
    /// Length of the context that is computed by prefill.
    pub(super) prefill_len: usize,
    /// The key before its first page.
    pub(super) root: PageKey,
    /// Keys of the cached pages that were computed by prefill, from the first one on.
    pub(super) page_keys: Vec<PageKey>,
    /// Number of prompt tokens that were found in the cache when the request was admitted.
    pub(super) cached_tokens: usize,
    history: History,
    /// Number of generated tokens.
    pub(super) generated: usize,
    pub(super) scores: Vec<Score>,
    /// Whether steps skip this sequence.
    pub(super) paused: bool,
    /// Whether it lost its pages and waits for others.
    pub(super) preempted: bool,
}

/// A token and, if requested, its score.
pub(super) type Sampled = Result<(u32, Option<Score>), GenerateError>;

impl ActiveSequence {
    /// The sequence of `request`, whose decoder begins with `context`.
    pub(super) fn new(
        id: RequestId,
        request: BatchRequest,
        context: Vec<u32>,
        root: PageKey,
    ) -> Result<Self, GenerateError> {
        Ok(Self {
            id,
            sampler: Sampler::new(request.sampling.clone())?,
            prefill_len: context.len(),
            root,
            page_keys: Vec::new(),
            cached_tokens: 0,
            history: History::new(&context),
            context,
            generated: 0,
            scores: Vec::new(),
            paused: false,
            preempted: false,
            request,
        })
    }

    /// The key of the last cached page.
    pub(super) fn last_key(&self) -> PageKey {
        *self.page_keys.last().unwrap_or(&self.root)
    }

    /// Whether it takes part in steps.
    pub(super) fn is_running(&self) -> bool {
        !self.paused && !self.preempted
    }

    /// Whether the logits of its prompt are still to be scored.
    pub(super) fn scores_prompt(&self) -> bool {
        self.request.score_prompt && self.generated == 0
    }

    /// What a draft model needs to propose the next tokens.
    pub(super) fn draft_sampling(&self) -> DraftSampling<'_> {
        DraftSampling {
            sampler: &self.sampler,
            history: &self.history,
            key: self.sample_key(),
        }
    }

    fn sample_key(&self) -> SampleKey {
        SampleKey {
            sequence: self.request.sequence,
            position: self.generated as u64,
        }
    }

    pub(super) fn sample(&self, logits: &[f32]) -> Sampled {
        let key = self.sample_key();
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
    pub(super) fn push(&mut self, id: u32) -> Option<FinishReason> {
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
    pub(super) fn score_prompt(
        &mut self,
        start: usize,
        end: usize,
        logits: &[f32],
        vocab_size: usize,
    ) {
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
