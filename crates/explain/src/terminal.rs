//! The story as text, as wide as the terminal.

mod answers;
mod steps;

use crate::explainer::Explanation;
use crate::insight::Guess;
use crate::story::{Origin, Story};

/// What is shown, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// Columns of the terminal.
    pub width: usize,
    /// Whether there may be colours.
    pub colours: bool,
    /// Decimals of a number.
    pub decimals: usize,
    /// Whether the steps are shown with their numbers, or only what came out.
    pub steps: bool,
    /// The layers shown; `None`: all, or the first if that is too long to read.
    pub layers: Option<Vec<usize>>,
    /// The heads shown; `None`: all.
    pub heads: Option<Vec<usize>>,
    /// The positions shown; `None`: all, or the prompt's last if that is too long to read.
    pub positions: Option<Vec<usize>>,
    /// The likeliest next tokens that are listed.
    pub top: usize,
}

impl Default for View {
    fn default() -> Self {
        Self {
            width: 80,
            colours: false,
            decimals: 2,
            steps: true,
            layers: None,
            heads: None,
            positions: None,
            top: 5,
        }
    }
}

/// Columns for a token's name at most.
const LABEL: usize = 14;

/// Output values are tabled for vocabularies up to this size.
const MOST_COLUMNS: usize = 8;

/// A space at which no line is broken. No token holds one: it is shown as a control character.
const GLUE: char = '\u{1}';

/// Parts of a logit that are listed, the largest first.
const MOST_PARTS: usize = 12;

/// Lines with numbers that a reader is given unasked.
const MOST_LINES: usize = 1_000;

/// The whole story from word to next word. What is too long to read, and what no list of `view` asks
/// for, is left out with a word on how to ask for it.
pub fn draw(explanation: &Explanation<'_>, story: &Story, view: &View) -> String {
    let mut page = Page {
        explanation,
        story,
        view: view.clone(),
        label: 0,
        out: String::new(),
    };
    let longest = story
        .tokens
        .iter()
        .map(|token| columns(&shown(&token.text)))
        .max();
    page.label = longest.unwrap_or(0).clamp(4, LABEL);
    page.head();
    if view.steps {
        page.shorten();
        page.steps();
    }
    page.next_words();
    page.lens();
    page.answers();
    page.foot();
    page.out
}

struct Page<'a> {
    explanation: &'a Explanation<'a>,
    story: &'a Story,
    view: View,
    label: usize,
    out: String,
}

fn is_wanted(list: Option<&Vec<usize>>, at: usize) -> bool {
    list.is_none_or(|list| list.contains(&at))
}

/// A token without characters that move the cursor.
fn shown(text: &str) -> String {
    let visible = |c: char| match c {
        '\n' => '↵',
        '\t' => '⇥',
        ' ' => '␣',
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    text.chars().map(visible).collect()
}

/// Columns that a text takes: characters, which is right for all but wide scripts.
fn columns(text: &str) -> usize {
    text.chars().count()
}

impl Page<'_> {
    fn line(&mut self, text: &str) {
        self.out.push_str(&text.trim_end().replace(GLUE, " "));
        self.out.push('\n');
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.view.colours {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_string()
        }
    }

    /// `text` in lines of the terminal's width, each indented.
    fn wrap(&mut self, indent: &str, text: &str, code: &str) {
        self.hang(indent, indent, text, code);
    }

    /// The same with another beginning of the first line, of the same width. [`GLUE`] holds what must
    /// not be parted.
    fn hang(&mut self, first: &str, indent: &str, text: &str, code: &str) {
        let (mut begin, mut line) = (first, String::new());
        for word in text.split(' ') {
            let full = columns(begin) + columns(&line) + columns(word) + 1;
            if !line.is_empty() && full > self.view.width {
                let painted = self.paint(code, line.trim_end());
                self.line(&format!("{begin}{painted}"));
                (begin, line) = (indent, String::new());
                if word.is_empty() {
                    continue;
                }
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        let painted = self.paint(code, &line);
        self.line(&format!("{begin}{painted}"));
    }

    /// Guesses side by side.
    fn guesses(&self, guesses: &[Guess]) -> String {
        let texts = guesses.iter().take(self.view.top).map(|guess| {
            let percent = 100.0 * guess.probability;
            format!("{}{GLUE}{percent:.1}{GLUE}%", shown(&guess.text))
        });
        texts.collect::<Vec<_>>().join("  ")
    }

    /// `text` beside a token, its further lines below its beginning.
    fn after_token(&mut self, position: usize, sign: &str, text: &str) {
        let first = format!("    {}{sign} ", self.token(position));
        self.hang(&first, &" ".repeat(columns(&first)), text, "0");
    }

    fn token(&self, position: usize) -> String {
        let text = shown(&self.story.tokens[position].text);
        let mut text: String = if columns(&text) > self.label {
            let kept: String = text.chars().take(self.label - 1).collect();
            format!("{kept}…")
        } else {
            text
        };
        text.push_str(&" ".repeat(self.label - columns(&text).min(self.label)));
        text
    }

    fn cell(&self, x: f64) -> String {
        let (width, decimals) = (self.view.decimals + 5, self.view.decimals);
        let large = x != 0.0 && x.abs() >= 1e4;
        if large {
            return format!("{x:>width$.1e}");
        }
        let text = format!("{x:>width$.decimals$}");
        let zero = text
            .trim()
            .trim_start_matches('-')
            .chars()
            .all(|c| c == '0' || c == '.');
        if zero && text.contains('-') {
            format!("{:>width$.decimals$}", 0.0)
        } else {
            text
        }
    }

    /// Numbers in a row, as many as `room` columns hold.
    fn numbers(&self, x: &[f64], room: usize) -> String {
        let each = self.view.decimals + 5;
        let fit = (room / each).max(1);
        if x.len() <= fit {
            return x.iter().map(|x| self.cell(*x)).collect();
        }
        let fit = (room.saturating_sub(9) / each).max(1);
        let some: String = x[..fit].iter().map(|x| self.cell(*x)).collect();
        format!("{some} … (+{})", x.len() - fit)
    }

    fn head(&mut self) {
        let model = &self.story.model;
        let name = if model.name.is_empty() {
            "model"
        } else {
            &model.name
        };
        let name = shown(name);
        let title = format!(
            "{name}, step {}, {} parameters",
            model.step, model.parameters
        );
        let title = self.paint("1", &title);
        self.line(&title);
        let text = |origin: Origin| -> Vec<String> {
            let of = self
                .story
                .tokens
                .iter()
                .filter(|token| token.from == origin);
            of.map(|token| shown(&token.text)).collect()
        };
        let (prompt, answer): (Vec<String>, Vec<String>) = (
            text(Origin::Prompt),
            self.story
                .answer
                .iter()
                .map(|a| shown(&a.token.text))
                .collect(),
        );
        self.wrap("", &format!("prompt  {}", prompt.join(" · ")), "0");
        self.wrap("", &format!("answer  {}", answer.join(" · ")), "0");
        if self.story.truncated > 0 {
            let truncated = self.story.truncated;
            self.line(&format!(
                "the prompt's first {truncated} tokens did not fit the context"
            ));
        }
        if !self.story.unknown.is_empty() {
            let unknown = self.story.unknown.iter().map(|piece| shown(piece));
            let unknown = unknown.collect::<Vec<_>>().join(", ");
            self.wrap("", &format!("not in the vocabulary: {unknown}"), "33");
        }
        let verdict = &self.story.verdict;
        let code = if verdict.verified { "32" } else { "31" };
        let sentence = verdict.sentence.clone();
        self.wrap("", &sentence, code);
    }
}
