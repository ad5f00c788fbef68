//! Foreign folders as other programs write them, and what is wrong with those that cannot be imported.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use nextword_convert::{import, read_config_text};
use nextword_model::weights::{NamedTensors, load_tensors, save_tensors};
use serde_json::{Value, json};

use crate::parity::fixtures;
use crate::test_dir::{BAD_FILE, TestDir};
use crate::util::{copy, root, stderr};

/// A copy of the fixture `kind`.
fn fixture(dir: &TestDir, kind: &str) -> PathBuf {
    let folder = dir.path(&format!("{kind}-copy"));
    let _ = fs::remove_dir_all(&folder);
    copy(&fixtures().join(kind), &folder);
    folder
}

fn kinds() -> Vec<String> {
    let entries = fs::read_dir(fixtures()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

fn config(kind: &str) -> Value {
    let path = fixtures().join(kind).join("config.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The weights file that `folder` is imported to.
fn imported(dir: &TestDir, folder: &Path) -> Vec<u8> {
    let out = dir.path("imported");
    import(folder, &out).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    fs::read(out.join("model.safetensors")).unwrap()
}

fn import_error(dir: &TestDir, folder: &Path) -> String {
    let imported = import(folder, &dir.path("out"));
    imported.expect_err("imported").to_string()
}

fn change_tensors(folder: &Path, change: impl Fn(NamedTensors) -> NamedTensors) {
    let path = folder.join("model.safetensors");
    save_tensors(&change(load_tensors(&path).unwrap()), &path).unwrap();
}

/// `scripts/check_config_fields.py` records what each version of transformers writes.
#[test]
fn default_configs_of_transformers_are_accepted() {
    let path = root().join("tests/fixtures/config_defaults.json");
    let recorded: BTreeMap<String, BTreeMap<String, Value>> =
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert!(recorded.len() >= 2);
    for (version, configs) in recorded {
        for (kind, config) in configs {
            read_config_text(&config.to_string())
                .unwrap_or_else(|e| panic!("{kind} of transformers {version}: {e}"));
        }
    }
}

#[test]
fn fields_without_effect_are_accepted_and_others_are_named() {
    let read = |kind: &str, field: &str, value: &Value| {
        let mut config = config(kind);
        config[field] = value.clone();
        read_config_text(&config.to_string())
    };
    for kind in ["llama", "mistral", "gpt2"] {
        for (field, value) in [
            ("_model_name_or_path", json!("a/b")),
            ("_name_or_path", json!("a/b")),
            ("_flash_attn_2_enabled", json!(true)),
            ("use_flash_attention_2", json!(true)),
            ("keys_to_ignore_at_inference", json!(["past_key_values"])),
            ("loss_type", json!("ForCausalLM")),
            ("unk_token_id", json!(0)),
            ("is_causal", json!(true)),
            ("partial_rotary_factor", json!(1.0)),
            ("cross_attention_hidden_size", json!(null)),
            ("residual_multiplier", json!(1.0)),
            ("use_sliding_window", json!(false)),
            ("qk_layernorm", json!(false)),
            ("num_experts", json!(0)),
        ] {
            read(kind, field, &value).unwrap_or_else(|e| panic!("{kind}: {e}"));
        }
        for (field, value) in [
            ("is_causal", json!(false)),
            ("partial_rotary_factor", json!(0.5)),
            ("residual_multiplier", json!(0.22)),
            ("use_sliding_window", json!(true)),
            ("qk_layernorm", json!(true)),
            ("num_experts", json!(8)),
            ("alibi", json!(true)),
            ("sparse_attention", json!(true)),
        ] {
            let error = read(kind, field, &value).expect_err(field).to_string();
            assert!(error.contains(field), "{kind}: {error}");
        }
    }
    read("llama", "attention_bias", &json!(true)).unwrap(); // This one is read.
}

#[test]
fn rope_fields_without_effect_are_accepted() {
    let read = |parameters: Value| {
        let mut config = config("llama");
        config["rope_parameters"] = parameters;
        read_config_text(&config.to_string())
    };
    for parameters in [
        json!({"rope_type": "default", "rope_theta": 500.0, "factor": 1.0}),
        json!({"rope_type": "default", "partial_rotary_factor": 1.0}),
        json!({"type": "linear", "factor": 2.0, "original_max_position_embeddings": 8}),
    ] {
        read(parameters.clone()).unwrap_or_else(|e| panic!("{parameters}: {e}"));
    }
    let error = read(json!({"rope_type": "default", "partial_rotary_factor": 0.5}));
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("rope_parameters.partial_rotary_factor"),
        "{error}"
    );
}

/// GPT-NeoX rotates only part of a head; `YaRN`'s factor would apply to that part only.
#[test]
fn yarn_with_partial_rotary_needs_a_factor_of_1() {
    let mut config = config("gpt_neox_yarn");
    read_config_text(&config.to_string()).unwrap();
    for factor in [json!(null), json!(1.1)] {
        config["rope_parameters"]["attention_factor"] = factor;
        let error = read_config_text(&config.to_string()).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("rope_parameters") && error.contains("only the 2 rotated elements of 4"),
            "{error}"
        );
    }
    config["rope_parameters"]["partial_rotary_factor"] = json!(1.0);
    read_config_text(&config.to_string()).unwrap();
    config["rope_parameters"] = json!(null);
    config["rotary_pct"] = json!(0.5);
    config["partial_rotary_factor"] = json!(0.5);
    read_config_text(&config.to_string()).unwrap();
    config["partial_rotary_factor"] = json!(0.25);
    assert!(read_config_text(&config.to_string()).is_err());
}

#[test]
fn wrappers_in_names_of_tensors_are_removed() {
    let dir = TestDir::new();
    let wrap: [fn(&str) -> String; 5] = [
        |name| format!("_orig_mod.{name}"),
        |name| format!("module.{name}"),
        |name| format!("module._orig_mod.{name}"),
        |name| name.replacen('.', "._orig_mod.", 1),
        |name| {
            format!(
                "_fsdp_wrapped_module.{}",
                name.replace("mlp", "mlp._checkpoint_wrapped_module")
            )
        },
    ];
    for kind in kinds() {
        let expected = imported(&dir, &fixtures().join(&kind));
        for rename in wrap {
            let folder = fixture(&dir, &kind);
            change_tensors(&folder, |tensors| {
                let renamed = tensors
                    .into_iter()
                    .map(|(name, tensor)| (rename(&name), tensor));
                renamed.collect()
            });
            assert!(imported(&dir, &folder) == expected, "{kind}");
        }
    }
    let folder = fixture(&dir, "llama");
    change_tensors(&folder, |mut tensors| {
        let copy = tensors["lm_head.weight"].clone();
        tensors.insert("_orig_mod.lm_head.weight".to_owned(), copy);
        tensors
    });
    let error = import_error(&dir, &folder);
    assert!(error.contains("which are the same tensor"), "{error}");
}

#[test]
fn a_tied_model_may_have_only_its_output_layer() {
    let dir = TestDir::new();
    let mut tried = 0;
    for kind in kinds() {
        if config(&kind)["tie_word_embeddings"] != json!(true) {
            continue;
        }
        let expected = imported(&dir, &fixtures().join(&kind));
        let folder = fixture(&dir, &kind);
        change_tensors(&folder, |mut tensors| {
            let is_table = |name: &&String| {
                name.ends_with("wte.weight") || name.ends_with("embed_tokens.weight")
            };
            let table = tensors.keys().find(is_table).unwrap().clone();
            let values = tensors.remove(&table).unwrap();
            tensors.insert("lm_head.weight".to_owned(), values);
            tensors
        });
        assert!(imported(&dir, &folder) == expected, "{kind}");
        tried += 1;
    }
    assert!(tried >= 4, "{tried}");
    // Without a tie, the output layer does not stand for the embedding.
    let folder = fixture(&dir, "llama");
    change_tensors(&folder, |mut tensors| {
        tensors.remove("model.embed_tokens.weight").unwrap();
        tensors
    });
    let error = import_error(&dir, &folder);
    assert!(
        error.contains("missing: `model.embed_tokens.weight`"),
        "{error}"
    );
}

#[test]
fn git_lfs_pointers_are_named() {
    let dir = TestDir::new();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb\
                   8f32b1258daaa5e2ca24d17e2393\nsize 269060552\n";
    for kind in ["llama", "gpt2"] {
        for name in [
            "model.safetensors",
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "generation_config.json",
            "chat_template.jinja",
        ] {
            let folder = fixture(&dir, kind);
            fs::write(folder.join(name), pointer).unwrap();
            let error = import_error(&dir, &folder);
            assert!(error.contains(name), "{error}");
            assert!(error.contains("is a Git LFS pointer"), "{name}: {error}");
            assert!(error.contains("git lfs pull"), "{name}: {error}");
        }
    }
    let folder = dir.path("model");
    copy(&root().join("docs/models/letters"), &folder);
    for name in ["model.safetensors", "tokenizer.json"] {
        let before = fs::read(folder.join(name)).unwrap();
        fs::write(folder.join(name), pointer).unwrap();
        dir.rejects(
            &["generate", "model", "a"],
            BAD_FILE,
            &[name, "git lfs pull"],
        );
        fs::write(folder.join(name), before).unwrap();
    }
}

#[test]
fn a_file_that_is_cut_off_is_named_with_a_fix() {
    let dir = TestDir::new();
    for name in [
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "generation_config.json",
    ] {
        let whole = fs::read(fixtures().join("qwen3").join(name)).unwrap();
        for part in 1..8 {
            let folder = fixture(&dir, "qwen3");
            fs::write(folder.join(name), &whole[..whole.len() * part / 8]).unwrap();
            let error = import_error(&dir, &folder);
            assert!(error.contains(name) && error.contains("hint: "), "{error}");
        }
    }
    let folder = fixture(&dir, "llama");
    fs::rename(
        folder.join("model.safetensors"),
        folder.join("model-1.safetensors"),
    )
    .unwrap();
    let index = json!({"weight_map": {
        "lm_head.weight": "model-1.safetensors", "model.norm.weight": "model-2.safetensors",
    }});
    fs::write(
        folder.join("model.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
    let error = import_error(&dir, &folder);
    assert!(
        error.contains("`model-2.safetensors`, which is missing; hint: "),
        "{error}"
    );
}

/// Errors name the fields of the file that is imported, not ours.
#[test]
fn invalid_values_are_named_by_the_fields_of_the_file() {
    let ours = [
        "model.",
        "n_heads",
        "n_kv_heads",
        "d_model",
        "d_ff",
        "n_layers",
        "context_length",
        "score_",
        "soft_cap",
        "norm_eps",
        "rotary.",
    ];
    for (kind, field, value) in [
        ("llama", "num_attention_heads", json!(0)),
        ("llama", "num_attention_heads", json!(7)),
        ("llama", "num_key_value_heads", json!(4)),
        ("llama", "num_key_value_heads", json!(0)),
        ("llama", "hidden_size", json!(0)),
        ("llama", "hidden_size", json!(23)),
        ("llama", "intermediate_size", json!(0)),
        ("llama", "num_hidden_layers", json!(0)),
        ("llama", "num_hidden_layers", json!(1_000_000_000)),
        ("llama", "max_position_embeddings", json!(0)),
        ("llama", "vocab_size", json!(0)),
        ("llama", "rms_norm_eps", json!(-1.0)),
        ("qwen3", "head_dim", json!(0)),
        ("qwen3", "head_dim", json!(7)),
        ("gpt2", "n_head", json!(7)),
        ("gpt2", "n_embd", json!(0)),
        ("gpt2", "n_layer", json!(0)),
        ("gpt2", "n_positions", json!(0)),
        ("gpt2", "n_inner", json!(0)),
        ("gpt2", "layer_norm_epsilon", json!(-1)),
        ("gpt_neox", "layer_norm_eps", json!(-1)),
        ("gpt_neox", "num_attention_heads", json!(5)),
        ("gemma2", "query_pre_attn_scalar", json!(0)),
        ("gemma2", "attn_logit_softcapping", json!(-2)),
        ("gemma2", "final_logit_softcapping", json!(0)),
    ] {
        let mut config = config(kind);
        config.as_object_mut().unwrap().remove("head_dim");
        config[field] = value;
        let Err(error) = read_config_text(&config.to_string()) else {
            panic!("{kind} {field} was accepted");
        };
        let error = error.to_string();
        let is_named = error.contains(field) || (field == "hidden_size" && error.contains("head"));
        assert!(
            is_named && error.contains("config.json"),
            "{kind} {field}: {error}"
        );
        let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
        for word in error.split(|c: char| !is_part(c)) {
            let is_ours = ours.iter().any(|name| word.starts_with(name));
            assert!(!is_ours, "{kind} {field}: {word} in {error}");
        }
    }
}

#[test]
fn a_run_with_a_damaged_model_hints_to_its_other_one() {
    let dir = TestDir::new();
    let letters = root().join("docs/models/letters");
    fs::create_dir_all(dir.path("run")).unwrap();
    dir.write("run/run.toml", "");
    for name in ["best", "last"] {
        copy(&letters, &dir.path("run").join(name));
    }
    let weights = |name: &str| dir.path("run").join(name).join("model.safetensors");
    let whole = fs::read(weights("best")).unwrap();
    for len in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(weights("best"), &whole[..len]).unwrap();
        let args = ["generate", "run", "The", "-m", "2"];
        dir.rejects(&args, BAD_FILE, &["best", "use it with --last"]);
        let last = dir.run(&[&args[..], &["--last"]].concat());
        assert!(last.status.success(), "{}", stderr(&last));
    }
    fs::write(weights("best"), &whole).unwrap();
    fs::write(weights("last"), &whole[..100]).unwrap();
    let args = ["inspect", "run", "--last"];
    dir.rejects(&args, BAD_FILE, &["last", "use it without --last"]);
    fs::write(weights("best"), &whole[..100]).unwrap();
    let both = dir.run(&args);
    assert!(
        !stderr(&both).contains("without --last"),
        "{}",
        stderr(&both)
    );
}

#[cfg(unix)]
#[test]
fn a_folder_without_permission_is_not_called_missing() {
    use std::os::unix::fs::PermissionsExt as _;

    let dir = TestDir::new();
    let inner = dir.path("closed").join("model");
    copy(&root().join("docs/models/letters"), &inner);
    let close = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    for closed in [dir.path("closed"), inner.clone()] {
        close(&closed, 0);
        let is_superuser = fs::read_dir(&closed).is_ok();
        let error = dir.run(&["generate", inner.to_str().unwrap(), "a"]);
        let imported = import(&inner, &dir.path("out"));
        close(&closed, 0o755);
        if is_superuser {
            eprintln!("permissions skipped: this user may read everything");
            return;
        }
        for error in [stderr(&error), imported.unwrap_err().to_string()] {
            assert!(!error.contains("does not exist"), "{error}");
            assert!(error.to_lowercase().contains("permission"), "{error}");
        }
    }
}
