//! Special tokens that are not recognized, because they are the text of something.

use super::{random, random_text};
use crate::{TokenizerConfig, TokenizerKind};

#[test]
fn ordinary_encoding_recognizes_no_special_token() {
    let text = "the <EOS> and <unk> of <EO S>".to_owned();
    let all = [
        TokenizerConfig::chars(),
        TokenizerConfig::bytes(),
        TokenizerConfig::words(),
        TokenizerConfig::bpe(400),
    ];
    for config in all {
        let tokenizer = config.build(&text).unwrap();
        let special = tokenizer.special_tokens();
        let eos = special.eos.unwrap();
        let mut texts = tokenizer.special_texts();
        texts.sort();
        let expected = if special.unk.is_some() {
            vec!["<EOS>", "<unk>"]
        } else {
            vec!["<EOS>"]
        };
        assert_eq!(texts, expected, "{config:?}");
        let mut random = random(5);
        for _ in 0..100 {
            let text = random_text(&mut random);
            let ordinary = tokenizer.try_encode_ordinary(&text).unwrap();
            assert!(!ordinary.ids.contains(&eos), "{config:?}: {text:?}");
            let usual = tokenizer.try_encode(&text).unwrap();
            if text.contains("<EOS>") {
                assert!(usual.ids.contains(&eos), "{config:?}: {text:?}");
            } else {
                assert_eq!(ordinary, usual, "{config:?}: {text:?}");
            }
            if matches!(config.kind, TokenizerKind::Byte | TokenizerKind::Bpe) {
                assert_eq!(tokenizer.decode(&ordinary.ids), text, "{config:?}");
            }
        }
    }
}
