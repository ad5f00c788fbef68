//! Refuses patterns whose cost the limits of a search do not bound, and names the construct.
//!
//! The limits count steps back. Uncounted are steps forward, which only a lookaround inside a
//! repetition, an empty body of a counted repetition and a subexpression call can multiply. This is
//! not a full parser: a pattern that it misreads is at worst refused, or slow.

use serde_json::Value;

/// Maximum length of a pattern; published patterns have up to 2,000 bytes.
const MAX_BYTES: usize = 1 << 16;
/// Maximum depth of nested groups.
const MAX_DEPTH: usize = 100;
/// Maximum product of nested counts around a part that can be empty.
const MAX_EMPTY_REPETITIONS: u64 = 100;

/// Checks all patterns of a `tokenizer.json`.
///
/// # Errors
/// The pattern and the construct that is not supported.
pub(crate) fn check_patterns(file: &Value) -> Result<(), String> {
    ["normalizer", "pre_tokenizer", "decoder"]
        .iter()
        .try_for_each(|part| check_value(&file[part]))
}

fn check_value(value: &Value) -> Result<(), String> {
    match value {
        Value::Array(values) => values.iter().try_for_each(check_value),
        Value::Object(object) => {
            if let Some(pattern) = object.get("pattern").and_then(|p| p["Regex"].as_str()) {
                check_pattern(pattern)?;
            }
            object.values().try_for_each(check_value)
        }
        _ => Ok(()),
    }
}

/// Checks one pattern.
///
/// # Errors
/// The start of the pattern and the construct that is not supported.
pub(super) fn check_pattern(pattern: &str) -> Result<(), String> {
    let refuse = |construct: &str| {
        let shown: String = pattern.chars().take(60).collect();
        let more = if shown.len() < pattern.len() {
            "…"
        } else {
            ""
        };
        format!("the pattern {shown:?}{more} has {construct}, which is not supported")
    };
    if pattern.len() > MAX_BYTES {
        return Err(refuse("more than 65,536 bytes"));
    }
    let mut scanner = Scanner {
        rest: pattern,
        groups: vec![Group::default()],
    };
    scanner.scan().map_err(|construct| refuse(construct))
}

/// What matters of a part of a pattern.
#[derive(Debug, Clone, Copy)]
struct Part {
    /// Whether its length is unlimited.
    is_unbounded: bool,
    /// Whether it contains a lookaround whose length is unlimited.
    looks_far: bool,
    /// Whether it can match the empty text.
    can_be_empty: bool,
    /// The largest product of nested counts of parts that can be empty.
    empty_repetitions: u64,
}

impl Part {
    const CHARACTER: Self = Self {
        is_unbounded: false,
        looks_far: false,
        can_be_empty: false,
        empty_repetitions: 1,
    };
    const ANCHOR: Self = Self {
        can_be_empty: true,
        ..Self::CHARACTER
    };
}

/// An open group: the sequence that is being read, and the alternatives before it.
#[derive(Debug, Clone, Copy)]
struct Group {
    is_lookaround: bool,
    /// Parts of the current alternative before `last`, and of all earlier alternatives.
    all: Part,
    /// Whether the current alternative can be empty so far, without `last`.
    alternative_empty: bool,
    last: Option<Part>,
}

impl Default for Group {
    fn default() -> Self {
        Self {
            is_lookaround: false,
            all: Part::CHARACTER,
            alternative_empty: true,
            last: None,
        }
    }
}

impl Group {
    /// Adds the last part to the group.
    fn flush(&mut self) {
        if let Some(last) = self.last.take() {
            self.all.is_unbounded |= last.is_unbounded;
            self.all.looks_far |= last.looks_far;
            self.all.empty_repetitions = self.all.empty_repetitions.max(last.empty_repetitions);
            self.alternative_empty &= last.can_be_empty;
        }
    }

    fn push(&mut self, part: Part) {
        self.flush();
        self.last = Some(part);
    }

    fn end_alternative(&mut self) {
        self.flush();
        self.all.can_be_empty |= self.alternative_empty;
        self.alternative_empty = true;
    }
}

struct Scanner<'a> {
    rest: &'a str,
    /// The open groups; the first one is the whole pattern.
    groups: Vec<Group>,
}

impl Scanner<'_> {
    fn scan(&mut self) -> Result<(), &'static str> {
        while let Some(character) = self.next() {
            match character {
                '\\' => self.escape()?,
                '[' => {
                    self.character_class();
                    self.push(Part::CHARACTER);
                }
                '(' => self.open()?,
                ')' => self.close(),
                '|' => self.with_group(Group::end_alternative),
                '^' | '$' => self.push(Part::ANCHOR),
                '*' => self.repeat(0, None)?,
                '+' => self.repeat(1, None)?,
                '?' => self.repeat(0, Some(1))?,
                '{' => match self.counts() {
                    Some((least, most)) => self.repeat(least, most)?,
                    None => self.push(Part::CHARACTER),
                },
                _ => self.push(Part::CHARACTER),
            }
        }
        Ok(())
    }

    fn next(&mut self) -> Option<char> {
        let mut characters = self.rest.chars();
        let next = characters.next();
        self.rest = characters.as_str();
        next
    }

    fn skip(&mut self, text: &str) -> bool {
        let rest = self.rest.strip_prefix(text);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn with_group(&mut self, change: impl FnOnce(&mut Group)) {
        if let Some(group) = self.groups.last_mut() {
            change(group);
        }
    }

    fn push(&mut self, part: Part) {
        self.with_group(|group| group.push(part));
    }

    fn escape(&mut self) -> Result<(), &'static str> {
        let part = match self.next() {
            Some('g') if self.rest.starts_with(['<', '\'']) => {
                return Err("a subexpression call (`\\g`)");
            }
            // A repeated text may be long.
            Some('k' | '1'..='9') => Part {
                is_unbounded: true,
                ..Part::ANCHOR
            },
            Some('X') => Part {
                is_unbounded: true,
                ..Part::CHARACTER
            },
            Some('b' | 'B' | 'A' | 'z' | 'Z' | 'G' | 'K' | 'y' | 'Y') => Part::ANCHOR,
            Some('p' | 'P' | 'x' | 'o') => {
                if self.rest.starts_with('{')
                    && let Some(end) = self.rest.find('}')
                {
                    self.rest = &self.rest[end + 1..];
                }
                Part::CHARACTER
            }
            _ => Part::CHARACTER,
        };
        self.push(part);
        Ok(())
    }

    /// Skips a character class, whose `[` was read.
    fn character_class(&mut self) {
        let mut depth = 1;
        self.skip("^");
        self.skip("]"); // An ordinary character at the start.
        while depth > 0 {
            match self.next() {
                Some('\\') => _ = self.next(),
                Some('[') if self.rest.starts_with(':') && self.rest.contains(":]") => {
                    let end = self.rest.find(":]").map_or(0, |end| end + 2);
                    self.rest = &self.rest[end..];
                }
                Some('[') => {
                    depth += 1;
                    self.skip("^");
                    self.skip("]");
                }
                Some(']') => depth -= 1,
                Some(_) => {}
                None => return,
            }
        }
    }

    /// Opens a group, whose `(` was read.
    fn open(&mut self) -> Result<(), &'static str> {
        if self.rest.starts_with('*') || self.rest.starts_with("?{") {
            return Err("a callout");
        }
        if self.rest.starts_with("?~") {
            return Err("an absence operator (`(?~`)");
        }
        if self.skip("?#") {
            while !matches!(self.next(), Some(')') | None) {}
            return Ok(());
        }
        if self.groups.len() > MAX_DEPTH {
            return Err("more than 100 nested groups");
        }
        let group = Group {
            is_lookaround: ["?=", "?!", "?<=", "?<!"]
                .iter()
                .any(|start| self.rest.starts_with(start)),
            ..Group::default()
        };
        if self.skip("?") {
            // The rest of the opening: flags, a name or the kind of group.
            let is_option = |c: char| c.is_ascii_alphabetic() || c == '-';
            let flags = self.rest.trim_start_matches(is_option);
            if flags.starts_with([')', ':']) {
                self.rest = flags;
                self.skip(":");
            } else {
                let named = self.rest.starts_with('<') && !group.is_lookaround;
                let end = if named { self.rest.find('>') } else { None };
                let length = end.map_or_else(
                    || usize::from(self.rest.starts_with('<')) + 1,
                    |end| end + 1,
                );
                self.rest = self.rest.get(length..).unwrap_or("");
            }
        }
        self.groups.push(group);
        Ok(())
    }

    fn close(&mut self) {
        if self.groups.len() < 2 {
            return;
        }
        let Some(mut group) = self.groups.pop() else {
            return;
        };
        group.end_alternative();
        let mut part = group.all;
        if group.is_lookaround {
            part.looks_far |= part.is_unbounded;
            part.is_unbounded = false;
            part.can_be_empty = true;
        }
        self.push(part);
    }

    /// Applies a repetition to the last part.
    fn repeat(&mut self, least: u64, most: Option<u64>) -> Result<(), &'static str> {
        let Some(mut part) = self.groups.last_mut().and_then(|group| group.last) else {
            return Ok(()); // The engine refuses it.
        };
        if part.looks_far && most != Some(1) {
            return Err("a repetition around a lookaround of unlimited length");
        }
        if part.can_be_empty {
            part.empty_repetitions = part
                .empty_repetitions
                .saturating_mul(most.unwrap_or(1).max(1));
            if part.empty_repetitions > MAX_EMPTY_REPETITIONS {
                return Err("more than 100 repetitions of a part that can be empty");
            }
        }
        part.is_unbounded |= most.is_none();
        part.can_be_empty |= least == 0;
        self.with_group(|group| group.last = Some(part));
        Ok(())
    }

    /// Reads `n}`, `n,}`, `,m}` or `n,m}`, whose `{` was read; `None` if it is ordinary text.
    fn counts(&mut self) -> Option<(u64, Option<u64>)> {
        let end = self.rest.find('}')?;
        let (least, most) = match self.rest[..end].split_once(',') {
            Some((least, most)) => (least, most),
            None => (&self.rest[..end], &self.rest[..end]),
        };
        let number = |text: &str| text.parse::<u64>().ok();
        let counts = match (least, most) {
            ("", "") => return None,
            ("", most) => (0, Some(number(most)?)),
            (least, "") => (number(least)?, None),
            (least, most) => (number(least)?, Some(number(most)?)),
        };
        self.rest = &self.rest[end + 1..];
        Some(counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_patterns_are_accepted() {
        for pattern in [
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            r"\d{1,3}(?=(?:\d{3})*\b)",
            r"[!-/:-~！-／：-～‘-‟　-。]+|\s?[\p{L}\p{M}]+|[[:alpha:]]+",
            r"(?:\w+\s?)+|(?<name>a|b)\k<name>|^\s+|\s+$|(?m).|{1,3}|\{|a{,3}|[]a]+",
            r"(?#comment ()(?i)a|(?>x*)y|(?-i:b)",
        ] {
            assert_eq!(check_pattern(pattern), Ok(()), "{pattern}");
        }
    }

    #[test]
    fn patterns_without_a_bound_are_refused_by_name() {
        let deep = "(".repeat(200) + &")".repeat(200);
        let long = "a".repeat(100_000);
        for (pattern, construct) in [
            (r"(?:(?=.*).)*", "lookaround"),
            (r"((?<!a|(?!x+y)b)c){2,}", "lookaround"),
            (r"(?:(?=a){1000}){1000}", "repetitions"),
            (r"(?:){100000}", "repetitions"),
            (r"(?:a?|b){40}{40}", "repetitions"),
            (r"(?<x>a\g<x>?b)", "subexpression call"),
            (r"(?~ab)", "absence"),
            (r"(*FAIL)", "callout"),
            (r"(?{code})", "callout"),
            (&deep, "nested"),
            (&long, "bytes"),
        ] {
            let error = check_pattern(pattern);
            assert!(
                error.as_ref().is_err_and(|error| error.contains(construct)),
                "{error:?}"
            );
        }
    }
}
