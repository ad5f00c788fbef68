//! Prepares a text file and prints its dataset card and the elapsed time:
//! `/usr/bin/time -v target/debug/examples/prepare TEXT FOLDER [char|byte|word|bpe]`.
#![allow(clippy::print_stdout)]

use nextword_data::{DataConfig, DataError, TokenizerKind, prepare};

fn main() -> Result<(), DataError> {
    let mut arguments = std::env::args().skip(1);
    let mut config = DataConfig {
        path: arguments.next().map(Into::into),
        ..DataConfig::default()
    };
    let folder = arguments.next().unwrap_or_else(|| "prepared".to_owned());
    config.tokenizer.kind = match arguments.next().as_deref() {
        Some("byte") => TokenizerKind::Byte,
        Some("word") => TokenizerKind::Word,
        Some("bpe") => TokenizerKind::Bpe,
        _ => TokenizerKind::Char,
    };
    if config.tokenizer.kind == TokenizerKind::Char {
        config.tokenizer.eos = String::new();
    }
    let started = std::time::Instant::now();
    let prepared = prepare(&config, folder, |_| {})?;
    println!(
        "{:#?}\n{:.1} s",
        prepared.card,
        started.elapsed().as_secs_f64()
    );
    Ok(())
}
