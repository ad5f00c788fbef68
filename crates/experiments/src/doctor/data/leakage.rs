//! Validation text that is also in the training split.

use std::collections::HashMap;

use super::{Finding, FindingKind, agree};

/// Bytes of a passage: longer than common phrases.
const PASSAGE: usize = 300;

/// The share of passages that may be in both splits by chance, as in text from a small grammar. A copy of a whole document
/// is found with the documents.
const MAX_SHARE: f64 = 0.01;

/// Base of the rolling hash: odd and large, so that all bits of a hash depend on all bytes.
const BASE: u64 = 0x9E37_79B9_7F4A_7C15;

/// Finds passages of the validation text in the training text, at any position. Passages follow each other in the
/// validation text, so that a repetition of twice their length contains one.
pub(super) fn check(train: &str, validation: &str) -> Option<Finding> {
    let (train, text) = (train.as_bytes(), validation.as_bytes());
    let mut passages: HashMap<u64, Vec<usize>> = HashMap::new();
    for (index, passage) in text.chunks_exact(PASSAGE).enumerate() {
        passages
            .entry(hash(passage))
            .or_default()
            .push(index * PASSAGE);
    }
    let all = text.len() / PASSAGE;
    let mut found: Vec<usize> = Vec::new();
    let mut look = |hash: u64, window: &[u8]| {
        if let Some(starts) = passages.get_mut(&hash) {
            starts.retain(|start| {
                let is_same = &text[*start..start + PASSAGE] == window;
                found.extend(is_same.then_some(*start));
                !is_same
            });
        }
    };
    let mut rolling = hash(train.get(..PASSAGE)?);
    let highest = (1..PASSAGE).fold(1_u64, |power, _| power.wrapping_mul(BASE));
    look(rolling, &train[..PASSAGE]);
    for (start, window) in train.windows(PASSAGE).enumerate().skip(1) {
        let (old, new) = (u64::from(train[start - 1]), u64::from(window[PASSAGE - 1]));
        rolling = rolling
            .wrapping_sub(highest.wrapping_mul(old + 1))
            .wrapping_mul(BASE)
            .wrapping_add(new + 1);
        look(rolling, window);
    }
    if (found.len() as f64) <= MAX_SHARE * all as f64 {
        return None;
    }
    let first = *found.iter().min()?;
    let example = String::from_utf8_lossy(&text[first..first + PASSAGE]).into_owned();
    Some(Finding::new(
        FindingKind::Leakage,
        found.len() as u64,
        format!(
            "of {all} passages of {PASSAGE} bytes in the validation split {} also in the training split",
            agree(found.len() as u64, "is", "are")
        ),
        &example.escape_debug().to_string(),
        "remove repeated text, and split by documents: data.split.by = \"documents\"",
    ))
}

/// The hash of a passage: a polynomial in its bytes.
fn hash(passage: &[u8]) -> u64 {
    passage.iter().fold(0_u64, |hash, byte| {
        hash.wrapping_mul(BASE).wrapping_add(u64::from(*byte) + 1)
    })
}
