//! Bytes as tokens of an answer with a stop string: the pieces join to the text before it, and none
//! holds half a character.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nextword_data::{TokenizerConfig, TokenizerKind, build_tokenizer};
use nextword_generate::TextWriter;

fuzz_target!(|input: (String, Vec<u8>)| {
    let (stop, bytes) = input;
    let config = TokenizerConfig {
        kind: TokenizerKind::Byte,
        ..TokenizerConfig::default()
    };
    let tokenizer = build_tokenizer(&config, std::iter::empty()).unwrap();
    let Ok(mut writer) = TextWriter::new(tokenizer, &[], std::slice::from_ref(&stop)) else {
        assert!(stop.is_empty());
        return;
    };
    let mut shown = String::new();
    for byte in &bytes {
        shown += &writer.take(u32::from(*byte), false);
        if writer.stop().is_some() {
            break;
        }
    }
    shown += &writer.finish();
    let whole = String::from_utf8_lossy(&bytes);
    let before = whole.split(&stop).next().unwrap_or("");
    assert_eq!(shown, before);
    assert_eq!(writer.into_text().0, shown);
});
