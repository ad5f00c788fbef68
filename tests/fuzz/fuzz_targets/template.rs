//! Fuzzes chat templates: parsing and rendering stay within their limits or return an error.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nextword_chat::{ChatTemplate, Message};

fuzz_target!(|source: &str| {
    if let Ok(template) = ChatTemplate::from_source(source, "<s>", "</s>") {
        let messages = [Message::system("Be brief."), Message::user("Hi {{ x }}")];
        let _ = template.render(&messages);
    }
});
