//! Human-readable numbers, and text that is safe to print to a terminal.

pub(crate) use nextword_base::{count, grouped};
use nextword_model::ByteSize;

/// Formats three significant digits and an SI prefix: `41.2k`, `3.05M`.
pub(crate) fn short(number: f64) -> String {
    let (value, unit) = match number.abs() {
        n if n >= 1e12 => (number / 1e12, "T"),
        n if n >= 1e9 => (number / 1e9, "G"),
        n if n >= 1e6 => (number / 1e6, "M"),
        n if n >= 1e3 => (number / 1e3, "k"),
        _ => (number, ""),
    };
    let digits = match value.abs() {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    if unit.is_empty() && value.fract() == 0.0 {
        return format!("{value}");
    }
    format!("{value:.digits$}{unit}")
}

/// Formats a number with this many digits after the decimal point. One that rounds to 0 has no sign.
pub(crate) fn rounded(number: f64, digits: usize) -> String {
    let text = format!("{number:.digits$}");
    match text.strip_prefix('-') {
        Some(magnitude) if !magnitude.contains(|c: char| matches!(c, '1'..='9')) => {
            magnitude.to_string()
        }
        _ => text,
    }
}

/// Formats a difference like [`rounded`], with its sign: `+0.0210`, `-0.0210`, `0.0000`.
pub(crate) fn signed(number: f64, digits: usize) -> String {
    let text = rounded(number, digits);
    let is_positive = number > 0.0 && text.contains(|c: char| matches!(c, '1'..='9'));
    if is_positive {
        format!("+{text}")
    } else {
        text
    }
}

/// Formats like [`short`], with a unit: `13.7 GFLOP`, `12 FLOP`.
pub(crate) fn with_unit(number: f64, unit: &str) -> String {
    let text = short(number);
    let digits = text.trim_end_matches(char::is_alphabetic);
    format!("{digits} {}{unit}", &text[digits.len()..])
}

/// Formats a size in binary units: `312 MiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

/// Formats a duration in at most two units: `4.2s`, `6m12s`, `3h05m`, `2d04h`.
pub(crate) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "?".to_string();
    }
    if seconds < 9.95 {
        return format!("{:.1}s", seconds.max(0.0));
    }
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d{:02}h", s / 86_400, s % 86_400 / 3600),
    }
}

/// Formats the share of `trained` parameters in a model of `base` parameters and an adapter: `3.5 %`.
pub(crate) fn trained_share(trained: usize, base: usize) -> String {
    let share = 100.0 * trained as f64 / (base + trained).max(1) as f64;
    format!("{share:.1} %")
}

/// ` (3,210 of them trained)` behind the number of tokens of conversations; nothing for text, of which all are trained.
pub(crate) fn trained_part(trained: Option<usize>) -> String {
    trained.map_or_else(String::new, |trained| {
        format!(" ({} of them trained)", grouped(trained as u64))
    })
}

/// `320 tokens`, or `320 trained tokens` for conversations, of which not all are.
pub(crate) fn learned_tokens(tokens: usize, of_conversations: bool) -> String {
    count(
        tokens as u64,
        if of_conversations {
            "trained token"
        } else {
            "token"
        },
    )
}

/// Replaces control characters other than line breaks and tabs, so that text cannot control the
/// terminal.
pub(crate) fn sanitize(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\t' => c,
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_keeps_three_significant_digits() {
        let cases = [
            (0.0, "0"),
            (12.0, "12"),
            (999.0, "999"),
            (41_234.0, "41.2k"),
            (9_996.0, "10.0k"),
            (3_050_000.0, "3.05M"),
            (124_439_808.0, "124M"),
        ];
        for (number, text) in cases {
            assert_eq!(short(number), text);
        }
    }

    #[test]
    fn differences_have_a_sign_unless_they_round_to_zero() {
        let cases = [
            (0.021, "+0.0210"),
            (-0.021, "-0.0210"),
            (0.0, "0.0000"),
            (-0.0, "0.0000"),
            (4e-5, "0.0000"),
            (-4e-5, "0.0000"),
            (-6e-5, "-0.0001"),
            (12.0, "+12.0000"),
        ];
        for (number, text) in cases {
            assert_eq!(signed(number, 4), text);
            assert_eq!(rounded(number, 4), text.trim_start_matches('+'));
        }
        assert_eq!(signed(f64::NAN, 2), "NaN");
    }

    #[test]
    fn units_follow_the_si_prefix() {
        assert_eq!(with_unit(182_592.0, "FLOP"), "183 kFLOP");
        assert_eq!(with_unit(12.0, "FLOP"), "12 FLOP");
    }

    #[test]
    fn durations_have_at_most_two_units() {
        let cases = [
            (0.04, "0.0s"),
            (9.96, "10s"),
            (372.0, "6m12s"),
            (11_100.0, "3h05m"),
            (187_200.0, "2d04h"),
            (f64::INFINITY, "?"),
        ];
        for (seconds, text) in cases {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn sanitize_replaces_escape_sequences() {
        assert_eq!(sanitize("a\x1b[2Jb\n"), "a\u{fffd}[2Jb\n");
    }
}
