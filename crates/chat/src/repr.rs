//! Values as Python prints them.

use std::fmt::Write;

use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use crate::arguments::invalid;
use crate::tojson::float_text;

/// Maximum length of a printed list or dict, in bytes.
const MAX_BYTES: usize = 4 << 20;
/// Maximum depth of nested values.
const MAX_DEPTH: usize = 200;

/// The text of a number, a list, a tuple or a dict; `None` for other values, which minijinja prints alike.
pub(crate) fn repr(value: &Value) -> Result<Option<String>, Error> {
    let is_own = match value.kind() {
        ValueKind::Number => !value.is_integer(),
        ValueKind::Seq | ValueKind::Map => true,
        ValueKind::Iterable => value.len().is_some(),
        _ => false,
    };
    if !is_own {
        return Ok(None);
    }
    let mut out = String::new();
    write(&mut out, value, 0)?;
    Ok(Some(out))
}

fn write(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH || out.len() > MAX_BYTES {
        return Err(invalid(
            "a value is too large or too deeply nested to be printed",
        ));
    }
    match value.kind() {
        ValueKind::String => string(out, value.as_str().unwrap_or_default()),
        ValueKind::Number if !value.is_integer() => out.push_str(&number(value)),
        ValueKind::Seq | ValueKind::Iterable => {
            let (open, close) = if value.is_tuple() {
                ('(', ')')
            } else {
                ('[', ']')
            };
            out.push(open);
            let mut count = 0;
            for item in value.try_iter()? {
                out.push_str(if count > 0 { ", " } else { "" });
                write(out, &item, depth + 1)?;
                count += 1;
            }
            if count == 1 && open == '(' {
                out.push(',');
            }
            out.push(close);
        }
        ValueKind::Map => {
            out.push('{');
            for (at, key) in value.try_iter()?.enumerate() {
                out.push_str(if at > 0 { ", " } else { "" });
                write(out, &key, depth + 1)?;
                out.push_str(": ");
                write(out, &value.get_item(&key)?, depth + 1)?;
            }
            out.push('}');
        }
        ValueKind::Undefined => out.push_str("Undefined"),
        _ => {
            let _ = write!(out, "{value}"); // Writing to a string cannot fail.
        }
    }
    Ok(())
}

fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(number) if number.is_nan() => "nan".to_owned(),
        Ok(number) if number.is_infinite() => if number > 0.0 { "inf" } else { "-inf" }.to_owned(),
        Ok(number) => float_text(number),
        Err(_) => value.to_string(),
    }
}

/// A string in quotes, double ones if it contains only single ones.
fn string(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if c == quote => {
                out.push('\\');
                out.push(c);
            }
            _ if is_printable(c) => out.push(c),
            _ => {
                let code = c as u32;
                let _ = match code {
                    0..=0xff => write!(out, "\\x{code:02x}"),
                    0x100..=0xffff => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push(quote);
}

/// Whether Python prints `c` as it is. Unassigned characters are printed too.
fn is_printable(c: char) -> bool {
    let is_invisible = matches!(
        c,
        '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{180e}'
            | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{e000}'..='\u{f8ff}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0001}'..='\u{e007f}'
            | '\u{f0000}'..='\u{10ffff}'
    );
    c == ' ' || !(c.is_control() || c.is_whitespace() || is_invisible)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn strings_in_lists_are_quoted_as_in_python() {
        let text = "a'\"\\\n\u{1}\u{a0}é\u{2028}🦀\u{f0000}";
        let list = Value::from(vec![
            Value::from(text),
            Value::from("it's"),
            Value::from(1e16),
        ]);
        let expected = "['a\\'\"\\\\\\n\\x01\\xa0é\\u2028🦀\\U000f0000', \"it's\", 1e+16]";
        assert_eq!(repr(&list).unwrap().unwrap(), expected);
        assert_eq!(repr(&Value::from("x")).unwrap(), None);
    }
}
