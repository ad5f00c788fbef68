//! Checks whether this machine has enough memory for a run.

use nextword_model::{ByteSize, DeviceName, available_memory};

use super::{Memory, Plan};

/// Ratio of estimated to available memory above which a run is refused, even though the estimate is
/// rough.
const OVERCOMMIT_LIMIT: u64 = 4;

/// A run needs more memory than is available.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryShortage {
    /// Weights, gradients and optimizer state alone, whose sizes are exact.
    #[error(
        "the model and its optimizer state need {} of memory, but only {} are free; hint: lower model.d_model \
         or model.n_layers, or finetune a smaller model", ByteSize(*.needed), ByteSize(*.available)
    )]
    State {
        /// Bytes needed.
        needed: u64,
        /// Bytes available.
        available: u64,
    },
    /// A step with its activations, which are estimated.
    #[error(
        "a step needs about {} of memory, but only {} are free; hint: lower train.batch_size and raise \
         train.accumulation by the same factor", ByteSize(*.needed), ByteSize(*.available)
    )]
    Step {
        /// Bytes needed.
        needed: u64,
        /// Bytes available.
        available: u64,
    },
    /// A step of a single sequence with its activations, which are estimated.
    #[error(
        "a step on one sequence needs about {} of memory, but only {} are free; hint: lower train.sequence_length, \
         or set train.recompute = true", ByteSize(*.needed), ByteSize(*.available)
    )]
    Sequence {
        /// Bytes needed.
        needed: u64,
        /// Bytes available.
        available: u64,
    },
}

impl MemoryShortage {
    /// Whether the run cannot succeed. Otherwise the estimate may be too high.
    pub fn is_certain(&self) -> bool {
        match *self {
            Self::State { .. } => true,
            Self::Step { needed, available } | Self::Sequence { needed, available } => {
                needed > available.saturating_mul(OVERCOMMIT_LIMIT)
            }
        }
    }
}

impl Memory {
    /// Compares with the bytes that are `available`; `None` if they are enough.
    ///
    /// ```
    /// use nextword_model::{TrainingShape, presets};
    /// use nextword_train::plan::{Memory, MemoryShortage};
    ///
    /// // GPT-2 with AdamW's two moments, one sequence of 1024 tokens at a time.
    /// let gpt2 = presets::gpt2(12, 12, 768);
    /// let shape = TrainingShape { sequence_length: 1024, ..TrainingShape::default() };
    /// let memory = Memory::from(gpt2.training_memory(&shape));
    /// assert_eq!(memory.shortage(64 << 30), None);
    /// let shortage = memory.shortage(1 << 30);
    /// assert!(matches!(shortage, Some(MemoryShortage::State { .. })));
    /// ```
    pub fn shortage(&self, available: u64) -> Option<MemoryShortage> {
        // The program is in memory already.
        let total = (self.total - self.program) as u64;
        let exact = total - self.by_part.activations as u64;
        if exact > available {
            let needed = exact;
            return Some(MemoryShortage::State { needed, available });
        }
        let needed = total;
        (total > available).then_some(MemoryShortage::Step { needed, available })
    }
}

impl Plan {
    /// Compares the memory of a run on the CPU with what is available now. `None` if it is enough, if the
    /// system does not report it, or for other devices, whose memory is not known.
    ///
    /// A run should be refused if the shortage [is certain](MemoryShortage::is_certain), else warned about.
    pub fn memory_shortage(&self) -> Option<MemoryShortage> {
        let on_cpu = matches!(
            self.device.parse::<DeviceName>(),
            Ok(DeviceName::Flex | DeviceName::NdArray | DeviceName::Auto)
        );
        let available = available_memory().filter(|_| on_cpu)?;
        let shortage = self.memory_bytes.shortage(available)?;
        Some(match shortage {
            MemoryShortage::Step { needed, available } if self.data.batch_size == 1 => {
                MemoryShortage::Sequence { needed, available }
            }
            other => other,
        })
    }
}

#[cfg(test)]
mod tests {
    use nextword_model::MemoryEstimate;

    use super::*;

    fn memory(activations: usize) -> Memory {
        Memory::from(MemoryEstimate {
            weights: 100,
            gradients: 100,
            optimizer: 200,
            activations,
        })
    }

    #[test]
    fn models_are_refused_and_batches_only_warned_about() {
        let need = memory(1000);
        assert_eq!(need.shortage(1400), None);
        for (available, is_certain, hint) in [
            (1399, false, "batch_size"),
            (400, false, "batch_size"),
            (399, true, "d_model"),
            (10, true, "d_model"),
        ] {
            let shortage = need.shortage(available);
            assert!(
                shortage.is_some_and(|shortage| shortage.is_certain() == is_certain
                    && shortage.to_string().contains(hint)),
                "{available}: {shortage:?}"
            );
        }
    }

    #[test]
    fn a_batch_of_several_times_the_memory_is_refused() {
        let shortage = |available| memory(10_000).shortage(available);
        assert!(shortage(2600).is_some_and(|shortage| !shortage.is_certain()));
        let certain = shortage(2599);
        assert!(
            certain.is_some_and(
                |shortage| shortage.is_certain() && shortage.to_string().contains("batch_size")
            ),
            "{certain:?}"
        );
    }
}
