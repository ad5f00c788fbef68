//! Fused tensor operations for Transformer models.
//!
//! Each operation is a function on Burn tensors with several implementations: a reference in plain Burn
//! operations, which runs on every backend and serves as the baseline in tests, a fast one for
//! Burn's flex backend (the CPU) with a hand-written backward pass, and for many operations one for
//! GPUs (features `wgpu`, `cuda` and `rocm`). The device of the tensors selects the implementation.
//!
//! | operation | fast implementation |
//! |---|---|
//! | [`linear`], [`linear_table`] | packed SIMD matrix products; matrix-vector products for short sequences |
//! | [`linear_quantized`], [`embed_quantized`] | products that read weights of 2 to 8 bits directly |
//! | [`linear_lora`] | a linear layer and its low-rank adapter in one operation |
//! | [`add_row_updates`] | the updates of several adapters, each for some rows of a batch |
//! | [`attention`] | grouped-query attention that never stores the scores, for every [`AttentionMask`] |
//! | [`normalize`] | `LayerNorm` and `RMSNorm` |
//! | [`activate`], [`gate`] | GELU and related activations, recomputed in the backward pass |
//! | [`rotate`] | rotary position embedding (`RoPE`) |
//! | [`embed`] | row gather, and scatter-add in the backward pass |
//! | [`attention_paged`] | the same over the pages of a KV cache |
//! | [`write_cache`], [`write_keys_values`], [`gather_pages`] | in-place writes to the pages of a KV cache for all rows; copies of pages |
//! | [`dropout`] | masks from a counter-based generator |
//! | [`cross_entropy_sum`], [`cross_entropy_per_sequence`] | output layer fused with softmax cross-entropy, in chunks |
//! | [`sum_of_squares`], [`adamw`] | parallel over chunks of parameters |
//!
//! GPU kernels exist for [`linear`], [`linear_table`], [`linear_quantized`], [`linear_fused`], [`attention`],
//! [`attention_paged`], [`write_keys_values`], [`normalize`], [`activate`], [`gate`], [`rotate`], [`embed`],
//! [`embed_quantized`], [`dropout`], [`cross_entropy_sum`], [`sum_of_squares`] and [`adamw`].
//!
//! On the CPU, every result is bitwise identical for any number of threads. The kernels run on a thread
//! pool of their own, which [`parallel_for_each`] opens to other work and [`with_threads`] limits; the
//! environment variable `RAYON_NUM_THREADS` sets its size. They use the highest instruction set of the
//! machine, [`Isa::current`], or a lower one that `NEXTWORD_SIMD` names.
//!
//! # Example
//!
//! ```
//! use burn::tensor::{Device, Tensor, TensorData};
//! use nextword_kernels::{Activation, activate, linear};
//!
//! let device = Device::flex();
//! let x = Tensor::<3>::from_floats([[[1.0, 2.0], [3.0, 4.0]]], &device); // [batch 1, seq 2, d_in 2]
//! let weight = Tensor::<2>::from_floats([[1.0, 0.0, -1.0], [0.0, 1.0, 1.0]], &device); // [d_in, d_out]
//! let y = activate(Activation::Relu, linear(x, weight, None)); // [1, 2, d_out 3]
//! assert_eq!(y.into_data(), TensorData::from([[[1.0f32, 2.0, 1.0], [3.0, 4.0, 1.0]]]));
//! ```

#![recursion_limit = "256"]

mod activation;
mod adamw;
mod attention;
mod attention_options;
#[cfg(feature = "flex")]
#[allow(unsafe_code)] // Exposes pooled memory as tensor storage; each use states why it is sound.
mod buffer_pool;
#[allow(unsafe_code)] // SIMD and shared slices; each use states why it is sound.
pub(crate) mod cpu;
mod cross_entropy;
mod dropout;
mod embedding;
#[cfg(feature = "flex")]
mod fused;
#[cfg(feature = "gpu")]
pub(crate) mod gpu;
mod kinds;
mod kv_cache;
mod launches;
mod linear;
mod linear_fusion;
mod lora;
mod low_rank_update;
mod mask;
mod norm;
mod precision;
mod quantized;
mod quantized_pages;
pub mod reference;
mod rotary;
mod rotary_tables;
#[cfg(all(test, feature = "flex"))]
mod tests;

pub use activation::{activate, gate};
pub use adamw::{Moments, SQUARES_CHUNK, adamw, squares_by_chunk, sum_of_squares};
pub use attention::{attention, attention_paged};
pub use attention_options::{AttentionDropout, AttentionOptions};
pub use cpu::exp_f64::{exp_logits, exp_nonpositive};
pub use cpu::isa::{Isa, UnknownIsa};
pub use cpu::par::{for_each as parallel_for_each, with_threads};
pub use cross_entropy::{
    OutputLayer, OutputWeight, cross_entropy_per_sequence, cross_entropy_sum, loss_chunk_rows,
};
pub use dropout::{DropoutMask, dropout};
pub use embedding::embed;
pub use kinds::{Activation, AdamwStep, MATVEC_MAX_SEQ, NormKind, Precision};
pub use kv_cache::{gather_pages, write_cache, write_keys_values};
pub use launches::record_launches;
pub use linear::{linear, linear_table, linear_with_precision};
pub use linear_fusion::{LinearFusion, linear_fused};
pub use lora::{LinearWeight, RowUpdate, add_row_updates, linear_lora};
pub use low_rank_update::LowRankUpdate;
pub use mask::{AttentionMask, Segment};
pub use nextword_base::{CounterRng, IGNORE};
pub use norm::normalize;
pub use quantized::{Bits, BlockFormat, QuantizedMatrix, embed_quantized, linear_quantized};
pub use quantized_pages::{QuantizedPages, attention_paged_quantized};
pub use rotary::rotate;
pub use rotary_tables::RotaryTables;

/// Whether `device` is Burn's flex backend, whose operations have the fast implementations for CPUs.
///
/// ```
/// use burn::tensor::Device;
///
/// assert!(nextword_kernels::is_flex(&Device::flex()));
/// ```
pub fn is_flex(device: &burn::tensor::Device) -> bool {
    #[cfg(feature = "flex")]
    return *device == burn::tensor::Device::flex();
    #[cfg(not(feature = "flex"))]
    {
        let _ = device;
        false
    }
}

/// Frees the memory of the CPU operations that no tensor uses at the moment. They keep it for the next
/// operations of the same sizes; call this before work of other sizes, or after the last.
///
/// ```
/// nextword_kernels::release_unused_memory();
/// ```
pub fn release_unused_memory() {
    #[cfg(feature = "flex")]
    buffer_pool::release_idle();
}
