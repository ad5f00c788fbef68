//! Fuzzes safetensors files: opening a file and reading its tensors never panics.

#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;
use nextword_model::weights::TensorFile;

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    if let Ok(tensors) = TensorFile::open(file.path()) {
        for name in tensors.names() {
            let _ = tensors.values(name);
        }
    }
});
