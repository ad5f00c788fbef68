//! Speculative decoding: cheap proposals of the next tokens, all verified in one forward pass.
//!
//! A proposal is accepted while the model's own sampler, with its own random number for that position,
//! samples the same token. So the completion is the same as without speculation, token by token, which
//! implies the same distribution (compare Leviathan et al. 2023, arXiv 2211.17192, which preserve only the
//! distribution). On the CPU the forward pass has the bits of one pass per token.

use burn::tensor::{Int, Tensor, TensorData};
use nextword_model::{Architecture, ForwardContext, KvCache, PAGE_LEN, Transformer, weights};

use crate::{GenerateError, History, SampleKey, Sampler};

/// Maximum number of tokens that one forward pass decodes with speculation, of all rows together: about as
/// many as take little longer than one.
pub(crate) const VERIFIED_TOKENS: usize = 16;

/// Lengths of the n-grams that prompt lookup searches for, in this order.
const NGRAM_LENGTHS: [usize; 2] = [3, 2];

/// Where proposals come from.
#[derive(Clone, Debug)]
pub enum Speculation {
    /// The context itself: the tokens that followed the latest earlier occurrence of its last tokens. Helps
    /// where a completion repeats parts of its prompt, as summaries and corrections do.
    PromptLookup {
        /// Maximum number of tokens to propose at a time.
        max_tokens: usize,
    },
    /// A smaller model with the same vocabulary, on the same device.
    Draft {
        /// The model.
        model: Box<Transformer>,
        /// Maximum number of tokens to propose at a time.
        max_tokens: usize,
    },
}

impl Speculation {
    /// Maximum number of tokens to propose at a time.
    pub fn max_tokens(&self) -> usize {
        match self {
            Self::PromptLookup { max_tokens } | Self::Draft { max_tokens, .. } => *max_tokens,
        }
    }

    /// Checks that a draft model has as many tokens as `model`.
    ///
    /// # Errors
    /// [`GenerateError::Setting`] if it has not.
    pub(crate) fn check(&self, model: &Transformer) -> Result<(), GenerateError> {
        let Self::Draft { model: draft, .. } = self else {
            return Ok(());
        };
        draft
            .config()
            .require(&[Architecture::Decoder], "use the draft model")?;
        let [draft, target] = [draft.as_ref(), model].map(|m| m.config().vocab_size);
        if draft == target {
            return Ok(());
        }
        Err(GenerateError::Setting {
            key: "draft",
            problem: format!(
                "the draft model has a vocabulary of {draft} tokens, the model one of {target}"
            ),
            hint: "use a draft model with the same tokenizer",
        })
    }
}

/// Proposes tokens for several sequences.
#[derive(Debug)]
pub(crate) struct Drafter {
    speculation: Speculation,
    /// The draft model's keys and values of each sequence.
    cache: Option<KvCache>,
    /// The tokens in each slot of `cache`.
    cached: Vec<Vec<u32>>,
}

/// What a draft model needs to sample as the model's sampler does.
pub(crate) struct DraftSampling<'a> {
    pub(crate) sampler: &'a Sampler,
    pub(crate) history: &'a History,
    /// The key of the next token.
    pub(crate) key: SampleKey,
}

impl Drafter {
    /// Proposes tokens for up to `slots` sequences. A draft model gets a cache of `cache_tokens` tokens.
    pub(crate) fn new(speculation: &Speculation, slots: usize, cache_tokens: usize) -> Self {
        let cache = match speculation {
            Speculation::PromptLookup { .. } => None,
            Speculation::Draft { model, .. } => Some(KvCache::with_pages(
                model.config(),
                slots,
                PAGE_LEN,
                cache_tokens.div_ceil(PAGE_LEN).max(1),
                &model.device(),
            )),
        };
        Self {
            speculation: speculation.clone(),
            cache,
            cached: vec![Vec::new(); slots],
        }
    }

    /// Maximum number of tokens to propose at a time.
    pub(crate) fn max_tokens(&self) -> usize {
        self.speculation.max_tokens()
    }

    /// Proposes up to `max_tokens` tokens after `context`, the sequence in `slot`.
    pub(crate) fn propose(
        &mut self,
        slot: usize,
        context: &[u32],
        max_tokens: usize,
        sampling: &DraftSampling<'_>,
    ) -> Vec<u32> {
        let max_tokens = max_tokens.min(self.max_tokens());
        if max_tokens == 0 {
            return Vec::new();
        }
        let (Some(cache), Speculation::Draft { model, .. }) = (&mut self.cache, &self.speculation)
        else {
            return look_up(context, max_tokens);
        };
        let context_length = model.config().context_length;
        let max_tokens = max_tokens.min((context_length + 1).saturating_sub(context.len()));
        let mut ids = context.to_vec();
        for index in 0..max_tokens {
            let Some(logits) = next_logits(model, cache, &mut self.cached, slot, &ids) else {
                break;
            };
            let Some(id) = sampling.sample(&logits, &ids[context.len()..], index) else {
                break;
            };
            ids.push(id);
        }
        ids.split_off(context.len())
    }
}

impl DraftSampling<'_> {
    /// Samples the token after the proposals `earlier`.
    fn sample(&self, logits: &[f32], earlier: &[u32], index: usize) -> Option<u32> {
        let key = SampleKey {
            position: self.key.position + index as u64,
            ..self.key
        };
        let sampled = if earlier.is_empty() || !self.sampler.config().has_penalties() {
            self.sampler.sample_id(logits, self.history, key)
        } else {
            let mut history = self.history.clone();
            for id in earlier {
                history.push(*id);
            }
            self.sampler.sample_id(logits, &history, key)
        };
        sampled.ok().map(|(id, _)| id)
    }
}

/// The draft model's logits after `ids`, the sequence in `slot`; `None` if there is no memory for it.
fn next_logits(
    model: &Transformer,
    cache: &mut KvCache,
    cached: &mut [Vec<u32>],
    slot: usize,
    ids: &[u32],
) -> Option<Vec<f32>> {
    let same = cached[slot].iter().zip(ids).take_while(|(a, b)| a == b);
    let start = same.count().min(ids.len() - 1);
    cache.truncate(slot, start);
    cached[slot].truncate(start);
    if !cache.reserve(slot, ids.len()) {
        // The other sequences are computed again if they propose tokens.
        for other in (0..cached.len()).filter(|other| *other != slot) {
            cache.clear(other);
            cached[other].clear();
        }
        if !cache.reserve(slot, ids.len()) {
            return None;
        }
    }
    cached[slot].extend_from_slice(&ids[start..]);
    let new: Vec<i32> = ids[start..].iter().map(|id| id.cast_signed()).collect();
    let seq = new.len();
    let tokens = Tensor::<2, Int>::from_data(TensorData::new(new, [1, seq]), &model.device());
    let mut ctx = ForwardContext::inference().with_cache(cache, std::slice::from_ref(&slot));
    let hidden = model.hidden_states(tokens, &mut ctx).narrow(1, seq - 1, 1);
    let logits = model.logits(hidden, &mut ForwardContext::inference());
    Some(weights::to_f32_vec(logits.into_data()))
}

/// The `max_tokens` tokens that follow if `context` continues as after the latest earlier occurrence of its
/// last tokens, and repeats itself from its end on; empty if they have not occurred.
fn look_up(context: &[u32], max_tokens: usize) -> Vec<u32> {
    for length in NGRAM_LENGTHS {
        let Some(last) = context.len().checked_sub(length) else {
            continue;
        };
        let ngram = &context[last..];
        let mut earlier = (0..last).rev();
        if let Some(start) = earlier.find(|start| context[*start..].starts_with(ngram)) {
            let followers = context[start + length..].iter().copied().cycle();
            return followers.take(max_tokens).collect();
        }
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::look_up;

    #[test]
    fn the_latest_occurrence_of_the_longest_ngram_is_continued() {
        let context = [1, 2, 3, 4, 9, 2, 3, 5, 6, 1, 2, 3];
        assert_eq!(look_up(&context, 2), [4, 9]);
        assert_eq!(look_up(&context, 9), context[3..]);
        assert_eq!(look_up(&context[..11], 3), [3, 4, 9]); // only `1 2` occurs earlier
        assert!(look_up(&context[..9], 3).is_empty());
        assert!(look_up(&[7], 3).is_empty());
        // A repetition continues beyond the end of the context.
        assert_eq!(look_up(&[7, 7, 7, 7], 3), [7, 7, 7]);
        assert_eq!(look_up(&[1, 2, 3, 1, 2, 3], 5), [1, 2, 3, 1, 2]);
    }
}
