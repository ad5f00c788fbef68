//! The prompt of a command: its argument, or standard input.

use std::io::{IsTerminal, Read};

use crate::exit;

/// Returns the prompt argument, or standard input unless it is a terminal.
pub(crate) fn read(argument: Option<&str>) -> anyhow::Result<String> {
    if let Some(prompt) = argument {
        return Ok(prompt.to_string());
    }
    let mut input = std::io::stdin().lock();
    if input.is_terminal() {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    input.read_to_end(&mut bytes)?;
    let mut text = String::from_utf8(bytes).map_err(|e| {
        let offset = e.utf8_error().valid_up_to();
        exit::bad_file(format!(
            "the prompt on standard input is not valid UTF-8 (at byte {offset}); hint: convert it to UTF-8"
        ))
    })?;
    // `echo` and editors append a line break that is not part of the prompt.
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}
