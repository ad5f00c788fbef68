//! Text in drawings.

use std::fmt::{Arguments, Write};

/// The style of every drawing: a paper of its own, dark where the reader's system is.
pub(crate) const BASE_STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#5d6674}\
.title{font-size:15px;font-weight:600;fill:#23272e}.paper{fill:#fff}\
@media(prefers-color-scheme:dark){text{fill:#9fa8b5}.title{fill:#e4e6ea}.paper{fill:#1d2127}}";

/// Replaces white space by spaces and other control characters by U+FFFD, so that `text` stays on its
/// line and can neither control a terminal nor make XML invalid.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\t' => ' ',
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .collect()
}

/// Escapes `text` for XML.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in printable(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

/// Appends formatted text.
pub(crate) fn append(out: &mut String, text: Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = out.write_fmt(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_text_contains_no_markup_and_no_control_characters() {
        assert_eq!(escape("a<b> & \"c\""), "a&lt;b&gt; &amp; &quot;c&quot;");
        assert_eq!(
            escape("\x1b[2J\u{0}two\nlines"),
            "\u{fffd}[2J\u{fffd}two lines"
        );
    }
}
