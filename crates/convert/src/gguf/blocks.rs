//! Numbers in blocks with a common scale, as `ggml` has them.

use nextword_model::weights::FloatType;

/// Numbers of a block.
pub(crate) const LEN: usize = 32;

/// Each block is a scale in f16 and 32 signed bytes: `x = scale * byte`.
pub(crate) fn q8_0(values: &[f32]) -> Vec<u8> {
    let block = |block: &[f32]| {
        let most = block.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
        let scale = most / 127.0;
        let per = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let mut bytes = FloatType::F16.encode(&[scale]);
        bytes.extend(
            block
                .iter()
                .map(|v| ((v * per).round() as i8).cast_unsigned()),
        );
        bytes
    };
    values.chunks_exact(LEN).flat_map(block).collect()
}

/// Each block is a scale in f16 and 32 numbers of 4 bits: `x = scale * (bits - 8)`. The number of
/// the largest size becomes -8, and byte `i` holds numbers `i` and `i + 16`.
pub(crate) fn q4_0(values: &[f32]) -> Vec<u8> {
    let block = |block: &[f32]| {
        let largest = |most: f32, v: &f32| if v.abs() > most.abs() { *v } else { most };
        let scale = block.iter().fold(0.0, largest) / -8.0;
        let per = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let bits = |v: f32| ((v * per + 8.5) as u8).min(15);
        let mut bytes = FloatType::F16.encode(&[scale]);
        let (first, second) = block.split_at(LEN / 2);
        bytes.extend(
            first
                .iter()
                .zip(second)
                .map(|(a, b)| bits(*a) | bits(*b) << 4),
        );
        bytes
    };
    values.chunks_exact(LEN).flat_map(block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_within_half_a_step_of_what_it_stands_for() {
        let values: Vec<f32> = (0..LEN).map(|i| (i as f32 * 1.7).sin()).collect();
        let most = values.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        let bytes = q8_0(&values);
        assert_eq!(bytes.len(), 34);
        for (byte, value) in bytes[2..].iter().zip(&values) {
            let back = f32::from(byte.cast_signed()) * most / 127.0;
            assert!(
                (back - value).abs() <= 0.51 * most / 127.0,
                "{back} for {value}"
            );
        }
        let bytes = q4_0(&values);
        assert_eq!(bytes.len(), 18);
        let extreme = values
            .iter()
            .fold(0.0_f32, |m, v| if v.abs() > m.abs() { *v } else { m });
        for (i, value) in values.iter().enumerate() {
            let bits = bytes[2 + i % 16] >> (4 * (i / 16)) & 15;
            let back = (f32::from(bits) - 8.0) * extreme / -8.0;
            // The other sign has no -8 of its own and may be a whole step away.
            assert!(
                (back - value).abs() <= 1.01 * most / 8.0,
                "{back} for {value}"
            );
        }
    }

    #[test]
    fn zeros_stay_zeros() {
        assert!(q8_0(&[0.0; LEN]).iter().all(|b| *b == 0));
        assert!(q4_0(&[0.0; LEN])[2..].iter().all(|b| *b == 0x88));
    }
}
