//! A derivation as text.

use crate::derive::Derivation;
use crate::number;

/// Operands that are listed.
const LISTED: usize = 24;

/// A derivation in lines: the number, its formula, and its operands with their addresses.
pub fn lines(derivation: &Derivation) -> Vec<String> {
    let value = derivation
        .value
        .map_or_else(|| "hidden".to_string(), number);
    let mut lines = vec![
        format!("{} = {value}", derivation.address),
        format!("  {} ({})", derivation.title, derivation.term),
        format!("  = {}", derivation.formula),
    ];
    if !derivation.filled.is_empty() {
        lines.push(format!("  = {}", derivation.filled));
    }
    for operand in derivation.operands.iter().take(LISTED) {
        let from = operand
            .address
            .as_deref()
            .unwrap_or("a setting of the model");
        let (role, value) = (&operand.role, number(operand.value));
        lines.push(format!("    {role:<12} {value:>12}  {from}"));
    }
    let more = derivation.operands.len().saturating_sub(LISTED);
    if more > 0 {
        lines.push(format!(
            "    … and {more} more operands; --format json lists all"
        ));
    }
    lines
}
