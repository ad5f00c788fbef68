//! `ggml`'s block quantization: values with a common scale per block.

use nextword_model::weights::FloatType;

/// Values per block.
pub(crate) const BLOCK_LEN: usize = 32;

/// Encodes `Q8_0`. A block has a scale in f16 and 32 signed bytes: `x = scale * byte`.
pub(crate) fn q8_0(values: &[f32]) -> Vec<u8> {
    let block = |block: &[f32]| {
        let max = block.iter().fold(0.0_f32, |max, v| max.max(v.abs()));
        let scale = max / 127.0;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let mut bytes = FloatType::F16.encode(&[scale]);
        bytes.extend(
            block
                .iter()
                .map(|v| ((v * inverse).round() as i8).cast_unsigned()),
        );
        bytes
    };
    values.chunks_exact(BLOCK_LEN).flat_map(block).collect()
}

/// Encodes `Q4_0`. A block has a scale in f16 and 32 values of 4 bits: `x = scale * (bits - 8)`. The
/// value with the largest magnitude becomes -8. Byte `i` contains values `i` and `i + 16`.
pub(crate) fn q4_0(values: &[f32]) -> Vec<u8> {
    let block = |block: &[f32]| {
        let extreme = |max: f32, v: &f32| if v.abs() > max.abs() { *v } else { max };
        let scale = block.iter().fold(0.0, extreme) / -8.0;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let bits = |v: f32| ((v * inverse + 8.5) as u8).min(15);
        let mut bytes = FloatType::F16.encode(&[scale]);
        let (first, second) = block.split_at(BLOCK_LEN / 2);
        bytes.extend(
            first
                .iter()
                .zip(second)
                .map(|(a, b)| bits(*a) | bits(*b) << 4),
        );
        bytes
    };
    values.chunks_exact(BLOCK_LEN).flat_map(block).collect()
}

/// Encodes `Q4_1`. A block has a scale and a minimum in f16 and 32 values of 4 bits: `x = scale * bits +
/// minimum`. Byte `i` contains values `i` and `i + 16`.
pub(crate) fn q4_1(values: &[f32]) -> Vec<u8> {
    let block = |block: &[f32]| {
        let min = block.iter().copied().fold(f32::INFINITY, f32::min);
        let max = block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let scale = (max - min) / 15.0;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let bits = |v: f32| (((v - min) * inverse + 0.5) as u8).min(15);
        let mut bytes = FloatType::F16.encode(&[scale, min]);
        let (first, second) = block.split_at(BLOCK_LEN / 2);
        let pairs = first.iter().zip(second);
        bytes.extend(pairs.map(|(a, b)| bits(*a) | bits(*b) << 4));
        bytes
    };
    values.chunks_exact(BLOCK_LEN).flat_map(block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoded_blocks_are_close_to_the_values() {
        let values: Vec<f32> = (0..BLOCK_LEN).map(|i| (i as f32 * 1.7).sin()).collect();
        let max = values.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        let bytes = q8_0(&values);
        assert_eq!(bytes.len(), 34);
        for (byte, value) in bytes[2..].iter().zip(&values) {
            let back = f32::from(byte.cast_signed()) * max / 127.0;
            assert!(
                (back - value).abs() <= 0.51 * max / 127.0,
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
            // Values of the opposite sign saturate at 7 and may be off by a full step.
            assert!(
                (back - value).abs() <= 1.01 * max / 8.0,
                "{back} for {value}"
            );
        }
    }

    #[test]
    fn decoded_q4_1_blocks_are_within_half_a_step() {
        let values: Vec<f32> = (0..BLOCK_LEN)
            .map(|i| (i as f32 * 1.7).sin() + 0.3)
            .collect();
        let bytes = q4_1(&values);
        assert_eq!(bytes.len(), 20);
        for (i, value) in values.iter().enumerate() {
            let bits = f32::from(bytes[4 + i % 16] >> (4 * (i / 16)) & 15);
            let back = bits * 2.0 / 15.0 - 0.7; // The range is about 2.
            assert!(
                (back - value).abs() <= 0.55 * 2.0 / 15.0,
                "{back} for {value}"
            );
        }
    }

    #[test]
    fn zeros_stay_zeros() {
        assert!(q8_0(&[0.0; BLOCK_LEN]).iter().all(|b| *b == 0));
        assert!(q4_0(&[0.0; BLOCK_LEN])[2..].iter().all(|b| *b == 0x88));
    }
}
