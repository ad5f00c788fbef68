#![allow(clippy::unwrap_used, clippy::float_cmp)] // Same bits, or simple values.

use std::sync::Arc;

use nextword_data::{Dataset, Packing, TokenizerConfig};
use nextword_model::{DeviceName, InitConfig, ModelConfig};

use super::*;

fn data() -> Dataset {
    let text = "the fox saw a crow. a crow saw the fox. ".repeat(200);
    Dataset::from_text(&text, &TokenizerConfig::chars()).unwrap()
}

fn model(seed: u64, std: f64, data: &Dataset) -> Transformer {
    let config = ModelConfig {
        vocab_size: data.tokenizer.vocab_size(),
        context_length: 32,
        n_layers: 1,
        n_heads: 2,
        d_model: 8,
        init: InitConfig {
            std,
            scale_output: false,
        },
        ..ModelConfig::default()
    };
    config
        .init(&DeviceName::Flex.open().unwrap(), seed)
        .unwrap()
}

fn windows(data: &Dataset, count: usize) -> EvalWindows {
    let windows = EvalWindows::new(data.train.clone(), 32, Packing::Packed, 0).unwrap();
    windows.limit(count)
}

#[test]
fn a_model_does_not_differ_from_itself() {
    let data = data();
    let model = model(1, 0.5, &data);
    let windows = windows(&data, 40);
    let comparison = compare(&model, &model, &windows, &*data.tokenizer, &mut |_| {}).unwrap();
    let difference = comparison.difference.unwrap();
    assert_eq!(
        [difference.lower, difference.mean, difference.upper],
        [0.0; 3]
    );
    assert_eq!((comparison.b_better, comparison.tokens), (0.0, 40 * 32));
    let devices = compare_devices(&model, &model, &windows, &mut |_| {}).unwrap();
    assert_eq!(
        (devices.max_logit_difference, devices.same_prediction),
        (0.0, 1.0)
    );
    assert!((devices.loss_a - comparison.a.loss).abs() < 1e-9 && devices.max_logit > 0.0);
}

#[test]
fn the_worse_model_is_found_and_passages_show_the_largest_differences() {
    let data = data();
    let (plain, wild) = (model(1, 0.02, &data), model(2, 1.0, &data));
    let windows = windows(&data, 40);
    let tokenizer = Arc::clone(&data.tokenizer);
    let mut done = 0;
    let comparison = compare(&plain, &wild, &windows, &*tokenizer, &mut |n| done = n).unwrap();
    assert_eq!(done, 80);
    let difference = comparison.difference.unwrap();
    assert!(difference.lower > 0.1, "{difference:?}");
    assert!((difference.mean - (comparison.b.loss - comparison.a.loss)).abs() < 1e-9);
    // Random large weights are overconfident.
    assert!(comparison.b.calibration.error > comparison.a.calibration.error);
    let sizes: Vec<f64> = comparison
        .passages
        .iter()
        .map(|passage| {
            let token = &passage.tokens[passage.token];
            (token.b - token.a).abs()
        })
        .collect();
    assert!(
        sizes.is_sorted_by(|a, b| a >= b) && sizes[0] > 1.0,
        "{sizes:?}"
    );
    let text: String = comparison.passages[0]
        .tokens
        .iter()
        .map(|t| t.text.as_str())
        .collect();
    assert!(
        "the fox saw a crow. a crow saw the fox. "
            .repeat(9)
            .contains(&text),
        "{text}"
    );
}
