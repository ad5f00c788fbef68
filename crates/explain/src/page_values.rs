//! Values as text: 32-bit floats in base 85, five characters for each. A page stores them this way because
//! base64 takes an eighth more, and decimal digits four times as much.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::graph::Axis;
use crate::report::TensorValues;

/// The digits of base 85: characters that need no escape in JSON or HTML. The page's script has the same.
const DIGITS: &[u8; 85] =
    b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%()*+,-.:;=?@[]^_{}~";

/// Values in the page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PackedValues {
    /// Length of each axis.
    pub shape: Vec<usize>,
    /// The values as 32-bit floats in base 85, highest digit first; NaN where masked.
    pub base85: String,
}

impl PackedValues {
    pub(crate) fn new(shape: &[usize], values: impl Iterator<Item = f32>) -> Self {
        Self {
            shape: shape.to_vec(),
            base85: encode(values),
        }
    }
}

/// A tensor of the forward pass in the page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PackedTensor {
    /// Meaning of each axis.
    pub axes: Vec<Axis>,
    /// Whether it was computed from other tensors, because the forward pass does not report it.
    pub computed: bool,
    /// Its shape and values.
    #[serde(flatten)]
    pub values: PackedValues,
}

/// Packs the tensors of a report.
pub(crate) fn pack(tensors: BTreeMap<String, TensorValues>) -> BTreeMap<String, PackedTensor> {
    let packed = tensors.into_iter().map(|(name, tensor)| {
        let values = tensor.data.iter().map(|x| x.unwrap_or(f32::NAN));
        let packed = PackedTensor {
            values: PackedValues::new(&tensor.shape, values),
            axes: tensor.axes,
            computed: tensor.computed,
        };
        (name, packed)
    });
    packed.collect()
}

/// Length of the text of `count` values.
pub(crate) fn packed_len(count: usize) -> usize {
    5 * count
}

fn encode(values: impl Iterator<Item = f32>) -> String {
    let mut text = String::new();
    for value in values {
        let mut rest = value.to_bits();
        let mut digits = ['0'; 5];
        for digit in digits.iter_mut().rev() {
            *digit = char::from(DIGITS[(rest % 85) as usize]);
            rest /= 85;
        }
        text.extend(digits);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(text: &str) -> Vec<f32> {
        let digit = |c: &u8| DIGITS.iter().position(|digit| digit == c).unwrap_or(0) as u32;
        let bits = text.as_bytes().chunks(5);
        bits.map(|five| f32::from_bits(five.iter().fold(0, |sum, c| sum * 85 + digit(c))))
            .collect()
    }

    #[test]
    fn every_float_survives() {
        let edges = [
            0.0,
            -0.0,
            1.0,
            f32::MAX,
            f32::MIN,
            f32::MIN_POSITIVE,
            f32::INFINITY,
        ];
        let random = (0..10_000_u32).map(|n| f32::from_bits(n.wrapping_mul(0x9e37_79b9)));
        let values: Vec<f32> = edges.into_iter().chain(random).collect();
        let text = encode(values.iter().copied());
        assert_eq!(text.len(), packed_len(values.len()));
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert_eq!(bits(decode(&text)), bits(values));
    }

    #[test]
    fn digits_are_distinct_and_need_no_escape() {
        let mut sorted = DIGITS.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), 85);
        assert!(
            DIGITS
                .iter()
                .all(|c| !b"\"\\<>&'`/".contains(c) && c.is_ascii_graphic())
        );
    }
}
