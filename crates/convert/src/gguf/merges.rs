//! Merges of byte-pair encoding from the scores of a `SentencePiece` vocabulary.

use std::cmp::Ordering;
use std::collections::HashMap;

/// Maximum number of merges. Vocabularies of 256,000 tokens have about half a million.
pub(super) const MAX_MERGES: usize = 1 << 21;

/// Maximum sum of the squared lengths of tokens, which bounds the work.
const MAX_SQUARES: usize = 1 << 30;

/// The merges of `tokens` (id and text): each way to split a token into two tokens, those with the highest score first,
/// in the order of transformers' converter. `scores` has one for each id.
///
/// # Errors
/// What is wrong with the vocabulary.
pub(super) fn from_scores<'a>(
    tokens: &[(usize, &'a str)],
    scores: &[f64],
) -> Result<Vec<(&'a str, &'a str)>, &'static str> {
    let squares = tokens
        .iter()
        .map(|(_, token)| token.len().saturating_mul(token.len()));
    if squares.fold(0, usize::saturating_add) > MAX_SQUARES {
        return Err("has tokens that are too long");
    }
    if tokens
        .iter()
        .any(|(id, _)| scores.get(*id).is_none_or(|score| score.is_nan()))
    {
        return Err("has a score that is not a number");
    }
    let ids: HashMap<&str, usize> = tokens.iter().map(|(id, token)| (*token, *id)).collect();
    let mut merges = Vec::new();
    for (id, token) in tokens {
        let first = merges.len();
        let splits = token
            .char_indices()
            .skip(1)
            .map(|(at, _)| token.split_at(at));
        for (left, right) in splits {
            if let (Some(left_id), Some(right_id)) = (ids.get(left), ids.get(right)) {
                merges.push((scores[*id], *left_id, *right_id, left, right));
            }
        }
        if merges.len() > MAX_MERGES {
            return Err("has too many ways to split its tokens");
        }
        merges[first..].sort_by_key(|(_, left, right, ..)| (*left, *right));
    }
    // Stable, and the longest first half first, as there.
    let characters = |text: &str| text.chars().count();
    merges.sort_by(|a, b| {
        let lengths =
            |merge: &(f64, usize, usize, &str, &str)| (characters(merge.3), characters(merge.4));
        let by_score = b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal); // -0 equals 0.
        by_score.then_with(|| lengths(b).cmp(&lengths(a)))
    });
    Ok(merges
        .into_iter()
        .map(|(.., left, right)| (left, right))
        .collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn merges_are_ordered_by_score() {
        let tokens = ["a", "b", "c", "ab", "bc", "abc"];
        let tokens: Vec<(usize, &str)> = tokens.into_iter().enumerate().collect();
        let scores = [0.0, 0.0, 0.0, -1.0, -0.5, -2.0];
        let merges = from_scores(&tokens, &scores).unwrap();
        assert_eq!(merges, [("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc")]);
    }

    #[test]
    fn vocabularies_that_would_take_long_are_rejected() {
        let long = "a".repeat(40_000);
        assert!(from_scores(&[(0, &long)], &[0.0]).is_err());
        assert!(from_scores(&[(0, "a")], &[f64::NAN]).is_err());
        let texts: Vec<String> = (1..=3000).map(|len| "a".repeat(len)).collect();
        let tokens: Vec<(usize, &str)> = texts.iter().map(String::as_str).enumerate().collect();
        assert!(from_scores(&tokens, &vec![0.0; 3000]).is_err());
    }
}
