#![allow(clippy::unwrap_used, clippy::float_cmp)] // Same bits, or simple values.

use nextword_base::CounterRng;

use super::*;

/// Quantiles that scipy computed: probability, degrees of freedom, quantile.
fn reference_quantiles() -> Vec<[f64; 3]> {
    let lines = include_str!("student_quantiles.csv").lines().skip(1);
    let parse = |line: &str| {
        let fields: Vec<f64> = line.split(',').map(|f| f.parse().unwrap()).collect();
        <[f64; 3]>::try_from(fields).unwrap()
    };
    lines.map(parse).collect()
}

#[test]
fn quantiles_are_those_of_scipy() {
    let reference = reference_quantiles();
    assert_eq!(reference.len(), 66);
    for [probability, freedom, quantile] in reference {
        let found = student_t_quantile(probability, freedom);
        let error = (found / quantile - 1.0).abs();
        assert!(error < 1e-11, "{probability} {freedom}: {found} {quantile}");
        let mirrored = student_t_quantile(1.0 - probability, freedom);
        assert!(
            (mirrored + found).abs() < 1e-9 * found,
            "{probability} {freedom}"
        );
        assert!((student_t_cdf(quantile, freedom) - probability).abs() < 1e-12);
    }
}

/// Losses of an arm over `seeds`: a level, what the seeds have in common, and noise of the arm.
fn simulated_losses(rng: CounterRng, arm: u64, seeds: u64, level: f64) -> Vec<f64> {
    let common = |seed| 0.05 * rng.named("seed").normal(seed);
    let noise = |seed| 0.02 * rng.stream(arm).normal(seed);
    (0..seeds)
        .map(|seed| level + common(seed) + noise(seed))
        .collect()
}

fn differences(first: &[f64], second: &[f64]) -> Vec<f64> {
    second.iter().zip(first).map(|(b, a)| b - a).collect()
}

#[test]
fn intervals_of_equal_arms_contain_zero_in_95_percent_of_1000_sweeps() {
    for seeds in [3, 5, 10] {
        let covers = |sweep: u64| {
            let rng = CounterRng::new(seeds).stream(sweep);
            let [a, b] = [1, 2].map(|arm| simulated_losses(rng, arm, seeds, 1.5));
            mean_interval(&differences(&a, &b)).unwrap().contains(0.0)
        };
        let covered = (0..1000).filter(|sweep| covers(*sweep)).count();
        assert!((920..=980).contains(&covered), "{seeds} seeds: {covered}");
    }
}

#[test]
fn a_difference_of_0_05_nats_is_found() {
    let finds = |sweep: u64| {
        let rng = CounterRng::new(7).stream(sweep);
        let a = simulated_losses(rng, 1, 5, 1.5);
        let b = simulated_losses(rng, 2, 5, 1.45);
        mean_interval(&differences(&a, &b)).unwrap().upper < 0.0
    };
    // The interval is half as wide as the difference; without pairing it would contain 0.
    let found = (0..1000).filter(|sweep| finds(*sweep)).count();
    assert!(found > 750, "{found}");
}

#[test]
fn the_deviation_is_that_of_the_population() {
    assert_eq!(standard_deviation(&[1.0, 3.0]), Some(2f64.sqrt()));
    assert_eq!(standard_deviation(&[1.0]), None);
    assert_eq!(mean(&[]), None);
    let equal = mean_interval(&[0.5; 4]).unwrap();
    assert_eq!([equal.lower, equal.upper], [0.5, 0.5]);
}

#[test]
fn the_bootstrap_depends_on_its_seed_alone() {
    let rng = CounterRng::new(3);
    let blocks: Vec<BlockSum> = (0..50)
        .map(|i| BlockSum {
            sum: rng.normal(i),
            count: 1 + i % 3,
        })
        .collect();
    let interval = bootstrap_mean(&blocks, 500, 1).unwrap();
    assert_eq!(bootstrap_mean(&blocks, 500, 1), Some(interval));
    assert_ne!(bootstrap_mean(&blocks, 500, 2), Some(interval));
    assert!(interval.contains(interval.mean));
    assert_eq!(bootstrap_mean(&blocks[..1], 500, 1), None);
    assert_eq!(bootstrap_mean(&[BlockSum::default(); 3], 500, 1), None);
}

#[test]
fn the_bootstrap_covers_the_true_mean_in_95_percent() {
    let covers = |trial: u64| {
        let rng = CounterRng::new(11).stream(trial);
        let blocks: Vec<BlockSum> = (0..60)
            .map(|i| BlockSum {
                sum: 256.0 * (0.02 + 0.1 * rng.normal(i)),
                count: 256,
            })
            .collect();
        bootstrap_mean(&blocks, 400, trial).unwrap().contains(0.02)
    };
    let covered = (0..500).filter(|trial| covers(*trial)).count();
    assert!((455..=490).contains(&covered), "{covered}");
}

#[test]
fn a_maximum_is_nan_if_a_value_is() {
    assert!(super::max_or_nan(1.0, f64::NAN).is_nan() && super::max_or_nan(f64::NAN, 1.0).is_nan());
    assert!((super::max_or_nan(1.0, 2.0) - 2.0).abs() < f64::EPSILON);
}
