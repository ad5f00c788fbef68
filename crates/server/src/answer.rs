//! The text of an answer with its tokens' probabilities, as it becomes certain.

use std::collections::VecDeque;
use std::sync::Arc;

use nextword_data::{DecodeStream, Tokenizer};
use nextword_generate::{GenerateError, Score, TextWriter};

/// One token for a client.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TokenInfo {
    pub(crate) text: String,
    pub(crate) bytes: Option<Vec<u8>>,
    /// `ln p`; the first token of a prompt has none.
    pub(crate) logprob: Option<f64>,
    /// The likeliest tokens in its place, with this one.
    pub(crate) top: Vec<TopToken>,
    /// Where its text begins, in characters.
    pub(crate) offset: usize,
}

/// A token that could have stood in its place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TopToken {
    pub(crate) text: String,
    pub(crate) bytes: Option<Vec<u8>>,
    pub(crate) logprob: f64,
}

/// Text that is certain, and the tokens that it completes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) tokens: Vec<TokenInfo>,
}

impl Piece {
    pub(crate) fn is_empty(&self) -> bool {
        self.text.is_empty() && self.tokens.is_empty()
    }
}

/// Puts an answer together, token by token.
#[derive(Debug)]
pub(crate) struct Assembler {
    tokenizer: Arc<dyn Tokenizer>,
    writer: TextWriter,
    /// Tokens whose text is not certain yet, each with the place where its text ends.
    held: VecDeque<(TokenInfo, usize)>,
    written: usize,
}

impl Assembler {
    pub(crate) fn new(
        tokenizer: Arc<dyn Tokenizer>,
        prompt: &[u32],
        stop: &[String],
    ) -> Result<Self, GenerateError> {
        Ok(Self {
            writer: TextWriter::new(tokenizer.clone(), prompt, stop)?,
            tokenizer,
            held: VecDeque::new(),
            written: 0,
        })
    }

    /// Takes a token, told with its score if it has one; `ends` if it is an end token, which has no text.
    pub(crate) fn push(&mut self, id: u32, score: Option<&Score>, ends: bool) -> Piece {
        let offset = self.writer.decoded();
        let text = self.writer.take(id, ends);
        if score.is_some() {
            let info = token_info(&*self.tokenizer, id, score, offset);
            self.held.push_back((info, self.writer.decoded()));
        }
        self.written += text.chars().count();
        let mut tokens = Vec::new();
        while let Some((_, end)) = self.held.front()
            && *end <= self.written
        {
            tokens.extend(self.held.pop_front().map(|(info, _)| info));
        }
        Piece { text, tokens }
    }

    /// Whether a stop string was found.
    pub(crate) fn stopped(&self) -> bool {
        self.writer.stop().is_some()
    }

    /// What was held back, at the end of the answer; half a character is left out.
    pub(crate) fn finish(&mut self) -> Piece {
        let rest = self.writer.finish();
        let text = rest
            .trim_end_matches(char::REPLACEMENT_CHARACTER)
            .to_owned();
        self.written += text.chars().count();
        let stopped = self.stopped();
        let written = self.written;
        let shown =
            |(info, end): &(TokenInfo, usize)| !stopped || info.offset < written || *end <= written;
        let held = std::mem::take(&mut self.held);
        let tokens = held.into_iter().filter(shown).map(|(info, _)| info);
        Piece {
            text,
            tokens: tokens.collect(),
        }
    }
}

/// A prompt's tokens with their scores (none for the first) and offsets.
pub(crate) fn prompt_tokens(
    tokenizer: &Arc<dyn Tokenizer>,
    prompt: &[u32],
    scores: &[Score],
) -> Vec<TokenInfo> {
    let mut stream = DecodeStream::new(tokenizer.clone());
    let mut offset = 0;
    let mut tokens = Vec::with_capacity(prompt.len());
    for (at, id) in prompt.iter().enumerate() {
        let score = at.checked_sub(1).and_then(|before| scores.get(before));
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
    let text = |id| tokenizer.token(id).unwrap_or_default();
    let mut top: Vec<TopToken> = Vec::new();
    if let Some(score) = score.filter(|score| !score.top.is_empty()) {
        let chosen = (score.id, score.logprob);
        let others = score.top.iter().copied();
        let absent = others.clone().all(|(id, _)| id != score.id);
        top = others
            .chain(absent.then_some(chosen))
            .map(|(id, logprob)| TopToken {
                text: text(id),
                bytes: tokenizer.bytes(id),
                logprob,
            })
            .collect();
    }
    TokenInfo {
        text: text(id),
        bytes: tokenizer.bytes(id),
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

    /// The pieces of an answer of one token a character, and what the end brings.
    fn assemble(text: &str, stop: &[&str]) -> (Vec<Piece>, bool) {
        let all = "abcdeé".to_owned();
        let tokenizer =
            build_tokenizer(&TokenizerConfig::default(), std::iter::once(Ok(all))).unwrap();
        let stop: Vec<String> = stop.iter().map(|stop| (*stop).to_owned()).collect();
        let ids = tokenizer.encode(text).ids;
        let mut assembler = Assembler::new(tokenizer, &[0], &stop).unwrap();
        let mut pieces = Vec::new();
        for id in ids {
            let top = vec![(0, -0.5), (1, -1.0)];
            let logprob = -2.0;
            let score = Score { id, logprob, top };
            pieces.push(assembler.push(id, Some(&score), false));
            if assembler.stopped() {
                break;
            }
        }
        pieces.push(assembler.finish());
        (pieces, assembler.stopped())
    }

    fn joined(pieces: &[Piece]) -> (String, String, Vec<usize>) {
        let tokens = || pieces.iter().flat_map(|piece| &piece.tokens);
        (
            pieces.iter().map(|piece| piece.text.as_str()).collect(),
            tokens().map(|token| token.text.as_str()).collect(),
            tokens().map(|token| token.offset).collect(),
        )
    }

    #[test]
    fn tokens_come_with_their_text_and_count_in_characters() {
        let (pieces, stopped) = assemble("aébc", &["bd"]);
        assert_eq!(pieces[2], Piece::default(), "`b` may begin a stop string");
        assert_eq!(
            joined(&pieces),
            ("aébc".into(), "aébc".into(), vec![0, 1, 2, 3])
        );
        assert!(!stopped);
    }

    #[test]
    fn tokens_of_a_stop_string_are_not_told() {
        let (pieces, stopped) = assemble("abcdea", &["cde"]);
        assert_eq!(joined(&pieces), ("ab".into(), "ab".into(), vec![0, 1]));
        assert!(stopped);
    }

    #[test]
    fn the_drawn_token_is_among_the_likeliest_ones() {
        let (pieces, _) = assemble("c", &[]);
        let token = &pieces[0].tokens[0];
        let texts: Vec<&str> = token.top.iter().map(|top| top.text.as_str()).collect();
        assert!(texts.len() == 3 && texts[2] == "c", "{texts:?}");
    }
}
