//! The text of one answer, from its tokens.

use std::sync::Arc;

use nextword_data::{DecodeStream, Tokenizer};

use crate::{GenerateError, StopScanner};

/// So many tokens of the prompt are shown to the decoder of the answer, for what they do to its
/// first token (a space between words).
const LEAD: usize = 16;

/// Turns the tokens of one answer into text: never half a character, and nothing of a stop string.
#[derive(Clone, Debug)]
pub struct TextWriter {
    stream: DecodeStream,
    scanner: StopScanner,
    text: String,
    /// The stop string that was found.
    stop: Option<String>,
    /// Characters that the tokens so far stand for, written or held back.
    decoded: usize,
}

impl TextWriter {
    /// At the beginning of the answer to `prompt`, which ends before the first of `stop`.
    ///
    /// # Errors
    /// [`GenerateError::Setting`] if a stop string is empty.
    pub fn new(
        tokenizer: Arc<dyn Tokenizer>,
        prompt: &[u32],
        stop: &[String],
    ) -> Result<Self, GenerateError> {
        let eos = tokenizer.specials().eos;
        let mut stream = DecodeStream::new(tokenizer);
        let text_start = prompt
            .iter()
            .rposition(|id| Some(*id) == eos)
            .map_or(0, |at| at + 1);
        for id in &prompt[text_start.max(prompt.len().saturating_sub(LEAD))..] {
            // Shown to the stream, not to the reader, who has the prompt already.
            let _ = stream.push(*id);
        }
        Ok(Self {
            stream,
            scanner: StopScanner::new(stop)?,
            text: String::new(),
            stop: None,
            decoded: 0,
        })
    }

    /// The text that token `id` makes certain. A token that `ends` the answer has none: not every
    /// file marks its end token as special, and then decoding would show it.
    pub fn take(&mut self, id: u32, ends: bool) -> String {
        if ends {
            return String::new();
        }
        let piece = self.stream.push(id).unwrap_or_default();
        self.write(&piece)
    }

    /// The text that was held back, at the end of the answer.
    pub fn finish(&mut self) -> String {
        if self.stop.is_some() {
            return String::new();
        }
        let piece = self.stream.finish().unwrap_or_default();
        let mut rest = self.write(&piece);
        if self.stop.is_none() {
            let held = self.scanner.finish();
            self.text.push_str(&held);
            rest.push_str(&held);
        }
        rest
    }

    /// The stop string that ended the text.
    pub fn stop(&self) -> Option<&str> {
        self.stop.as_deref()
    }

    /// Characters that the tokens so far stand for: written, held back, or cut off by a stop
    /// string.
    pub fn decoded(&self) -> usize {
        self.decoded
    }

    /// The whole text, and the stop string that ended it.
    pub fn into_text(self) -> (String, Option<String>) {
        (self.text, self.stop)
    }

    fn write(&mut self, piece: &str) -> String {
        self.decoded += piece.chars().count();
        let scan = self.scanner.push(piece);
        self.text.push_str(&scan.text);
        self.stop = scan.stop;
        scan.text
    }
}
