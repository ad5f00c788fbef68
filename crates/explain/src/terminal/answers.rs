//! What comes out: the next words, how they were chosen, and who spoke for them.

use nextword_generate::Cut;

use super::{GLUE, LABEL, MOST_PARTS, Page, columns, shown};
use crate::graph::PROBABILITIES;
use crate::insight::Contribution;
use crate::story::Chosen;
use crate::words::about;

impl Page<'_> {
    pub(super) fn next_words(&mut self) {
        let trace = &self.explanation.trace;
        let about = trace.node(PROBABILITIES).map(about);
        let title = about.map_or("softmax", |about| about.title);
        let title = self.paint("1", title);
        self.line(&format!("\n    {title}"));
        for position in self.positions() {
            let next = &self.story.next_words[position];
            let mut line = self.guesses(&next.top);
            if let (Some(word), Some(bits)) = (&next.next, next.surprise) {
                let who = if next.given {
                    "the prompt's next word"
                } else {
                    "chosen"
                };
                line = format!(
                    "{line}   [{who}: {}, {bits:.2}{GLUE}bits]",
                    shown(&word.text)
                );
            }
            self.after_token(position, " →", &line);
        }
    }

    /// What the output layer would have said on the way to the answer's first word, or to the first
    /// for which that was computed.
    pub(super) fn lens(&mut self) {
        let Some(first) = self.story.lens.first() else {
            return;
        };
        let chosen = self.story.answer.iter();
        let Some(chosen) = chosen
            .filter(|c| !first.top[c.after].is_empty())
            .min_by_key(|c| c.after)
        else {
            return;
        };
        let position = chosen.after;
        let title = format!(
            "guesses on the way to \u{201c}{}\u{201d}",
            shown(&chosen.token.text)
        );
        let title = self.paint("1", &title);
        let term = self.paint("2", "(logit lens)");
        self.line(&format!("\n    {title}  {term}"));
        for stage in &self.story.lens {
            let guesses = self.guesses(&stage.top[position]);
            let first = format!("    {:<30}", format!("after {}", stage.after));
            self.hang(&first, &" ".repeat(columns(&first)), &guesses, "0");
        }
    }

    pub(super) fn answers(&mut self) {
        for (chosen, of) in self.story.answer.iter().zip(&self.story.contributions) {
            let (after, text) = (chosen.after, shown(&chosen.token.text));
            let title = self.paint("1", &format!("next word: {text}"));
            let pass = self.story.tokens[after].pass;
            let cache = match pass {
                0 => format!(
                    "read in one pass of {} tokens",
                    self.explanation.trace.prompt
                ),
                _ => {
                    format!("one token computed; keys and values of {after} others from the cache")
                }
            };
            self.line(&format!("\n    {title}"));
            self.wrap("    ", &format!("({cache})"), "0");
            self.candidates(chosen);
            self.contribution(of);
        }
    }

    fn candidates(&mut self, chosen: &Chosen) {
        let temperature = self.story.sampling.temperature;
        if temperature <= 0.0 {
            self.line("    temperature 0: the likeliest word is taken");
        } else {
            let seed = self.story.sampling.seed;
            let u = chosen.uniform.unwrap_or(0.0);
            let text =
                format!("temperature {temperature}, seed {seed}: the random number is {u:.4}");
            self.wrap("    ", &text, "0");
        }
        for facts in &chosen.candidates {
            let candidate = &facts.candidate;
            let fate = match candidate.cut {
                None if temperature <= 0.0 => "taken".to_string(),
                None => {
                    let (from, to) = (candidate.from, candidate.from + candidate.share);
                    let mark = if candidate.id == chosen.token.id {
                        "  ← drawn"
                    } else {
                        ""
                    };
                    format!("{from:.4} to {to:.4}{mark}")
                }
                Some(Cut::Greedy) => "not the likeliest".to_string(),
                Some(Cut::TopK) => "cut by top-k".to_string(),
                Some(Cut::TopP) => "cut by top-p".to_string(),
                Some(Cut::MinP) => "cut by min-p".to_string(),
                Some(Cut::Forbidden) => "forbidden".to_string(),
            };
            let name: String = shown(&facts.text).chars().take(LABEL).collect();
            let strike = if candidate.cut.is_some() {
                self.paint("9;2", &name)
            } else {
                name.clone()
            };
            let pad = " ".repeat(LABEL - columns(&name));
            self.line(&format!(
                "    {strike}{pad}{}  {:>6.2} %  {fate}",
                self.cell(f64::from(candidate.logit)),
                100.0 * candidate.probability
            ));
        }
        if chosen.more > 0 {
            self.line(&format!("    … and {} more", chosen.more));
        }
    }

    /// Embedding, heads and layers in the logit of a chosen word.
    fn contribution(&mut self, of: &Contribution) {
        let title = format!("who spoke for \u{201c}{}\u{201d}", shown(&of.token.text));
        let title = self.paint("1", &title);
        let term = self.paint("2", "(direct logit attribution)");
        self.line(&format!("\n    {title}  {term}"));
        let mut parts: Vec<_> = of.parts.iter().collect();
        parts.sort_by(|a, b| b.value.abs().total_cmp(&a.value.abs()));
        let (large, small) = parts.split_at(parts.len().min(MOST_PARTS));
        for part in large {
            self.line(&format!("    {:<28}{}", part.name, self.cell(part.value)));
        }
        if !small.is_empty() {
            let name = format!("{} smaller parts", small.len());
            let rest = small.iter().map(|part| part.value).sum();
            self.line(&format!("    {name:<28}{}", self.cell(rest)));
        }
        let (sum, logit) = (self.cell(of.sum), self.cell(of.logit));
        self.line(&format!(
            "    {:<28}{sum}  (the logit: {})",
            "together",
            logit.trim()
        ));
    }

    pub(super) fn foot(&mut self) {
        for note in &self.story.notes {
            self.wrap("", &format!("note: {note}"), "33");
        }
    }
}
