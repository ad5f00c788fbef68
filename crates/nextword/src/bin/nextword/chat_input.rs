//! Lines that the user types in a chat: with line editing and a history on a terminal.

use std::io::{BufRead, ErrorKind, IsTerminal};

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::output;

/// Before each line of the user, on a terminal.
const PROMPT: &str = "> ";

/// Where the lines come from.
pub(crate) enum ChatInput {
    /// A terminal. The history is in memory only.
    Terminal(Box<DefaultEditor>),
    /// A pipe or a file, or a terminal whose output goes elsewhere.
    Plain,
}

/// One line of input.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// Text, without its line break.
    Text(String),
    /// Bytes that are not UTF-8, the first one at this index, which is unknown on a terminal.
    NotUtf8(Option<usize>),
    /// The user pressed Ctrl-C.
    Interrupted,
    /// There are no more lines.
    End,
}

impl ChatInput {
    /// Reads from the terminal, or from standard input if that is not one.
    pub(crate) fn open() -> anyhow::Result<Self> {
        if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
            Ok(Self::Terminal(Box::new(DefaultEditor::new()?)))
        } else {
            Ok(Self::Plain)
        }
    }

    /// Reads the next line and adds it to the history.
    pub(crate) fn next_line(&mut self) -> anyhow::Result<Line> {
        let editor = match self {
            Self::Terminal(editor) => editor,
            Self::Plain => return read_plain(&mut std::io::stdin().lock()),
        };
        match editor.readline(PROMPT) {
            Ok(line) => {
                editor.add_history_entry(line.as_str())?;
                Ok(Line::Text(line))
            }
            Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
            Err(ReadlineError::Eof) => Ok(Line::End),
            Err(ReadlineError::Io(error)) if error.kind() == ErrorKind::InvalidData => {
                Ok(Line::NotUtf8(None))
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn read_plain(input: &mut (impl BufRead + IsTerminal)) -> anyhow::Result<Line> {
    if input.is_terminal() {
        output::print(PROMPT)?;
    }
    read_line(input)
}

/// Reads the next line of `input`.
fn read_line(input: &mut impl BufRead) -> anyhow::Result<Line> {
    let mut bytes = Vec::new();
    if input.read_until(b'\n', &mut bytes)? == 0 {
        return Ok(Line::End);
    }
    Ok(match String::from_utf8(bytes) {
        Ok(text) => Line::Text(text.trim_end_matches(['\n', '\r']).to_string()),
        Err(error) => Line::NotUtf8(Some(error.utf8_error().valid_up_to())),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lines_after_invalid_text_are_read() {
        let mut input: &[u8] = b"one\r\n\xff\xfe\nab\xe9\n\n\xf0\x9f\xa6\x80 last";
        let mut lines = Vec::new();
        loop {
            match read_line(&mut input).unwrap() {
                Line::End => break,
                line => lines.push(line),
            }
        }
        let text = |text: &str| Line::Text(text.to_string());
        let expected = [
            text("one"),
            Line::NotUtf8(Some(0)),
            Line::NotUtf8(Some(2)),
            text(""),
            text("🦀 last"),
        ];
        assert_eq!(lines, expected);
    }
}
