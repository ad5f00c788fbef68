//! Trains a small character model on a text, in memory, and samples from it.
//!
//! `cargo run --release --example train_char [TEXT_FILE [STEPS]]`; without a file it learns from built-in
//! stories.

#![allow(clippy::print_stdout)] // An example prints.

use nextword::data::Stories;
use nextword::prelude::*;

fn main() -> nextword::Result<()> {
    let mut args = std::env::args().skip(1);
    let file = args.next();
    let steps = args.next().and_then(|n| n.parse().ok()).unwrap_or(300);

    let tokenizer = TokenizerConfig::chars();
    let dataset = match &file {
        Some(path) => Dataset::from_file(path, &tokenizer)?,
        None => Dataset::from_documents(
            Stories::new(0, 500).iter(),
            &tokenizer,
            SplitConfig::default(),
        )?,
    };
    println!("{} training tokens", dataset.train.len());

    let model = Training::new(&dataset)
        .model(ModelConfig {
            n_layers: 2,
            n_heads: 4,
            d_model: 64,
            position: Position::Rotary,
            ..ModelConfig::default()
        })
        .steps(steps)
        .learning_rate(3e-3)
        .on_step(|step| {
            if step.step.is_multiple_of(50) {
                println!("step {:4}: loss {:.3}", step.step, step.loss);
            }
        })
        .on_validation(|report| println!("validation loss {:.3}", report.loss))
        .run()?;

    let options = TextOptions::default()
        .with_max_tokens(200)
        .with_temperature(0.8);
    println!("One day{}", model.generate("One day", &options)?);
    // model.save("models/mine")?; // Then: nextword generate models/mine "One day"
    Ok(())
}
