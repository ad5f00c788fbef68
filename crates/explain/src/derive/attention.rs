//! Derivations of attention: `RoPE`, scores, attention weights, and the weighted sum of values.

use super::DerivationContext;
use crate::formula::{
    FilledFormula, format_number, join_truncated, parenthesized, setting, subscript,
    sum_of_products,
};
use crate::graph::Op;

impl DerivationContext<'_> {
    pub(super) fn rope(&self, input: &str, frequencies: &[f64], index: &[usize]) -> FilledFormula {
        let (position, dim, half) = (index[1], index[2], frequencies.len());
        if dim >= 2 * half {
            let x = self.at("x", input, index);
            let formula = format!(
                "unchanged: only the first {} elements are rotated",
                2 * half
            );
            return FilledFormula::new(&formula, format_number(x.value), x.value, vec![x]);
        }
        let angle = position as f64 * frequencies[dim % half];
        let (x, y) = (
            self.at("x", input, &[index[0], position, dim % half]),
            self.at("y", input, &[index[0], position, dim % half + half]),
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
        let (formula, result, first, second, sign) = if dim < half {
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
            "{} × {} {sign} {} × {}  (a = {position} × {})",
            format_number(first),
            parenthesized(cos),
            parenthesized(second),
            parenthesized(sin),
            format_number(frequencies[dim % half])
        );
        FilledFormula::new(formula, filled, result, operands(x, y))
    }

    pub(super) fn score(&self, index: &[usize]) -> FilledFormula {
        let Op::Scores {
            q,
            k,
            scale,
            default_scale,
            cap,
            slopes,
            ..
        } = &self.node.op
        else {
            unreachable!("only called for scores");
        };
        let (head, query, key) = (index[0], index[1], index[2]);
        if !self.trace.is_visible(self.node, query, key) {
            return Self::masked(&self.node.op);
        }
        let group = self.node.shape[0] / self.trace.value(k).shape[0];
        let pairs = (0..self.trace.value(q).width()).map(|i| {
            let k = self.at("k", k, &[head / group, key, i]);
            (self.at("q", q, &[head, query, i]), k)
        });
        let mut score = sum_of_products(pairs.collect(), None, "q · k")
            .times(&self.scale_name(*scale, *default_scale), *scale);
        if let Some(cap) = cap {
            score = score.soft_capped(*cap);
        }
        match slopes.get(head) {
            Some(slope) => score.minus_distance(*slope, query.abs_diff(key) as f64),
            None => score,
        }
    }

    /// Name of the scale of attention scores: `1/√d`, or the configured one.
    fn scale_name(&self, scale: f64, default_scale: bool) -> String {
        if default_scale {
            return "1/√d".to_string();
        }
        let config = &self.trace.config;
        let width = config.score_width.unwrap_or(config.head_dim() as f64);
        format!("{}/√{width}", format_number(scale * width.sqrt()))
    }

    pub(super) fn softmax(&self, input: &str, index: &[usize]) -> FilledFormula {
        let last = index.len() - 1;
        let square = self.node.is_square();
        if square && !self.trace.is_visible(self.node, index[1], index[2]) {
            let scores = self.trace.node(input);
            return Self::masked(scores.map_or(&self.node.op, |node| &node.op));
        }
        let mut operands = Vec::new();
        let mut own = 0;
        for i in 0..self.node.shape[last] {
            if square && !self.trace.is_visible(self.node, index[1], i) {
                continue;
            }
            if i == index[last] {
                own = operands.len();
            }
            let mut at = index.to_vec();
            at[last] = i;
            operands.push(self.at(&format!("x{}", subscript(i)), input, &at));
        }
        let max = operands
            .iter()
            .fold(f64::NEG_INFINITY, |max, x| max.max(x.value));
        let sum: f64 = operands.iter().map(|x| (x.value - max).exp()).sum();
        let result = (operands[own].value - max).exp() / sum;
        let terms = operands
            .iter()
            .map(|x| format!("e^{}", parenthesized(x.value)));
        let filled = format!(
            "e^{} / ({})",
            parenthesized(operands[own].value),
            join_truncated(terms.collect(), " + ")
        );
        FilledFormula::new("e^x / Σ e^x", filled, result, operands)
    }

    pub(super) fn weighted_sum(&self, pattern: &str, v: &str, index: &[usize]) -> FilledFormula {
        let (head, query, dim) = (index[0], index[1], index[2]);
        let scores = self.trace.node(pattern).filter(|node| node.is_square());
        let group = self.node.shape[0] / self.trace.value(v).shape[0];
        let keys = self.trace.value(v).shape[1];
        let visible =
            (0..keys).filter(|key| scores.is_some_and(|n| self.trace.is_visible(n, query, *key)));
        let pairs = visible.map(|key| {
            let v = self.at("value", v, &[head / group, key, dim]);
            (self.at("attn weight", pattern, &[head, query, key]), v)
        });
        sum_of_products(pairs.collect(), None, "Σ attention weight × value")
    }

    fn masked(scores: &Op) -> FilledFormula {
        let formula = match scores {
            Op::Scores { causal: false, .. } => "masked: this token is outside of the window",
            _ => "masked: a token attends to itself and to earlier tokens within its window",
        };
        FilledFormula {
            formula: formula.to_string(),
            filled: String::new(),
            operands: Vec::new(),
            result: None,
        }
    }
}
