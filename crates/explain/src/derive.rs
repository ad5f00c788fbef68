//! Derives one value: its formula with the operands filled in. Each operand has an address that can be
//! derived in turn, down to weights and token ids.

mod attention;

use serde::Serialize;

use crate::adapted::is_adapter_weight;
use crate::address::{Address, SOURCE_TOKENS, TOKENS, weight_axes};
use crate::evaluate::{Arrays, activate, frequency, moments};
use crate::formula::{
    FilledFormula, format_number, parenthesized, setting, subscript, sum_of_products,
};
use crate::graph::{Input, Node, Op};
use crate::labels::label;
use crate::trace::Trace;

/// How one value is computed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Derivation {
    /// The value's address.
    pub address: String,
    /// The value; `None` where masked.
    pub value: Option<f64>,
    /// Its name.
    pub title: String,
    /// Its other names or a short description.
    pub term: String,
    /// The formula.
    pub formula: String,
    /// The formula with the operands' values filled in.
    pub filled: String,
    /// The operands. Empty where the chain ends: at weights and token ids.
    pub operands: Vec<Operand>,
    /// The formula's result, computed from the operands in f64.
    pub result: Option<f64>,
}

/// An input of a computed value.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Operand {
    /// Its name in the formula.
    pub role: String,
    /// Its address; `None` for settings of the model.
    pub address: Option<String>,
    /// The value.
    pub value: f64,
}

/// Derives the value at `address` of a trace recorded with `weights`. `text` returns the text of a
/// token.
///
/// # Panics
/// If the address was not parsed for this trace and these weights.
pub fn derive(
    trace: &Trace,
    weights: &Arrays,
    text: &dyn Fn(u32) -> String,
    address: &Address,
) -> Derivation {
    if [TOKENS, SOURCE_TOKENS].contains(&address.name.as_str()) {
        return derive_token(trace, text, address);
    }
    let Some(node) = trace.node(&address.name) else {
        return derive_weight(trace, weights, address);
    };
    let label = label(node);
    let value = trace.value(&node.name).at(&address.indices());
    let visible =
        !node.is_square() || trace.is_visible(node, address.along("query"), address.along("key"));
    let context = DerivationContext {
        trace,
        weights,
        node,
        address,
    };
    let filled = context.fill();
    Derivation {
        address: address.to_string(),
        value: visible.then_some(value),
        title: label.title.to_string(),
        term: label.term.to_string(),
        formula: filled.formula,
        filled: filled.filled,
        operands: filled.operands,
        result: filled.result,
    }
}

/// The end of a derivation chain.
fn leaf(
    address: &Address,
    value: Option<f64>,
    title: &str,
    term: &str,
    formula: &str,
) -> Derivation {
    Derivation {
        address: address.to_string(),
        value,
        title: title.to_string(),
        term: term.to_string(),
        formula: formula.to_string(),
        filled: value.map_or_else(String::new, format_number),
        operands: Vec::new(),
        result: value,
    }
}

fn derive_weight(trace: &Trace, weights: &Arrays, address: &Address) -> Derivation {
    let is_matrix = address.index.len() > 1 && !address.name.contains("position_embedding");
    let is_adapter = is_adapter_weight(&address.name);
    let formula = match trace.bits.filter(|_| is_matrix) {
        _ if is_adapter => "learned in training the adapter".to_string(),
        Some(bits) => format!(
            "learned in training, then quantized to {bits} bits: an integer times the scale of its \
             block of 32, plus the block's minimum if it has one"
        ),
        None => "learned in training".to_string(),
    };
    let value = weights[&address.name].at(&address.indices());
    leaf(
        address,
        Some(value),
        "weight",
        "a parameter of the model",
        &formula,
    )
}

fn derive_token(trace: &Trace, text: &dyn Fn(u32) -> String, address: &Address) -> Derivation {
    let position = address.along("position");
    let is_source = address.name == SOURCE_TOKENS;
    let ids = if is_source { &trace.source } else { &trace.ids };
    let id = ids[position];
    let source = if is_source || (position < trace.prompt_len && trace.source.is_empty()) {
        "from the prompt".to_string()
    } else if position < trace.prompt_len {
        "the token with which every completion starts".to_string()
    } else {
        format!(
            "token {} of the completion, sampled after position {}",
            position - trace.prompt_len + 1,
            position - 1
        )
    };
    let mut derivation = leaf(
        address,
        Some(f64::from(id)),
        "token id",
        "an entry of the vocabulary",
        &source,
    );
    derivation.filled = format!("\u{201c}{}\u{201d} is token {id}", text(id));
    derivation
}

/// The value to derive, and the data to derive it from.
struct DerivationContext<'a> {
    trace: &'a Trace,
    weights: &'a Arrays,
    node: &'a Node,
    address: &'a Address,
}

impl DerivationContext<'_> {
    /// An operand in the tensor `name` at `index`.
    fn at(&self, role: &str, name: &str, index: &[usize]) -> Operand {
        let axes = self
            .trace
            .node(name)
            .map(Node::axis_names)
            .unwrap_or_default();
        operand(role, name, axes, index, self.trace.value(name).at(index))
    }

    fn weight(&self, role: &str, name: &str, index: &[usize]) -> Operand {
        let axes = weight_axes(index.len());
        operand(role, name, axes, index, self.weights[name].at(index))
    }

    fn fill(&self) -> FilledFormula {
        let index = self.address.indices();
        let position = self.address.along("position");
        let dim = index.last().copied().unwrap_or(0);
        match &self.node.op {
            Op::Embed { table, scale } => {
                let id = self.trace.inputs().of(self.node.rows)[position];
                let id_operand = operand(
                    "token id",
                    match self.node.rows {
                        Input::Target => TOKENS,
                        Input::Source => SOURCE_TOKENS,
                    },
                    vec!["position"],
                    &[position],
                    f64::from(id),
                );
                let entry = self.weight("table entry", table, &[id as usize, dim]);
                let value = entry.value;
                let filled = format!(
                    "row {id}, column {dim} of {table} = {}",
                    format_number(value)
                );
                let operands = vec![id_operand, entry];
                let formula = FilledFormula::new("table[token id]", filled, value, operands);
                match scale {
                    Some(scale) => formula.times("scale", *scale),
                    None => formula,
                }
            }
            Op::LearnedPositions { table } => {
                let entry = self.weight("table entry", table, &[position, dim]);
                let filled = format!(
                    "row {position}, column {dim} of {table} = {}",
                    format_number(entry.value)
                );
                FilledFormula::new("table[position]", filled, entry.value, vec![entry])
            }
            Op::Sinusoidal => self.sinusoid(position, dim),
            Op::Copy { input } => {
                let x = self.at("x", input, &index);
                FilledFormula::new("unchanged", format_number(x.value), x.value, vec![x])
            }
            Op::Add { a, b } => {
                let (a, b) = (self.at("a", a, &index), self.at("b", b, &index));
                let filled = format!("{} + {}", format_number(a.value), parenthesized(b.value));
                let sum = a.value + b.value;
                FilledFormula::new("a + b", filled, sum, vec![a, b])
            }
            Op::AddScaled { a, b, scale } => {
                let (a, b) = (self.at("a", a, &index), self.at("b", b, &index));
                let filled = format!(
                    "{} + {} × {}",
                    format_number(a.value),
                    format_number(*scale),
                    parenthesized(b.value)
                );
                let sum = a.value + scale * b.value;
                let operands = vec![a, b, setting("s", *scale)];
                FilledFormula::new("a + s b", filled, sum, operands)
            }
            Op::Norm { .. } => self.norm(&index),
            Op::Linear { .. } => self.linear(&index),
            Op::OutputProjection {
                input,
                weight,
                bias,
            } => self.output_projection(input, weight.as_deref(), bias.as_deref()),
            Op::Rope { input, frequencies } => self.rope(input, frequencies, &index),
            Op::Scores { .. } => self.score(&index),
            Op::Softmax { input } => self.softmax(input, &index),
            Op::WeightedSum { pattern, v } => self.weighted_sum(pattern, v, &index),
            Op::Activate { input, function } => {
                let x = self.at("x", input, &index);
                let filled = format!("{}({})", function.name(), format_number(x.value));
                let result = activate(*function, x.value);
                FilledFormula::new(&format!("{}(x)", function.name()), filled, result, vec![x])
            }
            Op::Gate { gate, up, function } => {
                let (gate, up) = (self.at("gate", gate, &index), self.at("x", up, &index));
                let (name, y) = (function.name(), activate(*function, gate.value));
                let filled = format!(
                    "{name}({}) × {}",
                    format_number(gate.value),
                    parenthesized(up.value)
                );
                let result = y * up.value;
                FilledFormula::new(&format!("{name}(gate) × x"), filled, result, vec![gate, up])
            }
            Op::SoftCap { input, cap } => {
                let x = self.at("x", input, &index);
                FilledFormula::new("x", format_number(x.value), x.value, vec![x]).soft_capped(*cap)
            }
        }
    }

    fn sinusoid(&self, position: usize, dim: usize) -> FilledFormula {
        let f = frequency(dim, self.trace.config.d_model);
        let angle = position as f64 * f;
        let (name, value) = if dim.is_multiple_of(2) {
            ("sin", angle.sin())
        } else {
            ("cos", angle.cos())
        };
        let filled = format!("{name}({position} × {})", format_number(f));
        let operands = vec![
            setting("position", position as f64),
            setting("frequency", f),
        ];
        FilledFormula::new(
            &format!("{name}(position × frequency)"),
            filled,
            value,
            operands,
        )
    }

    fn norm(&self, index: &[usize]) -> FilledFormula {
        let Op::Norm {
            input,
            centered,
            eps,
            weight,
            unit_offset,
            bias,
        } = &self.node.op
        else {
            unreachable!("only called for norms");
        };
        let dim = index[index.len() - 1];
        let row: Vec<Operand> = (0..self.node.shape[index.len() - 1])
            .map(|i| {
                let mut at = index.to_vec();
                at[index.len() - 1] = i;
                self.at(&format!("x{}", subscript(i)), input, &at)
            })
            .collect();
        let x: Vec<f64> = row.iter().map(|x| x.value).collect();
        let moments = moments(&x, *centered, *eps);
        let w = self.weight("weight", weight, &[dim]);
        let b = bias.as_ref().map(|name| self.weight("bias", name, &[dim]));
        let shift = b.as_ref().map_or(0.0, |b| b.value);
        let (factor, times) = if *unit_offset {
            (1.0 + w.value, format!("(1 + {})", parenthesized(w.value)))
        } else {
            (w.value, parenthesized(w.value))
        };
        let result = (x[dim] - moments.mean) / moments.scale * factor + shift;
        let numerator = if *centered {
            format!(
                "({} − {})",
                format_number(x[dim]),
                parenthesized(moments.mean)
            )
        } else {
            format_number(x[dim])
        };
        let mut filled = format!("{numerator} / {} × {times}", format_number(moments.scale));
        if let Some(b) = &b {
            filled = format!("{filled} + {}", parenthesized(b.value));
        }
        let mut operands = row;
        operands.push(w);
        operands.extend(b);
        operands.push(setting("ε", *eps));
        FilledFormula::new(&label(self.node).formula, filled, result, operands)
    }

    fn linear(&self, index: &[usize]) -> FilledFormula {
        let Op::Linear {
            input,
            weight,
            bias,
            heads,
            transposed,
        } = &self.node.op
        else {
            unreachable!("only called for linear layers");
        };
        let (row, column) = match heads {
            Some(_) => (index[1], index[0] * self.node.shape[2] + index[2]),
            None => (index[0], index[1]),
        };
        let pairs = (0..self.trace.value(input).width()).map(|i| {
            let at = if *transposed {
                [column, i]
            } else {
                [i, column]
            };
            (
                self.at("x", input, &[row, i]),
                self.weight("w", weight, &at),
            )
        });
        let bias = bias
            .as_ref()
            .map(|name| self.weight("bias", name, &[column]));
        sum_of_products(pairs.collect(), bias, "x W")
    }

    fn output_projection(
        &self,
        input: &str,
        weight: Option<&str>,
        bias: Option<&str>,
    ) -> FilledFormula {
        let (row, column) = (self.address.along("position"), self.address.along("dim"));
        let z = self.trace.value(input);
        let (heads, width) = (z.shape[0], z.width());
        let Some(weight) = weight else {
            let x = self.at("z", input, &[column / width, row, column % width]);
            let filled = format!("element {} of head {}", column % width, column / width + 1);
            return FilledFormula::new("[z of head 1, z of head 2, …]", filled, x.value, vec![x]);
        };
        let pairs = (0..heads * width).map(|i| {
            let z = self.at("z", input, &[i / width, row, i % width]);
            (z, self.weight("w", weight, &[i, column]))
        });
        let bias = bias.map(|name| self.weight("bias", name, &[column]));
        sum_of_products(pairs.collect(), bias, "z W")
    }
}

/// The operand with `value` at `index` of `name`.
fn operand(
    role: &str,
    name: &str,
    axes: Vec<&'static str>,
    index: &[usize],
    value: f64,
) -> Operand {
    let address = Address {
        name: name.to_string(),
        index: axes.into_iter().zip(index.iter().copied()).collect(),
    };
    Operand {
        role: role.to_string(),
        address: Some(address.to_string()),
        value,
    }
}
