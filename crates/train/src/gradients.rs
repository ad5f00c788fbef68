//! The gradients of a model: collecting, adding and clipping them.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Gradients as BurnGradients, Tensor};
use nextword_model::Transformer;

/// The gradients of all parameters by name: flat, off the autodiff graph.
#[derive(Clone, Debug)]
pub struct Gradients {
    by_name: BTreeMap<String, Tensor<1>>,
    /// Factor on all gradients, applied by the optimizer.
    scale: f64,
}

impl Default for Gradients {
    fn default() -> Self {
        Self {
            by_name: BTreeMap::new(),
            scale: 1.0,
        }
    }
}

impl Gradients {
    /// Collects the gradients of `model`'s parameters from `gradients`.
    pub(crate) fn collect(model: &Transformer, gradients: BurnGradients) -> Self {
        let mut collector = GradientCollector {
            gradients,
            path: Vec::new(),
            collected: BTreeMap::new(),
        };
        model.visit(&mut collector);
        Self {
            by_name: collector.collected,
            ..Self::default()
        }
    }

    /// Those of the given names, not clipped.
    pub(crate) fn from_map(by_name: BTreeMap<String, Tensor<1>>) -> Self {
        Self {
            by_name,
            ..Self::default()
        }
    }

    /// Those whose names are selected, and the others.
    pub(crate) fn partition(self, is_selected: impl Fn(&str) -> bool) -> (Self, Self) {
        let by_name = self.by_name.into_iter();
        let (selected, others) = by_name.partition(|(name, _)| is_selected(name));
        (Self::from_map(selected), Self::from_map(others))
    }

    /// Adds the gradients of another micro-batch.
    pub(crate) fn add(&mut self, other: Self) {
        for (name, gradient) in other.by_name {
            let sum = match self.by_name.remove(&name) {
                Some(sum) => sum + gradient,
                None => gradient,
            };
            self.by_name.insert(name, sum);
        }
    }

    /// The global norm of the gradients before clipping, `[1]`, on the device.
    pub fn norm(&self) -> Option<Tensor<1>> {
        nextword_kernels::sum_of_squares(self.by_name.values()).map(Tensor::sqrt)
    }

    /// Clips the global norm, currently `norm`, to `max_norm`; 0 disables clipping. As in `PyTorch`,
    /// the factor is `max_norm / (norm + 1e-6)`, at most 1.
    ///
    /// # Example
    ///
    /// ```
    /// use nextword_train::Gradients;
    ///
    /// let gradients = Gradients::default();
    /// assert!((gradients.clone().clip(4.0, 1.0).scale() - 0.25).abs() < 1e-6);
    /// assert_eq!(gradients.clone().clip(0.5, 1.0).scale(), 1.0); // small ones stay
    /// assert_eq!(gradients.clip(4.0, 0.0).scale(), 1.0); // 0 disables clipping
    /// ```
    #[must_use]
    pub fn clip(self, norm: f64, max_norm: f64) -> Self {
        if max_norm == 0.0 {
            return self;
        }
        Self {
            scale: (max_norm / (norm + 1e-6)).min(1.0),
            ..self
        }
    }

    /// The factor that clipping applies to all gradients.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Iterates over the names, in order, and the flat gradients before clipping.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor<1>)> {
        self.by_name.iter().map(|(name, g)| (name.as_str(), g))
    }

    pub(crate) fn remove(&mut self, name: &str) -> Option<Tensor<1>> {
        self.by_name.remove(name)
    }

    pub(crate) fn into_map(self) -> BTreeMap<String, Tensor<1>> {
        self.by_name
    }
}

struct GradientCollector {
    gradients: BurnGradients,
    path: Vec<String>,
    collected: BTreeMap<String, Tensor<1>>,
}

impl ModuleVisitor for GradientCollector {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = param.val();
        if let Some(gradient) = tensor.grad_remove(&mut self.gradients) {
            let len = tensor.dims().iter().product::<usize>();
            self.collected
                .insert(self.path.join("."), gradient.reshape([len]));
        }
    }
}
