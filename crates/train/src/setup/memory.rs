//! The memory that a run is expected to take.

use nextword_model::{DeviceName, MemoryEstimate, TrainingShape};

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

    /// Whether each rank has only its part of the moments.
    pub(crate) fn shards_optimizer(&self) -> bool {
        self.config.parallel.shard_optimizer && self.group.size() > 1
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

    /// The estimated memory of a training step on this rank.
    pub(crate) fn training_memory(&self) -> MemoryEstimate {
        let memory = self.memory_alone();
        if !self.shards_optimizer() {
            return memory;
        }
        MemoryEstimate {
            optimizer: memory.optimizer.div_ceil(self.group.size()),
            ..memory
        }
    }

    /// The estimated memory of a training step with all moments.
    fn memory_alone(&self) -> MemoryEstimate {
        let (model, shape) = (&self.config.model, self.training_shape());
        let Some(base) = &self.lora else {
            return model.training_memory(&shape);
        };
        let bits = base.description.bits;
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
