//! Fuzzes tokenizer.json files: they yield a tokenizer that encodes and decodes, or an error.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(tokenizer) = nextword_data::parse_tokenizer(text, "fuzz") {
        let ids = tokenizer.encode("A text, with naïve words.\n").ids;
        let _ = tokenizer.decode(&ids);
    }
});
