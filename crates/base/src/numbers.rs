//! Whole numbers in messages.

/// Formats `number` with a comma between thousands.
///
/// ```
/// assert_eq!(nextword_base::grouped(1_234_567), "1,234,567");
/// ```
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Formats a count with its noun, in the plural unless it is one.
///
/// ```
/// use nextword_base::count;
///
/// assert_eq!([0, 1, 1234].map(|n| count(n, "token")), ["0 tokens", "1 token", "1,234 tokens"]);
/// ```
pub fn count(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", grouped(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_separated() {
        for (number, text) in [
            (0, "0"),
            (7, "7"),
            (999, "999"),
            (1000, "1,000"),
            (100_000, "100,000"),
            (1_003_854, "1,003,854"),
            (u64::MAX, "18,446,744,073,709,551,615"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn counts_are_singular_only_for_one() {
        assert_eq!(count(0, "token"), "0 tokens");
        assert_eq!(count(1, "token"), "1 token");
        assert_eq!(count(1_234, "token"), "1,234 tokens");
    }
}
