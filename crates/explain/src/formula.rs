//! Formulas with their operands filled in.

use crate::derive::Operand;
use crate::evaluate::squeeze;

/// Terms of a sum that are written out before it is shortened.
const WRITTEN: usize = 6;

/// A number for a formula: four decimals, and no trailing zeros.
pub fn number(x: f64) -> String {
    if x != 0.0 && (x.abs() < 1e-3 || x.abs() >= 1e6) {
        return format!("{x:.3e}");
    }
    let text = format!("{x:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" {
        "0".to_string()
    } else {
        text.to_string()
    }
}

/// One formula with its operands.
pub(crate) struct Step {
    pub(crate) formula: String,
    pub(crate) filled: String,
    pub(crate) operands: Vec<Operand>,
    pub(crate) result: Option<f64>,
}

/// A setting of the model, where a chain ends.
pub(crate) fn setting(role: &str, value: f64) -> Operand {
    Operand {
        role: role.to_string(),
        address: None,
        value,
    }
}

impl Step {
    /// The same times a setting of the model.
    pub(crate) fn times(mut self, role: &str, factor: f64) -> Self {
        self.formula = format!("{} × {role}", self.formula);
        self.filled = format!("({}) × {}", self.filled, number(factor));
        self.result = self.result.map(|x| x * factor);
        self.operands.push(setting(role, factor));
        self
    }

    /// The same squeezed into (-c, c).
    pub(crate) fn squeezed(mut self, cap: f64) -> Self {
        self.formula = format!("c × tanh({} / c)", self.formula);
        self.filled = format!("{cap} × tanh(({}) / {cap})", self.filled);
        self.result = self.result.map(|x| squeeze(x, cap));
        self.operands.push(setting("c", cap));
        self
    }

    /// The same less `slope` times `distance`.
    pub(crate) fn lessened(mut self, slope: f64, distance: f64) -> Self {
        self.formula.push_str(" − slope × distance");
        self.filled = format!("{} − {} × {distance}", self.filled, number(slope));
        self.result = self.result.map(|x| x - slope * distance);
        self.operands.push(setting("slope", slope));
        self.operands.push(setting("distance", distance));
        self
    }
}

pub(crate) fn plain(formula: &str, filled: String, result: f64, operands: Vec<Operand>) -> Step {
    Step {
        formula: formula.to_string(),
        filled,
        operands,
        result: Some(result),
    }
}

/// A sum of products.
pub(crate) fn products(
    pairs: Vec<(Operand, Operand)>,
    bias: Option<Operand>,
    formula: &str,
) -> Step {
    let sum: f64 = pairs.iter().map(|(a, b)| a.value * b.value).sum();
    let terms = pairs
        .iter()
        .map(|(a, b)| format!("{} × {}", number(a.value), wrapped(b.value)));
    let mut filled = shortened(terms.collect(), " + ");
    let mut formula = formula.to_string();
    let mut result = sum;
    let mut operands: Vec<Operand> = pairs.into_iter().flat_map(|(a, b)| [a, b]).collect();
    if let Some(bias) = bias {
        formula.push_str(" + b");
        filled = format!("{filled} + {}", wrapped(bias.value));
        result += bias.value;
        operands.push(bias);
    }
    Step {
        formula,
        filled,
        operands,
        result: Some(result),
    }
}

pub(crate) fn shortened(terms: Vec<String>, between: &str) -> String {
    let more = terms.len().saturating_sub(WRITTEN);
    let mut text = terms[..terms.len() - more].join(between);
    if more > 0 {
        text = format!("{text}{between}… ({more} more)");
    }
    text
}

/// A number as a second operand: negative ones in brackets.
pub(crate) fn wrapped(x: f64) -> String {
    if x < 0.0 {
        format!("({})", number(x))
    } else {
        number(x)
    }
}

pub(crate) fn subscript(i: usize) -> String {
    let digit = |c: char| char::from_u32(c as u32 - '0' as u32 + '₀' as u32).unwrap_or(c);
    i.to_string().chars().map(digit).collect()
}
