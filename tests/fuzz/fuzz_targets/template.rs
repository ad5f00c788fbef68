//! A chat template: it is read and put to use within its limits, or a sentence says why not.

#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;
use nextword_server::{ChatTemplate, Message};

fuzz_target!(|source: &str| {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(source.as_bytes()).unwrap();
    if let Ok(Some(template)) = ChatTemplate::open(file.path()) {
        let message = |role: &str, content: &str| Message {
            role: role.into(),
            content: content.into(),
        };
        let messages = [message("system", "Be brief."), message("user", "Hi {{ x }}")];
        let _ = template.render(&messages, "<s>", "</s>");
    }
});
