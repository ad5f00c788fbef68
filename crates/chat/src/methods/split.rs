//! Splitting strings.

use minijinja::value::Tuple;
use minijinja::{Error, Value};

use crate::arguments::{Arguments, invalid};

/// Whether Python counts `c` as white space.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `split` and `rsplit`.
pub(super) fn split(text: &str, args: &[Value], from_right: bool) -> Result<Value, Error> {
    let args = Arguments::bind(args, &["sep", "maxsplit"])?;
    let max = args.integer(1)?.and_then(|max| usize::try_from(max).ok());
    let parts = match args.text(0)? {
        Some("") => return Err(invalid("the separator of a split must not be empty")),
        Some(separator) => at_separator(text, separator, max, from_right),
        None if from_right => at_spaces_from_right(text, max),
        None => at_spaces(text, max),
    };
    Ok(Value::from(
        parts.into_iter().map(Value::from).collect::<Vec<_>>(),
    ))
}

fn at_separator<'t>(
    text: &'t str,
    separator: &str,
    max: Option<usize>,
    from_right: bool,
) -> Vec<&'t str> {
    match max.map(|max| max.saturating_add(1)) {
        None => text.split(separator).collect(),
        Some(parts) if from_right => {
            let mut parts: Vec<&str> = text.rsplitn(parts, separator).collect();
            parts.reverse();
            parts
        }
        Some(parts) => text.splitn(parts, separator).collect(),
    }
}

fn at_spaces(text: &str, max: Option<usize>) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        let end = rest
            .find(is_space)
            .filter(|_| max.is_none_or(|max| parts.len() < max));
        let (part, after) = rest.split_at(end.unwrap_or(rest.len()));
        parts.push(part);
        rest = after.trim_start_matches(is_space);
    }
    parts
}

fn at_spaces_from_right(text: &str, max: Option<usize>) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_end_matches(is_space);
    while !rest.is_empty() {
        let last = rest.char_indices().rev().find(|(_, c)| is_space(*c));
        let start = last
            .filter(|_| max.is_none_or(|max| parts.len() < max))
            .map_or(0, |(at, c)| at + c.len_utf8());
        let (before, part) = rest.split_at(start);
        parts.push(part);
        rest = before.trim_end_matches(is_space);
    }
    parts.reverse();
    parts
}

/// `partition` and `rpartition`.
pub(super) fn partition(text: &str, args: &[Value], from_right: bool) -> Result<Value, Error> {
    let args = Arguments::bind(args, &["sep"])?;
    let separator = args.required_text(0)?;
    if separator.is_empty() {
        return Err(invalid("the separator of a partition must not be empty"));
    }
    let found = if from_right {
        text.rsplit_once(separator)
    } else {
        text.split_once(separator)
    };
    let parts = match found {
        Some((before, after)) => [before, separator, after],
        None if from_right => ["", "", text],
        None => [text, "", ""],
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from))))
}

/// The lines of a text by Python's rules, with or without what ends them.
pub(crate) fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let Some((end, c)) = rest.char_indices().find(|(_, c)| ends_line(*c)) else {
            lines.push(rest);
            break;
        };
        let next = if rest[end..].starts_with("\r\n") {
            end + 2
        } else {
            end + c.len_utf8()
        };
        lines.push(&rest[..if keep_ends { next } else { end }]);
        rest = &rest[next..];
    }
    lines
}

fn ends_line(c: char) -> bool {
    matches!(c, '\n'..='\r' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

pub(super) fn split_lines(text: &str, args: &[Value]) -> Result<Value, Error> {
    let args = Arguments::bind(args, &["keepends"])?;
    let lines = lines(text, args.flag(0, false))
        .into_iter()
        .map(Value::from);
    Ok(Value::from(lines.collect::<Vec<_>>()))
}
