//! What a run with `[lora]` trains, and the memory of the alternatives.

use serde::{Deserialize, Serialize};

use crate::RunSetup;

/// What a run with `[lora]` trains.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraPlan {
    /// Number of parameters that are trained.
    pub trained_parameters: usize,
    /// The path of the base model, which stays as it is.
    pub base: String,
    /// Bits per weight of the base, if it is quantized.
    pub base_bits: Option<u8>,
    /// Maximum learning rate.
    pub learning_rate: f64,
    /// Steps of warmup.
    pub warmup_steps: u64,
    /// Bytes of memory of the same run in other ways.
    pub alternatives: LoraAlternatives,
}

/// Bytes of memory of a training step, without the program, for each way to finetune the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoraAlternatives {
    /// All weights are trained.
    pub full: usize,
    /// An adapter of a model of floats.
    pub f32: usize,
    /// An adapter of a model with 8 bits per weight.
    pub int8: usize,
    /// An adapter of a model with 4 bits per weight.
    pub int4: usize,
}

impl LoraPlan {
    pub(super) fn of_run(setup: &RunSetup) -> Option<Self> {
        let base = setup.lora.as_ref()?;
        let (model, shape) = (&setup.config.model, setup.training_shape());
        let trained = base.trained_parameters;
        let adapter = |bits| model.adapter_memory(&shape, trained, bits).total();
        Some(Self {
            trained_parameters: trained,
            base: base.description.path_hint.clone(),
            base_bits: base.description.bits,
            learning_rate: setup.config.schedule.learning_rate,
            warmup_steps: setup.config.schedule.warmup_steps,
            alternatives: LoraAlternatives {
                full: model.training_memory(&shape).total(),
                f32: adapter(None),
                int8: adapter(Some(8)),
                int4: adapter(Some(4)),
            },
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use crate::plan::Plan;
    use crate::{parse_config, prepare_run};

    #[test]
    fn a_lora_run_saves_only_trained_parameters() {
        let text = "
            start_from = '../../docs/models/letters'
            data.builtin = 'stories'
            data.documents = 20
            [lora]
            rank = 2
        ";
        let config = parse_config(text, Path::new("x.toml"), &[]).unwrap();
        let setup = prepare_run(config).unwrap();
        let plan = Plan::estimate(&setup);
        let lora = plan.lora.as_ref().unwrap();
        let trained = lora.trained_parameters;
        assert!(
            trained > 0 && trained < plan.parameters.total / 4,
            "{trained}"
        );
        assert_eq!(plan.checkpoint_bytes, 12 * trained as u64);
        assert_eq!(plan.memory_bytes.by_part.optimizer, 8 * trained);
        let other = lora.alternatives;
        assert!(other.int4 < other.int8 && other.int8 < other.f32 && other.f32 < other.full);
        assert_eq!(plan.memory_bytes.by_part.total(), other.f32);
        // A small model: the largest default learning rate.
        assert!((lora.learning_rate - 2e-3).abs() < 1e-12, "{lora:?}");
    }
}
