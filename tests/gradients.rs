//! Gradients against finite differences, the causal mask, gradient accumulation.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, FloatDType, Int, Tensor, TensorData};
use nextword_data::TokenBatch;
use nextword_model::{
    CounterRng, DropoutConfig, FeedForwardKind, ForwardContext, InitConfig, ModelConfig, NormKind,
    NormPlacement, Position, Precision, Probe, RotaryConfig, RotaryScaling, Site, Transformer,
    weights,
};
use nextword_train::forward_backward;

use crate::util::{Tolerance, assert_close, batch, flex};

const VOCAB: usize = 11;

/// Small models that together use every option of an architecture.
#[allow(clippy::too_many_lines)] // A list.
pub(crate) fn architectures() -> Vec<(&'static str, ModelConfig)> {
    let base = ModelConfig {
        vocab_size: VOCAB,
        context_length: 8,
        n_layers: 2,
        n_heads: 2,
        d_model: 8,
        init: InitConfig {
            std: 0.3,
            scale_output: true,
        },
        ..ModelConfig::default()
    };
    let rotary = |scaling| ModelConfig {
        position: Position::Rotary,
        rotary: RotaryConfig {
            scaling,
            ..RotaryConfig::default()
        },
        ..base.clone()
    };
    let with = |feed_forward| ModelConfig {
        feed_forward,
        ..base.clone()
    };
    vec![
        ("learned, layer norm, gelu", base.clone()),
        ("tanh gelu", with(FeedForwardKind::GeluTanh)),
        ("relu", with(FeedForwardKind::Relu)),
        ("squared relu", with(FeedForwardKind::ReluSquared)),
        ("silu", with(FeedForwardKind::Silu)),
        ("geglu", with(FeedForwardKind::Geglu)),
        (
            "grouped heads, rms, swiglu, qk norm, soft cap, untied",
            ModelConfig {
                n_heads: 4,
                n_kv_heads: Some(2),
                head_dim: Some(6),
                norm: NormKind::Rms,
                feed_forward: FeedForwardKind::Swiglu,
                qk_norm: true,
                logit_soft_cap: Some(3.0),
                tied_head: false,
                ..rotary(RotaryScaling::Linear { factor: 2.0 })
            },
        ),
        (
            "alibi, windows, one key head, norm after",
            ModelConfig {
                position: Position::Alibi,
                windows: vec![3, 0],
                n_kv_heads: Some(1),
                norm_placement: NormPlacement::Post,
                ..base.clone()
            },
        ),
        (
            "sandwich norms with unit offset, score cap and width, scaled embedding, two bases",
            ModelConfig {
                norm: NormKind::Rms,
                norm_placement: NormPlacement::Sandwich,
                norm_unit_offset: true,
                qk_norm: true,
                embedding_scale: Some(1.7),
                score_width: Some(3.0),
                score_soft_cap: Some(1.5),
                feed_forward: FeedForwardKind::GegluTanh,
                windows: vec![3, 0],
                rotary: RotaryConfig {
                    base: 500.0,
                    local_base: Some(7.0),
                    ..RotaryConfig::default()
                },
                ..rotary(RotaryScaling::None)
            },
        ),
        (
            "yarn",
            rotary(RotaryScaling::Yarn {
                factor: 2.0,
                original_context_length: 4,
                beta_fast: 1.0,
                beta_slow: 0.2,
                attention_factor: 1.3,
                truncate: true,
            }),
        ),
        (
            "parallel sublayers, RoPE on part of each head",
            ModelConfig {
                parallel: true,
                rotary: RotaryConfig {
                    width: Some(2),
                    ..RotaryConfig::default()
                },
                ..rotary(RotaryScaling::None)
            },
        ),
        (
            "dropout, no position, no residual",
            ModelConfig {
                position: Position::None,
                residual: false,
                dropout: DropoutConfig {
                    embedding: 0.1,
                    attention: 0.2,
                    residual: 0.1,
                },
                ..base
            },
        ),
        (
            "statquest",
            ModelConfig {
                context_length: 8,
                ..nextword_model::presets::statquest(VOCAB)
            },
        ),
    ]
}

/// Adds `amount` to element `index` of the parameter `name`, after casting everything to f64.
struct Perturb<'a> {
    name: &'a str,
    index: usize,
    amount: f64,
    path: Vec<String>,
}

impl ModuleMapper for Perturb<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let is_target = self.path.join(".") == self.name;
        param.map(|tensor| {
            let tensor = tensor.cast(FloatDType::F64);
            if !is_target {
                return tensor;
            }
            let (shape, device) = (tensor.dims(), tensor.device());
            let mut values = tensor.into_data().try_into_vec::<f64>().unwrap();
            values[self.index] += self.amount;
            Tensor::from_data(TensorData::new(values, shape), (&device, DType::F64))
        })
    }
}

/// An f64 copy of `model` with one element changed.
fn perturbed(model: &Transformer, name: &str, index: usize, amount: f64) -> Transformer {
    let mut mapper = Perturb {
        name,
        index,
        amount,
        path: Vec::new(),
    };
    model.clone().map(&mut mapper)
}

fn loss(model: &Transformer, batch: &TokenBatch) -> f64 {
    let (loss, _) = forward_backward(
        &model.clone().train(),
        std::slice::from_ref(batch),
        5,
        2,
        false,
    );
    loss.into_data().try_into_vec::<f64>().unwrap()[0]
}

#[test]
fn gradients_match_finite_differences_in_f64() {
    const STEP: f64 = 1e-5;
    for (label, config) in architectures() {
        let model = config.init(&flex(), 9).unwrap();
        let batch = batch(2, 7, VOCAB, 4);
        let exact = perturbed(&model, "", 0, 0.0).train();
        let (_, gradients) = forward_backward(&exact, std::slice::from_ref(&batch), 5, 2, false);
        let gradients: BTreeMap<String, Vec<f64>> = gradients
            .iter()
            .map(|(name, g)| (name.to_string(), g.to_data().try_into_vec().unwrap()))
            .collect();
        assert_eq!(gradients.len(), weights::layout(&config).len(), "{label}");
        let rng = CounterRng::new(17).named(label);
        for (number, (name, gradient)) in gradients.iter().enumerate() {
            for sample in 0..3 {
                let index = rng.at(3 * number as u64 + sample) as usize % gradient.len();
                let up = loss(&perturbed(&model, name, index, STEP), &batch);
                let down = loss(&perturbed(&model, name, index, -STEP), &batch);
                let (found, slope) = (gradient[index], (up - down) / (2.0 * STEP));
                assert!(
                    (found - slope).abs() <= 1e-6 + 1e-5 * slope.abs(),
                    "{label}: {name}[{index}]: gradient {found}, slope {slope}"
                );
            }
        }
    }
}

/// Loss and gradients by name.
fn trained(model: Transformer) -> Vec<(String, Vec<f32>)> {
    let model = model.train();
    let batches = [batch(3, 8, VOCAB, 4), batch(2, 5, VOCAB, 6)];
    let (loss, gradients) = forward_backward(&model, &batches, 5, 2, false);
    let loss = ("loss".to_string(), weights::to_f32_vec(loss.into_data()));
    let gradients = gradients.iter();
    let gradients = gradients.map(|(name, g)| (name.to_string(), weights::to_f32_vec(g.to_data())));
    std::iter::once(loss).chain(gradients).collect()
}

/// Tolerance of each element between fused and reference gradients in f32.
/// Where gradients almost cancel, as for queries and keys, f32 itself has an error of 1e-4.
const FUSED: Tolerance = Tolerance::new(3e-4, 3e-4);

/// In f32 flex runs the fused operations, in f64 the reference.
#[test]
fn fused_operations_match_the_reference_everywhere() {
    for (label, config) in architectures() {
        let model = config.init(&flex(), 9).unwrap();
        let plain = trained(perturbed(&model, "", 0, 0.0));
        let fused = trained(model);
        assert_eq!(fused.len(), plain.len());
        for ((name, a), (_, b)) in fused.iter().zip(&plain) {
            assert_close(a, b, FUSED, &format!("{label}: {name}"));
        }
    }
}

/// Records every hook and saves the logits.
struct RecordingProbe {
    sites: Vec<String>,
    logits: Vec<f32>,
}

impl Probe for RecordingProbe {
    fn record<const D: usize>(&mut self, site: Site, tensor: &Tensor<D>) {
        self.sites.push(site.to_string());
        self.logits = weights::to_f32_vec(tensor.to_data());
    }
}

#[test]
fn a_probe_changes_no_value() {
    for (label, config) in architectures() {
        let model = config.init(&flex(), 3).unwrap();
        let ids: Vec<u32> = (0..8).map(|i| (i * 5 + 1) % VOCAB as u32).collect();
        let mut probe = RecordingProbe {
            sites: Vec::new(),
            logits: Vec::new(),
        };
        let data = TensorData::new(ids.iter().map(|id| id.cast_signed()).collect(), [1, 8]);
        let tokens = Tensor::<2, Int>::from_data(data, &model.device());
        model.forward(tokens, &mut ForwardContext::with_probe(&mut probe));
        assert_close(
            &probe.logits,
            &logits(&model, &ids),
            Tolerance::new(1e-5, 1e-5),
            label,
        );
        let pattern = "blocks.0.attn.hook_pattern".to_string();
        assert!(probe.sites.contains(&pattern), "{label}: {:?}", probe.sites);
    }
}

fn logits(model: &Transformer, ids: &[u32]) -> Vec<f32> {
    let ids: Vec<i32> = ids.iter().map(|id| id.cast_signed()).collect();
    let data = TensorData::new(ids.clone(), [1, ids.len()]);
    let tokens = Tensor::<2, Int>::from_data(data, &model.device());
    weights::to_f32_vec(
        model
            .forward(tokens, &mut ForwardContext::inference())
            .into_data(),
    )
}

#[test]
fn the_causal_mask_hides_later_tokens() {
    for (label, config) in architectures() {
        let model = config.init(&flex(), 3).unwrap();
        let ids: Vec<u32> = (0..8).map(|i| (i * 5 + 1) % VOCAB as u32).collect();
        let before = logits(&model, &ids);
        for changed in 1..8 {
            let mut other = ids.clone();
            other[changed] = (other[changed] + 1) % VOCAB as u32;
            let after = logits(&model, &other);
            let past = changed * VOCAB;
            assert_eq!(
                before[..past],
                after[..past],
                "{label}: token {changed} affects earlier positions"
            );
            assert_ne!(
                before[past..],
                after[past..],
                "{label}: token {changed} has no effect"
            );
        }
    }
}

#[test]
fn a_sliding_window_hides_earlier_tokens() {
    let config = ModelConfig {
        n_layers: 1,
        windows: vec![3],
        ..architectures()[0].1.clone()
    };
    let model = config.init(&flex(), 3).unwrap();
    let ids: Vec<u32> = (0..8).collect();
    let mut other = ids.clone();
    other[2] = 9;
    let (before, after) = (logits(&model, &ids), logits(&model, &other));
    let at = |logits: &[f32], position: usize| logits[position * VOCAB..][..VOCAB].to_vec();
    assert_ne!(
        at(&before, 4),
        at(&after, 4),
        "position 4 attends to 2, 3 and 4"
    );
    assert_eq!(
        at(&before, 5),
        at(&after, 5),
        "position 5 attends to 3, 4 and 5"
    );
}

#[test]
fn gradient_accumulation_equals_one_large_batch() {
    for (label, config) in architectures() {
        let model = config.init(&flex(), 3).unwrap().train();
        let full = batch(6, 8, VOCAB, 1);
        // Micro-batches of unequal size with different numbers of targets that count.
        let parts: Vec<TokenBatch> = [0..1, 1..3, 3..6]
            .into_iter()
            .map(|rows| TokenBatch {
                batch: rows.len(),
                seq: 8,
                inputs: full.inputs[rows.start * 8..rows.end * 8].to_vec(),
                targets: full.targets[rows.start * 8..rows.end * 8].to_vec(),
                ..TokenBatch::default()
            })
            .collect();
        let (full_loss, full_gradients) = forward_backward(&model, &[full], 5, 2, false);
        let (accumulated_loss, accumulated) = forward_backward(&model, &parts, 5, 2, false);
        let to_f32_vec = |tensor: Tensor<1>| weights::to_f32_vec(tensor.into_data());
        assert_close(
            &to_f32_vec(accumulated_loss),
            &to_f32_vec(full_loss),
            Tolerance::new(1e-6, 1e-6),
            label,
        );
        for ((name, a), (_, b)) in accumulated.iter().zip(full_gradients.iter()) {
            let (a, b) = (to_f32_vec(a.clone()), to_f32_vec(b.clone()));
            assert_close(
                &a,
                &b,
                Tolerance::new(2e-5, 2e-5),
                &format!("{label}: {name}"),
            );
        }
    }
}

#[test]
fn recomputed_activations_give_the_same_bits() {
    for (label, config) in architectures() {
        let model = config.init(&flex(), 3).unwrap().train();
        let batches = [batch(2, 8, VOCAB, 1), batch(3, 8, VOCAB, 2)];
        let (saved_loss, saved) = forward_backward(&model, &batches, 5, 2, false);
        let (loss, recomputed) = forward_backward(&model, &batches, 5, 2, true);
        let to_f32_vec = |tensor: Tensor<1>| weights::to_f32_vec(tensor.into_data());
        assert_eq!(to_f32_vec(loss), to_f32_vec(saved_loss), "{label}");
        assert_eq!(recomputed.iter().count(), weights::layout(&config).len());
        for ((name, a), (_, b)) in recomputed.iter().zip(saved.iter()) {
            let (a, b) = (to_f32_vec(a.clone()), to_f32_vec(b.clone()));
            assert_eq!(a, b, "{label}: {name}");
        }
    }
}

/// bf16 has 8 bits of mantissa: products differ by a few thousandths at most.
#[test]
fn bf16_products_are_close_to_f32_but_rounded() {
    for (label, config) in architectures() {
        let model = config.init(&flex(), 3).unwrap().train();
        let batches = [batch(2, 8, VOCAB, 1)];
        let (exact_loss, exact) = forward_backward(&model, &batches, 5, 2, false);
        let bf16 = model.with_precision(Precision::Bf16).unwrap();
        let (loss, gradients) = forward_backward(&bf16, &batches, 5, 2, false);
        let to_f32_vec = |tensor: Tensor<1>| weights::to_f32_vec(tensor.into_data());
        let (loss, exact_loss) = (to_f32_vec(loss)[0], to_f32_vec(exact_loss)[0]);
        assert_ne!(loss.to_bits(), exact_loss.to_bits(), "{label}");
        assert!(
            (loss - exact_loss).abs() < 0.02 * exact_loss,
            "{label}: {loss} {exact_loss}"
        );
        let (mut difference, mut length) = (0.0, 0.0);
        for ((_, a), (_, b)) in gradients.iter().zip(exact.iter()) {
            for (a, b) in to_f32_vec(a.clone()).into_iter().zip(to_f32_vec(b.clone())) {
                difference += (a - b).powi(2);
                length += b.powi(2);
            }
        }
        assert!(
            difference.sqrt() < 0.1 * length.sqrt(),
            "{label}: {difference} of {length}"
        );
        let (restored, _) = forward_backward(&bf16.in_f32(), &batches, 5, 2, false);
        assert_eq!(
            to_f32_vec(restored)[0].to_bits(),
            exact_loss.to_bits(),
            "{label}"
        );
    }
}
