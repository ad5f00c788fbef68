//! Fuzzes GGUF files: opening a file and reading its tensors never panics.

#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;
use nextword_convert::open_gguf;

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    if let Ok(model) = open_gguf(file.path()) {
        let weights = model.open_weights().unwrap();
        for (name, _) in nextword_model::weights::layout(&model.config) {
            let _ = weights.values(&name);
        }
    }
});
