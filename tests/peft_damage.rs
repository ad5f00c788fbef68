//! Damaged folders of PEFT adapters: an error message, never a panic, bounded memory.

use std::fs;
use std::path::Path;

use nextword_convert::{export_gguf_lora, export_peft, import, import_peft};
use nextword_model::{AdapterDir, ModelDir};
use serde_json::Value;

use crate::malformed_models::{
    MAX_MESSAGE_LEN, corrupt_bytes, corrupt_json, mutation_count, test_rng, with_limited_memory,
};
use crate::parity::fixtures;
use crate::peft::adapter_fixture;
use crate::test_dir::TestDir;
use crate::util::copy;

/// Imports `folder` and exports the result. Returns whether it is valid.
fn attempt(folder: &Path, base: &ModelDir, dir: &TestDir) -> bool {
    let to = dir.path("adapter");
    if let Err(error) = import_peft(folder, base, &to) {
        let text = error.to_string();
        let len = text.len();
        assert!(!text.is_empty() && len < MAX_MESSAGE_LEN, "{len} bytes");
        assert!(!text.contains("internal error"), "{text}");
        return false;
    }
    let adapter = AdapterDir::open(&to).unwrap();
    adapter.load(&base.config).unwrap();
    // Any result is fine, as long as it does not panic.
    let _ = export_peft(&adapter, base, &dir.path("exported"));
    let _ = export_gguf_lora(&adapter, base, &dir.path("lora.gguf"));
    true
}

fn damage_folders() {
    let dir = TestDir::new();
    let cases = [
        "llama",
        "llama_patterns",
        "llama_saved",
        "gpt2_dora",
        "gpt2_bias",
    ]
    .map(|name| {
        let (folder, base) = (dir.path(name), dir.path(&format!("{name}-base")));
        copy(&adapter_fixture(name), &folder);
        let base_name = name.split('_').next().unwrap();
        import(&fixtures().join(base_name), &base).unwrap();
        let base = ModelDir::open(&base).unwrap();
        assert!(attempt(&folder, &base, &dir), "{name} is valid");
        (folder, base)
    });
    let mutations = mutation_count(600);
    let mut valid = 0;
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        let mut rng = test_rng(file);
        for _ in 0..mutations {
            let (folder, base) = &cases[rng.below(cases.len())];
            let path = folder.join(file);
            let before = fs::read(&path).unwrap();
            let mut bytes = before.clone();
            match serde_json::from_slice::<Value>(&bytes) {
                Ok(mut value) if rng.below(3) > 0 => {
                    for _ in 0..=rng.below(3) {
                        corrupt_json(&mut value, &mut rng);
                    }
                    bytes = value.to_string().into_bytes();
                }
                _ => corrupt_bytes(&mut bytes, &mut rng),
            }
            fs::write(&path, bytes).unwrap();
            valid += u64::from(attempt(folder, base, &dir));
            fs::write(&path, before).unwrap();
        }
    }
    println!(
        "{mutations} damaged files of each kind: {valid} could be imported, the others were rejected"
    );
    assert!(valid > 0 && valid < 2 * mutations);
}

#[test]
fn damaged_adapters_of_peft_give_an_error_message() {
    let name = "peft_damage::damaged_adapters_of_peft_give_an_error_message";
    with_limited_memory(name, 1, damage_folders);
}
