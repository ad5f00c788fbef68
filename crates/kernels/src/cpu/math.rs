//! Vectorized exponential, hyperbolic tangent and normal distribution.
//!
//! Exponential and tanh are accurate to 2 ulp (tests compare them with f64).

use pulp::Simd;

use super::simd::Ops;

/// 1.5 * 2^23: adding it rounds a float to an integer and leaves that integer in the low bits.
const ROUND: f32 = 12_582_912.0;

/// `2^x`; 0 below 2^-126, and x is clamped to 127.999.
#[inline(always)]
pub(crate) fn exp2<S: Simd>(s: S, x: S::f32s) -> S::f32s {
    let underflow = s.less_than_f32s(x, s.splat_f32s(-126.0));
    let x = min_or_nan(s, x, 127.999);
    let shifted = s.add_f32s(x, s.splat_f32s(ROUND));
    let f = s.sub_f32s(x, s.sub_f32s(shifted, s.splat_f32s(ROUND)));
    // Minimax polynomial of 2^f on [-0.5, 0.5].
    let p = s.splat_f32s(1.535_336_2e-4);
    let p = s.horner(p, f, 1.339_887_4e-3);
    let p = s.horner(p, f, 9.618_437e-3);
    let p = s.horner(p, f, 5.550_332_5e-2);
    let p = s.horner(p, f, 2.402_264_8e-1);
    let p = s.horner(p, f, 6.931_472e-1);
    let p = s.horner(p, f, 1.0);
    s.select_f32s(underflow, s.zero(), scale_by_pow2(s, p, shifted))
}

/// `e^x`; 0 below `e^-87.33`, and x is clamped to 88.72.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::f32s) -> S::f32s {
    let underflow = s.less_than_f32s(x, s.splat_f32s(-87.336_54));
    let x = min_or_nan(s, x, 88.722_83);
    let shifted = s.fma(
        x,
        s.splat_f32s(std::f32::consts::LOG2_E),
        s.splat_f32s(ROUND),
    );
    let n = s.sub_f32s(shifted, s.splat_f32s(ROUND));
    // x - n ln 2 with ln 2 in two parts, so that the difference keeps all its bits (Cody and Waite
    // 1980).
    let r = s.fma(n, s.splat_f32s(-0.693_359_4), x);
    let r = s.fma(n, s.splat_f32s(2.121_944_4e-4), r);
    let p = s.splat_f32s(1.987_569_1e-4);
    let p = s.horner(p, r, 1.398_199_9e-3);
    let p = s.horner(p, r, 8.333_452e-3);
    let p = s.horner(p, r, 4.166_579_6e-2);
    let p = s.horner(p, r, 1.666_666_5e-1);
    let p = s.horner(p, r, 0.5);
    let p = s.fma(p, s.mul_f32s(r, r), s.add_f32s(r, s.splat_f32s(1.0)));
    s.select_f32s(underflow, s.zero(), scale_by_pow2(s, p, shifted))
}

/// The minimum of x and `limit`; propagates NaN in x.
#[inline(always)]
fn min_or_nan<S: Simd>(s: S, x: S::f32s, limit: f32) -> S::f32s {
    let limit = s.splat_f32s(limit);
    if S::IS_SCALAR {
        return s.select_f32s(s.greater_than_f32s(x, limit), limit, x);
    }
    // In this operand order x86 propagates NaN; NEON always does.
    s.min_f32s(limit, x)
}

/// `p * 2^n`, where n is in the low bits of `shifted`. Adds n directly to the exponent of p, so the
/// result must be a normal number.
#[inline(always)]
fn scale_by_pow2<S: Simd>(s: S, p: S::f32s, shifted: S::f32s) -> S::f32s {
    let n = s.wrapping_dyn_shl_u32s(s.transmute_u32s_f32s(shifted), s.splat_u32s(23));
    s.transmute_f32s_u32s(s.add_u32s(s.transmute_u32s_f32s(p), n))
}

/// Hyperbolic tangent.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::f32s) -> S::f32s {
    let abs = s.abs_f32s(x);
    // 1 - 2 / (e^2x + 1) loses precision near 0, where a polynomial is used instead (Cephes).
    let e = exp(s, s.add_f32s(abs, abs));
    let one = s.splat_f32s(1.0);
    let far = s.sub_f32s(one, s.div_f32s(s.splat_f32s(2.0), s.add_f32s(e, one)));
    let z = s.mul_f32s(x, x);
    let p = s.splat_f32s(-5.704_988_7e-3);
    let p = s.horner(p, z, 2.063_909e-2);
    let p = s.horner(p, z, -5.373_971_5e-2);
    let p = s.horner(p, z, 1.333_144_2e-1);
    let p = s.horner(p, z, -3.333_328e-1);
    let near = s.fma(s.mul_f32s(p, z), x, x);
    let small = s.less_than_f32s(abs, s.splat_f32s(0.625));
    s.select_f32s(small, near, copy_sign(s, far, x))
}

/// Soft cap: `cap * tanh(x / cap)` maps x to (-cap, cap).
#[inline(always)]
pub(crate) fn soft_cap<S: Simd>(s: S, x: S::f32s, cap: f32) -> S::f32s {
    let t = tanh(s, s.mul_f32s(x, s.splat_f32s(1.0 / cap)));
    s.mul_f32s(t, s.splat_f32s(cap))
}

/// The tail probability of the standard normal distribution below `-abs`, for `abs >= 0`, and
/// `e^(-abs^2 / 2)`.
///
/// The tail is `e^(-abs^2 / 2)` times a polynomial in `1 / (1 + c abs)`, the form of Abramowitz and
/// Stegun 7.1.26, refitted so that `abs` times the error stays below 1e-7 (most of it rounding).
#[inline(always)]
pub(crate) fn normal_tail<S: Simd>(s: S, abs: S::f32s) -> (S::f32s, S::f32s) {
    let u = s.fma(abs, s.splat_f32s(0.28), s.splat_f32s(1.0));
    let u = s.div_f32s(s.splat_f32s(1.0), u);
    let square = s.mul_f32s(abs, abs);
    let gaussian = exp2(
        s,
        s.mul_f32s(square, s.splat_f32s(-0.5 * std::f32::consts::LOG2_E)),
    );
    let p = s.splat_f32s(-0.107_032_664);
    let p = s.horner(p, u, 0.394_926_76);
    let p = s.horner(p, u, -0.245_279_98);
    let p = s.horner(p, u, 0.275_659_47);
    let p = s.horner(p, u, 0.064_767_27);
    let p = s.horner(p, u, 0.116_959_125);
    (s.mul_f32s(s.mul_f32s(p, u), gaussian), gaussian)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(s: S, x: S::f32s) -> S::f32s {
    let one = s.splat_f32s(1.0);
    s.div_f32s(one, s.add_f32s(one, exp(s, s.neg_f32s(x))))
}

/// `magnitude` (not negative) with the sign of `sign_source`.
#[inline(always)]
fn copy_sign<S: Simd>(s: S, magnitude: S::f32s, sign_source: S::f32s) -> S::f32s {
    let sign = s.and_u32s(
        s.transmute_u32s_f32s(sign_source),
        s.splat_u32s(0x8000_0000),
    );
    s.transmute_f32s_u32s(s.or_u32s(s.transmute_u32s_f32s(magnitude), sign))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::float_cmp)]

    use super::super::simd::{dispatch, for_lanes, load_part, store_part};
    use super::*;

    dispatch!(fn map(f: u8, x: &mut [f32]) => map_body);

    #[inline(always)]
    fn map_body<S: Simd>(s: S, f: u8, x: &mut [f32]) {
        let ptr = x.as_mut_ptr();
        for_lanes!(s, x.len(), |i, part| {
            // SAFETY: `i` and `part` stay within `x`.
            unsafe {
                let x = load_part(s, ptr, i, part);
                let y = match f {
                    0 => exp2(s, x),
                    1 => exp(s, x),
                    2 => tanh(s, x),
                    3 => normal_tail(s, s.abs_f32s(x)).0,
                    _ => sigmoid(s, x),
                };
                store_part(s, ptr, i, part, y);
            }
        });
    }

    /// Maximum error over `[low, high]` in ulp.
    fn max_ulp_error(f: u8, low: f32, high: f32, want: impl Fn(f64) -> f64) -> f64 {
        let x: Vec<f32> = (0..=200_000)
            .map(|i| low + (high - low) * (i as f32 / 200_000.0))
            .collect();
        let mut y = x.clone();
        map(f, &mut y);
        let error = |(x, y): (&f32, &f32)| {
            let want = want(f64::from(*x));
            let magnitude = (want.abs() as f32).max(f32::MIN_POSITIVE);
            let ulp = f64::from(f32::from_bits(magnitude.to_bits() + 1) - magnitude);
            (f64::from(*y) - want).abs() / ulp
        };
        x.iter().zip(&y).map(error).fold(0.0, f64::max)
    }

    /// `Phi(-x)` by numerical integration of the density.
    fn normal_tail_f64(x: f64) -> f64 {
        let steps = 2000;
        let h = x / f64::from(steps);
        let density = |x: f64| (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
        let inner: f64 = (1..steps)
            .map(|i| density(f64::from(i) * h) * if i % 2 == 1 { 4.0 } else { 2.0 })
            .sum();
        0.5 - h / 3.0 * (density(0.0) + inner + density(x))
    }

    #[test]
    fn functions_are_accurate_to_a_few_ulp() {
        let errors = [
            max_ulp_error(0, -125.9, 127.9, f64::exp2),
            max_ulp_error(0, -1.0, 1.0, f64::exp2),
            max_ulp_error(1, -87.3, 88.7, f64::exp),
            max_ulp_error(1, -1.0, 1.0, f64::exp),
            max_ulp_error(2, -10.0, 10.0, f64::tanh),
            max_ulp_error(2, -1.0, 1.0, f64::tanh),
        ];
        assert!(errors.iter().all(|error| *error <= 2.0), "{errors:?}");
        // The rounding of sum and quotient adds to that of the exponential.
        let error = max_ulp_error(4, -80.0, 80.0, |x| 1.0 / (1.0 + (-x).exp()));
        assert!(error <= 3.5, "{error}");
    }

    #[test]
    fn normal_tail_is_accurate_to_1e_7() {
        for i in 0..700 {
            let x = i as f32 / 100.0;
            let mut y = [x; 17];
            map(3, &mut y);
            let error = (f64::from(y[0]) - normal_tail_f64(f64::from(x))).abs();
            assert!(error * f64::from(x.max(1.0)) < 1.2e-7, "{x}: {error:e}");
        }
    }

    #[test]
    fn extreme_inputs_saturate_and_nan_propagates() {
        let evaluate = |f, x: f32| {
            let mut x = [x; 17];
            map(f, &mut x);
            assert!(x.iter().all(|y| y.to_bits() == x[0].to_bits()));
            x[0]
        };
        for f in [0, 1] {
            assert!(evaluate(f, f32::NEG_INFINITY) == 0.0 && evaluate(f, -1e4) == 0.0);
            assert!(evaluate(f, 1e4) > 1e38 && evaluate(f, 0.0) == 1.0);
        }
        assert!(evaluate(2, 1e4) == 1.0 && evaluate(2, -1e4) == -1.0);
        assert!(evaluate(3, 1e4) == 0.0 && evaluate(3, 20.0) < 1e-30);
        for f in 0..4 {
            assert!(evaluate(f, f32::NAN).is_nan(), "{f}");
        }
    }
}
