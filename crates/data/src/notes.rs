//! Notes for users about text and tokenizers.

use crate::documents::TextCuts;
use crate::tokenizer::{Encoding, SpecialTokens, Tokenizer};

/// Maximum number of examples in a note.
const MAX_LISTED: usize = 10;

/// Says that text is not in the vocabulary of a tokenizer with the tokens `special`, and what happens to it.
/// `what` is the start of the sentence, `unknown` is a list of that text.
///
/// ```
/// use nextword_data::{SpecialTokens, unknown_note};
///
/// let note = unknown_note("2 parts are", &["é".to_owned()], SpecialTokens::default());
/// assert_eq!(
///     note,
///     "2 parts are not in the vocabulary, such as \"é\"; dropped, since the tokenizer has no unknown token"
/// );
/// ```
pub fn unknown_note(what: &str, unknown: &[String], special: SpecialTokens) -> String {
    let listed = unknown.iter().take(MAX_LISTED);
    let listed: Vec<String> = listed.map(|text| format!("{text:?}")).collect();
    let examples = if listed.is_empty() {
        String::new()
    } else {
        format!(", such as {}", listed.join(", "))
    };
    let more = match unknown.len().saturating_sub(MAX_LISTED) {
        0 => String::new(),
        more if unknown.len() >= Encoding::MAX_UNKNOWN => format!(" and {more} or more others"),
        more => format!(" and {more} more"),
    };
    let fate = match special.unk {
        Some(_) => "replaced by the unknown token",
        None => "dropped, since the tokenizer has no unknown token",
    };
    format!("{what} not in the vocabulary{examples}{more}; {fate}")
}

/// Says that a tokenizer reads each document as a whole, if it does: documents are then held in memory, and
/// one document is encoded by one thread.
///
/// ```
/// use nextword_data::{TokenizerConfig, whole_documents_note};
///
/// let tokenizer = TokenizerConfig::words().build("to be")?;
/// assert_eq!(whole_documents_note(tokenizer.as_ref()), None); // A text can be cut between words.
/// # Ok::<(), nextword_data::DataError>(())
/// ```
pub fn whole_documents_note(tokenizer: &dyn Tokenizer) -> Option<String> {
    (tokenizer.text_cuts() == TextCuts::Nowhere).then(|| {
        "this tokenizer reads each document as a whole, since its rules may look across any cut: a long document is \
         encoded by one thread, and one above 256 MiB is refused; a separator that divides the text into documents \
         makes this faster"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_lists_some_strings_and_counts_the_rest() {
        let unknown: Vec<String> = (0..12).map(|n| format!("é{n}")).collect();
        let special = SpecialTokens::default();
        let note = unknown_note("12 are", &unknown, special);
        assert!(note.contains("such as \"é0\", \"é1\""), "{note}");
        assert!(note.contains("and 2 more; dropped"), "{note}");
        let unk = Some(3);
        let note = unknown_note("1 is", &unknown[..1], SpecialTokens { unk, ..special });
        assert!(!note.contains("more") && note.ends_with("replaced by the unknown token"));
        assert!(!unknown_note("1 is", &[], special).contains("such as"));
    }
}
