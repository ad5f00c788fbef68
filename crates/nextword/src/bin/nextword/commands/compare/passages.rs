//! Passages in which two models differ, as text.

use nextword_experiments::compare::{Passage, PassageToken};

use crate::format::sanitize;

/// Nats from which on a difference has a color.
const VISIBLE: f64 = 0.5;

const GREEN: &str = "\x1b[32m";
const RED: &str = "\x1b[31m";
const BOLD: &str = "\x1b[1m";
const RESET: &str = "\x1b[0m";

/// The lines of all passages: tokens that B predicts better are green, those that it predicts worse red.
pub(super) fn lines(passages: &[Passage], has_colors: bool) -> Vec<String> {
    if passages.is_empty() {
        return Vec::new();
    }
    let title = if has_colors {
        "largest differences (green: B is better, red: A is better)"
    } else {
        "largest differences, the token in brackets"
    };
    let passages = passages.iter().map(|passage| line(passage, has_colors));
    std::iter::once(title.to_string()).chain(passages).collect()
}

fn line(passage: &Passage, has_colors: bool) -> String {
    let tokens = passage.tokens.iter().enumerate();
    let text: String = tokens
        .map(|(at, token)| shown(token, at == passage.token, has_colors))
        .collect();
    let token = passage.tokens.get(passage.token);
    let losses = token.map(|token| format!("A {:.2}, B {:.2} nats", token.a, token.b));
    format!("  {}: {text}", losses.unwrap_or_default())
}

fn shown(token: &PassageToken, is_largest: bool, has_colors: bool) -> String {
    let text = sanitize(&token.text.escape_debug().to_string());
    if !has_colors {
        return if is_largest {
            format!("[{text}]")
        } else {
            text
        };
    }
    let difference = token.b - token.a;
    let color = match difference {
        d if d <= -VISIBLE => GREEN,
        d if d >= VISIBLE => RED,
        _ => "",
    };
    let weight = if is_largest { BOLD } else { "" };
    if color.is_empty() && weight.is_empty() {
        return text;
    }
    format!("{color}{weight}{text}{RESET}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_with_the_difference_is_marked() {
        let token = |text: &str, a, b| PassageToken {
            text: text.to_string(),
            a,
            b,
        };
        let passage = Passage {
            position: 7,
            tokens: vec![token("a\n", 1.0, 1.1), token("b", 5.0, 0.5)],
            token: 1,
        };
        assert_eq!(line(&passage, false), "  A 5.00, B 0.50 nats: a\\n[b]");
        assert!(line(&passage, true).ends_with("a\\n\x1b[32m\x1b[1mb\x1b[0m"));
        assert!(lines(&[], true).is_empty());
    }
}
