//! Fast implementations for GPUs, written once in `CubeCL` for every interface that Burn reaches them
//! through: wgpu (Vulkan, Metal, DirectX 12), CUDA and `ROCm`.
//!
//! They need no more than every adapter has: 256 units per cube, 16 KB of shared memory, seven storage
//! buffers per kernel, 32-bit integers, and no subgroup operations or atomics. Sums are divided by shape
//! alone and added in order, so that the same computation gives the same bits on the same device.

pub(crate) mod activation;
pub(crate) mod adamw;
mod apply;
pub(crate) mod attention;
pub(crate) mod cross_entropy;
pub(crate) mod dropout;
pub(crate) mod embedding;
pub(crate) mod kv_cache;
mod launch;
pub(crate) mod linear;
pub(crate) mod norm;
pub(crate) mod output_layer;
pub(crate) mod quantized;
mod reduce;
pub(crate) mod rotary;
#[cfg(test)]
#[cfg(all(feature = "flex", feature = "wgpu"))]
#[allow(clippy::unwrap_used, clippy::float_cmp)]
mod tests;

pub(crate) use apply::{apply, is_gpu, is_gpu_f32};
