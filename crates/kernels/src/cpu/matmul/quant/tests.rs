//! Checks quantization errors, and compares kernels with products of dequantized weights.

use super::*;
use crate::cpu::isa::Isa;
use crate::cpu::matmul::matrix::MatMut;
use crate::cpu::matmul::matvec::MatvecOptions;
use crate::cpu::par::with_threads;
use crate::cpu::testing::Rng;

/// The formats that matrices of any shape can be quantized to.
fn encoded_formats() -> impl Iterator<Item = BlockFormat> {
    let formats = BlockFormat::ALL.into_iter();
    formats.filter(|format| format.separate_integers().is_some())
}

/// The number of rows that a matrix can have: `k`, or more in formats of GGUF files only.
fn fitting(k: usize, format: BlockFormat) -> usize {
    match format.separate_integers() {
        Some(_) => k,
        None => k.next_multiple_of(format.block_len()),
    }
}

fn dequantized(w: &QuantMatrix) -> Vec<f32> {
    (0..w.k * w.n).map(|i| w.value(i / w.n, i % w.n)).collect()
}

fn product(x: &[f32], rows: usize, w: &QuantMatrix, options: &MatvecOptions<'_>) -> Vec<f32> {
    let mut y = vec![f32::NAN; rows * w.n];
    let x = MatRef::row_major(&x[..rows * w.k], rows, w.k);
    matmul_quant(x, w, &mut MatMut::row_major(&mut y, rows, w.n), options);
    y
}

/// A matrix of random integers, scales, minimums and factors: also those that rounding never gives.
pub(super) fn random_blocks(rng: &mut Rng, k: usize, n: usize, format: BlockFormat) -> QuantMatrix {
    let block_bytes = format.gguf_block_bytes().unwrap_or_default();
    let (scale, minimum) = format.halves();
    let mut bytes = Vec::new();
    for _ in 0..k / format.block_len() * n {
        let start = bytes.len();
        bytes.extend((0..block_bytes).map(|_| rng.next() as u8));
        for at in [Some(scale), minimum].into_iter().flatten() {
            let half = burn::tensor::f16::from_f32(rng.uniform() - 0.5);
            bytes[start + at..start + at + 2].copy_from_slice(&half.to_le_bytes());
        }
    }
    let matrix = QuantMatrix::from_gguf((k, n), format, &bytes);
    matrix.unwrap_or_else(|| unreachable!("the lengths match"))
}

fn random_matrix(rng: &mut Rng, k: usize, n: usize, format: BlockFormat) -> QuantMatrix {
    if k.is_multiple_of(format.block_len()) && format.has_f16_scales() {
        return random_blocks(rng, k, n, format);
    }
    let w = rng.floats(k * n);
    QuantMatrix::quantize_as(MatRef::row_major(&w, k, n), format)
}

#[test]
fn quantization_error_is_at_most_half_a_step() {
    let mut rng = Rng(31);
    for bits in [Bits::Int8, Bits::Int4] {
        for (k, n, magnitude) in [
            (100, 37, 1.0),
            (32, 16, 1e-30),
            (64, 5, 1e30),
            (1, 1, 3.0),
            (70, 9, 0.02),
            (33, 3, 1e4),
        ] {
            let w: Vec<f32> = rng.floats(k * n).iter().map(|v| v * magnitude).collect();
            for (view, strides) in [
                (MatRef::row_major(&w, k, n), [n, 1]),
                (MatRef::row_major(&w, n, k).t(), [1, k]),
            ] {
                let q = QuantMatrix::quantize(view, bits, None);
                for j in 0..n {
                    for i in 0..k {
                        let block = i / BLOCK * BLOCK;
                        let max_abs = (block..k.min(block + BLOCK))
                            .map(|i| w[i * strides[0] + j * strides[1]].abs())
                            .fold(0.0, f32::max);
                        let steps = match (bits, !q.format.has_f16_scales()) {
                            (Bits::Int8, _) => 127.0,
                            (Bits::Int4, true) => 7.0,
                            // The search may shorten the range, so that its ends are off by more.
                            (Bits::Int4, false) => 4.0,
                        };
                        // Half a step, plus the error of rounding the scale.
                        let bound = max_abs / steps * 0.5 * 1.01;
                        let error = (q.value(i, j) - w[i * strides[0] + j * strides[1]]).abs();
                        assert!(error <= bound, "{bits:?} {magnitude} {error} {bound}");
                    }
                }
            }
        }
    }
}

#[test]
fn the_search_reduces_the_squared_error() {
    let mut rng = Rng(37);
    let (k, n) = (512, 64);
    let values = rng.floats(k * n);
    let w = MatRef::row_major(&values, k, n);
    let error = |format: BlockFormat| -> f64 {
        let back = dequantized(&QuantMatrix::quantize_as(w, format));
        let terms = back.iter().zip(&values);
        terms.map(|(a, b)| f64::from(a - b).powi(2)).sum()
    };
    let [searched, symmetric, q4_0] = [
        BlockFormat::Q4_1,
        BlockFormat::Symmetric4,
        BlockFormat::Q4_0,
    ]
    .map(error);
    assert!(searched < 0.75 * symmetric, "{searched} {symmetric}");
    assert!(searched < 0.85 * q4_0, "{searched} {q4_0}");
}

#[test]
fn values_that_q4_1_represents_are_found_exactly() {
    let mut rng = Rng(38);
    let exact = random_blocks(&mut rng, 96, 50, BlockFormat::Q4_1);
    let mut values = dequantized(&exact);
    // As after rounding to the format: the ends of the range occur in each block, and scales are positive.
    for j in 0..50 {
        for b in 0..3 {
            let column = exact.column_block(j, b);
            let scale = exact.format.to_f32(column.scale & 0x7fff);
            let minimum = exact.format.to_f32(column.minimum);
            for t in 0..BLOCK {
                let q = match t {
                    0 => 0.0,
                    1 => 15.0,
                    _ => f32::from(column.integers[t]),
                };
                values[(b * BLOCK + t) * 50 + j] = scale * q + minimum;
            }
        }
    }
    let back = QuantMatrix::quantize(MatRef::row_major(&values, 96, 50), Bits::Int4, None);
    let same = dequantized(&back)
        .iter()
        .zip(&values)
        .filter(|(a, b)| a.to_bits() == b.to_bits())
        .count();
    assert!(
        same * 100 >= values.len() * 99,
        "{same} of {}",
        values.len()
    );
}

#[test]
fn kernels_match_f64_of_the_dequantized_weights() {
    for isa in Isa::available() {
        for format in BlockFormat::ALL {
            let mut rng = Rng(32);
            for case in 0..60 {
                let (m, k, n) = (1 + rng.below(19), rng.below(141), rng.below(71));
                let k = if case % 2 == 0 { k } else { k / BLOCK * BLOCK };
                let k = fitting(k, format);
                // Below 1, so that the error of rounding x is relative to the weights alone.
                let x: Vec<f32> = rng.floats(m * k).iter().map(|x| x / 4.0).collect();
                let bias = rng.floats(n);
                let q = random_matrix(&mut rng, k, n, format);
                let options = MatvecOptions {
                    bias: (case % 3 == 1).then_some(&bias[..]),
                    isa,
                };
                let y = product(&x, m, &q, &options);
                for i in 0..m {
                    for j in 0..n {
                        let mut want = options.bias.map_or(0.0, |b| f64::from(b[j]));
                        let mut size = want.abs();
                        for p in 0..k {
                            let block = q.block(j / PANEL, p / BLOCK);
                            let s = p % BLOCK * format.sub_blocks() / BLOCK;
                            let scale = block.scale(s, j % PANEL);
                            let minimum = block.minimum(s, j % PANEL).unwrap_or_default();
                            let term = f64::from(scale) * f64::from(q.integer(p, j));
                            let w = term + f64::from(minimum);
                            want += f64::from(x[i * k + p]) * w;
                            size += term.abs() + w.abs();
                        }
                        let error = (f64::from(y[i * n + j]) - want).abs();
                        assert!(
                            error <= size * 2e-5,
                            "{isa:?} {format:?} {m} {k} {n}: {error} of {size}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn result_is_bitwise_independent_of_isa_rows_and_threads() {
    let mut rng = Rng(33);
    let m = 23;
    for (k, n) in [(300, 203), (320, 33), (64, 16), (31, 1)] {
        for format in BlockFormat::ALL {
            let k = fitting(k, format);
            let (x, q) = (rng.floats(m * k), random_matrix(&mut rng, k, n, format));
            let scalar = MatvecOptions {
                isa: Isa::Scalar,
                ..Default::default()
            };
            let all = with_threads(1, || product(&x, m, &q, &scalar));
            for isa in Isa::available() {
                let options = MatvecOptions { bias: None, isa };
                for threads in [1, 2, 5] {
                    for rows in 1..=m {
                        let part = with_threads(threads, || product(&x, rows, &q, &options));
                        let same = part
                            .iter()
                            .zip(&all)
                            .all(|(a, b)| a.to_bits() == b.to_bits());
                        assert!(same, "{isa:?} {format:?} {rows} rows, {threads} threads");
                    }
                }
            }
        }
    }
}

#[test]
fn products_of_random_shapes_have_the_same_bits_at_every_isa() {
    let mut rng = Rng(40);
    for case in 0..80 {
        let (m, k, n) = (1 + rng.below(45), rng.below(400), 1 + rng.below(150));
        let k = if case % 2 == 0 { k } else { k / BLOCK * BLOCK };
        let bias = rng.floats(n);
        for format in BlockFormat::ALL {
            let k = fitting(k, format);
            let x = rng.floats(m * k);
            let q = random_matrix(&mut rng, k, n, format);
            let at = |isa| {
                let bias = (case % 3 == 1).then_some(&bias[..]);
                let y = product(&x, m, &q, &MatvecOptions { bias, isa });
                y.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            let scalar = at(Isa::Scalar);
            for isa in Isa::available() {
                assert!(at(isa) == scalar, "{isa:?} {format:?} {m} {k} {n}");
            }
        }
    }
}

/// All products of a block are as large as they can be, and have the same sign.
#[test]
fn sums_of_the_largest_integers_do_not_overflow() {
    for format in BlockFormat::ALL {
        let Some(size) = format.gguf_block_bytes() else {
            continue;
        };
        let (byte, largest) = match format {
            BlockFormat::Q8_0 => (0x80, -128.0),
            BlockFormat::Q4_0 => (0x00, -8.0),
            BlockFormat::Q5_0 => (0x00, -16.0),
            BlockFormat::Q4_1 => (0xff, 15.0),
            BlockFormat::Q5_1 => (0xff, 31.0),
            BlockFormat::Q2_K => (0xff, 15.0 * 3.0),
            BlockFormat::Q3_K => (0x00, -32.0 * -4.0),
            BlockFormat::Q4_K => (0xff, 63.0 * 15.0),
            BlockFormat::Q5_K => (0xff, 63.0 * 31.0),
            BlockFormat::Q6_K => (0x00, -128.0 * -32.0),
            BlockFormat::IQ4_NL => (0x00, -127.0),
            BlockFormat::IQ4_XS => (0x00, -32.0 * -127.0),
            BlockFormat::Symmetric8 | BlockFormat::Symmetric4 => unreachable!("not of GGUF"),
        };
        let mut block = vec![byte; size];
        if format == BlockFormat::Q6_K {
            block[192..208].fill(0x80);
        }
        let (scale, minimum) = format.halves();
        block[scale..scale + 2].copy_from_slice(&burn::tensor::f16::ONE.to_le_bytes());
        if let Some(at) = minimum {
            block[at..at + 2].fill(0);
        }
        let k = format.block_len();
        let q = QuantMatrix::from_gguf((k, 3), format, &block.repeat(3));
        let q = q.unwrap_or_else(|| unreachable!("the lengths match"));
        for value in dequantized(&q) {
            assert_eq!(value.to_bits(), f32::to_bits(largest), "{format:?}");
        }
        let want = k as f32 * largest;
        for (isa, rows) in Isa::available().flat_map(|isa| [(isa, 1), (isa, 9)]) {
            let options = MatvecOptions { bias: None, isa };
            for sign in [1.0, -1.0] {
                let y = product(&vec![sign; 9 * k], rows, &q, &options);
                assert!(
                    y.iter()
                        .all(|y| (y - sign * want).abs() < 1e-3 * want.abs()),
                    "{isa:?} {format:?} {rows}: {y:?}"
                );
            }
        }
    }
}

/// Many rows are split between threads, too.
#[test]
fn a_long_prompt_has_the_bits_of_its_rows() {
    let mut rng = Rng(39);
    let (m, n) = (150, 40);
    for format in BlockFormat::ALL {
        let k = fitting(96, format);
        let x = rng.floats(m * k);
        let q = random_matrix(&mut rng, k, n, format);
        let options = MatvecOptions::default();
        let all = with_threads(7, || product(&x, m, &q, &options));
        for row in 0..m {
            let alone = product(&x[row * k..], 1, &q, &options);
            assert_eq!(alone, all[row * n..][..n], "{format:?} row {row}");
        }
    }
}

#[test]
fn non_finite_values_propagate_as_nan() {
    for isa in Isa::available() {
        for format in encoded_formats() {
            let mut w = vec![1.0; 64 * 2];
            w[5 * 2] = f32::INFINITY;
            let q = QuantMatrix::quantize_as(MatRef::row_major(&w, 64, 2), format);
            let options = MatvecOptions {
                isa,
                ..Default::default()
            };
            let y = product(&[1.0; 64], 1, &q, &options);
            assert!(
                y[0].is_nan() && (y[1] - 64.0).abs() < 1.0,
                "{format:?} {y:?}"
            );
            for bad in [f32::NAN, f32::INFINITY] {
                let mut x = [1.0; 64 * 9];
                x[40] = bad;
                assert!(product(&x, 1, &q, &options).iter().all(|y| y.is_nan()));
                let y = product(&x, 9, &q, &options);
                assert!(y[..2].iter().all(|y| y.is_nan()) && !y[3].is_nan());
            }
        }
    }
}

#[test]
fn equal_importance_changes_no_bit() {
    let mut rng = Rng(51);
    for (k, n) in [(96, 20), (45, 7), (1, 1)] {
        let values = rng.floats(k * n);
        let w = MatRef::row_major(&values, k, n);
        let quantize = |importance: Option<&[f32]>| {
            dequantized(&QuantMatrix::quantize(w, Bits::Int4, importance))
        };
        let expected = quantize(None);
        for importance in [1.0, 4.0, 0.0, f32::INFINITY] {
            assert_eq!(
                quantize(Some(&vec![importance; k])),
                expected,
                "{importance}"
            );
        }
    }
}

#[test]
fn importance_lowers_the_error_that_it_weights() {
    let mut rng = Rng(52);
    let (k, n) = (256, 48);
    let values = rng.floats(k * n);
    // A few inputs are much larger than the others, and one is never used.
    let importance: Vec<f32> = (0..k)
        .map(|i| match i % 16 {
            3 => 100.0,
            4 => 0.0,
            _ => 0.5 + rng.uniform(),
        })
        .collect();
    let w = MatRef::row_major(&values, k, n);
    let error = |used: Option<&[f32]>| {
        let matrix = QuantMatrix::quantize(w, Bits::Int4, used);
        let errors = dequantized(&matrix).into_iter().zip(&values).enumerate();
        let weighted = errors.map(|(i, (a, b))| f64::from(importance[i / n] * (a - b).powi(2)));
        weighted.sum::<f64>()
    };
    let (plain, calibrated) = (error(None), error(Some(&importance)));
    assert!(calibrated < 0.6 * plain, "{calibrated} {plain}");
}
