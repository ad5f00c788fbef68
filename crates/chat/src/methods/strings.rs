//! Methods of strings.

use minijinja::{Error, State, Value};

use super::split::is_space;
use super::{ranges, split};
use crate::arguments::{Arguments, charge, invalid};

/// Calls a method of a string; `None` if pycompat's is the right one.
pub(super) fn call(
    state: &State<'_, '_>,
    text: &str,
    method: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    charge(state, text.len())?;
    Ok(Some(match method {
        "split" => split::split(text, args, false)?,
        "rsplit" => split::split(text, args, true)?,
        "partition" => split::partition(text, args, false)?,
        "rpartition" => split::partition(text, args, true)?,
        "splitlines" => split::split_lines(text, args)?,
        "find" | "rfind" | "index" | "rindex" => find(text, method, args)?,
        "count" => {
            let args = Arguments::bind(args, &["sub", "start", "end"])?;
            let sub = args.required_text(0)?;
            let count = ranges::window(text, args.integer(1)?, args.integer(2)?)
                .map_or(0, |(part, _)| part.matches(sub).count());
            Value::from(count)
        }
        "startswith" | "endswith" if args.len() > 1 => {
            let bound = Arguments::bind(args, &["affix", "start", "end"])?;
            match ranges::window(text, bound.integer(1)?, bound.integer(2)?) {
                Some((part, _)) => Value::from(has_affix(part, method, bound.get(0))?),
                None => Value::from(false),
            }
        }
        "removeprefix" => {
            let args = Arguments::bind(args, &["prefix"])?;
            let rest = text.strip_prefix(args.required_text(0)?);
            Value::from(rest.unwrap_or(text))
        }
        "removesuffix" => {
            let args = Arguments::bind(args, &["suffix"])?;
            let rest = text.strip_suffix(args.required_text(0)?);
            Value::from(rest.unwrap_or(text))
        }
        "strip" | "lstrip" | "rstrip" => {
            let args = Arguments::bind(args, &["chars"])?;
            let chars: Option<Vec<char>> = args.text(0)?.map(|chars| chars.chars().collect());
            let is_stripped = |c: char| {
                chars
                    .as_ref()
                    .map_or_else(|| is_space(c), |chars| chars.contains(&c))
            };
            Value::from(match method {
                "lstrip" => text.trim_start_matches(is_stripped),
                "rstrip" => text.trim_end_matches(is_stripped),
                _ => text.trim_matches(is_stripped),
            })
        }
        "ljust" | "rjust" | "center" | "zfill" => pad(state, text, method, args)?,
        "expandtabs" => expand_tabs(state, text, args)?,
        "casefold" => no_arguments(args, || casefold(text))?,
        "swapcase" => no_arguments(args, || swap_case(text))?,
        "title" => no_arguments(args, || title(text))?,
        "istitle" => no_arguments(args, || is_title(text))?,
        "isspace" => no_arguments(args, || !text.is_empty() && text.chars().all(is_space))?,
        "isdecimal" => no_arguments(args, || {
            !text.is_empty()
                && text
                    .chars()
                    .all(|c| c.is_ascii_digit() || is_other_decimal(c))
        })?,
        _ => return Ok(None),
    }))
}

fn no_arguments<T: Into<Value>>(
    args: &[Value],
    result: impl FnOnce() -> T,
) -> Result<Value, Error> {
    Arguments::bind(args, &[])?;
    Ok(result().into())
}

/// Digits of other scripts, which are numeric and come in runs of ten.
fn is_other_decimal(c: char) -> bool {
    const ZEROS: [u32; 20] = [
        0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xe50,
        0xed0, 0xf20, 0x1040, 0x17e0, 0x1810, 0xa620, 0xff10,
    ];
    let code = c as u32;
    ZEROS.iter().any(|zero| (*zero..zero + 10).contains(&code))
}

fn find(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let args = Arguments::bind(args, &["sub", "start", "end"])?;
    let sub = args.required_text(0)?;
    let window = ranges::window(text, args.integer(1)?, args.integer(2)?);
    let found = window.and_then(|(part, before)| {
        let byte = if method.starts_with('r') {
            part.rfind(sub)
        } else {
            part.find(sub)
        };
        Some(before + part[..byte?].chars().count())
    });
    match found {
        Some(at) => Ok(Value::from(at)),
        None if method.ends_with("index") => Err(invalid("the text does not occur in the string")),
        None => Ok(Value::from(-1)),
    }
}

fn has_affix(part: &str, method: &str, affix: Option<&Value>) -> Result<bool, Error> {
    let matches = |affix: &str| {
        if method == "startswith" {
            part.starts_with(affix)
        } else {
            part.ends_with(affix)
        }
    };
    let problem = || invalid(format!("{method} needs a string or a tuple of strings"));
    let affix = affix.ok_or_else(problem)?;
    if let Some(affix) = affix.as_str() {
        return Ok(matches(affix));
    }
    let affixes: Vec<Value> = affix.try_iter()?.collect();
    let mut found = false;
    for affix in &affixes {
        found |= matches(affix.as_str().ok_or_else(problem)?);
    }
    Ok(found)
}

fn pad(state: &State<'_, '_>, text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let args = Arguments::bind(args, &["width", "fillchar"])?;
    let width = args.width(0, 0)?;
    charge(state, width.saturating_mul(4))?;
    let fill = args
        .text(1)?
        .unwrap_or(if method == "zfill" { "0" } else { " " });
    if fill.chars().count() != 1 {
        return Err(invalid("the fill character must be a single character"));
    }
    let missing = width.saturating_sub(text.chars().count());
    Ok(Value::from(match method {
        "ljust" => text.to_owned() + &fill.repeat(missing),
        "rjust" => fill.repeat(missing) + text,
        "center" => center(text, width, fill),
        _ => {
            // Zeros come after the sign.
            let sign = text.find(['+', '-']).filter(|at| *at == 0).map_or(0, |_| 1);
            let (sign, digits) = text.split_at(sign);
            format!("{sign}{}{digits}", "0".repeat(missing))
        }
    }))
}

/// Centers a text as Python does.
pub(crate) fn center(text: &str, width: usize, fill: &str) -> String {
    let missing = width.saturating_sub(text.chars().count());
    let left = missing / 2 + (missing & width & 1);
    fill.repeat(left) + text + &fill.repeat(missing - left)
}

fn expand_tabs(state: &State<'_, '_>, text: &str, args: &[Value]) -> Result<Value, Error> {
    let args = Arguments::bind(args, &["tabsize"])?;
    let size = args.width(0, 8)?;
    charge(state, size.saturating_mul(text.matches('\t').count()))?;
    let mut out = String::with_capacity(text.len());
    let mut column = 0;
    for c in text.chars() {
        match c {
            '\t' => {
                let spaces = if size == 0 { 0 } else { size - column % size };
                out.push_str(&" ".repeat(spaces));
                column += spaces;
            }
            '\n' | '\r' => {
                out.push(c);
                column = 0;
            }
            _ => {
                out.push(c);
                column += 1;
            }
        }
    }
    Ok(Value::from(out))
}

/// Unicode's full case folding. It is the lower case of the upper case, except for dotless i and Cherokee.
fn casefold(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            'ı' | '\u{13a0}'..='\u{13f5}' => out.push(c),
            '\u{13f8}'..='\u{13fd}' | '\u{ab70}'..='\u{abbf}' => out.extend(c.to_uppercase()),
            _ => out.extend(c.to_uppercase().flat_map(char::to_lowercase)),
        }
    }
    out
}

/// Appends the lower case of `chars[at]`. A capital sigma at the end of a word has a form of its own.
fn push_lower(out: &mut String, chars: &[char], at: usize) {
    let is_cased_at = |at: Option<usize>| {
        at.and_then(|at| chars.get(at))
            .is_some_and(|c| is_cased(*c))
    };
    if chars[at] == 'Σ' && is_cased_at(at.checked_sub(1)) && !is_cased_at(at.checked_add(1)) {
        out.push('ς');
    } else {
        out.extend(chars[at].to_lowercase());
    }
}

fn swap_case(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    for (at, c) in chars.iter().enumerate() {
        if c.is_uppercase() {
            push_lower(&mut out, &chars, at);
        } else if c.is_lowercase() {
            out.extend(c.to_uppercase());
        } else {
            out.push(*c);
        }
    }
    out
}

/// Each letter after another letter becomes lower case, all others title case.
fn title(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut in_word = false;
    for (at, c) in chars.iter().enumerate() {
        if in_word {
            push_lower(&mut out, &chars, at);
        } else {
            push_title(&mut out, *c);
        }
        in_word = is_cased(*c);
    }
    out
}

/// Appends the title case of `c`: digraphs such as dž have a form of their own, and ß becomes Ss.
fn push_title(out: &mut String, c: char) {
    let code = c as u32;
    let digraph = match code {
        0x1c4..=0x1cc => char::from_u32(code - (code - 0x1c4) % 3 + 1),
        0x1f1..=0x1f3 => Some('\u{1f2}'),
        _ => None,
    };
    if let Some(digraph) = digraph {
        return out.push(digraph);
    }
    let upper: Vec<char> = c.to_uppercase().collect();
    let mut upper = upper.into_iter();
    out.extend(upper.next());
    out.extend(upper.flat_map(char::to_lowercase));
}

fn is_title(text: &str) -> bool {
    let mut in_word = false;
    let mut has_cased = false;
    for c in text.chars() {
        if c.is_uppercase() && in_word || c.is_lowercase() && !in_word {
            return false;
        }
        in_word = is_cased(c);
        has_cased |= in_word;
    }
    has_cased
}

fn is_cased(c: char) -> bool {
    c.is_uppercase() || c.is_lowercase()
}
