//! Where a long text may be cut without changing its tokens.

/// A piece without any white space may grow to this size.
pub(super) const LONGEST: usize = 16 << 20;

/// The last place in `text` before a space that follows something else than white space.
///
/// No rule of GPT-2's or its successors' for finding words lets a word run on from there: each
/// takes at most a space at a word's beginning. A line end will do where there is no such space.
pub(super) fn last_cut(text: &str) -> Option<usize> {
    let follows_ink = |at: usize| {
        text[..at]
            .chars()
            .next_back()
            .is_some_and(|c| !c.is_whitespace())
    };
    let last = |wanted: &[u8]| {
        let bytes = text.as_bytes();
        (1..bytes.len())
            .rev()
            .find(|&at| wanted.contains(&bytes[at]) && follows_ink(at))
    };
    last(b" ").or_else(|| last(b"\n\r\t"))
}

/// `text` in parts of about `size` bytes, cut where it does not change the tokens.
pub(crate) fn cut_text(text: &str, size: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let mut size = size.max(4);
        loop {
            if rest.is_empty() || rest.len() <= size {
                return Some(std::mem::take(&mut rest)).filter(|part| !part.is_empty());
            }
            let end = rest.floor_char_boundary(size);
            if let Some(at) = last_cut(&rest[..end]).or((size >= LONGEST).then_some(end)) {
                let (part, after) = rest.split_at(at);
                rest = after;
                return Some(part);
            }
            size *= 2;
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_join_to_the_text_and_begin_with_white_space() {
        let text = "one two  three\n\nfour fünf sechs\u{3000}sieben acht".repeat(20);
        for size in [4, 7, 16, 50, 10_000] {
            let parts: Vec<&str> = cut_text(&text, size).collect();
            assert_eq!(parts.concat(), text);
            for pair in parts.windows(2) {
                assert!(
                    pair[1].starts_with([' ', '\n']) && !pair[0].ends_with(char::is_whitespace),
                    "{pair:?}"
                );
            }
        }
        assert_eq!(cut_text("", 10).count(), 0);
        assert_eq!(
            cut_text(&"x".repeat(100), 10).count(),
            1,
            "a word is not cut"
        );
    }
}
