//! Assembles a completion's text and token probabilities, emitting text once it is final.

use std::collections::VecDeque;
use std::sync::Arc;

use nextword_data::{DecodeStream, Tokenizer};
use nextword_generate::{Detokenizer, GenerateError, Score};

/// A token as reported to clients.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TokenInfo {
    pub(crate) text: String,
    pub(crate) bytes: Option<Vec<u8>>,
    /// Log-probability; `None` for the first token of a prompt.
    pub(crate) logprob: Option<f64>,
    /// The most probable tokens at its position, always including this one.
    pub(crate) top: Vec<TopToken>,
    /// Character offset of its text.
    pub(crate) offset: usize,
}

/// An alternative token at the same position.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TopToken {
    pub(crate) text: String,
    pub(crate) bytes: Option<Vec<u8>>,
    pub(crate) logprob: f64,
}

/// New final text, and the tokens that it completes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct TextDelta {
    pub(crate) text: String,
    pub(crate) tokens: Vec<TokenInfo>,
}

impl TextDelta {
    pub(crate) fn is_empty(&self) -> bool {
        self.text.is_empty() && self.tokens.is_empty()
    }
}

/// Assembles a completion token by token.
#[derive(Debug)]
pub(crate) struct OutputAssembler {
    tokenizer: Arc<dyn Tokenizer>,
    detokenizer: Detokenizer,
    /// Tokens whose text is not final yet, each with the character offset of its end.
    pending: VecDeque<(TokenInfo, usize)>,
    /// Number of characters emitted so far.
    emitted: usize,
}

impl OutputAssembler {
    pub(crate) fn new(
        tokenizer: Arc<dyn Tokenizer>,
        prompt: &[u32],
        stop: &[String],
        min_tokens: usize,
    ) -> Result<Self, GenerateError> {
        let detokenizer = Detokenizer::new(tokenizer.clone(), prompt, stop)?;
        Ok(Self {
            detokenizer: detokenizer.with_min_tokens(min_tokens),
            tokenizer,
            pending: VecDeque::new(),
            emitted: 0,
        })
    }

    /// Appends a token. With a `score` it is reported to the client; an EOS token (`is_eos`) has no text.
    pub(crate) fn push(&mut self, id: u32, score: Option<&Score>, is_eos: bool) -> TextDelta {
        let offset = self.detokenizer.char_count();
        let text = self.detokenizer.push(id, is_eos);
        if score.is_some() {
            let info = token_info(&*self.tokenizer, id, score, offset);
            self.pending
                .push_back((info, self.detokenizer.char_count()));
        }
        self.emitted += text.chars().count();
        let mut tokens = Vec::new();
        while let Some((_, end)) = self.pending.front()
            && *end <= self.emitted
        {
            tokens.extend(self.pending.pop_front().map(|(info, _)| info));
        }
        TextDelta { text, tokens }
    }

    /// Whether a stop string has been found.
    pub(crate) fn stopped(&self) -> bool {
        self.detokenizer.stop().is_some()
    }

    /// Returns the pending text at the end of the completion; an incomplete character becomes U+FFFD.
    pub(crate) fn finish(&mut self) -> TextDelta {
        let text = self.detokenizer.finish();
        self.emitted += text.chars().count();
        let stopped = self.stopped();
        let emitted = self.emitted;
        let is_visible =
            |(info, end): &(TokenInfo, usize)| !stopped || info.offset < emitted || *end <= emitted;
        let pending = std::mem::take(&mut self.pending);
        let tokens = pending.into_iter().filter(is_visible).map(|(info, _)| info);
        TextDelta {
            text,
            tokens: tokens.collect(),
        }
    }
}

/// The tokens of a prompt with their scores (none for the first) and offsets.
pub(crate) fn prompt_tokens(
    tokenizer: &Arc<dyn Tokenizer>,
    prompt: &[u32],
    scores: &[Score],
) -> Vec<TokenInfo> {
    let mut stream = DecodeStream::new(tokenizer.clone());
    let mut offset = 0;
    let mut tokens = Vec::with_capacity(prompt.len());
    for (at, id) in prompt.iter().enumerate() {
        let score = at.checked_sub(1).and_then(|previous| scores.get(previous));
        tokens.push(token_info(&**tokenizer, *id, score, offset));
        offset += stream.push(*id).map_or(0, |text| text.chars().count());
    }
    tokens
}

fn token_info(
    tokenizer: &dyn Tokenizer,
    id: u32,
    score: Option<&Score>,
    offset: usize,
) -> TokenInfo {
    let text = |id| tokenizer.token_text(id).unwrap_or_default();
    let mut top: Vec<TopToken> = Vec::new();
    if let Some(score) = score.filter(|score| !score.top.is_empty()) {
        let sampled = (score.id, score.logprob);
        let others = score.top.iter().copied();
        let is_absent = others.clone().all(|(id, _)| id != score.id);
        top = others
            .chain(is_absent.then_some(sampled))
            .map(|(id, logprob)| TopToken {
                text: text(id),
                bytes: tokenizer.single_token_bytes(id),
                logprob,
            })
            .collect();
    }
    TokenInfo {
        text: text(id),
        bytes: tokenizer.single_token_bytes(id),
        logprob: score.map(|score| score.logprob),
        top,
        offset,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use nextword_data::{TokenizerConfig, build_tokenizer};

    use super::*;

    /// The deltas of a completion with one token per character, including the last delta.
    fn assemble(text: &str, stop: &[&str]) -> (Vec<TextDelta>, bool) {
        let alphabet = "abcdeé".to_owned();
        let tokenizer =
            build_tokenizer(&TokenizerConfig::default(), std::iter::once(Ok(alphabet))).unwrap();
        let stop: Vec<String> = stop.iter().map(|stop| (*stop).to_owned()).collect();
        let ids = tokenizer.encode(text).ids;
        let mut assembler = OutputAssembler::new(tokenizer, &[0], &stop, 0).unwrap();
        let mut deltas = Vec::new();
        for id in ids {
            let top = vec![(0, -0.5), (1, -1.0)];
            let logprob = -2.0;
            let score = Score { id, logprob, top };
            deltas.push(assembler.push(id, Some(&score), false));
            if assembler.stopped() {
                break;
            }
        }
        deltas.push(assembler.finish());
        (deltas, assembler.stopped())
    }

    fn joined(deltas: &[TextDelta]) -> (String, String, Vec<usize>) {
        let tokens = || deltas.iter().flat_map(|delta| &delta.tokens);
        (
            deltas.iter().map(|delta| delta.text.as_str()).collect(),
            tokens().map(|token| token.text.as_str()).collect(),
            tokens().map(|token| token.offset).collect(),
        )
    }

    #[test]
    fn tokens_carry_text_and_character_offsets() {
        let (deltas, stopped) = assemble("aébc", &["bd"]);
        assert_eq!(
            deltas[2],
            TextDelta::default(),
            "`b` may begin a stop string"
        );
        assert_eq!(
            joined(&deltas),
            ("aébc".into(), "aébc".into(), vec![0, 1, 2, 3])
        );
        assert!(!stopped);
    }

    #[test]
    fn tokens_of_a_stop_string_are_hidden() {
        let (deltas, stopped) = assemble("abcdea", &["cde"]);
        assert_eq!(joined(&deltas), ("ab".into(), "ab".into(), vec![0, 1]));
        assert!(stopped);
    }

    #[test]
    fn sampled_token_is_listed_among_top_tokens() {
        let (deltas, _) = assemble("c", &[]);
        let token = &deltas[0].tokens[0];
        let texts: Vec<&str> = token.top.iter().map(|top| top.text.as_str()).collect();
        assert!(texts.len() == 3 && texts[2] == "c", "{texts:?}");
    }
}
