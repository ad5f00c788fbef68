//! Softmax cross-entropy.
#![allow(
    clippy::float_cmp,
    clippy::many_single_char_names,
    clippy::needless_for_each
)]

use crate::IGNORE;
use crate::cpu::cross_entropy::{RowLosses, Task, forward, forward_backward_in_place};
use crate::cpu::testing::{Rng, assert_close, assert_same_for_any_threads, check_gradient, to_f64};

/// Returns the loss and its gradient.
fn reference(x: &[f64], vocab: usize, targets: &[u32], cap: Option<f64>) -> (f64, Vec<f64>) {
    let mut total = 0.0;
    let mut grad = vec![0.0; x.len()];
    for (r, target) in targets.iter().enumerate().filter(|(_, t)| **t != IGNORE) {
        let raw = &x[r * vocab..][..vocab];
        let y: Vec<f64> = raw
            .iter()
            .map(|x| cap.map_or(*x, |c| c * (x / c).tanh()))
            .collect();
        let max_logit = y.iter().copied().fold(f64::MIN, f64::max);
        let lse = max_logit + y.iter().map(|y| (y - max_logit).exp()).sum::<f64>().ln();
        total += lse - y[*target as usize];
        for i in 0..vocab {
            let one_hot = f64::from(u8::from(i == *target as usize));
            let derivative = cap.map_or(1.0, |c| 1.0 - (y[i] / c).powi(2));
            grad[r * vocab + i] = ((y[i] - lse).exp() - one_hot) * derivative;
        }
    }
    (total, grad)
}

struct Case {
    vocab: usize,
    logits: Vec<f32>,
    targets: Vec<u32>,
    cap: Option<f32>,
}

impl Case {
    fn random(rng: &mut Rng, rows: usize, vocab: usize) -> Self {
        Self {
            vocab,
            logits: rng.floats(rows * vocab).iter().map(|x| x * 5.0).collect(),
            targets: (0..rows)
                .map(|_| {
                    if rng.below(5) == 0 {
                        IGNORE
                    } else {
                        rng.below(vocab) as u32
                    }
                })
                .collect(),
            cap: rng.pick(&[None, Some(4.0)]),
        }
    }

    fn task(&self) -> Task<'_> {
        Task {
            vocab: self.vocab,
            targets: &self.targets,
            soft_cap: self.cap,
        }
    }

    /// Returns loss, gradient, row losses and row log-sum-exps.
    fn run(&self, scale: f32) -> (f64, [Vec<f32>; 3]) {
        let rows = self.targets.len();
        let [mut loss, mut lse] = [(); 2].map(|()| vec![f32::NAN; rows]);
        let losses = RowLosses {
            loss: &mut loss,
            lse: &mut lse,
        };
        let mut grad = self.logits.clone();
        let total = forward_backward_in_place(&self.task(), &mut grad, scale, losses);
        (total, [grad, loss, lse])
    }
}

#[test]
fn matches_f64() {
    let mut rng = Rng(1);
    for (rows, vocab) in [
        (0, 5),
        (1, 1),
        (1, 2),
        (4, 15),
        (9, 33),
        (30, 500),
        (5, 9001),
    ] {
        for _ in 0..4 {
            let case = Case::random(&mut rng, rows, vocab);
            let (want, mut want_grad) = reference(
                &to_f64(&case.logits),
                vocab,
                &case.targets,
                case.cap.map(f64::from),
            );
            let (total, [grad, ..]) = case.run(0.25);
            assert_close(&[total as f32], &[want], 1e-5, "loss");
            want_grad.iter_mut().for_each(|g| *g *= 0.25);
            assert_close(&grad, &want_grad, 1e-6, "gradient");
            let [mut a, mut b] = [(); 2].map(|()| vec![0.0; rows]);
            let only = forward(
                &case.task(),
                &case.logits,
                RowLosses {
                    loss: &mut a,
                    lse: &mut b,
                },
            );
            assert_close(&[only as f32], &[total], 1e-6, "forward alone");
        }
    }
}

#[test]
fn reference_gradient_matches_finite_differences() {
    let mut rng = Rng(2);
    for _ in 0..4 {
        let case = Case::random(&mut rng, 4, 9);
        let x = to_f64(&case.logits);
        let cap = case.cap.map(f64::from);
        let (_, grad) = reference(&x, 9, &case.targets, cap);
        check_gradient(
            &mut rng,
            &x,
            &grad,
            |x| reference(x, 9, &case.targets, cap).0,
            "logits",
        );
    }
}

#[test]
fn huge_logits_stay_finite_and_nan_propagates() {
    let mut case = Case {
        vocab: 40,
        logits: vec![0.0; 40],
        targets: vec![3],
        cap: None,
    };
    case.logits[3] = -3e38;
    case.logits[5] = 3e38;
    let (total, [grad, ..]) = case.run(1.0);
    assert!(total > 1e38 && grad.iter().all(|g| g.is_finite()));
    case.logits[7] = f32::NAN;
    assert!(case.run(1.0).0.is_nan());
}

#[test]
fn results_are_identical_for_any_thread_count() {
    let mut rng = Rng(3);
    let case = Case::random(&mut rng, 64, 3001);
    assert_same_for_any_threads(|| {
        let (total, parts) = case.run(0.1);
        [parts.concat(), vec![total as f32]].concat()
    });
}
