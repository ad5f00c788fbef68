//! Fuzzes chat templates: parsing and rendering stay within their limits or return an error.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nextword_server::{ChatTemplate, Message};

fuzz_target!(|source: &str| {
    if let Ok(template) = ChatTemplate::from_source(source, "<s>", "</s>") {
        let message = |role: &str, content: &str| Message {
            role: role.into(),
            content: content.into(),
        };
        let messages = [message("system", "Be brief."), message("user", "Hi {{ x }}")];
        let _ = template.render(&messages);
    }
});
