//! Fuzzes detokenization of byte tokens with a stop string: the text deltas add up to the text before
//! the stop string.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nextword_data::{TokenizerConfig, TokenizerKind, build_tokenizer};
use nextword_generate::Detokenizer;

fuzz_target!(|input: (String, Vec<u8>)| {
    let (stop, bytes) = input;
    let config = TokenizerConfig {
        kind: TokenizerKind::Byte,
        ..TokenizerConfig::default()
    };
    let tokenizer = build_tokenizer(&config, std::iter::empty()).unwrap();
    let Ok(mut writer) = Detokenizer::new(tokenizer, &[], std::slice::from_ref(&stop)) else {
        assert!(stop.is_empty());
        return;
    };
    let mut output = String::new();
    for byte in &bytes {
        output += &writer.take(u32::from(*byte), false);
        if writer.stop().is_some() {
            break;
        }
    }
    output += &writer.finish();
    let text = String::from_utf8_lossy(&bytes);
    let expected = text.split(&stop).next().unwrap_or("");
    assert_eq!(output, expected);
    assert_eq!(writer.into_text().0, output);
});
