//! Incremental decoding: text from ids, one by one, without text that later ids could change.

use std::sync::Arc;

use super::Tokenizer;
use super::decode_rules::DecodeRules;
use super::token_decoder::TokenDecoder;

/// Decodes a stream of ids into text chunks. The concatenated chunks equal the tokenizer's
/// [`decode`](Tokenizer::decode) of all ids, for any ids.
///
/// A chunk never changes: text that a later token could change is held back. This is an incomplete
/// character; with byte tokens (`<0xE2>`) also the run of byte tokens at the end, since a byte that
/// completes nothing turns the whole run into U+FFFD. Each token takes constant time.
///
/// # Example
///
/// ```
/// use nextword_data::{DecodeStream, TokenizerConfig, TokenizerKind, build_tokenizer};
///
/// let config = TokenizerConfig { kind: TokenizerKind::Byte, ..TokenizerConfig::default() };
/// let mut stream = DecodeStream::new(build_tokenizer(&config, std::iter::empty())?);
/// assert_eq!(stream.push(0xC3), None); // the first byte of "é"
/// assert_eq!(stream.push(0xA9).as_deref(), Some("é"));
/// # Ok::<(), nextword_data::DataError>(())
/// ```
#[derive(Debug, Clone)]
pub struct DecodeStream {
    tokenizer: Arc<dyn Tokenizer>,
    decoder: Decoder,
    /// Text of a prompt that is not returned when it comes out of the decoder.
    prompt_rest: String,
}

#[derive(Debug, Clone)]
enum Decoder {
    Rules(TokenDecoder),
    /// Without known rules, all ids are decoded at the end.
    AtEnd(Vec<u32>),
}

impl DecodeStream {
    /// Creates a stream at the start of a text.
    pub fn new(tokenizer: Arc<dyn Tokenizer>) -> Self {
        Self {
            decoder: Decoder::new(tokenizer.decode_rules().as_ref()),
            tokenizer,
            prompt_rest: String::new(),
        }
    }

    /// Adds the next id and returns the text that is now final, if any.
    pub fn push(&mut self, id: u32) -> Option<String> {
        let text = match &mut self.decoder {
            Decoder::AtEnd(ids) => {
                ids.push(id);
                String::new()
            }
            Decoder::Rules(decoder) => match self.tokenizer.token_bytes(id) {
                Some(bytes) => decoder.push_bytes(&bytes),
                None => self
                    .tokenizer
                    .decoded_token(id)
                    .map(|token| decoder.push(token))
                    .unwrap_or_default(),
            },
        };
        self.without_prompt(text)
    }

    /// Treats the ids so far as those of a prompt, whose text the caller has: what is returned from
    /// now on is the text that the following ids add to it. An incomplete character at the end of the
    /// prompt is completed by them.
    ///
    /// ```
    /// use nextword_data::{DecodeStream, TokenizerConfig};
    ///
    /// let tokenizer = TokenizerConfig::words().build("to be or not")?;
    /// let mut stream = DecodeStream::new(tokenizer);
    /// stream.push(0);
    /// stream.end_prompt();
    /// assert_eq!(stream.push(1).as_deref(), Some(" be"));
    /// # Ok::<(), nextword_data::DataError>(())
    /// ```
    pub fn end_prompt(&mut self) {
        if let Decoder::Rules(decoder) = &mut self.decoder {
            // The prompt's text.
            let _ = decoder.end_byte_run();
        }
        self.prompt_rest = self.decoder.clone().finish(&*self.tokenizer);
    }

    /// Returns the remaining text at the end of the stream; incomplete characters become U+FFFD.
    pub fn finish(&mut self) -> Option<String> {
        let next = Decoder::new(self.tokenizer.decode_rules().as_ref());
        let mut decoder = std::mem::replace(&mut self.decoder, next);
        let text = self.without_prompt(decoder.finish(&*self.tokenizer));
        self.prompt_rest.clear();
        text
    }

    /// Removes what is still to come of the prompt from the start of `text`.
    fn without_prompt(&mut self, mut text: String) -> Option<String> {
        if !self.prompt_rest.is_empty() && !text.is_empty() {
            let pairs = text.chars().zip(self.prompt_rest.chars());
            let same = pairs.take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8());
            let same: usize = same.sum();
            if same == text.len() {
                self.prompt_rest.drain(..same);
            } else {
                self.prompt_rest.clear();
            }
            text.drain(..same);
        }
        Some(text).filter(|text| !text.is_empty())
    }
}

impl Decoder {
    fn new(rules: Option<&DecodeRules>) -> Self {
        match rules {
            Some(rules) => Self::Rules(TokenDecoder::new(rules)),
            None => Self::AtEnd(Vec::new()),
        }
    }

    fn finish(&mut self, tokenizer: &dyn Tokenizer) -> String {
        match self {
            Self::Rules(decoder) => decoder.finish(),
            Self::AtEnd(ids) => tokenizer.decode(&std::mem::take(ids)),
        }
    }
}
