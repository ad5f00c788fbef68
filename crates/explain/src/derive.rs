//! Where one number comes from: its formula with the operands filled in, each with an address of its
//! own, down to weights and token ids.

mod attention;

use serde::Serialize;

use crate::address::{Address, TOKENS, weight_axes};
use crate::evaluate::{Arrays, activate, frequency, moments};
use crate::formula::{Step, number, plain, products, setting, subscript, wrapped};
use crate::graph::{Node, Op};
use crate::trace::Trace;
use crate::words::about;

/// How one number comes about.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Derivation {
    /// The number's address.
    pub address: String,
    /// The number; `None` where a token may not look.
    pub value: Option<f64>,
    /// What it is in plain words.
    pub title: String,
    /// What the textbook calls it.
    pub term: String,
    /// The formula.
    pub formula: String,
    /// The formula with the operands' numbers.
    pub filled: String,
    /// What goes in. Empty where the chain ends: at weights, token ids and settings.
    pub operands: Vec<Operand>,
    /// The formula's result from the operands below, in f64.
    pub result: Option<f64>,
}

/// A number that goes into another.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Operand {
    /// What it is in the formula.
    pub role: String,
    /// Where it can be asked for in turn; `None` for settings of the model.
    pub address: Option<String>,
    /// The number.
    pub value: f64,
}

/// Derives the number at `address` of a trace made with `weights`. `text` is how a token is shown.
///
/// # Panics
/// If the address was not read for this trace and these weights.
pub fn derive(
    trace: &Trace,
    weights: &Arrays,
    text: &dyn Fn(u32) -> String,
    address: &Address,
) -> Derivation {
    if address.name == TOKENS {
        return token(trace, text, address);
    }
    let Some(node) = trace.node(&address.name) else {
        return weight(trace, weights, address);
    };
    let about = about(node);
    let value = trace.value(&node.name).at(&address.indices());
    let visible =
        !node.is_square() || trace.sees(node, address.along("query"), address.along("key"));
    let scene = Scene {
        trace,
        weights,
        node,
        address,
    };
    let step = scene.step();
    Derivation {
        address: address.to_string(),
        value: visible.then_some(value),
        title: about.title.to_string(),
        term: about.term.to_string(),
        formula: step.formula,
        filled: step.filled,
        operands: step.operands,
        result: step.result,
    }
}

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
        filled: value.map_or_else(String::new, number),
        operands: Vec::new(),
        result: value,
    }
}

fn weight(trace: &Trace, weights: &Arrays, address: &Address) -> Derivation {
    let is_matrix = address.index.len() > 1 && !address.name.starts_with("position_embedding");
    let formula = match trace.bits.filter(|_| is_matrix) {
        Some(bits) => format!(
            "learned in training, then rounded to {bits} bits: a whole number times the scale of its \
             block of 32"
        ),
        None => "learned in training; nothing comes before it".to_string(),
    };
    let value = weights[&address.name].at(&address.indices());
    leaf(
        address,
        Some(value),
        "a weight of the model",
        "parameter",
        &formula,
    )
}

fn token(trace: &Trace, text: &dyn Fn(u32) -> String, address: &Address) -> Derivation {
    let position = address.along("position");
    let id = trace.ids[position];
    let from = if position < trace.prompt {
        "given in the prompt".to_string()
    } else {
        format!(
            "the answer's token number {}, chosen after position {}",
            position - trace.prompt + 1,
            position - 1
        )
    };
    let mut end = leaf(
        address,
        Some(f64::from(id)),
        "a token id",
        "token id",
        &from,
    );
    end.filled = format!("\u{201c}{}\u{201d} is token {id}", text(id));
    end
}

struct Scene<'a> {
    trace: &'a Trace,
    weights: &'a Arrays,
    node: &'a Node,
    address: &'a Address,
}

impl Scene<'_> {
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

    fn step(&self) -> Step {
        let index = self.address.indices();
        let position = self.address.along("position");
        let dim = index.last().copied().unwrap_or(0);
        match &self.node.op {
            Op::Embed { table, scale } => {
                let id = self.trace.ids[position];
                let id_operand = operand(
                    "token id",
                    TOKENS,
                    vec!["position"],
                    &[position],
                    f64::from(id),
                );
                let entry = self.weight("table entry", table, &[id as usize, dim]);
                let value = entry.value;
                let filled = format!("row {id}, number {dim} of {table} = {}", number(value));
                let operands = vec![id_operand, entry];
                let step = plain("table[token id]", filled, value, operands);
                match scale {
                    Some(scale) => step.times("scale", *scale),
                    None => step,
                }
            }
            Op::Places { table } => {
                let entry = self.weight("table entry", table, &[position, dim]);
                let filled = format!("row {position}, number {dim} of {table}");
                plain("table[position]", filled, entry.value, vec![entry])
            }
            Op::Waves => self.wave(position, dim),
            Op::Copy { of } => {
                let x = self.at("x", of, &index);
                plain("unchanged", number(x.value), x.value, vec![x])
            }
            Op::Add { a, b } => {
                let (a, b) = (self.at("a", a, &index), self.at("b", b, &index));
                let filled = format!("{} + {}", number(a.value), wrapped(b.value));
                let sum = a.value + b.value;
                plain("a + b", filled, sum, vec![a, b])
            }
            Op::Norm { .. } => self.norm(&index),
            Op::Linear { .. } => self.linear(&index),
            Op::Join { of, weight, bias } => self.join(of, weight.as_deref(), bias.as_deref()),
            Op::Turn { of, frequencies } => self.turn(of, frequencies, &index),
            Op::Scores { .. } => self.score(&index),
            Op::Softmax { of } => self.softmax(of, &index),
            Op::Mix { pattern, v } => self.mix(pattern, v, &index),
            Op::Activate { of, function } => {
                let x = self.at("x", of, &index);
                let filled = format!("{}({})", function.name(), number(x.value));
                let result = activate(*function, x.value);
                plain(&format!("{}(x)", function.name()), filled, result, vec![x])
            }
            Op::Gate { gate, up, function } => {
                let (gate, up) = (self.at("gate", gate, &index), self.at("x", up, &index));
                let (name, y) = (function.name(), activate(*function, gate.value));
                let filled = format!("{name}({}) × {}", number(gate.value), wrapped(up.value));
                let result = y * up.value;
                plain(&format!("{name}(gate) × x"), filled, result, vec![gate, up])
            }
            Op::Cap { of, cap } => {
                let x = self.at("x", of, &index);
                plain("x", number(x.value), x.value, vec![x]).squeezed(*cap)
            }
        }
    }

    fn wave(&self, position: usize, dim: usize) -> Step {
        let f = frequency(dim, self.trace.config.d_model);
        let angle = position as f64 * f;
        let (name, value) = if dim.is_multiple_of(2) {
            ("sin", angle.sin())
        } else {
            ("cos", angle.cos())
        };
        let filled = format!("{name}({position} × {})", number(f));
        let operands = vec![
            setting("position", position as f64),
            setting("frequency", f),
        ];
        plain(
            &format!("{name}(position × frequency)"),
            filled,
            value,
            operands,
        )
    }

    fn norm(&self, index: &[usize]) -> Step {
        let Op::Norm {
            of,
            centered,
            eps,
            weight,
            unit_offset,
            bias,
        } = &self.node.op
        else {
            unreachable!("the caller has looked");
        };
        let dim = index[index.len() - 1];
        let row: Vec<Operand> = (0..self.node.shape[index.len() - 1])
            .map(|i| {
                let mut at = index.to_vec();
                at[index.len() - 1] = i;
                self.at(&format!("x{}", subscript(i)), of, &at)
            })
            .collect();
        let x: Vec<f64> = row.iter().map(|x| x.value).collect();
        let moments = moments(&x, *centered, *eps);
        let w = self.weight("weight", weight, &[dim]);
        let b = bias.as_ref().map(|name| self.weight("bias", name, &[dim]));
        let shift = b.as_ref().map_or(0.0, |b| b.value);
        let (factor, times) = if *unit_offset {
            (1.0 + w.value, format!("(1 + {})", wrapped(w.value)))
        } else {
            (w.value, wrapped(w.value))
        };
        let result = (x[dim] - moments.mean) / moments.scale * factor + shift;
        let top = if *centered {
            format!("({} − {})", number(x[dim]), wrapped(moments.mean))
        } else {
            number(x[dim])
        };
        let mut filled = format!("{top} / {} × {times}", number(moments.scale));
        if let Some(b) = &b {
            filled = format!("{filled} + {}", wrapped(b.value));
        }
        let mut operands = row;
        operands.push(w);
        operands.extend(b);
        operands.push(setting("ε", *eps));
        plain(&about(self.node).formula, filled, result, operands)
    }

    fn linear(&self, index: &[usize]) -> Step {
        let Op::Linear {
            of,
            weight,
            bias,
            heads,
            transposed,
        } = &self.node.op
        else {
            unreachable!("the caller has looked");
        };
        let (row, column) = match heads {
            Some(_) => (index[1], index[0] * self.node.shape[2] + index[2]),
            None => (index[0], index[1]),
        };
        let pairs = (0..self.trace.value(of).width()).map(|i| {
            let at = if *transposed {
                [column, i]
            } else {
                [i, column]
            };
            (self.at("x", of, &[row, i]), self.weight("w", weight, &at))
        });
        let bias = bias
            .as_ref()
            .map(|name| self.weight("bias", name, &[column]));
        products(pairs.collect(), bias, "x W")
    }

    fn join(&self, of: &str, weight: Option<&str>, bias: Option<&str>) -> Step {
        let (row, column) = (self.address.along("position"), self.address.along("dim"));
        let z = self.trace.value(of);
        let (heads, width) = (z.shape[0], z.width());
        let Some(weight) = weight else {
            let x = self.at("z", of, &[column / width, row, column % width]);
            let filled = format!("number {} of head {}", column % width, column / width);
            return plain("the heads side by side", filled, x.value, vec![x]);
        };
        let pairs = (0..heads * width).map(|i| {
            let z = self.at("z", of, &[i / width, row, i % width]);
            (z, self.weight("w", weight, &[i, column]))
        });
        let bias = bias.map(|name| self.weight("bias", name, &[column]));
        products(pairs.collect(), bias, "z W")
    }
}

/// The operand `value` at `index` of `name`.
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
