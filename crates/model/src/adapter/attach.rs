//! Adapters of a whole model.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Tensor, TensorData};
use nextword_base::CounterRng;

use super::{Adapter, SavedTensor};
use crate::lora::{Attached, Lora, column_norms, initial_a};
use crate::quantize::{HEAD, TABLE, dequantize};
use crate::weights::{param_readers, to_f32_vec};
use crate::{LoraConfig, LowRank, ModelError, Transformer};

impl Transformer {
    /// Attaches an untrained adapter. All other parameters are frozen, also after
    /// [`train`](burn::module::Module::train), except full copies of parts that the configuration names.
    ///
    /// `B` is zero, so that the logits are those of the base model: to the bit, except with `DoRA` (which adds a bias
    /// after its factor) and with full copies of quantized parameters (which are multiplied as floats). `A` is uniform
    /// in ±1/sqrt(`d_in`) and depends on `seed` and the path of its module alone.
    ///
    /// # Errors
    /// [`ModelError::Lora`] if the configuration does not fit the model; [`ModelError::Adapter`] if it already has an
    /// adapter.
    ///
    /// # Example
    ///
    /// ```
    /// use burn::tensor::{Device, Int, Tensor};
    /// use nextword_model::{ForwardContext, LoraConfig, presets};
    ///
    /// let device = Device::flex();
    /// let base = presets::shakespeare_char_cpu(65).init(&device, 1)?;
    /// let logits = |model: &nextword_model::Transformer| {
    ///     let tokens = Tensor::<2, Int>::from_ints([[5, 6, 7]], &device);
    ///     model.forward(tokens, &mut ForwardContext::inference()).into_data()
    /// };
    /// let adapted = base.clone().with_new_adapter(&LoraConfig::default(), 7)?;
    /// assert_eq!(logits(&adapted), logits(&base));
    /// # Ok::<(), nextword_model::ModelError>(())
    /// ```
    pub fn with_new_adapter(self, config: &LoraConfig, seed: u64) -> Result<Self, ModelError> {
        let modules = config.modules(self.config())?;
        let saved = config.saved_parameters(self.config())?;
        let rng = CounterRng::new(seed).named("init");
        let device = self.device();
        let weights: BTreeMap<_, _> = self.linears().into_iter().collect();
        let new = |(name, [d_in, d_out]): (String, [usize; 2])| {
            let weight = weights[&format!("{name}.weight")].linear_weight();
            let module = LowRank {
                a: initial_a(rng.named(&format!("{name}.lora_a")), d_in, config.rank),
                b: vec![0.0; config.rank * d_out],
                rank: config.rank,
                d_in,
                d_out,
                scale: config.scale() as f32,
                magnitude: config
                    .use_dora
                    .then(|| to_f32_vec(column_norms(&weight, &device).into_data())),
            };
            (name, module)
        };
        let modules = modules.into_iter().map(new).collect();
        let saved: BTreeMap<_, _> = saved.into_iter().map(|(name, _)| (name, None)).collect();
        self.attach(config.clone(), &modules, &saved)
    }

    /// Attaches a trained adapter, to use it or to continue its training. All other parameters are frozen.
    ///
    /// # Errors
    /// [`ModelError::Adapter`] if it does not fit the model, or the model already has an adapter.
    pub fn with_adapter(self, adapter: &Adapter) -> Result<Self, ModelError> {
        adapter.check(self.config())?;
        let saved = adapter.saved.iter();
        let saved = saved.map(|(name, saved)| (name.clone(), Some(saved)));
        let config = adapter.config.clone();
        self.attach(config, &adapter.modules, &saved.collect())
    }

    /// Attaches `modules`, and full copies of the parameters `saved`: of the base model's values, or of these.
    fn attach(
        self,
        config: LoraConfig,
        modules: &BTreeMap<String, LowRank>,
        saved: &BTreeMap<String, Option<&SavedTensor>>,
    ) -> Result<Self, ModelError> {
        if self.attached.is_some() {
            return Err(ModelError::adapter(
                "the model already has an adapter",
                "merge or remove it first",
            ));
        }
        let device = self.device();
        let mut model = self.freeze();
        let dropout = config.dropout;
        for (name, linear) in model.linears_mut() {
            let module = name
                .strip_suffix(".weight")
                .and_then(|name| modules.get(name));
            if let Some(module) = module {
                let weight = linear.linear_weight();
                linear.lora = Some(Lora::new(module, &weight, dropout, &device));
            }
        }
        let mut attached = Attached {
            config,
            base_values: BTreeMap::new(),
            base_embedding: None,
            base_head: None,
        };
        if saved.contains_key(TABLE)
            && let Some(table) = model.quantized_embedding.take()
        {
            model.token_embedding.weight = dequantize(&table, &device, true);
            attached.base_embedding = Some(table);
        }
        if saved.contains_key(HEAD)
            && let Some(head) = model.head.quantized.take()
        {
            model.head.weight = Some(dequantize(&head, &device, false));
            attached.base_head = Some(head);
        }
        let mut replacer = Replacer {
            path: Vec::new(),
            saved,
            base_values: BTreeMap::new(),
        };
        let mut model = model.map(&mut replacer);
        attached.base_values = replacer.base_values;
        model.attached = Some(attached);
        Ok(model)
    }

    /// Whether the model has an adapter.
    pub fn has_adapter(&self) -> bool {
        self.attached.is_some()
    }

    /// Copies the adapter from the device; `None` if the model has none.
    pub fn adapter(&self) -> Option<Adapter> {
        let attached = self.attached.as_ref()?;
        let modules = self.linears().into_iter().filter_map(|(name, linear)| {
            let name = name.strip_suffix(".weight")?;
            Some((name.to_string(), read(linear.lora.as_ref()?)))
        });
        let params = param_readers(self);
        let saved = attached.base_values.keys().map(|name| {
            let param = &params[name];
            let saved = SavedTensor {
                shape: param.shape.clone(),
                values: to_f32_vec(param.read()),
            };
            (name.clone(), saved)
        });
        Some(Adapter {
            modules: modules.collect(),
            saved: saved.collect(),
            config: attached.config.clone(),
        })
    }

    /// Removes the adapter, which leaves the base model, all of it trainable.
    pub fn without_adapter(self) -> Self {
        let Some(mut attached) = self.attached.clone() else {
            return self;
        };
        let mut model = self.map(&mut Restorer {
            path: Vec::new(),
            base_values: std::mem::take(&mut attached.base_values),
        });
        model = model.drop_adapter();
        if let Some(table) = attached.base_embedding {
            let is_set = model.set_quantized(TABLE, table);
            debug_assert!(is_set, "the base model had this table");
        }
        if let Some(head) = attached.base_head {
            let is_set = model.set_quantized(HEAD, head);
            debug_assert!(is_set, "the base model had this matrix");
        }
        model
    }

    /// Removes the low-rank updates and keeps all other parameters, trainable.
    pub(super) fn drop_adapter(mut self) -> Self {
        for (_, linear) in self.linears_mut() {
            linear.lora = None;
        }
        self.attached = None;
        self.unfreeze()
    }
}

/// Copies the adapter of a layer from the device.
pub(super) fn read(lora: &Lora) -> LowRank {
    let ([d_in, rank], [_, d_out]) = (lora.a.val().dims(), lora.b.val().dims());
    let magnitude = lora.magnitude.as_ref().map(|m| m.val().into_data());
    LowRank {
        a: to_f32_vec(lora.a.val().into_data()),
        b: to_f32_vec(lora.b.val().into_data()),
        rank,
        d_in,
        d_out,
        scale: lora.scale(),
        magnitude: magnitude.map(to_f32_vec),
    }
}

/// Makes parameters trainable again, with other values where given, and collects their values before.
struct Replacer<'a> {
    path: Vec<String>,
    saved: &'a BTreeMap<String, Option<&'a SavedTensor>>,
    base_values: BTreeMap<String, Tensor<1>>,
}

impl ModuleMapper for Replacer<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.path.join(".");
        let Some(saved) = self.saved.get(&name) else {
            return param;
        };
        let base = param.val().without_autodiff();
        let shape = base.dims();
        let flat = base.reshape([shape.iter().product::<usize>()]);
        self.base_values.insert(name, flat);
        let param = match saved {
            Some(saved) => param.map(|tensor| {
                let data = TensorData::new(saved.values.clone(), shape);
                Tensor::from_data(data, &tensor.device())
            }),
            None => param,
        };
        param.set_require_grad(true)
    }
}

/// Sets parameters to the values of the base model.
struct Restorer {
    path: Vec<String>,
    base_values: BTreeMap<String, Tensor<1>>,
}

impl ModuleMapper for Restorer {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(values) = self.base_values.remove(&self.path.join(".")) else {
            return param;
        };
        param.map(|tensor| {
            let values = values.reshape(tensor.dims());
            if tensor.device().is_autodiff() {
                Tensor::from_inner(values)
            } else {
                values
            }
        })
    }
}
