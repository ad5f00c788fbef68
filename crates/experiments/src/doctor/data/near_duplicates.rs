//! Documents that are almost the same: `MinHash` over groups of words (Broder 1997, "On the Resemblance and Containment of
//! Documents").

use std::collections::{HashMap, HashSet};

use nextword_base::CounterRng;

use super::{Finding, FindingKind, agree};

/// Words of a group.
const GROUP: usize = 5;

/// Hash functions: bands of rows. Documents with a similarity of 0.8 share a band with a probability above 99.9 %, those
/// with 0.4 with 34 %, and candidates are compared exactly.
const BANDS: usize = 16;
const ROWS: usize = 4;

/// The share of groups that two documents have in common (Jaccard) from which on they are almost the same.
const MIN_SIMILARITY: f64 = 0.8;

/// Documents of a band that others are compared with: the same beginning in all documents would make the time quadratic.
const MAX_BUCKET: usize = 64;

/// Words of a document below which similarity says nothing.
const MIN_WORDS: usize = 20;

/// Near duplicates among the documents `originals`, none of which is an exact copy of another.
pub(super) fn check(documents: &[String], originals: &[usize]) -> Option<Finding> {
    let mut bands: HashMap<(usize, [u64; ROWS]), Vec<usize>> = HashMap::new();
    let mut groups: HashMap<usize, HashSet<u64>> = HashMap::new();
    let (mut count, mut first) = (0_u64, None);
    for index in originals {
        let hashes = group_hashes(&documents[*index]);
        if hashes.is_empty() {
            continue;
        }
        let mut candidates = HashSet::new();
        for (band, rows) in signature(&hashes).into_iter().enumerate() {
            let bucket = bands.entry((band, rows)).or_default();
            candidates.extend(bucket.iter().copied());
            if bucket.len() < MAX_BUCKET {
                bucket.push(*index);
            }
        }
        let mut candidates: Vec<usize> = candidates.into_iter().collect();
        candidates.sort_unstable();
        let similar = candidates
            .into_iter()
            .find(|other| similarity(&hashes, &groups[other]) >= MIN_SIMILARITY);
        if let Some(other) = similar {
            count += 1;
            first.get_or_insert((*index, other));
        }
        groups.insert(*index, hashes);
    }
    let (copy, original) = first?;
    Some(Finding::new(
        FindingKind::NearDuplicateDocuments,
        count,
        format!(
            "{} of earlier ones, such as number {} of number {}",
            agree(
                count,
                "document is almost a copy",
                "documents are almost copies"
            ),
            copy + 1,
            original + 1
        ),
        &documents[copy].trim().escape_debug().to_string(),
        "keep one of each: almost repeated text is memorized, and may be in both splits",
    ))
}

/// The hashes of all groups of consecutive words.
fn group_hashes(text: &str) -> HashSet<u64> {
    let words: Vec<&str> = text.split_whitespace().collect();
    if words.len() < MIN_WORDS {
        return HashSet::new();
    }
    let rng = CounterRng::new(0);
    let word_keys: Vec<u64> = words.iter().map(|word| rng.named(word).key()).collect();
    let groups = word_keys.windows(GROUP);
    groups
        .map(|group| group.iter().fold(rng, |rng, key| rng.stream(*key)).key())
        .collect()
}

/// The smallest hash under each hash function, in bands.
fn signature(hashes: &HashSet<u64>) -> Vec<[u64; ROWS]> {
    let smallest = |function: usize| {
        let rng = CounterRng::new(function as u64 + 1);
        hashes.iter().map(|hash| rng.at(*hash)).min().unwrap_or(0)
    };
    (0..BANDS)
        .map(|band| std::array::from_fn(|row| smallest(band * ROWS + row)))
        .collect()
}

fn similarity(a: &HashSet<u64>, b: &HashSet<u64>) -> f64 {
    let common = a.intersection(b).count();
    common as f64 / (a.len() + b.len() - common).max(1) as f64
}
