//! Where the trained parts of a formatted conversation are.

use std::ops::Range;

use super::SpanMethod;
use crate::special_texts::Rendered;
use crate::{ChatError, Conversation, Json, PromptEncoder, RenderOptions};

/// Number of characters that an error shows of a text.
const SHOWN_CHARS: usize = 40;
/// Ends a reasoning.
const REASONING_END: &str = "</think>";
/// Stands for the content of a message, to find out where it begins. A character without a meaning.
const PROBE: &str = "\u{10FFFB}";

/// A trained message in a formatted conversation. All positions are in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TrainedTurn {
    /// Where the prompt ends that the model continues.
    pub(super) prompt_end: usize,
    /// The end of the EOS token that closes the message.
    pub(super) end: usize,
    /// What of it is trained, in ascending order.
    pub(super) spans: Vec<Range<usize>>,
}

/// A formatted conversation with its trained messages.
#[derive(Clone, Debug)]
pub(super) struct FormattedSample {
    pub(super) rendered: Rendered,
    pub(super) turns: Vec<TrainedTurn>,
    pub(super) method: SpanMethod,
}

/// Formats conversations and finds their trained messages.
#[derive(Debug)]
pub(super) struct SpanFinder<'a> {
    pub(super) prompts: &'a PromptEncoder,
    /// The texts of the EOS tokens, which are not empty, and their ids.
    pub(super) eos: &'a [(String, u32)],
    pub(super) variables: &'a [(String, Json)],
}

impl SpanFinder<'_> {
    /// One sample with the messages at `positions` trained (not empty, ascending), if what comes before each of them is
    /// the prompt that the server sends.
    pub(super) fn together(
        &self,
        conversation: &Conversation,
        positions: &[usize],
    ) -> Result<Option<FormattedSample>, ChatError> {
        let Some(last) = positions.last() else {
            return Ok(None);
        };
        let whole = self.complete(conversation, *last)?;
        let mut turns = Vec::with_capacity(positions.len());
        for &at in positions {
            let prompt = self.prompt(conversation, at)?;
            let own = if at == *last {
                whole.clone()
            } else {
                self.complete(conversation, at)?
            };
            if !own.starts_with(&prompt) {
                return Ok(None);
            }
            let start = prompt.text.len();
            let end = self.end(&own, start)?;
            if !whole.starts_with(&own.slice(0..end)) {
                return Ok(None);
            }
            let span = start..end;
            turns.push(TrainedTurn {
                prompt_end: start,
                end,
                spans: vec![span],
            });
        }
        let sample = FormattedSample {
            rendered: whole,
            turns,
            method: SpanMethod::Prefixes,
        };
        Ok(Some(self.with_marks(sample, conversation, *last)))
    }

    /// One sample with the message at `at` trained, after the prompt that the server sends.
    pub(super) fn alone(
        &self,
        conversation: &Conversation,
        at: usize,
    ) -> Result<FormattedSample, ChatError> {
        let prompt = self.prompt(conversation, at)?;
        let own = self.complete(conversation, at)?;
        let start = prompt.text.len();
        let follows = own.starts_with(&prompt);
        let rendered = if follows {
            own
        } else {
            self.joined(conversation, at, prompt, &own)?
        };
        let end = self.end(&rendered, start)?;
        let span = start..end;
        let sample = FormattedSample {
            rendered,
            turns: vec![TrainedTurn {
                prompt_end: start,
                end,
                spans: vec![span],
            }],
            method: SpanMethod::PerTurn,
        };
        if !follows {
            return Ok(sample);
        }
        let marked = self.with_marks(sample, conversation, at);
        Ok(FormattedSample {
            method: SpanMethod::PerTurn,
            ..marked
        })
    }

    /// The formatted messages up to the EOS token that closes the one at `last`.
    pub(super) fn whole(
        &self,
        conversation: &Conversation,
        last: usize,
    ) -> Result<Rendered, ChatError> {
        let own = self.complete(conversation, last)?;
        let end = self.ends(&own, 0).last();
        let end = end.ok_or_else(|| self.not_closed(&own, 0))?;
        Ok(own.slice(0..end))
    }

    /// The formatted messages before `at`, which the model continues.
    fn prompt(&self, conversation: &Conversation, at: usize) -> Result<Rendered, ChatError> {
        let options = self.options(conversation, true);
        self.prompts.render(&conversation.messages[..at], &options)
    }

    /// The formatted messages up to and including `last`.
    fn complete(&self, conversation: &Conversation, last: usize) -> Result<Rendered, ChatError> {
        let options = self.options(conversation, false);
        self.prompts
            .render(&conversation.messages[..=last], &options)
    }

    fn options<'a>(
        &'a self,
        conversation: &'a Conversation,
        add_generation_prompt: bool,
    ) -> RenderOptions<'a> {
        RenderOptions {
            tools: conversation.tools.as_deref(),
            add_generation_prompt,
            variables: self.variables,
            ..RenderOptions::default()
        }
    }

    /// The end of the first EOS token after `start`, where the prompt ends.
    fn end(&self, own: &Rendered, start: usize) -> Result<usize, ChatError> {
        let first = self.ends(own, start).next();
        first.ok_or_else(|| self.not_closed(own, start))
    }

    /// The ends of all EOS tokens after `start`.
    fn ends<'a>(&'a self, own: &'a Rendered, start: usize) -> impl Iterator<Item = usize> + 'a {
        let positions = own.text[start..].char_indices();
        positions.filter_map(move |(at, _)| {
            let at = start + at;
            let tail = &own.text[at..];
            let (text, _) = self.eos.iter().find(|(text, _)| tail.starts_with(text))?;
            (!own.is_literal(at)).then_some(at + text.len())
        })
    }

    /// The error for a message that no EOS token closes. The prompt before it ends at `start`.
    fn not_closed(&self, own: &Rendered, start: usize) -> ChatError {
        let rest = &own.text[start..];
        let mut special = rest.char_indices().filter_map(|(at, _)| {
            let text = self.prompts.special_text_at(&rest[at..])?;
            (!own.is_literal(start + at)).then_some(text)
        });
        let special = special.next_back().map(str::to_owned);
        let id = special
            .as_ref()
            .and_then(|text| self.prompts.token_id(text));
        let closing = special.unwrap_or_else(|| {
            let rest = rest.trim();
            let skipped = rest.chars().count().saturating_sub(SHOWN_CHARS);
            rest.chars().skip(skipped).collect()
        });
        ChatError::NotClosed {
            closing,
            id,
            eos: self.eos.iter().map(|(_, id)| *id).collect(),
        }
    }

    /// The prompt with the message at `at` behind it, for a template whose prompts end with something that it leaves
    /// out of complete conversations, such as the beginning of a reasoning.
    fn joined(
        &self,
        conversation: &Conversation,
        at: usize,
        prompt: Rendered,
        own: &Rendered,
    ) -> Result<Rendered, ChatError> {
        let message = &conversation.messages[at];
        // Where the message begins and ends is where its content is replaced by something else.
        let mut probed = conversation.clone();
        probed.messages[at] = message.with_field("content", Json::from(PROBE));
        let probed = self.complete(&probed, at)?.text;
        let border = common_prefix(&prompt.text, &probed);
        let options = self.options(conversation, false);
        let before = self
            .prompts
            .render(&conversation.messages[..at], &options)?;
        let differs_at_its_end = prompt.starts_with(&before) && border >= before.text.len();
        let shown = probed[border..].split_once(PROBE);
        let shown = shown.filter(|(header, _)| differs_at_its_end && header.trim().is_empty());
        let body = shown.and_then(|(_, closing)| {
            if message.field("tool_calls").is_some() {
                let is_same = common_prefix(&own.text, &probed) >= border;
                return is_same.then(|| own.slice(border..own.text.len()));
            }
            let text = message.text();
            let text = if prompt.text[before.text.len()..].contains(REASONING_END) {
                text.rsplit(REASONING_END).next()?
            } else {
                &text
            };
            let body = body(text, prompt.text[border..].trim(), &own.text, closing)?;
            let mut body = self.prompts.as_content(body);
            body.push(&Rendered {
                text: closing.to_owned(),
                literals: Vec::new(),
            });
            Some(body)
        });
        let Some(body) = body else {
            let border = common_prefix(&prompt.text, &own.text);
            let part = |text: &str| text[border..].chars().take(SHOWN_CHARS).collect();
            return Err(ChatError::NotContinued {
                prompt: part(&prompt.text),
                conversation: part(&own.text),
            });
        };
        let mut joined = prompt;
        joined.push(&body);
        Ok(joined)
    }

    /// The sample with the parts trained that the template marks, each up to the EOS token that closes the message. The
    /// same sample for a template without marks.
    fn with_marks(
        &self,
        sample: FormattedSample,
        conversation: &Conversation,
        last: usize,
    ) -> FormattedSample {
        let options = self.options(conversation, false);
        let marked = self
            .prompts
            .render_marked(&conversation.messages[..=last], &options);
        let Some((_, marks)) = marked.filter(|(rendered, _)| *rendered == sample.rendered) else {
            return sample;
        };
        let turns = sample.turns.into_iter().map(|turn| {
            let inside = marks
                .iter()
                .map(|mark| mark.start.max(turn.prompt_end)..mark.end.min(turn.end));
            let mut spans: Vec<_> = inside.filter(|span| span.start < span.end).collect();
            if let Some(last) = spans.last_mut() {
                last.end = turn.end;
            }
            TrainedTurn { spans, ..turn }
        });
        FormattedSample {
            turns: turns.collect(),
            method: SpanMethod::Marks,
            ..sample
        }
    }
}

/// The part of a content that follows a prompt which ends with `begun`, such as the beginning of a reasoning: what
/// comes after it in the content, or else what the conversation `own` shows before the text `closing`.
fn body<'a>(content: &'a str, begun: &str, own: &str, closing: &str) -> Option<&'a str> {
    let reasoning = content.trim_start().strip_prefix(begun);
    if let Some(rest) = reasoning.filter(|_| !begun.is_empty()) {
        return Some(rest.trim_start());
    }
    let shown = own.strip_suffix(closing)?;
    let answer = content.rsplit(REASONING_END).next().unwrap_or(content);
    let bodies = [
        content,
        content.trim(),
        answer,
        answer.trim_start(),
        answer.trim(),
    ];
    bodies.into_iter().find(|body| shown.ends_with(body))
}

/// The length of the beginning that two texts share, in bytes.
fn common_prefix(a: &str, b: &str) -> usize {
    let pairs = a.char_indices().zip(b.chars());
    let mut different = pairs.skip_while(|((_, a), b)| a == b);
    let end = different.next().map(|((at, _), _)| at);
    end.unwrap_or(a.len().min(b.len()))
}
