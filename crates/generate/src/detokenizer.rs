//! The text of one completion, token by token.

use std::sync::Arc;

use nextword_data::{DecodeStream, Tokenizer, TokenizerConfig, special_token};

use crate::{GenerateError, StopScanner};

/// Number of prompt tokens decoded before the completion, because they affect the text of its first
/// token (such as a space between words).
const CONTEXT_TOKENS: usize = 16;

/// Turns the tokens of one completion into text deltas, which together are the decoded text up to a
/// stop string. Never emits text that a later token could change, or any part of a stop string. Half a
/// character at the end of a completion becomes U+FFFD.
///
/// # Example
///
/// ```
/// use nextword_data::load_tokenizer;
/// use nextword_generate::Detokenizer;
///
/// let tokenizer = load_tokenizer("../../docs/models/letters/tokenizer.json")?;
/// let ids = tokenizer.encode("a boat. The").ids;
/// let mut detokenizer = Detokenizer::new(tokenizer, &[], &[". ".to_owned()])?;
/// for id in ids {
///     detokenizer.push(id, false); // returns the text that is now final
///     if detokenizer.stop().is_some() {
///         break;
///     }
/// }
/// assert_eq!(detokenizer.stop(), Some(". "));
/// assert_eq!(detokenizer.into_text().0, "a boat");
/// # Ok::<(), nextword_generate::GenerateError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Detokenizer {
    stream: DecodeStream,
    scanner: StopScanner,
    text: String,
    /// The stop string that was found.
    stop: Option<String>,
    /// Number of characters decoded, emitted or not.
    char_count: usize,
    /// Number of tokens during which stop strings are not looked for.
    min_tokens: usize,
    token_count: usize,
}

impl Detokenizer {
    /// Starts the completion of `prompt`, which ends before the first of the `stop` strings.
    ///
    /// # Errors
    /// [`GenerateError::Setting`] if a stop string is empty.
    pub fn new(
        tokenizer: Arc<dyn Tokenizer>,
        prompt: &[u32],
        stop: &[String],
    ) -> Result<Self, GenerateError> {
        // The target of a pair is a text of its own, too.
        let separator = special_token(&*tokenizer, TokenizerConfig::DEFAULT_SEP);
        let ends = [tokenizer.special_tokens().eos, separator];
        let mut stream = DecodeStream::new(tokenizer);
        let text_start = prompt
            .iter()
            .rposition(|id| ends.contains(&Some(*id)))
            .map_or(0, |at| at + 1);
        for id in &prompt[text_start.max(prompt.len().saturating_sub(CONTEXT_TOKENS))..] {
            // Only sets the state of the stream: the caller already has the prompt's text.
            let _ = stream.push(*id);
        }
        stream.end_prompt();
        Ok(Self {
            stream,
            scanner: StopScanner::new(stop)?,
            text: String::new(),
            stop: None,
            char_count: 0,
            min_tokens: 0,
            token_count: 0,
        })
    }

    /// Looks for stop strings only in the text after the first `min_tokens` tokens.
    #[must_use]
    pub fn with_min_tokens(self, min_tokens: usize) -> Self {
        Self { min_tokens, ..self }
    }

    /// Adds token `id` and returns the text that is now final. A token that ends the completion
    /// (`is_eos`) has no text: not every tokenizer file marks its EOS token as special, so decoding
    /// could include it.
    pub fn push(&mut self, id: u32, is_eos: bool) -> String {
        if is_eos {
            return String::new();
        }
        self.token_count += 1;
        let delta = self.stream.push(id).unwrap_or_default();
        self.append(&delta)
    }

    /// Ends the completion and returns the text held back so far.
    pub fn finish(&mut self) -> String {
        if self.stop.is_some() {
            return String::new();
        }
        let delta = self.stream.finish().unwrap_or_default();
        let mut rest = self.append(&delta);
        if self.stop.is_none() {
            let pending = self.scanner.finish();
            self.text.push_str(&pending);
            rest.push_str(&pending);
        }
        rest
    }

    /// The stop string that ended the text.
    pub fn stop(&self) -> Option<&str> {
        self.stop.as_deref()
    }

    /// Number of characters decoded so far: emitted, held back, or cut off by a stop string.
    pub fn char_count(&self) -> usize {
        self.char_count
    }

    /// The full text, and the stop string that ended it.
    pub fn into_text(self) -> (String, Option<String>) {
        (self.text, self.stop)
    }

    fn append(&mut self, delta: &str) -> String {
        self.char_count += delta.chars().count();
        if self.token_count <= self.min_tokens {
            self.text.push_str(delta);
            return delta.to_owned();
        }
        let scan = self.scanner.push(delta);
        self.text.push_str(&scan.text);
        self.stop = scan.stop;
        scan.text
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
