//! `tokenizer.json` files with inconsistent vocabularies.

use serde_json::{Value, json};

use crate::tests::malformed_tokenizers::{added, bpe, load, with, words};

#[test]
fn valid_file_of_each_model_loads() {
    let none = json!({});
    assert_eq!(
        load(&with(
            &bpe(&json!({"a": 0, "b": 1, "ab": 2}), &json!(["a b"])),
            &none
        ))
        .unwrap()
        .encode("abb")
        .ids,
        [2, 1]
    );
    assert_eq!(
        load(&with(&words(&json!({"a": 0, "<unk>": 1})), &none))
            .unwrap()
            .encode("a")
            .ids,
        [0]
    );
}

#[test]
fn invalid_merges_are_errors() {
    let vocab = json!({"a": 0, "é": 1, "aé": 2, "": 3});
    let bad_merges = [
        json!(["a"]),
        json!(["a b c"]),
        json!(["a x"]),
        json!([["a"]]),
        json!([["a", "é", "a"]]),
        json!(["é a"]),
        json!([["a", 1]]),
        json!([5]),
        json!({"a": "b"}),
        json!("a é"),
        json!(["a é", "aé aé"]),
    ];
    for merges in bad_merges {
        load(&with(&bpe(&vocab, &merges), &json!({}))).unwrap_err();
    }
    // A prefix longer than the token it is stripped from, and one that ends inside a character.
    for prefix in ["####", "#"] {
        let mut model = bpe(&vocab, &json!(["a é"]));
        model["continuing_subword_prefix"] = json!(prefix);
        assert!(load(&with(&model, &json!({}))).is_err(), "{prefix:?}");
    }
}

#[test]
fn out_of_range_or_duplicate_ids_are_errors() {
    let none = json!({});
    for vocab in [
        json!({"a": 4_294_967_295u32, "b": 0}),
        json!({"a": 16_777_216, "b": 0}),
        json!({"a": 4_294_967_296u64, "b": 0}),
        json!({"a": -1, "b": 0}),
        json!({"a": 0.5, "b": 0}),
        json!({"a": 0, "b": 0, "<unk>": 1}),
        json!({}),
    ] {
        load(&with(&bpe(&vocab, &json!([])), &none)).unwrap_err();
        load(&with(&words(&vocab), &none)).unwrap_err();
    }
    let model = words(&json!({"a": 0, "<unk>": 1}));
    for id in [
        json!(0),
        json!(1),
        json!(3),
        json!(-2),
        json!(u64::MAX),
        json!("2"),
        json!(null),
    ] {
        let error = load(&with(&model, &json!({"added_tokens": added(&id, "<EOS>")})));
        error.unwrap_err();
    }
    load(&with(
        &model,
        &json!({"added_tokens": added(&json!(2), "<EOS>")}),
    ))
    .unwrap();
    let unigram = |unk: Value| json!({"type": "Unigram", "unk_id": unk, "vocab": [["<unk>", 0.0], ["a", -1.0], ["b", -1e308]]});
    load(&with(&unigram(json!(0)), &none)).unwrap();
    load(&with(&unigram(json!(3)), &none)).unwrap_err();
    let _ = load(&with(&unigram(json!(null)), &none));
}

#[test]
fn dropout_in_the_file_does_not_make_encoding_random() {
    let mut model = bpe(&json!({"a": 0, "b": 1, "ab": 2}), &json!(["a b"]));
    model["dropout"] = json!(0.5);
    let tokenizer = load(&with(&model, &json!({}))).unwrap();
    for _ in 0..64 {
        assert_eq!(tokenizer.encode("ab").ids, [2]);
    }
}
