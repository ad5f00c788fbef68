//! Lines of a limited width, as Python's `textwrap` breaks them.

/// How a text is wrapped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WrapOptions {
    /// Maximum length of a line, in characters, at least 1.
    pub(crate) width: usize,
    pub(crate) breaks_long_words: bool,
    pub(crate) breaks_on_hyphens: bool,
}

/// The lines of `text`. White space at the ends of lines is dropped.
pub(crate) fn wrap(text: &str, options: WrapOptions) -> Vec<String> {
    let text: Vec<char> = text.chars().collect();
    let mut chunks = chunks(&text, options.breaks_on_hyphens);
    chunks.reverse();
    let mut lines = Vec::new();
    while !chunks.is_empty() {
        if !lines.is_empty() && chunks.last().is_some_and(|chunk| is_blank(chunk)) {
            chunks.pop();
        }
        let mut line: Vec<&[char]> = Vec::new();
        let mut len = 0;
        while let Some(chunk) = chunks
            .last()
            .filter(|chunk| len + chunk.len() <= options.width)
        {
            len += chunk.len();
            line.push(chunk);
            chunks.pop();
        }
        if chunks
            .last()
            .is_some_and(|chunk| chunk.len() > options.width)
        {
            break_long_word(&mut chunks, &mut line, len, options);
        }
        if line.last().is_some_and(|chunk| is_blank(chunk)) {
            line.pop();
        }
        if !line.is_empty() {
            lines.push(line.concat().into_iter().collect());
        }
    }
    lines
}

/// Adds to `line` as much of a word that fits on no line as there is room for.
fn break_long_word<'t>(
    chunks: &mut Vec<&'t [char]>,
    line: &mut Vec<&'t [char]>,
    len: usize,
    options: WrapOptions,
) {
    let Some(chunk) = chunks.pop() else {
        return;
    };
    if !options.breaks_long_words {
        if line.is_empty() {
            line.push(chunk);
        } else {
            chunks.push(chunk);
        }
        return;
    }
    let room = options.width - len;
    let mut end = room;
    if options.breaks_on_hyphens {
        let hyphen = chunk[..room].iter().rposition(|c| *c == '-');
        let hyphen = hyphen.filter(|at| chunk[..*at].iter().any(|c| *c != '-'));
        end = hyphen.map_or(room, |at| at + 1);
    }
    line.push(&chunk[..end]);
    chunks.push(&chunk[end..]);
}

fn is_blank(chunk: &[char]) -> bool {
    chunk.iter().all(|c| c.is_whitespace())
}

fn is_space(c: char) -> bool {
    matches!(c, '\t'..='\r' | ' ')
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn is_word_or_punctuation(c: char) -> bool {
    is_word(c) || "!\"'&.,?".contains(c)
}

fn is_letter(c: char) -> bool {
    is_word(c) && !c.is_numeric()
}

/// Splits a text into runs of white space and words; words also after hyphens between letters and at dashes.
fn chunks(text: &[char], breaks_on_hyphens: bool) -> Vec<&[char]> {
    let mut chunks = Vec::new();
    let mut start = 0;
    while start < text.len() {
        let run = |matches: &dyn Fn(char) -> bool, from: usize| {
            let len = text[from..].iter().take_while(|c| matches(**c)).count();
            from + len
        };
        let end = if is_space(text[start]) {
            run(&is_space, start)
        } else if !breaks_on_hyphens {
            run(&|c| !is_space(c), start)
        } else {
            let dash = run(&|c| c == '-', start);
            if dash >= start + 2 && dash_is_between_words(text, start, dash) {
                dash
            } else {
                word_end(text, start)
            }
        };
        chunks.push(&text[start..end]);
        start = end;
    }
    chunks
}

/// Whether the hyphens at `start..end` are a dash between two words.
fn dash_is_between_words(text: &[char], start: usize, end: usize) -> bool {
    let before = start.checked_sub(1).and_then(|at| text.get(at));
    before.is_some_and(|c| is_word_or_punctuation(*c)) && text.get(end).is_some_and(|c| is_word(*c))
}

/// The end of the part of a word that begins at `start`.
fn word_end(text: &[char], start: usize) -> usize {
    let at = |index: usize| text.get(index).copied();
    let is =
        |index: Option<usize>, matches: fn(char) -> bool| index.and_then(at).is_some_and(matches);
    for end in start + 1..text.len() {
        if is_space(text[end]) {
            return end;
        }
        if text[end - 1] == '-' {
            // After a hyphen with letters around it, as in "well-known" and "on-the-fly". The lookbehind
            // may reach before the start of this part.
            let back = |count: usize| (end - 1).checked_sub(count);
            let two_letters = is(back(1), is_letter) && is(back(2), is_letter);
            let letter_hyphen_letter =
                is(back(3), is_letter) && is(back(2), |c| c == '-') && is(back(1), is_letter);
            let next = if at(end + 1) == Some('-') {
                end + 2
            } else {
                end + 1
            };
            let continues = is(Some(end), is_letter) && is(Some(next), is_letter);
            if (two_letters || letter_hyphen_letter) && continues && end - 1 > start {
                return end;
            }
        }
        if text[end] == '-' && is_word_or_punctuation(text[end - 1]) {
            let dash = text[end..].iter().take_while(|c| **c == '-').count();
            if dash >= 2 && at(end + dash).is_some_and(is_word) {
                return end;
            }
        }
    }
    text.len()
}
