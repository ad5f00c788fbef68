//! Encodes conversations.

use super::growing::GrowingIds;
use super::spans::{FormattedSample, SpanFinder};
use super::tokens::SampleEncoder;
use super::{SampleText, SpanMethod, TokenSample, TrainOn};
use crate::{ChatError, Conversation, PromptEncoder};

impl SampleEncoder {
    /// The samples of a conversation, each with its text.
    pub(super) fn conversation(
        &self,
        prompts: &PromptEncoder,
        conversation: &Conversation,
    ) -> Result<Vec<(SampleText, TokenSample)>, ChatError> {
        let finder = SpanFinder {
            prompts,
            eos: &self.eos,
            variables: &self.variables,
        };
        let mut positions: Vec<usize> = conversation.trained_messages().collect();
        if self.train_on == TrainOn::LastAssistant {
            positions.drain(..positions.len().saturating_sub(1));
        }
        if positions.is_empty() {
            return Ok(Vec::new());
        }
        if let Some(sample) = finder.together(conversation, &positions)?
            && let Some(encoded) = self.encode_turns(prompts, &sample)?
        {
            return Ok(vec![self.train_all(sample_text(&sample), encoded)]);
        }
        if self.train_on == TrainOn::All {
            let last = positions[positions.len() - 1];
            return Ok(vec![encode_all(&finder, conversation, last)?]);
        }
        let mut samples = Vec::with_capacity(positions.len());
        for at in positions {
            let sample = finder.alone(conversation, at)?;
            if let Some(encoded) = self.encode_turns(prompts, &sample)? {
                samples.push(self.train_all(sample_text(&sample), encoded));
            }
        }
        Ok(samples)
    }

    /// With [`TrainOn::All`], everything after the first token is trained.
    fn train_all(
        &self,
        mut text: SampleText,
        mut tokens: TokenSample,
    ) -> (SampleText, TokenSample) {
        if self.train_on == TrainOn::All {
            text.trained = std::iter::once(0..text.text.len()).collect();
            tokens.trained = std::iter::once(1..tokens.ids.len()).collect();
        }
        (text, tokens)
    }

    /// Encodes a formatted conversation. `None` if the ids before a trained message are not those of its prompt, or if
    /// nothing is trained.
    fn encode_turns(
        &self,
        prompts: &PromptEncoder,
        sample: &FormattedSample,
    ) -> Result<Option<TokenSample>, ChatError> {
        let rendered = &sample.rendered;
        let mut growing = GrowingIds::default();
        let mut trained = Vec::new();
        let (mut prompt_ends, mut turn_ends) = (Vec::new(), Vec::new());
        for turn in &sample.turns {
            let prompt = prompts.encode_prompt(&rendered.slice(0..turn.prompt_end))?;
            if !growing.extend_to(prompt) {
                return Ok(None);
            }
            prompt_ends.push(growing.ids.len());
            let mut at = turn.prompt_end;
            for span in &turn.spans {
                if at < span.start {
                    growing.push(prompts, rendered, at..span.start)?;
                }
                let start = growing.ids.len();
                growing.push(prompts, rendered, span.clone())?;
                trained.push(start..growing.ids.len());
                at = span.end;
            }
            if at < turn.end {
                growing.push(prompts, rendered, at..turn.end)?;
            }
            let last = growing.ids.last();
            if !last.is_some_and(|last| self.tokens.eos.contains(last)) {
                return Err(self.not_closed(last.copied()));
            }
            turn_ends.push(growing.ids.len());
        }
        trained.retain(|range| !range.is_empty());
        if trained.is_empty() {
            return Ok(None);
        }
        Ok(Some(TokenSample {
            ids: growing.ids,
            trained,
            prompt_ends,
            turn_ends,
            method: sample.method,
            is_split: growing.is_split,
            unknown: growing.unknown,
        }))
    }

    /// The error for a message that ends with another token.
    fn not_closed(&self, last: Option<u32>) -> ChatError {
        let text = last.and_then(|last| self.tokenizer.id_to_token(last));
        ChatError::NotClosed {
            closing: text.unwrap_or_default(),
            id: last,
            eos: self.tokens.eos.clone(),
        }
    }
}

fn sample_text(sample: &FormattedSample) -> SampleText {
    let end = sample.turns.last().map_or(0, |turn| turn.end);
    let spans = sample.turns.iter().flat_map(|turn| turn.spans.clone());
    SampleText {
        text: sample.rendered.slice(0..end).text,
        trained: spans.collect(),
        method: sample.method,
    }
}

/// A conversation up to the message at `last` as one sample, although the server sends other prompts for the
/// messages before it.
fn encode_all(
    finder: &SpanFinder<'_>,
    conversation: &Conversation,
    last: usize,
) -> Result<(SampleText, TokenSample), ChatError> {
    let rendered = finder.whole(conversation, last)?;
    let mut unknown = finder.prompts.encode_prompt(&rendered)?;
    let ids = std::mem::take(&mut unknown.ids);
    let text = SampleText {
        trained: std::iter::once(0..rendered.text.len()).collect(),
        text: rendered.text,
        method: SpanMethod::Whole,
    };
    let tokens = TokenSample {
        trained: std::iter::once(1..ids.len()).collect(),
        prompt_ends: Vec::new(),
        turn_ends: vec![ids.len()],
        ids,
        method: SpanMethod::Whole,
        is_split: false,
        unknown,
    };
    Ok((text, tokens))
}
