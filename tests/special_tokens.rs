//! What a model says about its own tokens is obeyed on every path.

use std::fs;
use std::path::{Path, PathBuf};

use nextword_convert::{export_hf, import};
use nextword_model::weights::FloatType;
use nextword_model::{ModelDir, ModelTokens, TokenSource};
use serde_json::{Value, json};

use crate::parity::fixtures;
use crate::test_dir::TestDir;
use crate::util::{copy, stderr};

pub(crate) fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The files of a copy of the llama fixture that declare special tokens; `null` removes a file. Tokens of its vocabulary: `<unk>` 0,
/// `<s>` 1, `</s>` 2, and text from 3 on.
struct Declaration<'a> {
    config: &'a Value,
    generation: &'a Value,
    settings: &'a Value,
    post_processor: &'a Value,
    /// Renames `</s>`.
    end: &'a str,
}

/// A copy of the llama fixture that declares its tokens in this way.
fn declare(dir: &TestDir, name: &str, declaration: &Declaration<'_>) -> PathBuf {
    let folder = dir.path(name);
    copy(&fixtures().join("llama"), &folder);
    let path = folder.join("config.json");
    let mut config = read(&path);
    for role in ["bos", "eos", "pad"] {
        let key = format!("{role}_token_id");
        match declaration.config.get(&key) {
            Some(value) => config[&key] = value.clone(),
            None => _ = config.as_object_mut().unwrap().remove(&key),
        }
    }
    fs::write(path, config.to_string()).unwrap();
    for (file, value) in [
        ("generation_config.json", declaration.generation),
        ("tokenizer_config.json", declaration.settings),
    ] {
        let path = folder.join(file);
        if value.is_null() {
            fs::remove_file(path).unwrap();
        } else {
            fs::write(path, value.to_string()).unwrap();
        }
    }
    let path = folder.join("tokenizer.json");
    let text = fs::read_to_string(&path).unwrap();
    let renamed = text.replace("\"</s>\"", &json!(declaration.end).to_string());
    let mut file: Value = serde_json::from_str(&renamed).unwrap();
    file["post_processor"] = declaration.post_processor.clone();
    fs::write(path, file.to_string()).unwrap();
    folder
}

pub(crate) fn prefix_of(token: &str, id: u32) -> Value {
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let first = json!({"SpecialToken": {"id": token, "type_id": 0}});
    json!({"type": "TemplateProcessing", "single": [first, text], "pair": [first, text,
        {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}}})
}

/// EOS ids, the token that ends a document, BOS, padding, prefix, source.
type Expected = (
    Vec<u32>,
    Option<u32>,
    Option<u32>,
    Option<u32>,
    Vec<u32>,
    TokenSource,
);

fn found(special: &ModelTokens) -> Expected {
    (
        special.eos_ids.clone(),
        special.document_eos_id,
        special.bos_id,
        special.pad_id,
        special.prefix().to_vec(),
        special.source.unwrap(),
    )
}

#[test]
#[allow(clippy::too_many_lines)] // A table of cases, or one path.
fn tokens_come_from_the_first_file_that_declares_them() {
    use TokenSource::{Declared, Guessed};
    let dir = TestDir::new();
    let none = Value::Null;
    let ids = |bos: Value, eos: Value| json!({"bos_token_id": bos, "eos_token_id": eos});
    let nothing = json!({});
    let named = json!({"bos_token": "<s>", "eos_token": "</s>"});
    let as_map = json!({"eos_token": {"content": "</s>"}, "pad_token": "<unk>"});
    let cases: Vec<(Value, Value, Value, Value, &str, Expected)> = vec![
        // generation_config.json before config.json, in its order.
        (
            ids(json!(1), json!(2)),
            json!({"eos_token_id": [9, 2]}),
            named.clone(),
            none.clone(),
            "</s>",
            (vec![9, 2], Some(2), Some(1), None, vec![], Declared),
        ),
        // config.json before the tokenizer's settings.
        (
            ids(json!(1), json!(9)),
            none.clone(),
            named.clone(),
            none.clone(),
            "</s>",
            (vec![9], Some(9), Some(1), None, vec![], Declared),
        ),
        // An empty generation_config.json declares nothing.
        (
            ids(json!(1), json!([2, 9])),
            nothing.clone(),
            named.clone(),
            none.clone(),
            "</s>",
            (vec![2, 9], Some(2), Some(1), None, vec![], Declared),
        ),
        // Only the tokenizer's settings, as a text and as a map.
        (
            nothing.clone(),
            none.clone(),
            named.clone(),
            none.clone(),
            "</s>",
            (vec![2], Some(2), Some(1), None, vec![], Declared),
        ),
        (
            ids(none.clone(), none.clone()),
            none.clone(),
            as_map,
            none.clone(),
            "</s>",
            (vec![2], Some(2), None, Some(0), vec![], Declared),
        ),
        // No token ends a text, although one has the name of one.
        (
            ids(none.clone(), none.clone()),
            none.clone(),
            nothing.clone(),
            none.clone(),
            "</s>",
            (vec![], None, None, None, vec![], Declared),
        ),
        // Nothing declared: the defaults of the model type.
        (
            nothing.clone(),
            none.clone(),
            nothing.clone(),
            none.clone(),
            "</s>",
            (vec![2], Some(2), Some(1), None, vec![], Declared),
        ),
        // A token beyond the vocabulary is none.
        (
            ids(json!(1), json!(50256)),
            none.clone(),
            nothing.clone(),
            none.clone(),
            "</s>",
            (vec![], None, Some(1), None, vec![], Declared),
        ),
        // A name that says nothing.
        (
            ids(json!(1), json!(2)),
            none.clone(),
            json!({"eos_token": "<|turn|>"}),
            prefix_of("<s>", 1),
            "<|turn|>",
            (vec![2], Some(2), Some(1), None, vec![1], Declared),
        ),
        // The template's own first token, which is not the BOS token.
        (
            ids(json!(1), json!(2)),
            none.clone(),
            named.clone(),
            prefix_of("</s>", 2),
            "</s>",
            (vec![2], Some(2), Some(1), None, vec![2], Declared),
        ),
        // Settings with `add_bos_token: false` are obeyed as by the class of the tokenizer.
        (
            ids(json!(1), json!(2)),
            none.clone(),
            json!({"bos_token": "<s>", "add_bos_token": false, "tokenizer_class": "LlamaTokenizerFast"}),
            prefix_of("<s>", 1),
            "</s>",
            (vec![2], Some(2), Some(1), None, vec![], Declared),
        ),
        (
            ids(json!(1), json!(2)),
            none.clone(),
            json!({"bos_token": "<s>", "add_bos_token": false, "tokenizer_class": "PreTrainedTokenizerFast"}),
            prefix_of("<s>", 1),
            "</s>",
            (vec![2], Some(2), Some(1), None, vec![1], Declared),
        ),
        // The settings alone require BOS.
        (
            ids(json!(1), json!(2)),
            none.clone(),
            json!({"bos_token": "<s>", "add_bos_token": true}),
            none.clone(),
            "</s>",
            (vec![2], Some(2), Some(1), None, vec![1], Declared),
        ),
    ];
    for (number, (config, generation, settings, post_processor, end, expected)) in
        cases.iter().enumerate()
    {
        let declaration = Declaration {
            config,
            generation,
            settings,
            post_processor,
            end,
        };
        let folder = declare(&dir, &format!("hf{number}"), &declaration);
        let imported = import(&folder, &dir.path(&format!("model{number}"))).unwrap();
        assert_eq!(&found(&imported.card.special), expected, "case {number}");
        assert_eq!(imported.guessed_eos, None);
    }

    // A guess, where nothing is declared and the type has no defaults. It is said.
    let folder = dir.path("guess");
    copy(&fixtures().join("qwen2"), &folder);
    let path = folder.join("config.json");
    let mut config = read(&path);
    for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
        config.as_object_mut().unwrap().remove(key);
    }
    fs::write(path, config.to_string()).unwrap();
    fs::remove_file(folder.join("generation_config.json")).unwrap();
    fs::write(folder.join("tokenizer_config.json"), "{}").unwrap();
    let output = dir.run(&["import", "guess", "--out", "guessed"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("declares an EOS token; `</s>` is used because of its name"));
    let special = ModelDir::open(&dir.path("guessed")).unwrap().card.special;
    let expected = (vec![2], Some(2), None, None, vec![], Guessed);
    assert_eq!(found(&special), expected);
    // A name that says nothing is not guessed, even if it is the only one.
    let path = folder.join("tokenizer.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"</s>\"", "\"<|user|>\"")).unwrap();
    let imported = import(&folder, &dir.path("not-guessed")).unwrap();
    assert_eq!(imported.card.special.eos_ids, [] as [u32; 0]);
}

#[test]
fn eos_ids_outside_the_vocabulary_are_said() {
    let dir = TestDir::new();
    let none = Value::Null;
    for (number, (config, generation, outside, eos)) in [
        (
            json!(2),
            json!({"eos_token_id": [9000, 2]}),
            "9000",
            vec![2],
        ),
        // Without another id, the next file is asked.
        (
            json!([7000, 2]),
            json!({"eos_token_id": 9000}),
            "9000, 7000",
            vec![2],
        ),
        (json!(7000), json!({"eos_token_id": 2}), "", vec![2]),
        (json!(7000), none.clone(), "7000", vec![]),
    ]
    .into_iter()
    .enumerate()
    {
        let declaration = Declaration {
            config: &json!({"bos_token_id": 1, "eos_token_id": config}),
            generation: &generation,
            settings: &none,
            post_processor: &none,
            end: "</s>",
        };
        declare(&dir, &format!("hf{number}"), &declaration);
        let out = format!("model{number}");
        let output = dir.run(&["import", &format!("hf{number}"), "--out", &out]);
        assert!(output.status.success(), "{}", stderr(&output));
        let note = format!("note: EOS ids outside the vocabulary are left out: {outside}\n");
        let shown = stderr(&output);
        assert_eq!(
            shown.contains(&note),
            !outside.is_empty(),
            "{number}: {shown}"
        );
        let special = ModelDir::open(&dir.path(&out)).unwrap().card.special;
        assert_eq!(special.eos_ids, eos, "{number}");
    }
}

#[test]
fn sampling_settings_survive_import_and_export() {
    let dir = TestDir::new();
    let none = Value::Null;
    let generation = json!({"eos_token_id": 2, "do_sample": true, "temperature": 0.6, "top_p": 0.9,
        "top_k": 20, "transformers_version": "5.0.0"});
    let declaration = Declaration {
        config: &json!({"bos_token_id": 1, "eos_token_id": 2}),
        generation: &generation,
        settings: &none,
        post_processor: &none,
        end: "</s>",
    };
    let folder = declare(&dir, "hf", &declaration);
    import(&folder, &dir.path("model")).unwrap();
    let model = ModelDir::open(&dir.path("model")).unwrap();
    nextword_convert::export_hf(&model, FloatType::F32, &dir.path("copy")).unwrap();
    let copy = read(&dir.path("copy/generation_config.json"));
    let expected = json!({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": null, "do_sample": true,
        "temperature": 0.6, "top_p": 0.9, "top_k": 20});
    assert_eq!(copy, expected);
}

#[test]
fn words_without_unknown_token_are_named_at_export() {
    for (unk, count) in [("", 1), ("<unk>", 0)] {
        let words = nextword_data::TokenizerConfig::words().with_unk(unk);
        let texts = std::iter::once(Ok("a few words".to_string()));
        let tokenizer = nextword_data::build_tokenizer(&words, texts).unwrap();
        let file = serde_json::from_str(&tokenizer.to_json().unwrap()).unwrap();
        let dir = TestDir::new();
        let model = crate::gguf_tokenizers::model_with(&dir, &file, ModelTokens::default());
        let notes = nextword_convert::hf_differences(&model).unwrap();
        assert_eq!(notes.len(), count, "{notes:?}");
        assert!(notes.iter().all(|note| note.contains("data.tokenizer.unk")));
    }
}

#[test]
fn a_lone_special_token_does_not_end_a_completion() {
    let dir = TestDir::new();
    let none = Value::Null;
    let folder = declare(
        &dir,
        "hf",
        &Declaration {
            config: &json!({"bos_token_id": null, "eos_token_id": null}),
            generation: &none,
            settings: &json!({}),
            post_processor: &none,
            end: "<|user|>",
        },
    );
    let model = dir.path("model");
    import(&folder, &model).unwrap();
    let generator = nextword_generate::TextGenerator::open(
        &ModelDir::open(&model).unwrap(),
        &crate::util::flex(),
    );
    let generator = generator.unwrap();
    assert_eq!(generator.stop_ids(), [] as [u32; 0]);
    assert_eq!(generator.tokenizer().special_tokens().eos, None);
    assert_eq!(
        (generator.bos_text(), generator.eos_text()),
        (String::new(), String::new())
    );
    // It does not end documents either.
    let chunk = nextword_data::TextChunk {
        text: "w1 w2".to_string(),
        is_first: true,
        is_last: true,
    };
    let report = nextword_eval::evaluate_text(
        generator.model(),
        generator.tokenizer().as_ref(),
        &generator.card().special,
        [Ok(chunk)],
        nextword_eval::TextSettings::default(),
    );
    let tokens = generator.tokenizer().encode("w1 w2").ids.len() as u64;
    assert_eq!(report.unwrap().loss.tokens, tokens - 1);
}

#[test]
fn a_text_and_a_task_are_read_after_the_same_token() {
    let dir = TestDir::new();
    let none = Value::Null;
    // Longer than the context of 24 tokens, so that the last window includes tokens of the one before.
    let words: Vec<String> = (0..57).map(|n| format!("w{}", 1 + n * n % 11)).collect();
    let text = words.join(" ");
    dir.write("text.txt", &text);
    dir.write("task.jsonl", json!({"text": text}).to_string());
    let prefixed = prefix_of("<s>", 1);
    let mut twice = prefixed.clone();
    let token = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
    twice["single"] = json!([token("</s>"), token("<s>"), {"Sequence": {"id": "A", "type_id": 0}}]);
    twice["special_tokens"]["</s>"] = json!({"id": "</s>", "ids": [2], "tokens": ["</s>"]});
    for (name, bos, bos_id, post_processor, first) in [
        ("adds", json!("<s>"), json!(1), &prefixed, &[1][..]),
        ("adds-two", json!("<s>"), json!(1), &twice, &[2, 1]),
        ("declares", json!("<s>"), json!(1), &none, &[1]),
        // lm-evaluation-harness asks the tokenizer, not the model.
        ("lacks", none.clone(), json!(1), &none, &[2]),
        ("lacks-both", none.clone(), none.clone(), &none, &[2]),
        ("differs", json!("</s>"), json!(1), &none, &[2]),
    ] {
        let declaration = Declaration {
            config: &json!({"bos_token_id": bos_id, "eos_token_id": [9, 2]}),
            generation: &none,
            settings: &json!({"bos_token": bos, "eos_token": "</s>"}),
            post_processor,
            end: "</s>",
        };
        let folder = declare(&dir, &format!("hf-{name}"), &declaration);
        import(&folder, &dir.path(name)).unwrap();
        let json = |args: &[&str]| -> Value {
            let output = dir.run(args);
            assert!(output.status.success(), "{}", stderr(&output));
            serde_json::from_slice(&output.stdout).unwrap()
        };
        let by_text = json(&["eval", name, "text.txt", "--json"]);
        let by_task = json(&["eval", name, "--task", "task.jsonl", "--json"]);
        assert_eq!(by_text["prefix"], json!(first), "{name}");
        assert_eq!(by_text["counts_eos"], false);
        let number = |value: &Value| value.as_f64().unwrap();
        let loss = &by_text["loss"];
        let nats = number(&loss["nats_per_token"]) * number(&loss["tokens"]);
        let bits = number(&by_task["bits_per_byte"]) * text.len() as f64;
        let difference = nats - bits * std::f64::consts::LN_2;
        let close = 1e-6 * nats.abs();
        assert!(difference.abs() < close, "{name}: {nats} nats, {bits} bits");
        let model = nextword_data::load_tokenizer(dir.path(name).join("tokenizer.json")).unwrap();
        let count = model.encode(&text).ids.len();
        assert!(count > 48 && !count.is_multiple_of(24), "{count}");
        assert_eq!(by_text["loss"]["tokens"], count, "{name}");
    }
}

#[test]
fn an_exported_copy_declares_nothing_that_the_original_did_not() {
    let dir = TestDir::new();
    let none = Value::Null;
    let folder = declare(
        &dir,
        "hf",
        &Declaration {
            config: &json!({"bos_token_id": 1, "eos_token_id": 9}),
            generation: &none,
            settings: &json!({"eos_token": "</s>"}),
            post_processor: &none,
            end: "</s>",
        },
    );
    let model = dir.path("model");
    import(&folder, &model).unwrap();
    let out = dir.path("out");
    export_hf(&ModelDir::open(&model).unwrap(), FloatType::F32, &out).unwrap();
    let settings = read(&out.join("tokenizer_config.json"));
    assert_eq!(settings["eos_token"], "</s>");
    for key in ["bos_token", "pad_token", "unk_token"] {
        assert_eq!(settings[key], Value::Null, "{key}");
    }
    let generation = read(&out.join("generation_config.json"));
    assert_eq!(generation["eos_token_id"], 9);
    assert_eq!(generation["pad_token_id"], Value::Null);
}

/// As measured with transformers 4.57 for a text with both tokens around it.
#[test]
fn the_class_of_a_tokenizer_decides_whether_it_obeys_its_settings() {
    let dir = TestDir::new();
    let mut around = prefix_of("<s>", 1);
    let end = json!({"SpecialToken": {"id": "</s>", "type_id": 0}});
    around["single"].as_array_mut().unwrap().push(end);
    around["special_tokens"]["</s>"] = json!({"id": "</s>", "ids": [2], "tokens": ["</s>"]});
    let (none, bos, eos): (&[u32], &[u32], &[u32]) = (&[], &[1], &[2]);
    let (obeys, keeps) = ((none, none), (bos, eos));
    for (number, (class, add, expected)) in [
        (json!("LlamaTokenizerFast"), json!(false), obeys),
        (json!("LlamaTokenizer"), json!(false), obeys),
        (json!("GemmaTokenizerFast"), json!(false), obeys),
        (json!("GemmaTokenizer"), json!(false), obeys),
        (json!("CodeLlamaTokenizerFast"), json!(false), obeys),
        (json!("CohereTokenizerFast"), json!(false), obeys),
        (json!("GPTNeoXTokenizerFast"), json!(false), obeys),
        (json!(null), json!(false), obeys), // the class of the model type
        (json!("PreTrainedTokenizerFast"), json!(false), keeps),
        (json!("TokenizersBackend"), json!(false), keeps),
        (json!("Qwen2TokenizerFast"), json!(false), keeps),
        (json!("GPT2TokenizerFast"), json!(false), keeps),
        (json!("LlamaTokenizerFast"), json!(true), keeps),
        (json!("LlamaTokenizerFast"), json!(null), keeps),
    ]
    .into_iter()
    .enumerate()
    {
        let settings = json!({"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": class,
            "add_bos_token": add, "add_eos_token": add});
        let declaration = Declaration {
            config: &json!({"bos_token_id": 1, "eos_token_id": 2}),
            generation: &Value::Null,
            settings: &settings,
            post_processor: &around,
            end: "</s>",
        };
        let folder = declare(&dir, &format!("hf{number}"), &declaration);
        let model = dir.path(&format!("model{number}"));
        let special = import(&folder, &model).unwrap().card.special;
        let found = (special.prefix(), special.suffix_ids.as_slice());
        assert_eq!(found, expected, "{class} {add}");
        // An exported copy puts the same tokens around a text, whatever the class.
        let out = dir.path(&format!("out{number}"));
        export_hf(&ModelDir::open(&model).unwrap(), FloatType::F32, &out).unwrap();
        let again = import(&out, &dir.path(&format!("again{number}"))).unwrap();
        assert_eq!(again.card.special, special, "{class} {add}");
        let single = &read(&out.join("tokenizer.json"))["post_processor"].to_string();
        assert_eq!(single.contains("<s>"), !expected.0.is_empty(), "{single}");
    }
}
