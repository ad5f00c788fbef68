//! The tensors of a PEFT file, sorted by the modules that they belong to, and the updates of linear layers.

use std::collections::BTreeMap;

use nextword_model::weights::{TensorFile, is_in_block};

use super::config::{CONFIG, PeftConfig};
use super::keys::{self, Key};
use super::problems::{Kind, Problems};
use crate::ConvertError;
use crate::low_rank::ForeignLowRank;
use crate::mapping::TensorMapping;

/// Our weights of token embedding and output layer.
pub(super) const TABLE: &str = "token_embedding.weight";
const HEAD: &str = "head.weight";

/// The names of the tensors of an update.
#[derive(Debug, Default)]
pub(super) struct Update {
    pub(super) a: Option<String>,
    pub(super) b: Option<String>,
    pub(super) magnitude: Option<String>,
    pub(super) embedding_a: Option<String>,
    pub(super) embedding_b: Option<String>,
    pub(super) base: Option<String>,
}

/// The tensors of a file by what they belong to: a module, or a parameter of which they are a copy.
#[derive(Debug, Default)]
pub(super) struct Sorted {
    pub(super) updates: BTreeMap<String, Update>,
    pub(super) parameters: BTreeMap<String, String>,
}

pub(super) struct Reader<'a> {
    pub(super) file: &'a TensorFile,
    pub(super) config: &'a PeftConfig,
    /// By the names of parameters in the base model.
    pub(super) mappings: BTreeMap<String, TensorMapping>,
    pub(super) problems: Problems,
}

impl Reader<'_> {
    /// Sorts the tensors by their names.
    pub(super) fn sort(&mut self) -> Sorted {
        let mut sorted = Sorted::default();
        for name in self.file.names() {
            if let Some(problem) = self.file.check_float(name) {
                self.problems.push(problem);
            }
            let updates = &mut sorted.updates;
            let earlier = match keys::parse(name) {
                Ok(Key::A(module)) => replace(&mut updates.entry(module).or_default().a, name),
                Ok(Key::B(module)) => replace(&mut updates.entry(module).or_default().b, name),
                Ok(Key::Magnitude(module)) => {
                    replace(&mut updates.entry(module).or_default().magnitude, name)
                }
                Ok(Key::EmbeddingA(module)) => {
                    replace(&mut updates.entry(module).or_default().embedding_a, name)
                }
                Ok(Key::EmbeddingB(module)) => {
                    replace(&mut updates.entry(module).or_default().embedding_b, name)
                }
                Ok(Key::Base(module)) => {
                    replace(&mut updates.entry(module).or_default().base, name)
                }
                Ok(Key::Parameter(parameter)) => {
                    sorted.parameters.insert(parameter, name.to_string())
                }
                Err(problem) => {
                    self.problems.push(format!("  `{name}` {problem}"));
                    None
                }
            };
            if let Some(earlier) = earlier {
                self.problems
                    .push(format!("  `{earlier}` and `{name}` are the same tensor"));
            }
        }
        sorted
    }

    /// Reads the update of `module`. `None` if it has a problem.
    pub(super) fn read_update(
        &mut self,
        module: &str,
        names: &Update,
    ) -> Result<Option<(TensorMapping, ForeignLowRank)>, ConvertError> {
        let Some(mapping) = self.matrix(module) else {
            return Ok(None);
        };
        let outside = [&names.embedding_a, &names.embedding_b, &names.base];
        for unused in outside.into_iter().flatten() {
            let line = format!(
                "  unused: `{unused}`, since `{module}` is a linear layer; hint: save the adapter with \
                 `model.save_pretrained(DIR)` of PEFT"
            );
            self.problems.push(line);
        }
        let (Some(a), Some(b)) = (&names.a, &names.b) else {
            let missing = if names.a.is_none() {
                "lora_A"
            } else {
                "lora_B"
            };
            self.problems.push(format!(
                "  missing: `{}{module}.{missing}.weight`",
                keys::PREFIX
            ));
            return Ok(None);
        };
        let magnitude = names.magnitude.as_ref();
        if magnitude.is_some() != self.config.use_dora {
            let name = format!("{}{module}.lora_magnitude_vector", keys::PREFIX);
            self.problems.push(match magnitude {
                Some(_) => format!("  unused: `{name}`, since {CONFIG} does not set use_dora"),
                None => format!("  missing: `{name}`, since {CONFIG} sets use_dora"),
            });
        }
        let rank = self.check_rank(module, &mapping, a);
        self.check_shape(a, &[rank, mapping.d_in()]);
        self.check_shape(b, &mapping.factor_b(rank).shape);
        if let Some(magnitude) = magnitude {
            self.check_shape(magnitude, &mapping.output_vector().shape);
        }
        if !self.problems.is_empty() {
            return Ok(None); // Nothing is read from a file with problems.
        }
        let update = ForeignLowRank {
            rank,
            scale: self.config.scale(module, rank),
            a: self.file.values(a)?,
            b: self.file.values(b)?,
            magnitude: magnitude.map(|name| self.file.values(name)).transpose()?,
        };
        for (name, values) in [(a, &update.a), (b, &update.b)] {
            self.check_finite(name, values);
        }
        if let (Some(name), Some(values)) = (magnitude, &update.magnitude) {
            self.check_finite(name, values);
        }
        Ok(Some((mapping, update)))
    }

    /// Whether `module` is the token embedding or the output layer.
    pub(super) fn is_outside_blocks(&self, module: &str) -> bool {
        let mapping = self.mappings.get(&format!("{module}.weight"));
        mapping.is_some_and(|mapping| matches!(mapping.ours[0].0.as_str(), TABLE | HEAD))
    }

    /// The matrix that is the weight of `module`.
    fn matrix(&mut self, module: &str) -> Option<TensorMapping> {
        let mapping = self.mappings.get(&format!("{module}.weight"));
        let (ours, shape) = mapping
            .map(|mapping| mapping.ours[0].clone())
            .unwrap_or_default();
        if shape.len() == 2 && is_in_block(&ours) {
            return mapping.cloned();
        }
        self.refuse_module(module);
        None
    }

    /// Adds the problem that `module` is adapted.
    pub(super) fn refuse_module(&mut self, module: &str) {
        let line = if self.mappings.contains_key(&format!("{module}.weight")) {
            format!(
                "  `{module}` is adapted, but nextword supports only adapters of attention and feed-forward, and in decoders \
                 of token embedding and output layer; hint: merge the adapter with PEFT"
            )
        } else {
            format!("  `{module}` is adapted, but the base model has no such module")
        };
        self.problems.push_kind(Kind::Module, line);
    }

    /// The rank of the factor `a` of `module`; 0 if it is not a matrix.
    pub(super) fn check_rank(&mut self, module: &str, mapping: &TensorMapping, a: &str) -> usize {
        let rank = match self.file.shape(a) {
            Some([rank, _]) => *rank,
            _ => 0,
        };
        // The smallest of the matrices that are combined.
        let sizes = mapping.ours.iter().filter_map(|(_, shape)| shape.get(1));
        let limit = sizes.fold(mapping.d_in(), |limit, d_out| limit.min(*d_out));
        let limit = limit * mapping.ours.len(); // Independent updates are stacked.
        if rank == 0 || rank > limit {
            let line = format!("  `{a}` has rank {rank}, which is not between 1 and {limit}");
            self.problems.push_kind(Kind::Rank, line);
        }
        let expected = self.config.rank(module);
        if (expected - rank as f64).abs() > 0.0 {
            let line =
                format!("  `{a}` has rank {rank}, but {CONFIG} gives `{module}` rank {expected}");
            self.problems.push_kind(Kind::Rank, line);
        }
        rank
    }

    pub(super) fn check_shape(&mut self, name: &str, expected: &[usize]) {
        let found = self.file.shape(name).unwrap_or_default();
        if found != expected {
            let line =
                format!("  `{name}` has shape {found:?}, but the base model requires {expected:?}");
            self.problems.push_kind(Kind::Shape, line);
        }
    }

    pub(super) fn check_finite(&mut self, name: &str, values: &[f32]) {
        if !values.iter().all(|value| value.is_finite()) {
            let line = format!("  `{name}` contains NaN or infinity");
            self.problems.push_kind(Kind::NotFinite, line);
        }
    }
}

fn replace(entry: &mut Option<String>, name: &str) -> Option<String> {
    entry.replace(name.to_string())
}
