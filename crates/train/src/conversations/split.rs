//! The split of conversations into training and validation.

use nextword_base::hash::sha256_hex;

/// A number that depends on the content of a conversation and the seed of the split only, so that equal conversations
/// are in the same split.
pub(crate) fn content_key(seed: u64, samples: impl IntoIterator<Item = Vec<u32>>) -> u64 {
    let mut bytes = seed.to_le_bytes().to_vec();
    for ids in samples {
        bytes.extend((ids.len() as u64).to_le_bytes());
        bytes.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
    }
    let digest = sha256_hex(&bytes);
    u64::from_str_radix(&digest[..16], 16).unwrap_or_default()
}

/// Selects the conversations for validation by their keys: about `share` of them. If there are two different ones or
/// more and `share` is above 0, each split gets at least one; otherwise all are for training.
pub(crate) fn select_validation(keys: &[u64], share: f64) -> Vec<bool> {
    let scale = 2f64.powi(64);
    let mut selected: Vec<bool> = keys
        .iter()
        .map(|key| (*key as f64) < share * scale)
        .collect();
    let (Some(lowest), Some(highest)) = (keys.iter().min(), keys.iter().max()) else {
        return selected;
    };
    if share > 0.0 {
        for (is_selected, key) in selected.iter_mut().zip(keys) {
            *is_selected = (*is_selected || key == lowest) && key != highest;
        }
    }
    selected
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_split_gets_at_least_one_conversation() {
        let keys: Vec<u64> = (0..40).map(|i| content_key(0, [vec![i]])).collect();
        let count = |share| {
            let selected = select_validation(&keys, share);
            selected.iter().filter(|is_selected| **is_selected).count()
        };
        assert_eq!(count(0.0), 0);
        assert_eq!(count(1e-9), 1);
        assert_eq!(count(0.999_999), 39);
        assert!((10..=30).contains(&count(0.5)));
        assert_eq!(select_validation(&[], 0.5), Vec::<bool>::new());
        assert_eq!(select_validation(&[7], 0.01), [false]);
        assert_eq!(select_validation(&[7, 9], 0.01), [true, false]);
    }

    #[test]
    fn equal_conversations_are_in_the_same_split() {
        let key = |seed, ids: &[u32]| content_key(seed, [ids.to_vec()]);
        assert_eq!(key(1, &[5, 6]), key(1, &[5, 6]));
        assert_ne!(key(1, &[5, 6]), key(2, &[5, 6]));
        assert_ne!(key(1, &[5, 6]), key(1, &[5, 7]));
        // Not the same as one sample with the ids of both.
        assert_ne!(content_key(1, [vec![5], vec![6]]), key(1, &[5, 6]));
        let selected = select_validation(&[3, 9, 3, 3], 0.0001);
        assert_eq!(selected, [true, false, true, true]);
    }
}
