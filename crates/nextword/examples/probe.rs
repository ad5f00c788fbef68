//! Looks inside a model: all tensors of a forward pass by name, the attention weights, and the
//! probabilities of the next token.
//!
//! `cargo run --release --example probe [MODEL [PROMPT]]`

#![allow(clippy::print_stdout)] // An example prints.

use nextword::prelude::*;

fn main() -> nextword::Result<()> {
    let mut args = std::env::args().skip(1);
    let built_in = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/models/statquest");
    let folder = args.next().unwrap_or_else(|| built_in.to_string());
    let prompt = args
        .next()
        .unwrap_or_else(|| "what is statquest".to_string());

    let model = LanguageModel::open(folder)?;
    let activations = model.inspect(&prompt)?;
    println!("tensors of the forward pass:");
    for tensor in activations.iter() {
        println!("  {:32} {:?}", tensor.name, tensor.shape);
    }

    println!("attention weights of the first head:");
    let tokens = activations.tokens();
    if let Some(weights) = activations.attention_weights(0) {
        for (query, row) in tokens.iter().zip(weights.rows()) {
            let row: Vec<String> = row.iter().map(|weight| format!("{weight:.2}")).collect();
            println!("  {query:>12}  {}", row.join("  "));
        }
    }

    println!("next token:");
    for (id, probability) in (0..).zip(activations.next_token_probabilities()) {
        let text = model.tokenizer().token_text(id).unwrap_or_default();
        println!("  {text:>12}  {probability:.3}");
    }
    Ok(())
}
