//! Values of `ggml`'s blocks. Each operation is rounded to f32 separately and in the order of the Python package
//! `gguf`, so that all bits are equal.
//!
//! Most blocks of 32 begin with a scale in f16. Blocks of 256 have 8 or 16 groups, each with a scale of a few bits that
//! is multiplied by the block's scale.

/// The values that the 4 bits of `IQ4_NL` and `IQ4_XS` select.
const NONLINEAR: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

/// The smallest positive number of half precision, 2^-24.
const SUBNORMAL: f32 = 1.0 / (1 << 24) as f32;

/// Widens half precision.
pub(super) fn f16(bytes: [u8; 2]) -> f32 {
    let bits = u32::from(u16::from_le_bytes(bytes));
    let (sign, exponent, mantissa) = (bits >> 15 << 31, bits >> 10 & 31, bits & 1023);
    let magnitude = match exponent {
        0 => return f32::from_bits(sign | (mantissa as f32 * SUBNORMAL).to_bits()),
        31 => 255 << 23,
        _ => (exponent + 112) << 23,
    };
    f32::from_bits(sign | magnitude | mantissa << 13)
}

/// Widens bf16.
pub(super) fn bf16(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

/// Appends the values of all whole blocks of `BYTES` bytes and `LEN` values.
pub(super) fn blocks<const BYTES: usize, const LEN: usize>(
    bytes: &[u8],
    out: &mut Vec<f32>,
    values: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    let mut block = [0.0; LEN];
    for bytes in bytes.as_chunks().0 {
        values(bytes, &mut block);
        out.extend_from_slice(&block);
    }
}

/// The f16 at byte `at`.
fn half(block: &[u8], at: usize) -> f32 {
    f16([block[at], block[at + 1]])
}

/// Sets 32 values of 4 bits, of which the low halves of 16 bytes come first. `value` gets the index of a value, too.
fn nibbles(bytes: &[u8], out: &mut [f32; 32], value: impl Fn(usize, u8) -> f32) {
    let (low, high) = out.split_at_mut(16);
    for (i, ((low, high), byte)) in low.iter_mut().zip(high).zip(&bytes[..16]).enumerate() {
        *low = value(i, byte & 15);
        *high = value(i + 16, byte >> 4);
    }
}

/// The bit `i` of 32, as the fifth of a value.
fn fifth_bit(bits: u32, i: usize) -> u8 {
    ((bits >> i & 1) << 4) as u8
}

/// The 32 bits at byte `at`.
fn bits_32(block: &[u8], at: usize) -> u32 {
    let bytes = block[at..at + 4].iter().rev();
    bytes.fold(0, |bits, byte| bits << 8 | u32::from(*byte))
}

pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = half(block, 0);
    nibbles(&block[2..], out, |_, bits| {
        scale * f32::from(bits as i8 - 8)
    });
}

pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (scale, minimum) = (half(block, 0), half(block, 2));
    nibbles(&block[4..], out, |_, bits| {
        scale * f32::from(bits) + minimum
    });
}

pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let (scale, high) = (half(block, 0), bits_32(block, 2));
    nibbles(&block[6..], out, |i, bits| {
        scale * f32::from((bits | fifth_bit(high, i)) as i8 - 16)
    });
}

pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (scale, minimum) = (half(block, 0), half(block, 2));
    let high = bits_32(block, 4);
    nibbles(&block[8..], out, |i, bits| {
        scale * f32::from(bits | fifth_bit(high, i)) + minimum
    });
}

pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let scale = half(block, 0);
    for (out, byte) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(byte.cast_signed()) * scale;
    }
}

/// 16 groups with 4 bits of scale and 4 bits of minimum, 64 bytes of 2-bit values, then the two scales.
pub(super) fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (scale, minimum) = (half(block, 80), half(block, 82));
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scales = block[group];
        let scale = scale * f32::from(scales & 15);
        let minimum = minimum * f32::from(scales >> 4);
        let (bytes, shift) = two_bit_group(&block[16..80], group);
        for (out, byte) in out.iter_mut().zip(bytes) {
            *out = scale * f32::from(byte >> shift & 3) - minimum;
        }
    }
}

/// The bytes of a group of 16 values of 2 bits, and the position of the bits: 32 bytes contain 8 groups.
fn two_bit_group(bytes: &[u8], group: usize) -> (&[u8], usize) {
    let start = 32 * (group / 8) + 16 * (group % 2);
    (&bytes[start..start + 16], 2 * (group % 8 / 2))
}

/// 32 bytes with the third bit of each value (inverted), 64 bytes of 2-bit values, 16 scales of 6 bits, then the scale.
pub(super) fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let scale = half(block, 108);
    let scales = &block[96..108];
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let low = scales[group % 8] >> (4 * (group / 8)) & 15;
        let high = scales[8 + group % 4] >> (2 * (group / 4)) & 3;
        let scale = scale * f32::from((low | high << 4) as i8 - 32);
        let (bytes, shift) = two_bit_group(&block[32..96], group);
        for (i, (out, byte)) in out.iter_mut().zip(bytes).enumerate() {
            let high = block[16 * (group % 2) + i] >> (group / 2) & 1;
            *out = scale * f32::from((byte >> shift & 3) as i8 - 4 * (1 - high as i8));
        }
    }
}

/// Scale and minimum, 6 bits each, of one of 8 groups.
fn scale_and_minimum(scales: &[u8], group: usize) -> (f32, f32) {
    let (scale, minimum) = if group < 4 {
        (scales[group] & 63, scales[4 + group] & 63)
    } else {
        let low = scales[4 + group];
        (
            (low & 0x0f) | (scales[group - 4] >> 2 & 0x30),
            (low >> 4) | (scales[group] >> 2 & 0x30),
        )
    };
    (f32::from(scale), f32::from(minimum))
}

/// The two scales, 12 bytes of [`scale_and_minimum`], then 128 bytes of 4-bit values.
pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (scale, minimum) = (half(block, 0), half(block, 2));
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (group_scale, group_minimum) = scale_and_minimum(&block[4..16], group);
        let (scale, minimum) = (scale * group_scale, minimum * group_minimum);
        let bytes = &block[16 + 32 * (group / 2)..];
        for (out, byte) in out.iter_mut().zip(bytes) {
            *out = scale * f32::from(byte >> (4 * (group % 2)) & 15) - minimum;
        }
    }
}

/// As [`q4_k`], with 32 bytes of fifth bits before the 4-bit values.
pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (scale, minimum) = (half(block, 0), half(block, 2));
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (group_scale, group_minimum) = scale_and_minimum(&block[4..16], group);
        let (scale, minimum) = (scale * group_scale, minimum * group_minimum);
        let bytes = &block[48 + 32 * (group / 2)..];
        for ((out, byte), high) in out.iter_mut().zip(bytes).zip(&block[16..48]) {
            let bits = byte >> (4 * (group % 2)) & 15 | (high >> group & 1) << 4;
            *out = scale * f32::from(bits) - minimum;
        }
    }
}

/// 128 bytes of 4 low bits, 64 bytes of 2 high bits, 16 scales of 8 bits, then the scale.
pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let scale = half(block, 208);
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = scale * f32::from(block[192 + group].cast_signed());
        let (part, within) = (group / 8, group % 8); // Halves of the block, and groups within.
        let low = &block[64 * part + 16 * (within % 4)..];
        let high = &block[128 + 32 * part + 16 * (within % 2)..];
        for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
            let bits = low >> (4 * (within / 4)) & 15 | (high >> (2 * (within / 2)) & 3) << 4;
            *out = scale * f32::from(bits as i8 - 32);
        }
    }
}

pub(super) fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = half(block, 0);
    nibbles(&block[2..], out, |_, bits| scale * nonlinear(bits));
}

/// The value that 4 bits select.
fn nonlinear(bits: u8) -> f32 {
    f32::from(NONLINEAR[usize::from(bits & 15)])
}

/// The scale, 8 scales of 6 bits (2 bytes of high bits, 4 of low ones), then groups as in [`iq4_nl`].
pub(super) fn iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let scale = half(block, 0);
    let high = u16::from_le_bytes([block[2], block[3]]);
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let low = block[4 + group / 2] >> (4 * (group % 2)) & 15;
        let bits = low | ((high >> (2 * group)) as u8 & 3) << 4;
        let scale = scale * f32::from(bits as i8 - 32);
        nibbles(&block[8 + 16 * group..], out, |_, bits| {
            scale * nonlinear(bits)
        });
    }
}
