//! Samples from a model folder or a run folder, and prints the text while it is generated.
//!
//! `cargo run --release --example sample [MODEL [PROMPT]]`; without arguments it asks StatQuest's model
//! in `docs/models`.

#![allow(clippy::print_stdout)] // An example prints.

use std::io::Write;

use nextword::prelude::*;

fn main() -> nextword::Result<()> {
    let mut args = std::env::args().skip(1);
    let built_in = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/models/statquest");
    let folder = args.next().unwrap_or_else(|| built_in.to_string());
    let prompt = args
        .next()
        .unwrap_or_else(|| "what is statquest".to_string());

    let model = LanguageModel::open(folder)?;
    for temperature in [0.0, 1.0] {
        let options = TextOptions::default()
            .with_max_tokens(50)
            .with_temperature(temperature)
            .with_seed(7);
        print!("temperature {temperature}: {prompt} -> ");
        let completion = model.stream(&prompt, &options, |delta| {
            print!("{delta}");
            let _ = std::io::stdout().flush(); // A closed terminal stops nothing here.
        })?;
        let nats: f64 = completion.logprobs.iter().sum();
        println!(" (probability {:.3}, {:?})", nats.exp(), completion.finish);
    }
    Ok(())
}
