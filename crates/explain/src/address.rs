//! Addresses of single values: `blocks.0.attn.hook_pattern[head=0,query=3,key=1]`.

use std::fmt;

use crate::ExplainError;
use crate::evaluate::Arrays;
use crate::trace::Trace;

/// Name of the token ids in an address.
pub const TOKENS: &str = "tokens";

/// Name of the token ids that an encoder reads in an encoder-decoder model.
pub const SOURCE_TOKENS: &str = "source_tokens";

/// The address of one value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// A tensor of the trace, a parameter of the model, [`TOKENS`] or [`SOURCE_TOKENS`].
    pub name: String,
    /// Axis name and index, for all axes in order.
    pub index: Vec<(&'static str, usize)>,
}

impl Address {
    /// The index without axis names.
    pub fn indices(&self) -> Vec<usize> {
        self.index.iter().map(|(_, at)| *at).collect()
    }

    /// The index along `axis`; 0 if there is no such axis.
    pub fn along(&self, axis: &str) -> usize {
        let entry = self.index.iter().find(|(name, _)| *name == axis);
        entry.map_or(0, |(_, at)| *at)
    }

    /// Parses an address. Axes may come in any order; omitted ones are 0.
    ///
    /// # Errors
    /// [`ExplainError::Address`] with a hint that names valid addresses.
    ///
    /// # Example
    ///
    /// ```
    /// # use nextword_explain::{Address, Explainer};
    /// # use nextword_generate::{TextGenerator, TextOptions};
    /// # let model = nextword_model::ModelDir::open("../../docs/models/statquest".as_ref())?;
    /// # let generator = TextGenerator::open(&model, &burn::tensor::Device::flex())?;
    /// let explainer = Explainer::new(generator);
    /// let trace = explainer.explain("what is statquest", &TextOptions::default())?.trace;
    /// let address = Address::parse("hook_embed[dim=1]", &trace, explainer.weights())?;
    /// assert_eq!(address.to_string(), "hook_embed[position=0,dim=1]");
    /// let error = Address::parse("hook_embed[dim=9]", &trace, explainer.weights()).unwrap_err();
    /// assert!(error.to_string().contains("dim=0..2"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn parse(text: &str, trace: &Trace, weights: &Arrays) -> Result<Self, ExplainError> {
        let invalid = |problem: String, hint: String| ExplainError::Address {
            address: text.to_string(),
            problem,
            hint,
        };
        let (name, index_text) = match text.trim().split_once('[') {
            Some((name, rest)) => (name, rest.trim_end_matches(']')),
            None => (text.trim(), ""),
        };
        let Some((axes, shape)) = axes(name, trace, weights) else {
            let example =
                "blocks.0.attn.hook_pattern[head=0,query=0,key=0]; --format json lists all names";
            return Err(invalid(
                format!("no tensor `{name}`"),
                format!("try {example}"),
            ));
        };
        let mut index: Vec<(&'static str, usize)> = axes.iter().map(|axis| (*axis, 0)).collect();
        for part in index_text.split(',').filter(|part| !part.trim().is_empty()) {
            let (axis, at) = part.split_once('=').unwrap_or((part, ""));
            let valid = || format!("{name} has the axes {}", describe(&axes, &shape));
            let slot = index.iter().position(|(name, _)| *name == axis.trim());
            let (Some(slot), Ok(at)) = (slot, at.trim().parse::<usize>()) else {
                let is_token = axis.trim() == "token" && slot.is_some() && !at.trim().is_empty();
                let problem = if is_token {
                    let text = at.trim();
                    format!("`{text}` is neither an index nor a single token of the vocabulary")
                } else {
                    format!("`{part}` is not of the form AXIS=INDEX")
                };
                return Err(invalid(problem, valid()));
            };
            if at >= shape[slot] {
                return Err(invalid(format!("{axis} = {at} is out of range"), valid()));
            }
            index[slot].1 = at;
        }
        Ok(Self {
            name: name.to_string(),
            index,
        })
    }
}

/// Formats axes as `head=0..2, query=0..4`.
fn describe(axes: &[&str], shape: &[usize]) -> String {
    let each = axes.iter().zip(shape);
    let each: Vec<String> = each.map(|(axis, len)| format!("{axis}=0..{len}")).collect();
    each.join(", ")
}

/// Names and lengths of the axes of `name`, if it exists.
fn axes(name: &str, trace: &Trace, weights: &Arrays) -> Option<(Vec<&'static str>, Vec<usize>)> {
    if name == TOKENS {
        return Some((vec!["position"], vec![trace.ids.len()]));
    }
    if name == SOURCE_TOKENS && !trace.source.is_empty() {
        return Some((vec!["position"], vec![trace.source.len()]));
    }
    if let Some(node) = trace.node(name) {
        return Some((node.axis_names(), node.shape.clone()));
    }
    let weight = weights.get(name)?;
    Some((weight_axes(weight.shape.len()), weight.shape.clone()))
}

/// Names of a parameter's axes.
pub(crate) fn weight_axes(rank: usize) -> Vec<&'static str> {
    if rank == 1 {
        vec!["number"]
    } else {
        vec!["row", "column"]
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.name)?;
        for (i, (axis, at)) in self.index.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            write!(f, "{comma}{axis}={at}")?;
        }
        f.write_str("]")
    }
}
