//! Token ids of a text, part by part.

use std::ops::Range;

use nextword_data::Encoding;

use crate::special_texts::Rendered;
use crate::{ChatError, PromptEncoder};

/// The ids of the beginning of a text.
#[derive(Debug, Default)]
pub(super) struct GrowingIds {
    pub(super) ids: Vec<u32>,
    /// What of the text is not in the vocabulary; its ids are empty.
    pub(super) unknown: Encoding,
    /// Whether the ids are not those of the whole text.
    pub(super) is_split: bool,
}

impl GrowingIds {
    /// Takes the ids of a longer beginning of the text. Returns false if they do not continue the ids so far.
    pub(super) fn extend_to(&mut self, mut whole: Encoding) -> bool {
        if !whole.ids.starts_with(&self.ids) {
            return false;
        }
        self.ids = std::mem::take(&mut whole.ids);
        self.unknown = whole;
        true
    }

    /// Appends the ids of the bytes `range` of a conversation, which ends the text so far. They are those that the
    /// text has up to its end, unless a token reaches across the start: then those of the part by itself.
    pub(super) fn push(
        &mut self,
        prompts: &PromptEncoder,
        rendered: &Rendered,
        range: Range<usize>,
    ) -> Result<(), ChatError> {
        let whole = prompts.encode_rendered(&rendered.slice(0..range.end))?;
        if !self.extend_to(whole) {
            self.is_split |= range.start > 0;
            let encode = |rendered: &Rendered| prompts.encode_rendered(rendered);
            let part = encode_part(&rendered.slice(range), encode)?;
            self.append(part);
        }
        Ok(())
    }

    /// Appends ids.
    pub(super) fn append(&mut self, part: Encoding) {
        self.ids.extend_from_slice(&part.ids);
        self.unknown.add_unknown(&part);
    }
}

/// Encodes a part of a text by itself. Where the tokenizer puts a space before each text, the part is without it.
pub(super) fn encode_part(
    part: &Rendered,
    encode: impl Fn(&Rendered) -> Result<Encoding, ChatError>,
) -> Result<Encoding, ChatError> {
    let line_break = Rendered {
        text: "\n".to_owned(),
        literals: Vec::new(),
    };
    let before = encode(&line_break)?;
    let mut both = line_break;
    both.push(part);
    let mut after = encode(&both)?;
    if !before.ids.is_empty() && before.unknown_count == 0 && after.ids.starts_with(&before.ids) {
        after.ids.drain(..before.ids.len());
        return Ok(after);
    }
    encode(part)
}
