//! Compares the time of a training step of an adapter with that of all weights, forward and backward pass, on a model
//! of ten million parameters: `cargo run --release -p nextword-model --example lora_step`.

use std::time::Instant;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use nextword_model::{
    Bits, CounterRng, Dropout, ForwardContext, LoraConfig, ModelError, NoProbe, Transformer,
    presets,
};

const ROUNDS: usize = 5;
const BATCH: usize = 4;
const SEQ: usize = 256;

/// Seconds of a forward and a backward pass.
fn step(model: &Transformer) -> f64 {
    let rng = CounterRng::new(1);
    let ids = (0..(BATCH * SEQ) as u64).map(|i| rng.below(i, 65) as i32);
    let ids = TensorData::new(ids.collect::<Vec<_>>(), [BATCH, SEQ]);
    let tokens = Tensor::<2, Int>::from_data(ids, &Device::flex());
    let targets: Vec<u32> = (0..(BATCH * SEQ) as u64)
        .map(|i| rng.below(i + 1, 65) as u32)
        .collect();
    let start = Instant::now();
    let ctx = &mut ForwardContext::<NoProbe>::training(Dropout::Off);
    let gradients = model.loss_sum(tokens, &targets, ctx).backward();
    let seconds = start.elapsed().as_secs_f64();
    drop(gradients);
    seconds
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

#[allow(clippy::print_stdout)]
fn main() -> Result<(), ModelError> {
    let base = presets::shakespeare_char(65).init(&Device::flex(), 1)?;
    let config = LoraConfig::default();
    let adapted =
        |model: Transformer| Ok::<_, ModelError>(model.with_new_adapter(&config, 1)?.train());
    let models = [
        ("all weights", base.clone().train()),
        ("adapter", adapted(base.clone())?),
        (
            "adapter, 8 bits",
            adapted(base.clone().quantize(Bits::Int8))?,
        ),
        ("adapter, 4 bits", adapted(base.quantize(Bits::Int4))?),
    ];
    let mut seconds = vec![Vec::new(); models.len()];
    for round in 0..=ROUNDS {
        for ((_, model), seconds) in models.iter().zip(&mut seconds) {
            let time = step(model);
            if round > 0 {
                seconds.push(time);
            }
        }
    }
    let all_weights = seconds[0].clone();
    for ((name, _), seconds) in models.iter().zip(seconds) {
        // Within a round, so that other work on the machine affects both.
        let ratios = seconds
            .iter()
            .zip(&all_weights)
            .map(|(part, all)| part / all);
        let ratio = median(ratios.collect());
        println!(
            "{name}: {:.3} s, {ratio:.2} of all weights",
            median(seconds)
        );
    }
    Ok(())
}
