//! Published models: missing and additional config fields, padded vocabularies, special tokens.

use std::fs;
use std::path::{Path, PathBuf};

use nextword_convert::{export_hf, import, read_config_text};
use nextword_model::weights::{self, FloatType};
use nextword_model::{ModelConfig, ModelDir};
use serde_json::{Value, json};

use crate::parity::fixtures;
use crate::test_dir::TestDir;
use crate::util::{copy, stderr};

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// A copy of the model `kind`, with the JSON file `name` changed.
fn changed_copy(dir: &TestDir, kind: &str, name: &str, change: impl Fn(&mut Value)) -> PathBuf {
    let folder = dir.path(&format!("{kind}-of-{}", name.replace('.', "-")));
    copy(&fixtures().join(kind), &folder);
    let path = folder.join(name);
    let mut value = read(&path);
    change(&mut value);
    fs::write(&path, value.to_string()).unwrap();
    folder
}

/// Imports the fixture's config without `fields`.
fn without(kind: &str, fields: &[&str]) -> ModelConfig {
    let mut config = read(&fixtures().join(kind).join("config.json"));
    for field in fields {
        config.as_object_mut().unwrap().remove(*field);
    }
    read_config_text(&config.to_string()).unwrap_or_else(|e| panic!("{kind}: {e}"))
}

#[test]
fn absent_fields_use_the_type_defaults() {
    let sizes = ["num_key_value_heads", "head_dim"];
    let heads = |kind: &str| {
        let mut config = read(&fixtures().join(kind).join("config.json"));
        // Head counts that every default divides.
        config["num_attention_heads"] = json!(32);
        config["hidden_size"] = json!(32 * 4);
        for field in sizes {
            config.as_object_mut().unwrap().remove(field);
        }
        let config =
            read_config_text(&config.to_string()).unwrap_or_else(|e| panic!("{kind}: {e}"));
        (config.kv_heads(), config.head_dim())
    };
    assert_eq!(heads("llama"), (32, 4));
    assert_eq!(heads("mistral"), (8, 4));
    assert_eq!(heads("qwen2"), (32, 4));
    assert_eq!(heads("qwen3"), (32, 128));
    assert_eq!(heads("gemma"), (16, 256));
    assert_eq!(heads("gemma2"), (4, 256));
    assert_eq!(heads("gemma3_text"), (4, 256));

    let caps = ["attn_logit_softcapping", "final_logit_softcapping"];
    let gemma2 = without("gemma2", &caps);
    assert_eq!(
        (gemma2.score_soft_cap, gemma2.logit_soft_cap),
        (Some(50.0), Some(30.0))
    );
    let gemma3 = without("gemma3_text", &caps);
    assert_eq!((gemma3.score_soft_cap, gemma3.logit_soft_cap), (None, None));
    assert_eq!(without("mistral", &["sliding_window"]).windows, [4096]);
    let mut mistral = read(&fixtures().join("mistral/config.json"));
    mistral["sliding_window"] = Value::Null;
    assert!(
        read_config_text(&mistral.to_string())
            .unwrap()
            .windows
            .is_empty()
    );
    let mut gemma2 = read(&fixtures().join("gemma2/config.json"));
    for field in caps {
        gemma2[field] = Value::Null;
    }
    let gemma2 = read_config_text(&gemma2.to_string()).unwrap();
    assert_eq!((gemma2.score_soft_cap, gemma2.logit_soft_cap), (None, None));

    // Every other layer, as in older configs of Gemma 3.
    let mut pattern = read(&fixtures().join("gemma3_text/config.json"));
    pattern.as_object_mut().unwrap().remove("layer_types");
    pattern["sliding_window_pattern"] = json!(2);
    let pattern = read_config_text(&pattern.to_string()).unwrap();
    let window = pattern.windows[0];
    assert!(window > 0);
    assert_eq!(pattern.windows, [window, 0, window]);
}

#[test]
fn harmless_fields_of_published_configs_are_accepted() {
    for (kind, fields) in [
        (
            "gpt2",
            &["n_special", "predict_special_tokens", "output_past"][..],
        ),
        (
            "gpt_neox",
            &["attention_probs_dropout_prob", "hidden_dropout_prob"],
        ),
        ("gemma2", &["sliding_window_size"]),
    ] {
        let mut config = read(&fixtures().join(kind).join("config.json"));
        for field in fields {
            config[field] = json!(1);
        }
        read_config_text(&config.to_string()).unwrap_or_else(|e| panic!("{kind}: {e}"));
    }
}

/// The tokenizer of Gemma 3's text models also has the image token.
#[test]
fn added_tokens_without_an_embedding_row_are_dropped() {
    let dir = TestDir::new();
    let folder = changed_copy(&dir, "gemma3_text", "tokenizer.json", |file| {
        let image = json!({"id": 101, "content": "<image_soft_token>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true});
        file["added_tokens"].as_array_mut().unwrap().push(image);
    });
    let model_dir = dir.path("imported");
    let imported = import(&folder, &model_dir).unwrap();
    assert_eq!(
        (imported.config.vocab_size, imported.card.unused_ids),
        (101, 0)
    );
    let tokenizer = nextword_data::load_tokenizer(model_dir.join("tokenizer.json")).unwrap();
    let ids = tokenizer.encode("w1 <image_soft_token> w2").ids;
    assert!(ids.iter().all(|id| *id < 101), "{ids:?}");
    // A tokenizer with a larger base vocabulary belongs to another model.
    let folder = changed_copy(&dir, "gemma2", "tokenizer.json", |file| {
        file["model"]["vocab"]["one more"] = json!(101);
    });
    let error = import(&folder, &model_dir).unwrap_err().to_string();
    assert!(
        error.contains("has 102 tokens, but the model has only 101"),
        "{error}"
    );
}

#[test]
fn import_of_a_file_names_the_file_type() {
    let dir = TestDir::new();
    for (name, expected) in [
        (
            "model.gguf",
            "is not a valid GGUF file: it has only 1 bytes",
        ),
        ("config.json", "pass the folder with config.json"),
        ("model.safetensors", "pass the folder with config.json"),
        ("ckpt.pt", "nanogpt_to_hf.py"),
        ("pytorch_model.bin", "save_file"),
    ] {
        let path = dir.write(name, "x");
        let error = import(Path::new(&path), &dir.path("out"))
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error}");
        let is_pickle = ["pt", "bin"].iter().any(|ending| {
            Path::new(name)
                .extension()
                .is_some_and(|extension| extension == *ending)
        });
        assert_eq!(error.contains("pickle"), is_pickle, "{error}");
    }
}

/// Imports a model with a padded vocabulary: 99 tokens for 101 rows.
fn padded(dir: &TestDir) -> PathBuf {
    let folder = changed_copy(dir, "llama", "tokenizer.json", |file| {
        let vocab = file["model"]["vocab"].as_object_mut().unwrap();
        vocab.retain(|_, id| id.as_u64().unwrap() < 99);
    });
    let model_dir = dir.path("padded");
    let imported = import(&folder, &model_dir).unwrap();
    assert_eq!(
        (imported.config.vocab_size, imported.card.unused_ids),
        (101, 2)
    );
    model_dir
}

#[test]
fn a_padded_vocabulary_survives_finetuning() {
    let dir = TestDir::new();
    let model_dir = padded(&dir);
    dir.write("text.txt", "w1 w2 w3 w4 w5 w6 w7 w8 ".repeat(60));
    // Fewer rows than tokens are an error.
    dir.write(
        "less.toml",
        "name = \"less\"\n[model]\nvocab_size = 5\n[data]\npath = \"text.txt\"\n",
    );
    dir.rejects(&["train", "less.toml"], 2, &["model.vocab_size", "or more"]);
    let config = format!(
        "name = \"more\"\nstart_from = {:?}\n[data]\npath = \"text.txt\"\n[train]\nsteps = 4\n[schedule]\nwarmup_steps = 0\n\
         [samples]\nevery = 2\nprompts = [\"w1 w2\"]\nmax_tokens = 3\n[probes]\nsentences = [\"w1 w2\"]\n",
        model_dir.display().to_string()
    );
    dir.write("more.toml", config);
    let train = dir.run(&["train", "more.toml", "--quiet"]);
    assert!(train.status.success(), "{}", stderr(&train));
    let more = ModelDir::open(&dir.path("runs/more/last")).unwrap();
    assert_eq!((more.config.vocab_size, more.card.unused_ids), (101, 2));
    // Padding rows get no gradient, only weight decay, which shrinks them.
    let name = "token_embedding.weight";
    let before = weights::load_tensors(&model_dir.join("model.safetensors")).unwrap();
    let after = weights::load_tensors(&more.weights_path()).unwrap();
    let (shape, before) = &before[name];
    let width = shape[1];
    let ratio = |i: usize| after[name].1[i] / before[i];
    let first = ratio(99 * width);
    for i in 99 * width..101 * width {
        assert!(
            (ratio(i) - first).abs() < 1e-5,
            "row {}: {} {first}",
            i / width,
            ratio(i)
        );
    }
    let moved = (0..99 * width).filter(|i| (ratio(*i) - first).abs() > 1e-5);
    assert!(moved.count() > 99, "the rows of tokens were trained");

    let resumed = dir.run(&["resume", "runs/more", "--set", "train.steps=6", "--quiet"]);
    assert!(resumed.status.success(), "{}", stderr(&resumed));
    for args in [
        &[
            "generate",
            "runs/more",
            "w1 w2",
            "--max-tokens",
            "3",
            "--seed",
            "1",
        ][..],
        &["eval", "runs/more", "text.txt"],
        &["eval", "runs/more", "--task", "task.jsonl"],
    ] {
        dir.write(
            "task.jsonl",
            "{\"ctx\": \"w1\", \"endings\": [\"w2\", \"w9\"], \"label\": \"0\"}\n",
        );
        let output = dir.run(args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn weights_beyond_half_precision_are_named() {
    let dir = TestDir::new();
    let folder = dir.path("model");
    copy(&fixtures().join("gpt2"), &folder);
    let path = folder.join("model.safetensors");
    let mut tensors = weights::load_tensors(&path).unwrap();
    tensors
        .get_mut("transformer.h.1.mlp.c_fc.weight")
        .unwrap()
        .1[7] = -1e6;
    weights::save_tensors(&tensors, &path).unwrap();
    import(&folder, &dir.path("imported")).unwrap();
    let model_dir = ModelDir::open(&dir.path("imported")).unwrap();
    let error = export_hf(&model_dir, FloatType::F16, &dir.path("half"))
        .unwrap_err()
        .to_string();
    for part in [
        "`transformer.h.1.mlp.c_fc.weight` contains -1000000",
        "65504",
        "bf16",
    ] {
        assert!(error.contains(part), "{error}");
    }
    assert!(!dir.path("half").exists());
    export_hf(&model_dir, FloatType::Bf16, &dir.path("bf16")).unwrap();
}

/// Llama's BOS token if only `tokenizer_config.json` requires it.
#[test]
fn the_bos_token_is_exported_to_both_tokenizer_files() {
    let dir = TestDir::new();
    let folder = changed_copy(&dir, "llama", "tokenizer_config.json", |settings| {
        settings["add_bos_token"] = json!(true);
        settings["eos_token"] = json!("<unk>");
    });
    let model_dir = dir.path("imported");
    assert_eq!(
        import(&folder, &model_dir).unwrap().card.special.prefix(),
        [1]
    );
    let out = dir.path("out");
    export_hf(&ModelDir::open(&model_dir).unwrap(), FloatType::F32, &out).unwrap();
    assert_eq!(
        read(&out.join("tokenizer_config.json"))["add_bos_token"],
        json!(true)
    );
    let file = read(&out.join("tokenizer.json"));
    let mut processor = &file["post_processor"];
    if processor["type"] == "Sequence" {
        processor = &processor["processors"][1];
    }
    assert_eq!(processor["single"][0]["SpecialToken"]["id"], json!("<s>"));
    assert_eq!(processor["special_tokens"]["<s>"]["ids"], json!([1]));
    // The EOS token is exported too.
    let eos_token = read(&folder.join("tokenizer_config.json"))["eos_token"].take();
    assert_eq!(eos_token, json!("<unk>"));
    assert_eq!(
        read(&out.join("tokenizer_config.json"))["eos_token"],
        eos_token
    );
    // It is imported again unchanged.
    let reimported = dir.path("reimported");
    assert_eq!(
        import(&out, &reimported).unwrap().card.special.prefix(),
        [1]
    );
}
