//! Where numbers of attention come from: turned pairs, similarities, percentages, mixed values.

use super::Scene;
use crate::formula::{Step, number, plain, products, setting, shortened, subscript, wrapped};
use crate::graph::Op;

impl Scene<'_> {
    pub(super) fn turn(&self, of: &str, frequencies: &[f64], index: &[usize]) -> Step {
        let (position, dim, half) = (index[1], index[2], frequencies.len());
        if dim >= 2 * half {
            let x = self.at("x", of, index);
            let formula = format!("unchanged: only the first {} numbers are turned", 2 * half);
            return plain(&formula, number(x.value), x.value, vec![x]);
        }
        let angle = position as f64 * frequencies[dim % half];
        let (x, y) = (
            self.at("x", of, &[index[0], position, dim % half]),
            self.at("y", of, &[index[0], position, dim % half + half]),
        );
        let (cos, sin) = (angle.cos(), angle.sin());
        let operands = |x, y| {
            vec![
                x,
                y,
                setting("position", position as f64),
                setting("frequency", frequencies[dim % half]),
            ]
        };
        let (formula, result, first, second, between) = if dim < half {
            (
                "x cos a − y sin a",
                x.value * cos - y.value * sin,
                x.value,
                y.value,
                "−",
            )
        } else {
            (
                "y cos a + x sin a",
                y.value * cos + x.value * sin,
                y.value,
                x.value,
                "+",
            )
        };
        let filled = format!(
            "{} × {} {between} {} × {}  (a = {position} × {})",
            number(first),
            wrapped(cos),
            wrapped(second),
            wrapped(sin),
            number(frequencies[dim % half])
        );
        plain(formula, filled, result, operands(x, y))
    }

    pub(super) fn score(&self, index: &[usize]) -> Step {
        let Op::Scores {
            q,
            k,
            scale,
            usual,
            cap,
            slopes,
            ..
        } = &self.node.op
        else {
            unreachable!("the caller has looked");
        };
        let (head, query, key) = (index[0], index[1], index[2]);
        if !self.trace.sees(self.node, query, key) {
            return Self::masked();
        }
        let group = self.node.shape[0] / self.trace.value(k).shape[0];
        let pairs = (0..self.trace.value(q).width()).map(|i| {
            let k = self.at("k", k, &[head / group, key, i]);
            (self.at("q", q, &[head, query, i]), k)
        });
        let mut step =
            products(pairs.collect(), None, "q · k").times(&self.scale(*scale, *usual), *scale);
        if let Some(cap) = cap {
            step = step.squeezed(*cap);
        }
        match slopes.get(head) {
            Some(slope) => step.lessened(*slope, (query - key) as f64),
            None => step,
        }
    }

    /// What the factor on similarities is: `1/√d`, or what the configuration has instead.
    fn scale(&self, scale: f64, usual: bool) -> String {
        if usual {
            return "1/√d".to_string();
        }
        let config = &self.trace.config;
        let width = config.score_width.unwrap_or(config.head_dim() as f64);
        format!("{}/√{width}", number(scale * width.sqrt()))
    }

    pub(super) fn softmax(&self, of: &str, index: &[usize]) -> Step {
        let last = index.len() - 1;
        let square = self.node.is_square();
        if square && !self.trace.sees(self.node, index[1], index[2]) {
            return Self::masked();
        }
        let mut operands = Vec::new();
        let mut mine = 0;
        for i in 0..self.node.shape[last] {
            if square && !self.trace.sees(self.node, index[1], i) {
                continue;
            }
            if i == index[last] {
                mine = operands.len();
            }
            let mut at = index.to_vec();
            at[last] = i;
            operands.push(self.at(&format!("x{}", subscript(i)), of, &at));
        }
        let top = operands
            .iter()
            .fold(f64::NEG_INFINITY, |top, x| top.max(x.value));
        let sum: f64 = operands.iter().map(|x| (x.value - top).exp()).sum();
        let result = (operands[mine].value - top).exp() / sum;
        let terms = operands.iter().map(|x| format!("e^{}", wrapped(x.value)));
        let filled = format!(
            "e^{} / ({})",
            wrapped(operands[mine].value),
            shortened(terms.collect(), " + ")
        );
        plain("e^x / Σ e^x", filled, result, operands)
    }

    pub(super) fn mix(&self, pattern: &str, v: &str, index: &[usize]) -> Step {
        let (head, query, dim) = (index[0], index[1], index[2]);
        let scores = self.trace.node(pattern).filter(|node| node.is_square());
        let group = self.node.shape[0] / self.trace.value(v).shape[0];
        let visible =
            (0..=query).filter(|key| scores.is_some_and(|n| self.trace.sees(n, query, *key)));
        let pairs = visible.map(|key| {
            let v = self.at("value", v, &[head / group, key, dim]);
            (self.at("percentage", pattern, &[head, query, key]), v)
        });
        products(pairs.collect(), None, "Σ percentage × value")
    }

    fn masked() -> Step {
        Step {
            formula: "hidden: a token sees itself and what came before, within its window"
                .to_string(),
            filled: "hidden".to_string(),
            operands: Vec::new(),
            result: None,
        }
    }
}
