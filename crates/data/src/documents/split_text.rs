//! Splitting long text without changing its tokens.

/// Maximum size of a chunk without white space.
pub(super) const MAX_CHUNK_BYTES: usize = 16 << 20;

/// Returns the last position in `text` before a space that follows a non-space character.
///
/// No pre-tokenization rule of GPT-2 or its successors lets a token cross this position: a token
/// contains white space at most at its start. Falls back to a line end or tab.
pub(super) fn last_split_point(text: &str) -> Option<usize> {
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
    last(b" ").or_else(|| last(b"\n\r\t"))
}

/// Splits `text` into chunks of about `size` bytes, without changing the tokens.
pub(crate) fn split_text(text: &str, size: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let mut size = size.max(4);
        loop {
            if rest.is_empty() || rest.len() <= size {
                return Some(std::mem::take(&mut rest)).filter(|chunk| !chunk.is_empty());
            }
            let end = rest.floor_char_boundary(size);
            if let Some(split) =
                last_split_point(&rest[..end]).or((size >= MAX_CHUNK_BYTES).then_some(end))
            {
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
            let chunks: Vec<&str> = split_text(&text, size).collect();
            assert_eq!(chunks.concat(), text);
            for pair in chunks.windows(2) {
                assert!(
                    pair[1].starts_with([' ', '\n']) && !pair[0].ends_with(char::is_whitespace),
                    "{pair:?}"
                );
            }
        }
        assert_eq!(split_text("", 10).count(), 0);
        assert_eq!(
            split_text(&"x".repeat(100), 10).count(),
            1,
            "words are not split"
        );
    }
}
