//! GPT-2's byte alphabet: a printable character for each byte.

/// Whether GPT-2's alphabet maps a byte to the Latin-1 character with the same code.
fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// Returns GPT-2's printable character for a byte: the Latin-1 character if printable, otherwise the
/// next unused one from U+0100 on (`bytes_to_unicode` of the published code).
///
/// ```
/// assert_eq!(("a b".bytes().map(nextword_data::byte_to_char)).collect::<String>(), "aĠb");
/// ```
pub fn byte_to_char(byte: u8) -> char {
    if is_printable(byte) {
        return char::from(byte);
    }
    let index = (0..byte).filter(|&b| !is_printable(b)).count() as u32;
    char::from_u32(0x100 + index).unwrap_or('\u{100}')
}

/// Returns the byte for a character of GPT-2's alphabet.
fn char_to_byte(character: char) -> Option<u8> {
    let code = u32::from(character);
    match u8::try_from(code) {
        Ok(byte) => is_printable(byte).then_some(byte),
        Err(_) => (0..=255)
            .filter(|&b| !is_printable(b))
            .nth(code.checked_sub(0x100)? as usize),
    }
}

/// Returns the bytes of a token in GPT-2's byte alphabet. A token with other characters stands for
/// itself, as in the `ByteLevel` decoder.
pub(crate) fn token_to_bytes(token: &str) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = token.chars().map(char_to_byte).collect();
    bytes.unwrap_or_else(|| token.as_bytes().to_vec())
}

/// Formats `bytes` for display: text, with invalid bytes as `\xE2`.
pub(crate) fn show_bytes(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut shown = String::new();
    for chunk in bytes.utf8_chunks() {
        shown.push_str(chunk.valid());
        for byte in chunk.invalid() {
            // Writing to a String cannot fail.
            let _ = write!(shown, "\\x{byte:02X}");
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_alphabet_matches_gpt2() {
        assert_eq!(byte_to_char(b' '), 'Ġ');
        assert_eq!(byte_to_char(b'\n'), 'Ċ');
        assert_eq!(byte_to_char(0xAD), 'Ń');
        for byte in 0..=255 {
            assert_eq!(char_to_byte(byte_to_char(byte)), Some(byte));
        }
        assert_eq!(char_to_byte('中'), None);
    }

    #[test]
    fn incomplete_characters_are_shown_as_bytes() {
        assert_eq!(show_bytes(b"a\xE4\xB8"), "a\\xE4\\xB8");
        assert_eq!(show_bytes("é".as_bytes()), "é");
    }
}
