//! A derivation as text for the terminal.

use crate::derive::Derivation;
use crate::format_number;

/// Maximum number of operands to list.
const MAX_LISTED: usize = 24;

/// Formats a derivation as lines: the value, its formula, and its operands with their addresses.
pub fn lines(derivation: &Derivation) -> Vec<String> {
    let value = derivation
        .value
        .map_or_else(|| "masked".to_string(), format_number);
    let mut lines = vec![
        format!("{} = {value}", derivation.address),
        format!("  {} ({})", derivation.title, derivation.term),
        format!("  = {}", derivation.formula),
    ];
    if !derivation.filled.is_empty() {
        lines.push(format!("  = {}", derivation.filled));
    }
    for operand in derivation.operands.iter().take(MAX_LISTED) {
        let source = operand
            .address
            .as_deref()
            .unwrap_or("a setting of the model");
        let (role, value) = (&operand.role, format_number(operand.value));
        lines.push(format!("    {role:<12} {value:>12}  {source}"));
    }
    let more = derivation.operands.len().saturating_sub(MAX_LISTED);
    if more > 0 {
        lines.push(format!(
            "    … and {more} more operands; --format json lists all"
        ));
    }
    lines
}
