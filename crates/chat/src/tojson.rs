//! The filter `tojson`, as Python's `json.dumps` with the arguments that transformers gives it.

use std::fmt::Write;

use minijinja::value::ValueKind;
use minijinja::{Error, State, Value};

use crate::arguments::{Arguments, charge, invalid};

/// Maximum indentation, in spaces.
const MAX_INDENT: i64 = 16;
/// Maximum length of a separator or of an indentation given as text, in bytes.
const MAX_SEPARATOR_BYTES: usize = 64;
/// Maximum length of the JSON, in bytes.
const MAX_BYTES: usize = 4 << 20;
/// Maximum depth of nested values.
const MAX_DEPTH: usize = 200;

/// `tojson(ensure_ascii=false, indent=none, separators=none, sort_keys=false)`.
pub(crate) fn tojson(
    state: &State<'_, '_>,
    value: &Value,
    args: &[Value],
) -> Result<String, Error> {
    let args = Arguments::bind(args, &["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let indent = indentation(args.get(1))?;
    let comma = if indent.is_some() { "," } else { ", " };
    let (comma, colon) = match args.get(2) {
        None => (comma.to_owned(), ": ".to_owned()),
        Some(pair) => separator_pair(pair)?,
    };
    let mut writer = Writer {
        out: String::new(),
        ensure_ascii: args.flag(0, false),
        sort_keys: args.flag(3, false),
        indent,
        comma,
        colon,
    };
    writer.value(value, 0)?;
    charge(state, writer.out.len())?;
    Ok(writer.out)
}

/// The text of one level of indentation; `None` for JSON on one line.
fn indentation(indent: Option<&Value>) -> Result<Option<String>, Error> {
    let Some(indent) = indent else {
        return Ok(None);
    };
    let problem = || {
        invalid(format!(
            "the indent of tojson must be from 0 to {MAX_INDENT} spaces"
        ))
    };
    if let Some(text) = indent.as_str() {
        let fits = text.len() <= MAX_SEPARATOR_BYTES;
        return fits.then(|| Some(text.to_owned())).ok_or_else(problem);
    }
    let spaces = match indent.kind() {
        ValueKind::Bool => i64::from(indent.is_true()),
        _ => indent.as_i64().ok_or_else(problem)?,
    };
    if spaces > MAX_INDENT {
        return Err(problem());
    }
    Ok(Some(" ".repeat(usize::try_from(spaces).unwrap_or(0))))
}

/// The separators between items and between keys and values.
fn separator_pair(pair: &Value) -> Result<(String, String), Error> {
    let problem = || invalid("the separators of tojson must be two short strings");
    let texts: Vec<String> = pair
        .try_iter()?
        .filter_map(|text| text.as_str().map(str::to_owned))
        .filter(|text| text.len() <= MAX_SEPARATOR_BYTES)
        .take(3)
        .collect();
    let [comma, colon] = texts.try_into().map_err(|_| problem())?;
    Ok((comma, colon))
}

struct Writer {
    out: String,
    ensure_ascii: bool,
    sort_keys: bool,
    indent: Option<String>,
    comma: String,
    colon: String,
}

impl Writer {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(invalid(format!(
                "a value for tojson is nested more than {MAX_DEPTH} levels deep"
            )));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(bool_text(value)),
            ValueKind::Number => {
                let number = number_text(value);
                self.out.push_str(&number);
            }
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.take(MAX_BYTES).collect();
                self.list(&items, depth)?;
            }
            ValueKind::Map => self.object(value, depth)?,
            ValueKind::Undefined => return Err(invalid("an undefined value has no JSON")),
            other => return Err(invalid(format!("a value of type {other} has no JSON"))),
        }
        if self.out.len() > MAX_BYTES {
            return Err(invalid("the output of tojson is too long"));
        }
        Ok(())
    }

    fn list(&mut self, items: &[Value], depth: usize) -> Result<(), Error> {
        self.out.push('[');
        for (at, item) in items.iter().enumerate() {
            self.separate(at, depth + 1);
            self.value(item, depth + 1)?;
        }
        self.close(items.len(), depth, ']');
        Ok(())
    }

    fn object(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let mut fields = Vec::new();
        for key in value.try_iter()? {
            let name = match key.kind() {
                ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
                ValueKind::Bool => bool_text(&key).to_owned(),
                ValueKind::None => "null".to_owned(),
                ValueKind::Number => number_text(&key),
                other => return Err(invalid(format!("a key of type {other} has no JSON"))),
            };
            fields.push((name, value.get_item(&key)?));
        }
        if self.sort_keys {
            fields.sort_by(|(a, _), (b, _)| a.cmp(b));
        }
        self.out.push('{');
        for (at, (name, value)) in fields.iter().enumerate() {
            self.separate(at, depth + 1);
            self.string(name);
            let colon = self.colon.clone();
            self.out.push_str(&colon);
            self.value(value, depth + 1)?;
        }
        self.close(fields.len(), depth, '}');
        Ok(())
    }

    /// What precedes item `at` of a list or an object.
    fn separate(&mut self, at: usize, depth: usize) {
        if at > 0 {
            let comma = self.comma.clone();
            self.out.push_str(&comma);
        }
        self.line_break(depth);
    }

    fn close(&mut self, len: usize, depth: usize, bracket: char) {
        if len > 0 {
            self.line_break(depth);
        }
        self.out.push(bracket);
    }

    fn line_break(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            for _ in 0..depth {
                self.out.push_str(indent);
            }
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                '\0'..='\u{1f}' => self.escape(c),
                '\u{7f}'.. if self.ensure_ascii => self.escape(c),
                _ => self.out.push(c),
            }
        }
        self.out.push('"');
    }

    fn escape(&mut self, c: char) {
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = write!(self.out, "\\u{unit:04x}"); // Writing to a string cannot fail.
        }
    }
}

fn bool_text(value: &Value) -> &'static str {
    if value.is_true() { "true" } else { "false" }
}

fn number_text(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(number) if !value.is_integer() => float_text(number),
        _ => value.to_string(),
    }
}

/// A float as Python writes it in JSON: the shortest digits, with an exponent if it is small or large.
pub(crate) fn float_text(number: f64) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        }
        .to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if number != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = number.to_string();
    if plain.contains('.') {
        plain
    } else {
        plain + ".0"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_have_the_digits_of_python() {
        for (number, text) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.000_01, "1e-05"),
            (1.25e-7, "1.25e-07"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            assert_eq!(float_text(number), text);
        }
    }
}
