#![allow(clippy::unwrap_used)]

use burn::module::Module;
use burn::tensor::Device;
use nextword_model::{DropoutConfig, ModelConfig, NormKind, Position, Precision, presets, weights};

use super::*;

/// Models with other parts, whose parameters are used once or twice.
fn models() -> Vec<(&'static str, ModelConfig)> {
    let gpt2 = ModelConfig {
        vocab_size: 19,
        context_length: 8,
        n_layers: 3,
        n_heads: 2,
        d_model: 16,
        dropout: DropoutConfig {
            embedding: 0.1,
            attention: 0.1,
            residual: 0.1,
        },
        ..presets::gpt2(2, 2, 16)
    };
    let rotary = ModelConfig {
        position: Position::Rotary,
        norm: NormKind::Rms,
        tied_head: false,
        n_kv_heads: Some(1),
        ..gpt2.clone()
    };
    vec![
        ("gpt2", gpt2.clone()),
        ("rotary", rotary),
        ("statquest", presets::statquest(19)),
        (
            "soft cap",
            ModelConfig {
                score_soft_cap: Some(20.0),
                ..gpt2
            },
        ),
    ]
}

fn batch(rows: usize, seed: u32) -> TokenBatch {
    let id = |i: usize| (i as u32 * 7 + seed * 5 + 3) % 19;
    TokenBatch {
        batch: rows,
        seq: 4,
        inputs: (0..rows * 4).map(id).collect(),
        targets: (0..rows * 4).map(|i| id(i + 1)).collect(),
        ..TokenBatch::default()
    }
}

#[test]
fn gradients_that_are_sent_during_the_backward_pass_have_the_same_bits() {
    let batches: Vec<TokenBatch> = (0..5).map(|i| batch(1 + i as usize % 2, i)).collect();
    for (label, config) in models() {
        let model = config.init(&Device::flex(), 3).unwrap().train();
        for precision in [Precision::F32, Precision::Bf16] {
            let model = model.clone().with_precision(precision).unwrap();
            for (count, lane_len) in [(1, 1), (4, 1), (5, 5), (4, 2)] {
                for recompute in [false, true] {
                    let part = StepPart {
                        first_sequence: 3,
                        target_count: 40,
                        lane_len,
                    };
                    let batches = &batches[..count];
                    let (expected_loss, expected) =
                        part_gradients(&model, batches, &part, 5, 2, recompute);
                    let mut sent = Vec::new();
                    let loss = send_part_gradients(
                        &model,
                        batches,
                        &part,
                        (5, 2),
                        recompute,
                        |name, sum| {
                            sent.push((name, weights::to_f32_vec(sum.into_data())));
                            Ok(())
                        },
                    )
                    .unwrap();
                    let losses = [loss, expected_loss].map(Tensor::into_scalar::<f32>);
                    assert_eq!(losses[0].to_bits(), losses[1].to_bits(), "{label}");
                    if model.supports_loss_in_parts() {
                        check_order(&sent, &config);
                    }
                    sent.sort_by(|a, b| a.0.cmp(&b.0));
                    let expected = expected.into_map().into_iter();
                    let expected: Vec<_> = expected
                        .map(|(name, sum)| (name, weights::to_f32_vec(sum.into_data())))
                        .collect();
                    assert!(
                        sent == expected,
                        "{label}, {precision:?}, {count} in {lane_len}"
                    );
                }
            }
        }
    }
}

/// Checks that the last block is sent first, and the token embedding last.
fn check_order(sent: &[(String, Vec<f32>)], config: &ModelConfig) {
    let position = |prefix: &str| sent.iter().position(|(name, _)| name.starts_with(prefix));
    for layer in 1..config.n_layers {
        let [lower, upper] = [layer - 1, layer].map(|layer| position(&format!("blocks.{layer}.")));
        assert!(upper.unwrap() < lower.unwrap());
    }
    assert!(position("blocks.0.").unwrap() < position("token_embedding.").unwrap());
}
