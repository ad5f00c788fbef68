//! The memory that a run is expected to take.

use nextword_model::{Bits, DeviceName, MemoryEstimate, TrainingShape};

use super::RunSetup;
use crate::{Optimizer, PreferenceSettings};

/// Memory that a validation batch may always take.
const MIN_VALIDATION_MEMORY: usize = 64 << 20;

impl RunSetup {
    /// Whether the device compiles programs before it can compute, and has its own memory.
    pub(crate) fn is_on_gpu(&self) -> bool {
        let cpus = [DeviceName::Flex, DeviceName::NdArray];
        let is_device = |name: &DeviceName| name.open().is_ok_and(|cpu| cpu == self.device);
        !cpus.iter().any(is_device)
    }

    /// What determines the memory of a training step besides the model.
    pub(crate) fn training_shape(&self) -> TrainingShape {
        let train = &self.config.train;
        let is_pairwise = |settings: &PreferenceSettings| settings.loss.is_pairwise();
        // A pair is two rows.
        let rows = match &self.config.preferences {
            Some(settings) if is_pairwise(settings) => 2 * train.batch_size,
            _ => train.batch_size,
        };
        TrainingShape {
            batch_size: rows,
            sequence_length: self.config.sequence_length(),
            accumulation: train.accumulation / train.lanes.max(1),
            kept_sums: nextword_parallel::largest_stack(train.lanes),
            moments: Optimizer::state_per_parameter(&self.config.optimizer),
            recompute: train.recompute,
            fused: nextword_kernels::is_flex(&self.device),
        }
    }

    /// The estimated memory of a training step.
    pub(crate) fn training_memory(&self) -> MemoryEstimate {
        let (model, shape) = (&self.config.model, self.training_shape());
        let Some(base) = &self.lora else {
            return model.training_memory(&shape);
        };
        let bits = match base.description.bits {
            Some(8) => Some(Bits::Int8),
            Some(_) => Some(Bits::Int4),
            None => None,
        };
        model.adapter_memory(&shape, base.trained_parameters, bits)
    }

    /// The rows of a validation batch: `validation.batch_size`, or fewer if they would take more memory than
    /// training does.
    pub(crate) fn validation_rows(&self) -> usize {
        let (model, shape) = (&self.config.model, self.training_shape());
        let training = self.training_memory();
        // Gradients and activations are not in memory during a validation.
        let free = (training.gradients + training.activations).max(MIN_VALIDATION_MEMORY);
        let per_token = model.inference_memory(shape.sequence_length, shape.fused);
        let row = per_token.saturating_mul(shape.sequence_length).max(1);
        let affordable = (free / row).max(1);
        self.config.validation.batch_size.min(affordable)
    }
}
