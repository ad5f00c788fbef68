//! Predictions, the logit lens, sampling, and logit attribution.

use nextword_generate::{Filter, TracedCandidate};

use super::{LABEL_WIDTH, MAX_PARTS, NO_BREAK, Printer, count_of, display_width, printable};
use crate::graph::PROBABILITIES;
use crate::insight::Contribution;
use crate::labels::label;
use crate::report::SampledToken;

/// Four decimals, or a power of ten for values that would be zero then.
fn short(x: f64) -> String {
    if x.abs() > 0.0 && x.abs() < 1e-3 {
        format!("{x:.2e}")
    } else {
        format!("{x:.4}")
    }
}

impl Printer<'_> {
    pub(super) fn predictions(&mut self) {
        let trace = &self.explanation.trace;
        let label = trace.node(PROBABILITIES).map(label);
        let (title, term) = label.map_or(("softmax", ""), |label| (label.title, label.term));
        let title = self.style("1", title);
        let term = self.style("2", &format!("({term})"));
        self.line(&format!("\n    {title}  {term}"));
        let trace = &self.explanation.trace;
        for position in self.positions() {
            let prediction = &self.report.predictions[position];
            let mut line = self.token_probs(&prediction.top);
            if let (Some(actual), Some(bits)) = (&prediction.actual, prediction.surprisal) {
                let source = match (trace.predicts_masked(), prediction.in_prompt) {
                    (false, true) => "the prompt's next token",
                    (false, false) => "generated",
                    (true, true) => "the token itself",
                    (true, false) => "predicted",
                };
                line = format!(
                    "{line}   [{source}: {}, {bits:.2}{NO_BREAK}bits]",
                    printable(&actual.text)
                );
            }
            self.after_token(position, " →", &line);
        }
    }

    /// Width of the names of parts: those of cross-attention are longer.
    fn name_width(&self) -> usize {
        if self.report.source.is_empty() {
            28
        } else {
            34
        }
    }

    /// The logit lens for the first token of the completion for which it was computed.
    pub(super) fn logit_lens(&mut self) {
        let Some(first) = self.report.lens.first() else {
            return;
        };
        let sampled = self.report.completion.iter();
        let Some(sampled) = sampled
            .filter(|s| !first.top[s.after].is_empty())
            .min_by_key(|s| s.after)
        else {
            return;
        };
        let position = sampled.after;
        let term = format!(
            "(predictions on the way to \u{201c}{}\u{201d})",
            printable(&sampled.token.text)
        );
        let title = self.style("1", "logit lens");
        let term = self.style("2", &term);
        self.line(&format!("\n    {title}  {term}"));
        for stage in &self.report.lens {
            let tokens = self.token_probs(&stage.top[position]);
            let width = self.name_width() + 2;
            let first = format!("    {:<width$}", format!("after {}", stage.after));
            self.wrap_hanging(&first, &" ".repeat(display_width(&first)), &tokens, "0");
        }
    }

    /// How each token of the completion was sampled, and what pushed the model towards it.
    pub(super) fn sampled_tokens(&mut self) {
        for (n, sampled) in self.report.completion.iter().enumerate() {
            let (after, text) = (sampled.after, printable(&sampled.token.text));
            let is_masked = self.explanation.trace.predicts_masked();
            let kind = if is_masked {
                "masked token"
            } else {
                "next token"
            };
            let title = self.style("1", &format!("{kind}: {text}"));
            let pass = self.report.tokens[after].pass;
            let pass_text = match pass {
                _ if is_masked => format!(
                    "position {after}, predicted from {} on both sides in one pass",
                    count_of(self.report.tokens.len() - 1, "other token")
                ),
                0 if !self.report.source.is_empty() => format!(
                    "{} read by the encoder, once for all tokens of the completion",
                    count_of(self.report.source.len(), "token")
                ),
                0 => format!(
                    "prefill: {} in one pass",
                    count_of(self.explanation.trace.prompt_len, "token")
                ),
                _ => format!(
                    "decode step: 1 token computed; keys and values of {} from the KV cache",
                    count_of(after, "earlier token")
                ),
            };
            self.line(&format!("\n    {title}"));
            self.wrap("    ", &format!("({pass_text})"), "0");
            self.candidates(sampled);
            if let Some(contribution) = self.report.contributions.get(n) {
                self.contribution(contribution);
            }
        }
    }

    fn candidates(&mut self, sampled: &SampledToken) {
        let temperature = self.report.sampling.temperature;
        let mut candidates = sampled.candidates.iter().map(|info| &info.candidate);
        let chosen = candidates.find(|candidate| candidate.id == sampled.token.id);
        let is_tie = |candidate: &TracedCandidate| {
            chosen.is_some_and(|chosen| {
                let difference = (candidate.adjusted - chosen.adjusted).abs();
                candidate.id != chosen.id && difference <= 0.0
            })
        };
        if temperature <= 0.0 {
            let has_tie = sampled
                .candidates
                .iter()
                .any(|info| is_tie(&info.candidate));
            let text = if has_tie {
                "temperature 0: of several equally likely tokens, the one with the lowest id is chosen"
            } else {
                "temperature 0: the most likely token is chosen"
            };
            self.wrap("    ", text, "0");
        } else {
            let seed = self.report.sampling.seed;
            let u = sampled.uniform.unwrap_or(0.0);
            let text =
                format!("temperature {temperature}, seed {seed}: the random number is {u:.4}");
            self.wrap("    ", &text, "0");
        }
        for info in &sampled.candidates {
            let candidate = &info.candidate;
            let outcome = match candidate.removed_by {
                None if temperature <= 0.0 => "chosen".to_string(),
                None => {
                    let (from, to) = (
                        candidate.cumulative,
                        candidate.cumulative + candidate.final_probability,
                    );
                    let mark = if candidate.id == sampled.token.id {
                        "  ← sampled"
                    } else {
                        ""
                    };
                    format!("{from:.4} to {to:.4}{mark}")
                }
                Some(Filter::Greedy) if is_tie(candidate) => {
                    "equally likely, but with a higher id".to_string()
                }
                Some(Filter::Greedy) => "not chosen".to_string(),
                Some(Filter::TopK) => "removed by top-k".to_string(),
                Some(Filter::TopP) => "removed by top-p".to_string(),
                Some(Filter::MinP) => "removed by min-p".to_string(),
                Some(Filter::Forbidden) => "forbidden".to_string(),
            };
            let name: String = printable(&info.text).chars().take(LABEL_WIDTH).collect();
            let styled = if candidate.removed_by.is_some() {
                self.style("9;2", &name)
            } else {
                name.clone()
            };
            let pad = " ".repeat(LABEL_WIDTH - display_width(&name));
            self.line(&format!(
                "    {styled}{pad}{}  {:>6.2} %  {outcome}",
                self.cell(f64::from(candidate.logit)),
                100.0 * candidate.probability
            ));
        }
        if sampled.omitted > 0 {
            self.line(&format!("    … and {} more", sampled.omitted));
        }
    }

    /// The contributions of embeddings, heads and layers to the logit of a sampled token.
    fn contribution(&mut self, contribution: &Contribution) {
        let term = format!(
            "(what pushed the model towards \u{201c}{}\u{201d})",
            printable(&contribution.token.text)
        );
        let title = "direct logit attribution";
        let fits = display_width(title) + display_width(&term) + 6 <= self.view.width;
        let separator = if fits { "  " } else { "\n    " };
        let (title, term) = (self.style("1", title), self.style("2", &term));
        self.line(&format!("\n    {title}{separator}{term}"));
        let mut parts: Vec<_> = contribution.parts.iter().collect();
        parts.sort_by(|a, b| b.value.abs().total_cmp(&a.value.abs()));
        let (large, small) = parts.split_at(parts.len().min(MAX_PARTS));
        let width = self.name_width();
        for part in large {
            self.line(&format!(
                "    {:<width$}{}",
                part.name,
                self.cell(part.value)
            ));
        }
        if !small.is_empty() {
            let name = count_of(small.len(), "smaller part");
            let rest = small.iter().map(|part| part.value).sum();
            self.line(&format!("    {name:<width$}{}", self.cell(rest)));
        }
        let (sum, logit) = (self.cell(contribution.sum), self.cell(contribution.logit));
        let logit = logit.trim();
        let logit = match contribution.capped_logit {
            Some(capped) => {
                let capped = self.cell(capped);
                format!(
                    "logit before the soft cap: {logit}, after it: {}",
                    capped.trim()
                )
            }
            None => format!("logit: {logit}"),
        };
        self.line(&format!("    {:<width$}{sum}  ({logit})", "sum"));
    }

    /// One step of gradient descent towards each target.
    pub(super) fn gradient_step(&mut self) {
        let steps = self.report.training.clone();
        let Some(first) = steps.first() else {
            return;
        };
        let after = printable(&self.report.tokens[first.position].text);
        let title = self.style("1", "one training step");
        let is_masked = self.explanation.trace.predicts_masked();
        let (at, verb) = if is_masked {
            ("at", "stands there")
        } else {
            ("after", "comes next")
        };
        let term = self.style(
            "2",
            &format!("(loss and gradient {at} \u{201c}{after}\u{201d})"),
        );
        self.line(&format!("\n    {title}  {term}"));
        for step in &steps {
            let text = format!(
                "if \u{201c}{}\u{201d} {verb}: loss -ln {} = {}; the largest gradient, by {}, is {}; a \
                 step of -{} times the gradient changes this weight from {} to {}, and a step of all weights \
                 the loss to {}",
                printable(&step.text),
                short(step.probability),
                short(step.loss),
                step.weight,
                short(step.gradient),
                step.learning_rate,
                short(step.value),
                short(step.new_value),
                short(step.new_loss),
            );
            self.wrap("    ", &text, "0");
        }
    }

    pub(super) fn notes(&mut self) {
        for note in &self.report.notes {
            self.wrap("", &format!("note: {note}"), "33");
        }
    }
}
