//! Which parameters get a gradient, and which values.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Gradients;

use super::*;
use crate::{Dropout, LowRank, TargetModule, TargetModules};

/// The gradients in `gradients` by parameter path.
struct Collector<'a> {
    path: Vec<String>,
    gradients: &'a Gradients,
    found: BTreeMap<String, Vec<f32>>,
}

impl ModuleVisitor for Collector<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = param.val().grad(self.gradients) {
            let values = gradient.into_data().try_to_vec().unwrap();
            self.found.insert(self.path.join("."), values);
        }
    }
}

fn collect(model: &Transformer, gradients: &Gradients) -> BTreeMap<String, Vec<f32>> {
    let mut collector = Collector {
        path: Vec::new(),
        gradients,
        found: BTreeMap::new(),
    };
    model.visit(&mut collector);
    collector.found
}

fn dropout() -> Dropout {
    Dropout::training(1, 2, 0)
}

/// The loss and the gradients of one step.
fn step(model: &Transformer) -> (f32, BTreeMap<String, Vec<f32>>) {
    let (tokens, targets) = tokens();
    let loss = model.loss_sum(tokens, &targets, &mut ForwardContext::training(dropout())) / 16.0;
    let gradients = loss.backward();
    (loss.into_scalar(), collect(model, &gradients))
}

/// The same with recomputation, and the number of times that gradients were passed on.
fn step_with_recompute(model: &Transformer) -> (f32, BTreeMap<String, Vec<f32>>, usize) {
    let (tokens, targets) = tokens();
    let (mut sums, mut calls) = (BTreeMap::<String, Vec<f32>>::new(), 0);
    let context = || ForwardContext::training(dropout());
    let loss = model.loss_with_recompute(tokens, &targets, 16.0, context, |gradients| {
        calls += 1;
        for (name, gradient) in collect(model, &gradients) {
            let sum = sums
                .entry(name)
                .or_insert_with(|| vec![0.0; gradient.len()]);
            sum.iter_mut()
                .zip(gradient)
                .for_each(|(sum, value)| *sum += value);
        }
    });
    (loss.into_scalar(), sums, calls)
}

fn adapted(config: &ModelConfig, bits: Option<Bits>, lora: &LoraConfig) -> Transformer {
    let base = build(config, bits);
    let adapter = trained(&base, lora);
    base.with_adapter(&adapter).unwrap().train()
}

#[test]
fn only_the_adapter_gets_gradients() {
    for bits in [None, Some(Bits::Int8), Some(Bits::Int4)] {
        for config in [llama(), gpt2()] {
            let (_, gradients) = step(&adapted(&config, bits, &lora(4)));
            let modules = lora(4).modules(&config).unwrap();
            assert_eq!(gradients.len(), 2 * modules.len());
            for (name, [d_in, d_out]) in modules {
                let [a, b] = ["a", "b"].map(|part| &gradients[&format!("{name}.lora.{part}")]);
                assert_eq!((a.len(), b.len()), (d_in * 4, 4 * d_out));
                let is_used = |values: &[f32]| values.iter().any(|value| *value != 0.0);
                assert!(is_used(a) && is_used(b), "{name}, {bits:?}");
            }
        }
    }
}

#[test]
fn full_copies_get_gradients_too() {
    let modules_to_save = vec![
        "head".to_string(),
        "norms".to_string(),
        "token_embedding".to_string(),
    ];
    for bits in [None, Some(Bits::Int8)] {
        let config = LoraConfig {
            modules_to_save: modules_to_save.clone(),
            ..lora(4)
        };
        let (_, gradients) = step(&adapted(&llama(), bits, &config));
        for (name, _) in config.saved_parameters(&llama()).unwrap() {
            assert!(gradients[&name].iter().any(|value| *value != 0.0), "{name}");
        }
        assert_eq!(gradients.len(), 2 * 21 + 9);
    }
}

#[test]
fn frozen_parameters_stay_frozen_after_validation() {
    let model = adapted(&llama(), None, &lora(4));
    let again = model.valid().train();
    assert_eq!(step(&again).1.len(), 2 * 21);
    let base = again.without_adapter();
    assert_eq!(step(&base).1.len(), crate::weights::layout(&llama()).len());
}

/// The mean loss, with the logits' softmax in f64.
fn loss_of(model: &Transformer) -> f64 {
    let (_, targets) = tokens();
    let logits = logits(model);
    let counted = logits.chunks(41).zip(targets);
    let counted = counted.filter(|(_, target)| *target != crate::IGNORE);
    let of_row = |(row, target): (&[f32], u32)| {
        let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
        sum.ln() - f64::from(row[target as usize])
    };
    counted.map(of_row).sum::<f64>() / 16.0
}

/// Compares the largest elements of a gradient with differences of the loss.
fn check_gradient(config: &LoraConfig, part: &str, values: fn(&mut LowRank) -> &mut [f32]) {
    let base = build(&llama(), None);
    let adapter = trained(&base, config);
    let (_, gradients) = step(&base.clone().with_adapter(&adapter).unwrap().train());
    for name in [
        "blocks.0.attention.key",
        "blocks.1.feed_forward.down",
        "blocks.2.attention.output",
    ] {
        let gradient = &gradients[&format!("{name}.lora.{part}")];
        let mut order: Vec<usize> = (0..gradient.len()).collect();
        order.sort_by(|i, j| gradient[*j].abs().total_cmp(&gradient[*i].abs()));
        for i in order.into_iter().take(3) {
            let h = 0.01;
            let moved = |by: f32| {
                let mut adapter = adapter.clone();
                values(adapter.modules.get_mut(name).unwrap())[i] += by;
                loss_of(&base.clone().with_adapter(&adapter).unwrap())
            };
            let slope = (moved(h) - moved(-h)) / (2.0 * f64::from(h));
            let error = (slope - f64::from(gradient[i])).abs();
            let limit = 0.02 * slope.abs() + 5e-5;
            assert!(error < limit, "{name}.{part}: {} and {slope}", gradient[i]);
        }
    }
}

#[test]
fn gradients_equal_finite_differences() {
    check_gradient(&lora(4), "a", |module| &mut module.a);
    check_gradient(&lora(4), "b", |module| &mut module.b);
    let dora = LoraConfig {
        use_dora: true,
        ..lora(4)
    };
    // Those of A and B treat the norms as constants, unlike the loss.
    check_gradient(&dora, "magnitude", |module| {
        module.magnitude.as_deref_mut().unwrap_or_default()
    });
}

#[test]
fn recomputation_gives_the_same_bits_and_stops_at_the_lowest_trained_part() {
    let upper = LoraConfig {
        layers: Some([1, 2]),
        dropout: 0.2,
        ..lora(4)
    };
    let last = LoraConfig {
        layers: Some([2, 2]),
        target_modules: TargetModules::List(vec![TargetModule::Down]),
        ..lora(4)
    };
    let embedding = LoraConfig {
        modules_to_save: vec!["token_embedding".to_string()],
        ..lora(4)
    };
    // The output layer, then each block down to the lowest trained one, then the embedding.
    for (config, expected_calls) in [(lora(4), 4), (upper, 3), (last, 2), (embedding, 5)] {
        for bits in [None, Some(Bits::Int8), Some(Bits::Int4)] {
            for base in [llama(), gpt2()] {
                let model = adapted(&base, bits, &config);
                let (loss, gradients) = step(&model);
                let (other_loss, other, calls) = step_with_recompute(&model);
                assert_eq!(loss.to_bits(), other_loss.to_bits());
                assert_eq!(calls, expected_calls, "{config:?}");
                assert!(gradients.keys().eq(other.keys()));
                for (name, gradient) in &gradients {
                    // A tied embedding is summed in another order.
                    let is_tied = name == "token_embedding.weight";
                    let near = largest_difference(gradient, &other[name]) < 1e-6;
                    let same = bits_of(gradient) == bits_of(&other[name]);
                    assert!(same || is_tied && near, "{name}, {bits:?}, {config:?}");
                }
            }
        }
    }
}

#[test]
fn the_dropout_of_an_adapter_does_not_depend_on_the_micro_batch() {
    let config = LoraConfig {
        dropout: 0.5,
        ..lora(4)
    };
    let model = adapted(&llama(), None, &config).valid();
    let (tokens, _) = tokens();
    let run = |tokens: Tensor<2, Int>, first: usize| -> Vec<f32> {
        let mut ctx = ForwardContext::training(Dropout::training(1, 2, first));
        model
            .forward(tokens, &mut ctx)
            .into_data()
            .try_to_vec()
            .unwrap()
    };
    let whole = run(tokens.clone(), 0);
    let rows = [0, 1].map(|row| run(tokens.clone().narrow(0, row, 1), row));
    assert_eq!(bits_of(&rows.concat()), bits_of(&whole));
    assert_ne!(logits(&model), whole);
}

#[test]
fn gradients_through_a_quantized_base_are_those_of_its_values() {
    for bits in [Bits::Int8, Bits::Int4] {
        let quantized = build(&llama(), Some(bits));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dequantized");
        let values: BTreeMap<String, TensorData> = quantized.dequantized().collect();
        let params = crate::weights::param_readers(&quantized);
        let layout = crate::weights::layout(&llama());
        crate::weights::write_tensors(&path, crate::weights::FloatType::F32, &layout, |name| {
            let data = values
                .get(name)
                .cloned()
                .unwrap_or_else(|| params[name].read());
            Ok::<_, crate::ModelError>(crate::weights::to_f32_vec(data))
        })
        .unwrap();
        let float = crate::weights::load(&llama(), &path, &Device::flex()).unwrap();
        let adapter = trained(&quantized, &lora(4));
        let run = |base: Transformer| step(&base.with_adapter(&adapter).unwrap().train());
        let ((loss, gradients), (float_loss, float_gradients)) = (run(quantized), run(float));
        assert!((loss - float_loss).abs() < 1e-4);
        for (name, gradient) in &gradients {
            let expected = &float_gradients[name];
            let size = expected.iter().map(|value| value.abs()).fold(0.0, f32::max);
            let difference = largest_difference(gradient, expected);
            assert!(
                difference < 2e-3 * size + 1e-6,
                "{name}, {bits:?}: {difference} of {size}"
            );
        }
    }
}
