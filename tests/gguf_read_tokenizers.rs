//! Tokenizers of GGUF files: the same ids as the tokenizer that was exported.

use std::collections::BTreeMap;

use nextword_base::rng::RandomSequence;
use nextword_convert::{GgufType, export_gguf, open_gguf};
use nextword_data::{Tokenizer, TokenizerConfig};
use nextword_model::{ModelDir, ModelTokens, TokenSource};
use serde_json::{Value, json};

use crate::gguf_file::{
    RawFile, bool_value, f32s_value, i32s_value, text_value, texts_value, u32_value,
};
use crate::gguf_tokenizers::{byte_tokenizer, declared, model_with};
use crate::malformed_models::test_rng;
use crate::test_dir::TestDir;
use crate::util::root;

const TEXTS: [&str; 16] = [
    "",
    " ",
    "the",
    "The thing that the other one has",
    "  two  spaces  and   three ",
    "line\nline\n\n\nline\r\n\ttab\t\t",
    "1 22 333 4444 55555 a1b22c333  7",
    "it's we'LL I'm don't they'Ve",
    "naïve café — “quotes” … €5",
    "中文字符と日本語のテキスト、한국어",
    "Ünïcödé ǅ ǆ ÅÄÖ åäö ΑΒΓ αβγ ЖЗИ",
    "🙂🙃 emoji 👩‍👩‍👧",
    "x=1;\n    y += f(x)/2 // comment\n",
    "</s>the</s> the <x> </s>\n",
    "١٢٣ ½ ² Ⅷ 五",
    "...!!! ?? -- ## $$ ++ <=> ^~|",
];

/// A text of these parts.
fn random_text(parts: &[&str], rng: &mut RandomSequence) -> String {
    (0..rng.below(40))
        .map(|_| parts[rng.below(parts.len())])
        .collect()
}

fn tokenizer(model: &ModelDir) -> std::sync::Arc<dyn Tokenizer> {
    nextword_generate::open_tokenizer(model).unwrap()
}

fn assert_same_ids(
    ours: &dyn Tokenizer,
    theirs: &dyn Tokenizer,
    texts: impl Iterator<Item = String>,
) {
    for text in texts {
        let (a, b) = (ours.encode(&text).ids, theirs.encode(&text).ids);
        assert_eq!(a, b, "{text:?}");
        assert_eq!(ours.decode(&a), theirs.decode(&b), "{text:?}");
    }
}

/// Exports a model with the tokenizer `file` and opens it.
fn reopened(dir: &TestDir, file: &Value, special: ModelTokens) -> (ModelDir, ModelDir) {
    let model = model_with(dir, file, special);
    let path = dir.path("model.gguf");
    export_gguf(&model, GgufType::F32, &path).unwrap();
    (model, open_gguf(&path).unwrap())
}

fn texts(dir: &'static str) -> impl Iterator<Item = String> {
    let mut rng = test_rng(dir);
    let parts = [
        "the", " the", "th", "T", "1", "23", " ", "  ", "\n", "\t", "é", "'s", "!", "-", "</s>",
        "<x>", "中",
    ];
    let random = (0..300).map(move |_| random_text(&parts, &mut rng));
    TEXTS.map(String::from).into_iter().chain(random)
}

#[test]
fn byte_level_tokenizers_are_read_with_their_pre_tokenizers() {
    let dir = TestDir::new();
    let merges = [
        "t h", "th e", "Ġ t", "Ġt h", "Ġth e", "o n", "1 2", "2 2", "3 3", "33 3", "Ġ Ġ", "ĠĠ Ġ",
        "Ċ Ċ", "a n", "an d", "Ã ©", "Ġ 1", ". .", ".. .",
    ];
    let added = [("</s>", json!({})), ("<x>", json!({"special": false}))];
    // Of each pattern, an export of ours writes the name, which is then read.
    let plain = byte_tokenizer(&added, &merges, &json!({}));
    let eos = plain["added_tokens"][0]["id"].as_u64().unwrap() as u32;
    let (_, opened) = reopened(&dir, &plain, declared(&[eos]));
    let names = RawFile::read(&dir.path("model.gguf"));
    let without_name = names.clone();
    let mut found = 0;
    for name in [
        "gpt-2",
        "llama-bpe",
        "dbrx",
        "qwen2",
        "smollm",
        "tekken",
        "gpt-4o",
        "deepseek-coder",
        "deepseek-v3",
        "default",
    ] {
        let mut file = without_name.clone();
        file.set("tokenizer.ggml.pre", text_value(name));
        let path = dir.path("named.gguf");
        file.write(&path);
        let named = open_gguf(&path).unwrap();
        // What was read is exported with the same name, and read again.
        let again = dir.path("again.gguf");
        export_gguf(&named, GgufType::F32, &again).unwrap();
        let meta = crate::gguf::read(&again).meta;
        assert_eq!(meta["tokenizer.ggml.pre"], name);
        assert_same_ids(
            &*tokenizer(&named),
            &*tokenizer(&open_gguf(&again).unwrap()),
            texts("again"),
        );
        found += 1;
    }
    assert_eq!(found, 10);
    assert_eq!(opened.card.special.eos_ids, [eos]);
    let mut file = without_name;
    file.set("tokenizer.ggml.pre", text_value("unheard-of"));
    file.write(&dir.path("named.gguf"));
    let error = open_gguf(&dir.path("named.gguf")).unwrap_err().to_string();
    assert!(
        error.contains("the pre-tokenizer \"unheard-of\"; supported are gpt-2"),
        "{error}"
    );
}

/// The fixture is written by `scripts/make_gguf_tokenizer_fixture.py`.
#[test]
fn pre_tokenizers_give_the_tokens_of_llama_cpp() {
    let dir = TestDir::new();
    let fixture = root().join("tests/fixtures/gguf_pre_tokenizers.json");
    let fixture: Value = serde_json::from_slice(&std::fs::read(fixture).unwrap()).unwrap();
    let list = |value: &Value| -> Vec<String> {
        let texts = value.as_array().unwrap().iter();
        texts
            .map(|text| text.as_str().unwrap().to_string())
            .collect()
    };
    let (merges, texts) = (list(&fixture["merges"]), list(&fixture["texts"]));
    let merges: Vec<&str> = merges.iter().map(String::as_str).collect();
    let file = byte_tokenizer(&[("</s>", json!({}))], &merges, &json!({}));
    let eos = 256 + merges.len() as u32;
    reopened(&dir, &file, declared(&[eos]));
    let mut changed = RawFile::read(&dir.path("model.gguf"));
    let path = dir.path("named.gguf");
    let names = fixture["ids"].as_object().unwrap();
    assert_eq!(names.len(), 10);
    for (name, expected) in names {
        changed.set("tokenizer.ggml.pre", text_value(name));
        changed.write(&path);
        let tokenizer = tokenizer(&open_gguf(&path).unwrap());
        for (text, expected) in texts.iter().zip(expected.as_array().unwrap()) {
            assert_eq!(
                json!(tokenizer.encode(text).ids),
                *expected,
                "{name}: {text:?}"
            );
        }
    }
}

/// `llama.cpp` writes `Digits` of a Hugging Face file as the name `smollm`.
#[test]
fn digits_are_single_tokens() {
    let dir = TestDir::new();
    let mut file = byte_tokenizer(&[("</s>", json!({}))], &["1 2", "Ġ 1", "Ġ Ġ"], &json!({}));
    let bytes = file["pre_tokenizer"].clone();
    file["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": true}, bytes]});
    let (model, opened) = reopened(&dir, &file, declared(&[259]));
    let tokenizer_of_file = tokenizer(&opened);
    assert_same_ids(&*tokenizer(&model), &*tokenizer_of_file, texts("digits"));
    // Neither "12" nor " 1" is one token.
    assert_eq!(tokenizer_of_file.encode("  12").ids.len(), 3);
}

#[test]
fn tokenizers_trained_here_are_read_back() {
    let dir = TestDir::new();
    let text = "ab é— the thing, and then more of the same thing\nand a line";
    for (config, eos) in [
        (TokenizerConfig::chars(), "<EOS>"),
        (TokenizerConfig::chars(), ""),
        (TokenizerConfig::chars().with_unk(""), "<EOS>"),
        (TokenizerConfig::chars().with_unk(""), ""),
        (TokenizerConfig::bytes(), "<EOS>"),
        (TokenizerConfig::bpe(300), "<EOS>"),
    ] {
        let config = TokenizerConfig {
            eos: eos.to_string(),
            ..config
        };
        let original = config.build(text).unwrap();
        let file: Value = serde_json::from_str(&original.to_json().unwrap()).unwrap();
        let special = original.special_tokens();
        let (model, opened) = reopened(&dir, &file, ModelTokens::trained(special.eos, special.pad));
        assert_same_ids(&*tokenizer(&model), &*tokenizer(&opened), texts("trained"));
        let (ours, theirs) = (&model.card.special, &opened.card.special);
        assert_eq!(ours.eos_ids, theirs.eos_ids);
        assert_eq!(ours.prefix(), theirs.prefix());
        assert_eq!(ours.pad_id, theirs.pad_id);
        assert_eq!(
            ours.evaluation_prefix(special.eos),
            theirs.evaluation_prefix(special.eos)
        );
    }
}

/// A vocabulary of `SentencePiece` with random merges, as a Hugging Face file and as a file of the exporter.
fn sentencepiece(rng: &mut RandomSequence) -> Value {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).into();
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    let first = tokens.len();
    tokens.extend(["▁", "a", "b", "c", "é", "."].map(String::from));
    let mut merges: Vec<String> = Vec::new();
    while tokens.len() < first + 30 {
        let part = |rng: &mut RandomSequence| first + rng.below(tokens.len() - first);
        let (left, right) = (part(rng), part(rng));
        let merged = format!("{}{}", tokens[left], tokens[right]);
        if merged.chars().count() <= 6 && !tokens.contains(&merged) {
            tokens.push(merged);
        }
    }
    // Every split of a token into two tokens, as SentencePiece merges any neighbours.
    for token in &tokens[first..] {
        let mut splits: Vec<(usize, usize)> = Vec::new();
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            let position = |part: &str| tokens[first..].iter().position(|token| token == part);
            if let (Some(left), Some(right)) = (position(left), position(right)) {
                splits.push((left, right));
            }
        }
        splits.sort_by_key(|(left, right)| {
            let characters = |at: usize| tokens[first + at].chars().count();
            std::cmp::Reverse((characters(*left), characters(*right)))
        });
        let name = |at: usize| &tokens[first + at];
        merges.extend(
            splits
                .iter()
                .map(|(left, right)| format!("{} {}", name(*left), name(*right))),
        );
    }
    let vocab: BTreeMap<String, usize> = tokens.into_iter().zip(0..).collect();
    let added = ["<unk>", "<s>", "</s>"].into_iter().zip(0..);
    let added = added.map(|(name, id)| {
        json!({"id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": merges},
    })
}

fn sentencepiece_tokens() -> ModelTokens {
    ModelTokens {
        bos_id: Some(1),
        eos_ids: vec![2],
        document_eos_id: Some(2),
        evaluation_id: Some(1),
        prefix_ids: Some(vec![1]),
        source: Some(TokenSource::Declared),
        ..ModelTokens::default()
    }
}

/// A valid file with such a vocabulary.
pub(crate) fn sentencepiece_file(dir: &TestDir) -> RawFile {
    let file = sentencepiece(&mut test_rng("sentencepiece file"));
    reopened(dir, &file, sentencepiece_tokens());
    RawFile::read(&dir.path("model.gguf"))
}

/// The file has a BOS token all the same: llama.cpp takes token 11 or 1 for that of a file without one.
#[test]
fn a_model_without_bos_token_has_none_after_gguf() {
    let dir = TestDir::new();
    let bytes = byte_tokenizer(&[("<e>", json!({})), ("<b>", json!({}))], &[], &json!({}));
    let pieces = sentencepiece(&mut test_rng("no BOS token"));
    for (file, eos) in [(&bytes, 256), (&pieces, 2)] {
        for (bos, prefix) in [
            (None, vec![]),
            (None, vec![eos - 1]),
            (Some(eos), vec![]),
            (Some(eos), vec![eos - 1]),
            (Some(eos - 1), vec![eos - 1]),
        ] {
            let special = ModelTokens {
                bos_id: bos,
                prefix_ids: Some(prefix.clone()),
                eos_ids: vec![eos],
                document_eos_id: Some(eos),
                source: Some(TokenSource::Declared),
                ..ModelTokens::default()
            };
            let (_, opened) = reopened(&dir, file, special);
            let read = &opened.card.special;
            assert_eq!((read.bos_id, read.prefix()), (bos, prefix.as_slice()));
            assert_eq!(read.bos_token.is_some(), bos.is_some());
            assert_eq!(read.eos_ids, [eos]);
            let meta = crate::gguf::read(&dir.path("model.gguf")).meta;
            let expected = prefix.first().copied().or(bos).unwrap_or(eos);
            assert_eq!(meta["tokenizer.ggml.bos_token_id"], expected.to_string());
        }
    }
}

#[test]
fn sentencepiece_tokenizers_are_read_back() {
    let dir = TestDir::new();
    let mut rng = test_rng("sentencepiece");
    let parts = [
        "a", "b", "c", " ", "  ", "é", ".", "x", "中", "<s>", "</s>", "\n", "🙂",
    ];
    for round in 0..10 {
        let file = sentencepiece(&mut rng);
        let (model, opened) = reopened(&dir, &file, sentencepiece_tokens());
        let texts: Vec<String> = (0..100).map(|_| random_text(&parts, &mut rng)).collect();
        assert_same_ids(&*tokenizer(&model), &*tokenizer(&opened), texts.into_iter());
        let (ours, theirs) = (&model.card.special, &opened.card.special);
        assert_eq!(ours.prefix(), theirs.prefix(), "{round}");
        assert_eq!(
            (ours.bos_id, &ours.eos_ids),
            (theirs.bos_id, &theirs.eos_ids)
        );
        assert_eq!(theirs.bos_token.as_deref(), Some("<s>"));
    }
    // Without a space before the text; and what cannot be read.
    let valid = RawFile::read(&dir.path("model.gguf"));
    let path = dir.path("changed.gguf");
    let mut changed = valid.clone();
    changed.set("tokenizer.ggml.add_space_prefix", bool_value(false));
    changed.write(&path);
    let tokenizer = tokenizer(&open_gguf(&path).unwrap());
    assert_eq!(tokenizer.encode("a").ids, [260]);
    assert_eq!(tokenizer.decode(&tokenizer.encode(" a b").ids), " a b");
    for (key, value, expected) in [
        (
            "scores",
            f32s_value(&[0.0; 3]),
            "has not one for each token",
        ),
        ("token_type", i32s_value(&[1, 2]), "not one for each token"),
        (
            "tokens",
            texts_value(&vec!["a".to_string(); 289]),
            "has the token \"a\" twice",
        ),
        ("add_space_prefix", u32_value(1), "must be true or false"),
    ] {
        let mut changed = valid.clone();
        changed.set(&format!("tokenizer.ggml.{key}"), value);
        changed.write(&path);
        let error = open_gguf(&path).unwrap_err().to_string();
        assert!(error.contains(expected), "{key}: {error}");
    }
}

/// Files of other programs name the tokens that end a completion by up to three keys, or not at all.
#[test]
fn special_tokens_of_other_programs_are_read() {
    let dir = TestDir::new();
    let names = ["<|endoftext|>", "<|im_end|>", "<z>", "<pad>"];
    let added = names.map(|name| (name, json!({})));
    let file = byte_tokenizer(&added, &[], &json!({}));
    reopened(&dir, &file, declared(&[257]));
    let mut valid = RawFile::read(&dir.path("model.gguf"));
    valid.remove("nextword.eos_token_ids");
    valid.remove("nextword.bos_token_ids");
    valid.remove("tokenizer.ggml.bos_token_id");
    let path = dir.path("changed.gguf");
    let id = |id: u32| u32_value(id);
    for (entries, eos, document, bos, prefix) in [
        (vec![], vec![257, 256], 257, None, vec![]),
        (
            vec![("eos_token_id", id(258))],
            vec![258, 256, 257],
            258,
            None,
            vec![],
        ),
        (
            vec![("eos_token_id", id(256)), ("eot_token_id", id(258))],
            vec![256, 258, 257],
            256,
            None,
            vec![],
        ),
        (
            vec![
                ("bos_token_id", id(258)),
                ("add_bos_token", bool_value(true)),
            ],
            vec![257, 256],
            257,
            Some(258),
            vec![258],
        ),
        // Out of range, as some programs write for "none".
        (
            vec![("padding_token_id", id(u32::MAX))],
            vec![257, 256],
            257,
            None,
            vec![],
        ),
    ] {
        let mut changed = valid.clone();
        for (key, value) in entries {
            changed.set(&format!("tokenizer.ggml.{key}"), value);
        }
        changed.write(&path);
        let special = open_gguf(&path).unwrap().card.special;
        assert_eq!(special.eos_ids, eos);
        assert_eq!(special.document_eos_id, Some(document));
        assert_eq!((special.bos_id, special.prefix()), (bos, prefix.as_slice()));
        assert_eq!(special.source, Some(TokenSource::Declared));
    }
    // Chat templates, also several.
    let mut changed = valid.clone();
    changed.set("tokenizer.chat_template", text_value("{{ messages }}"));
    changed.set(
        "tokenizer.chat_template.tool_use",
        text_value("{{ tools }}"),
    );
    changed.write(&path);
    let templates = open_gguf(&path).unwrap().card.chat_templates;
    assert_eq!(templates["default"], "{{ messages }}");
    assert_eq!(
        (templates.len(), templates["tool_use"].as_str()),
        (2, "{{ tools }}")
    );
    // Without the key, Llama 3's pre-tokenizer puts BOS before a text.
    for (name, prefix) in [("llama-bpe", vec![258]), ("qwen2", vec![])] {
        let mut changed = valid.clone();
        changed.remove("tokenizer.ggml.add_bos_token");
        changed.set("tokenizer.ggml.bos_token_id", id(258));
        changed.set("tokenizer.ggml.pre", text_value(name));
        changed.write(&path);
        assert_eq!(open_gguf(&path).unwrap().card.special.prefix(), prefix);
    }
}
