//! Filters and tests of Jinja that minijinja lacks or computes in another way.

use std::fmt::{self, Write};
use std::hash::{BuildHasher, Hasher, RandomState};

use minijinja::value::{Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, State, Value};

use crate::arguments::{Arguments, charge, invalid};
use crate::cycler::Cycler;
use crate::methods::{self, lines};
use crate::repr;
use crate::tojson::tojson;
use crate::wrap::{WrapOptions, wrap};

/// Maximum length of the output of `pprint`, in bytes.
const MAX_PRINTED_BYTES: usize = 4 << 20;

/// A filter with its input and its arguments, by position or by name.
type Filter = fn(&State<'_, '_>, &Value, &[Value]) -> Result<Value, Error>;

const FILTERS: &[(&str, Filter)] = &[
    ("center", center),
    ("filesizeformat", file_size),
    ("forceescape", |_, value, args| {
        Arguments::bind(args, &[])?;
        Ok(Value::from_safe_string(escape(&value.to_string())))
    }),
    ("pprint", pretty_print),
    ("random", random),
    ("striptags", |_, value, args| {
        Arguments::bind(args, &[])?;
        Ok(Value::from(strip_tags(&value.to_string())))
    }),
    ("tojson", |state, value, args| {
        tojson(state, value, args).map(Value::from)
    }),
    ("truncate", truncate),
    ("urlencode", url_encode),
    ("wordcount", |_, value, args| {
        Arguments::bind(args, &[])?;
        let text = value.to_string();
        let words = text.split(|c: char| !(c.is_alphanumeric() || c == '_'));
        Ok(Value::from(words.filter(|word| !word.is_empty()).count()))
    }),
    ("wordwrap", word_wrap),
    ("xmlattr", xml_attributes),
];

/// Adds the filters and tests.
pub(crate) fn register(environment: &mut Environment<'static>) {
    for (name, filter) in FILTERS {
        environment.add_filter(
            *name,
            move |state: &State<'_, '_>, value: &Value, args: Rest<ValueOrKwargs>| {
                filter(state, value, &args.into_values())
            },
        );
    }
    environment.add_test("callable", is_callable);
    environment.add_test("sequence", |value: &Value| {
        let kinds = [ValueKind::String, ValueKind::Seq, ValueKind::Map];
        let is_slice = value.kind() == ValueKind::Iterable && value.len().is_some();
        value.is_undefined() || kinds.contains(&value.kind()) || is_slice
    });
    environment.add_test("iterable", |value: &Value| {
        value.is_undefined() || !value.is_none() && value.try_iter().is_ok()
    });
}

/// Functions, macros and joiners can be called, and so can an undefined value, which then raises an error.
fn is_callable(value: &Value) -> bool {
    let is_cycler = || value.downcast_object_ref::<Cycler>().is_some();
    match value.kind() {
        ValueKind::Undefined => true,
        ValueKind::Plain => !is_cycler(),
        ValueKind::Map => value.to_string().starts_with("<macro"),
        _ => false,
    }
}

fn center(state: &State<'_, '_>, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let args = Arguments::bind(args, &["width"])?;
    let width = args.width(0, 80)?;
    charge(state, width)?;
    Ok(Value::from(methods::center(&value.to_string(), width, " ")))
}

/// As minijinja's filter of this name, for values of limited size and depth.
fn pretty_print(state: &State<'_, '_>, value: &Value, args: &[Value]) -> Result<Value, Error> {
    Arguments::bind(args, &[])?;
    repr::quoted(value)?;
    let mut out = LimitedText(String::new());
    write!(out, "{value:#?}").map_err(|_| invalid("a value is too large for pprint"))?;
    charge(state, out.0.len())?;
    Ok(Value::from(out.0))
}

/// A text of at most `MAX_PRINTED_BYTES`.
struct LimitedText(String);

impl Write for LimitedText {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > MAX_PRINTED_BYTES {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

fn file_size(_: &State<'_, '_>, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let args = Arguments::bind(args, &["binary"])?;
    let parsed = value
        .as_str()
        .and_then(|text| text.trim().parse::<f64>().ok());
    let bytes = parsed.or_else(|| f64::try_from(value.clone()).ok());
    let bytes = bytes.ok_or_else(|| invalid("filesizeformat needs a number"))?;
    let (base, unit) = if args.flag(0, false) {
        (1024.0_f64, "iB")
    } else {
        (1000.0, "B")
    };
    if (bytes - 1.0).abs() < f64::EPSILON {
        return Ok(Value::from("1 Byte"));
    }
    if bytes < base {
        return Ok(Value::from(format!("{} Bytes", bytes.trunc() + 0.0)));
    }
    let letters = if base > 1000.0 {
        "KMGTPEZY"
    } else {
        "kMGTPEZY"
    };
    let mut divisor = base;
    let mut text = String::new();
    for letter in letters.chars() {
        text = format!("{:.1} {letter}{unit}", base * bytes / (divisor * base));
        if bytes < divisor * base {
            break;
        }
        divisor *= base;
    }
    Ok(Value::from(text))
}

fn random(_: &State<'_, '_>, value: &Value, args: &[Value]) -> Result<Value, Error> {
    Arguments::bind(args, &[])?;
    let items: Vec<Value> = match value.as_str() {
        Some(text) => text.chars().map(|c| Value::from(c.to_string())).collect(),
        None => value.try_iter()?.collect(),
    };
    let number = RandomState::new().build_hasher().finish();
    let at = number.checked_rem(items.len() as u64).unwrap_or(0);
    let item = usize::try_from(at)
        .ok()
        .and_then(|at| items.get(at).cloned());
    Ok(item.unwrap_or(Value::UNDEFINED))
}

fn truncate(_: &State<'_, '_>, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let args = Arguments::bind(args, &["length", "killwords", "end", "leeway"])?;
    let (length, leeway) = (args.width(0, 255)?, args.width(3, 5)?);
    let end = args.text(2)?.unwrap_or("...");
    let text = value
        .as_str()
        .ok_or_else(|| invalid("truncate needs a string"))?;
    let kept = length.checked_sub(end.chars().count());
    let kept = kept.ok_or_else(|| invalid("the length of truncate is shorter than its end"))?;
    if text.chars().count() <= length + leeway {
        return Ok(value.clone());
    }
    let kept: String = text.chars().take(kept).collect();
    let kept = match kept.rsplit_once(' ') {
        Some((words, _)) if !args.flag(1, false) => words,
        _ => &kept,
    };
    Ok(Value::from(format!("{kept}{end}")))
}

fn url_encode(_: &State<'_, '_>, value: &Value, args: &[Value]) -> Result<Value, Error> {
    Arguments::bind(args, &[])?;
    let pairs: Vec<(Value, Value)> = match value.kind() {
        ValueKind::Map => value
            .try_iter()?
            .map(|key| Ok((key.clone(), value.get_item(&key)?)))
            .collect::<Result<_, Error>>()?,
        ValueKind::Seq | ValueKind::Iterable => value
            .try_iter()?
            .map(|pair| Ok((pair.get_item_by_index(0)?, pair.get_item_by_index(1)?)))
            .collect::<Result<_, Error>>()?,
        _ => return Ok(Value::from(url_quote(&value.to_string(), "/"))),
    };
    let quote = |value: &Value| url_quote(&value.to_string(), "").replace("%20", "+");
    let pairs = pairs
        .iter()
        .map(|(key, value)| format!("{}={}", quote(key), quote(value)));
    Ok(Value::from(pairs.collect::<Vec<_>>().join("&")))
}

/// Percent-encodes all bytes but letters, digits, `_.-~` and those of `safe`.
fn url_quote(text: &str, safe: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        let c = char::from(byte);
        if c.is_ascii_alphanumeric() || "_.-~".contains(c) || safe.contains(c) {
            out.push(c);
        } else {
            let _ = write!(out, "%{byte:02X}"); // Writing to a string cannot fail.
        }
    }
    out
}

fn word_wrap(state: &State<'_, '_>, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let names = &[
        "width",
        "break_long_words",
        "wrapstring",
        "break_on_hyphens",
    ];
    let args = Arguments::bind(args, names)?;
    let options = WrapOptions {
        width: args.width(0, 79)?,
        breaks_long_words: args.flag(1, true),
        breaks_on_hyphens: args.flag(3, true),
    };
    if options.width == 0 {
        return Err(invalid("the width of wordwrap must be at least 1"));
    }
    let separator = args.text(2)?.unwrap_or("\n");
    let text = value.to_string();
    // In the worst case there is a line for each character.
    charge(state, text.len().saturating_mul(1 + separator.len()))?;
    let lines = lines(&text, false).into_iter();
    let wrapped = lines.map(|line| wrap(line, options).join(separator));
    Ok(Value::from(wrapped.collect::<Vec<_>>().join(separator)))
}

fn xml_attributes(_: &State<'_, '_>, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let args = Arguments::bind(args, &["autospace"])?;
    if value.kind() != ValueKind::Map {
        return Err(invalid("xmlattr needs a dict"));
    }
    let mut attributes = Vec::new();
    for key in value.try_iter()? {
        let item = value.get_item(&key)?;
        if item.is_none() || item.is_undefined() {
            continue;
        }
        let name = key.to_string();
        if name.contains(|c: char| c.is_whitespace() || "/>=".contains(c)) {
            return Err(invalid(format!(
                "invalid character in the attribute name {name:?}"
            )));
        }
        attributes.push(format!(
            "{}=\"{}\"",
            escape(&name),
            escape(&item.to_string())
        ));
    }
    let text = attributes.join(" ");
    let needs_space = args.flag(0, true) && !text.is_empty();
    Ok(Value::from(if needs_space {
        format!(" {text}")
    } else {
        text
    }))
}

/// Escapes the five special characters of HTML as `MarkupSafe` does.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            _ => out.push(c),
        }
    }
    out
}

/// Removes comments, then tags, collapses white space, and replaces entities.
fn strip_tags(text: &str) -> String {
    let text = without(text, "<!--", "-->");
    let text = without(&text, "<", ">");
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    unescape(&text)
}

/// The text without the parts from `open` to `close`.
fn without(text: &str, open: &str, close: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, inside)) = rest.split_once(open) {
        let Some((_, after)) = inside.split_once(close) else {
            break;
        };
        out.push_str(before);
        rest = after;
    }
    out + rest
}

/// Maximum length of the name of an HTML entity, in bytes.
const MAX_ENTITY_BYTES: usize = 33;

/// Replaces HTML's entities with their characters.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, entity)) = rest.split_once('&') {
        out.push_str(before);
        let end = entity
            .bytes()
            .take(MAX_ENTITY_BYTES)
            .position(|byte| byte == b';');
        let name = end.and_then(|end| entity.get(..end));
        let resolved = name.and_then(resolve_entity);
        match (name, resolved) {
            (Some(name), Some(text)) => {
                out.push_str(&text);
                rest = &entity[name.len() + 1..];
            }
            _ => {
                out.push('&');
                rest = entity;
            }
        }
    }
    out + rest
}

fn resolve_entity(name: &str) -> Option<String> {
    if let Some(number) = name.strip_prefix('#') {
        let code = match number.strip_prefix(['x', 'X']) {
            Some(hexadecimal) => u32::from_str_radix(hexadecimal, 16).ok()?,
            None => number.parse().ok()?,
        };
        return char::from_u32(code).map(String::from);
    }
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    if name == "nbsp" {
        return Some('\u{a0}'.to_string()); // White space, which the filter below would change.
    }
    let entity = format!("&{name};");
    let resolved = minijinja_contrib::filters::striptags(entity.clone());
    (resolved != entity).then_some(resolved)
}
