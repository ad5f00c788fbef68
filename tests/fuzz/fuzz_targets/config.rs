//! Fuzzes foreign config.json files: they yield a valid config or an error.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(config) = nextword_convert::read_config_text(text) {
        assert!(config.validate().is_ok());
    }
});
