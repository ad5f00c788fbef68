//! Formulas with the operands' values filled in.

use crate::derive::Operand;
use crate::evaluate::soft_cap;

/// Maximum number of terms of a sum to write out.
const MAX_TERMS: usize = 6;

/// Formats a number for a formula: up to four decimals, without trailing zeros.
///
/// # Example
///
/// ```
/// use nextword_explain::format_number;
///
/// assert_eq!(format_number(0.50), "0.5");
/// assert_eq!(format_number(-1.23456), "-1.2346");
/// assert_eq!(format_number(0.000_012_3), "1.230e-5");
/// ```
pub fn format_number(x: f64) -> String {
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

/// A formula, the same formula with values filled in, its operands, and its result.
pub(crate) struct FilledFormula {
    pub(crate) formula: String,
    pub(crate) filled: String,
    pub(crate) operands: Vec<Operand>,
    pub(crate) result: Option<f64>,
}

/// A setting of the model as an operand. A derivation chain ends there.
pub(crate) fn setting(role: &str, value: f64) -> Operand {
    Operand {
        role: role.to_string(),
        address: None,
        value,
    }
}

impl FilledFormula {
    pub(crate) fn new(formula: &str, filled: String, result: f64, operands: Vec<Operand>) -> Self {
        Self {
            formula: formula.to_string(),
            filled,
            operands,
            result: Some(result),
        }
    }

    /// Multiplies the result by a setting of the model.
    pub(crate) fn times(mut self, role: &str, factor: f64) -> Self {
        self.formula = format!("{} × {role}", self.formula);
        self.filled = format!("({}) × {}", self.filled, format_number(factor));
        self.result = self.result.map(|x| x * factor);
        self.operands.push(setting(role, factor));
        self
    }

    /// Applies a soft cap, which keeps the result within (-c, c).
    pub(crate) fn soft_capped(mut self, cap: f64) -> Self {
        self.formula = format!("c × tanh({} / c)", self.formula);
        self.filled = format!("{cap} × tanh(({}) / {cap})", self.filled);
        self.result = self.result.map(|x| soft_cap(x, cap));
        self.operands.push(setting("c", cap));
        self
    }

    /// Subtracts `slope` times `distance` (`ALiBi`).
    pub(crate) fn minus_distance(mut self, slope: f64, distance: f64) -> Self {
        self.formula.push_str(" − slope × distance");
        self.filled = format!("{} − {} × {distance}", self.filled, format_number(slope));
        self.result = self.result.map(|x| x - slope * distance);
        self.operands.push(setting("slope", slope));
        self.operands.push(setting("distance", distance));
        self
    }
}

/// A sum of products, plus a bias if there is one.
pub(crate) fn sum_of_products(
    pairs: Vec<(Operand, Operand)>,
    bias: Option<Operand>,
    formula: &str,
) -> FilledFormula {
    let sum: f64 = pairs.iter().map(|(a, b)| a.value * b.value).sum();
    let terms = pairs
        .iter()
        .map(|(a, b)| format!("{} × {}", format_number(a.value), parenthesized(b.value)));
    let mut filled = join_truncated(terms.collect(), " + ");
    let mut formula = formula.to_string();
    let mut result = sum;
    let mut operands: Vec<Operand> = pairs.into_iter().flat_map(|(a, b)| [a, b]).collect();
    if let Some(bias) = bias {
        formula.push_str(" + b");
        filled = format!("{filled} + {}", parenthesized(bias.value));
        result += bias.value;
        operands.push(bias);
    }
    FilledFormula {
        formula,
        filled,
        operands,
        result: Some(result),
    }
}

/// Joins the first [`MAX_TERMS`] terms and counts the others.
pub(crate) fn join_truncated(terms: Vec<String>, separator: &str) -> String {
    let more = terms.len().saturating_sub(MAX_TERMS);
    let mut text = terms[..terms.len() - more].join(separator);
    if more > 0 {
        text = format!("{text}{separator}… ({more} more)");
    }
    text
}

/// Formats a number as a second operand: negative ones in parentheses.
pub(crate) fn parenthesized(x: f64) -> String {
    if x < 0.0 {
        format!("({})", format_number(x))
    } else {
        format_number(x)
    }
}

pub(crate) fn subscript(i: usize) -> String {
    let digit = |c: char| char::from_u32(c as u32 - '0' as u32 + '₀' as u32).unwrap_or(c);
    i.to_string().chars().map(digit).collect()
}
