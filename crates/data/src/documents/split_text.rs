//! Splitting long text without changing its tokens.

/// Size from which a text is split anywhere, if it may be.
pub(super) const MAX_CHUNK_BYTES: usize = 16 << 20;

/// Where a long text can be cut so that its parts have the tokens of the whole text. It depends on the
/// tokenizer (see [`crate::Tokenizer::text_cuts`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextCuts {
    /// Between any two characters; preferably before white space.
    Anywhere,
    /// Before white space that follows another character.
    BeforeWhitespace,
    /// Before a space that follows a character that is not white space. Line ends do not count:
    /// published patterns have matches such as `"!\n"`.
    BeforeSpace,
    /// Nowhere: a normalizer, a pattern or an added token could see over the cut.
    Nowhere,
}

/// Returns the last position in `text` where it can be cut before white space.
pub(super) fn last_split_point(text: &str, cuts: TextCuts) -> Option<usize> {
    let follows_non_space = |position: usize| {
        text[..position]
            .chars()
            .next_back()
            .is_some_and(|c| !c.is_whitespace())
    };
    let last = |separators: &[u8]| {
        let bytes = text.as_bytes();
        (1..bytes.len())
            .rev()
            .find(|&i| separators.contains(&bytes[i]) && follows_non_space(i))
    };
    match cuts {
        TextCuts::Nowhere => None,
        TextCuts::BeforeSpace => last(b" "),
        TextCuts::BeforeWhitespace | TextCuts::Anywhere => last(b" ").or_else(|| last(b"\n\r\t")),
    }
}

/// Splits `text` into chunks of about `size` bytes, without changing the tokens.
pub(crate) fn split_text(text: &str, size: usize, cuts: TextCuts) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let mut size = size.max(4);
        loop {
            if rest.is_empty() || rest.len() <= size || cuts == TextCuts::Nowhere {
                return Some(std::mem::take(&mut rest)).filter(|chunk| !chunk.is_empty());
            }
            let end = rest.floor_char_boundary(size);
            let is_forced = cuts == TextCuts::Anywhere && size >= MAX_CHUNK_BYTES;
            if let Some(split) = last_split_point(&rest[..end], cuts).or(is_forced.then_some(end)) {
                let (chunk, after) = rest.split_at(split);
                rest = after;
                return Some(chunk);
            }
            size *= 2;
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_join_to_the_text_and_start_with_white_space() {
        let text = "one two  three\n\nfour fünf sechs\u{3000}sieben acht".repeat(20);
        for size in [4, 7, 16, 50, 10_000] {
            let chunks: Vec<&str> = split_text(&text, size, TextCuts::Anywhere).collect();
            assert_eq!(chunks.concat(), text);
            for pair in chunks.windows(2) {
                assert!(
                    pair[1].starts_with([' ', '\n']) && !pair[0].ends_with(char::is_whitespace),
                    "{pair:?}"
                );
            }
        }
        assert_eq!(split_text("", 10, TextCuts::Anywhere).count(), 0);
        assert_eq!(
            split_text(&"x".repeat(100), 10, TextCuts::Anywhere).count(),
            1,
            "words are not split"
        );
    }
}
