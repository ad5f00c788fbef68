//! Decoder-only Transformers as Burn modules: the network of nextword, and nothing but the network.
//!
//! This crate knows tensors, layers and weights. It knows no text: tokens come in as integer ids
//! and leave as logits.
//!
//! | to read | open |
//! |---|---|
//! | what can be built | [`ModelConfig`], [`presets`] |
//! | the forward pass | [`Transformer`], [`Block`], [`Attention`], [`FeedForward`] |
//! | one token at a time | [`KvCache`] |
//! | intermediate values | [`Probe`] |
//! | weights on disk | [`weights`], [`Record`] |
//! | where it runs | [`DeviceName`] |
//!
//! ```
//! use burn::tensor::{Device, Int, Tensor};
//! use nextword_model::{Pass, presets};
//!
//! # #[cfg(feature = "flex")] {
//! let device = Device::flex();
//! let model = presets::statquest(5).init(&device, 7).unwrap();
//! let tokens = Tensor::<2, Int>::from_ints([[0, 1, 2]], &device);
//! let logits = model.forward(tokens, &mut Pass::plain()); // [batch 1, seq 3, vocab 5]
//! assert_eq!(logits.dims(), [1, 3, 5]);
//! # }
//! ```

// Burn's nested tensor types overflow the default limit in release builds with wgpu.
#![recursion_limit = "256"]

mod attention;
mod block;
mod config;
mod count;
mod device;
mod dropout;
mod error;
mod feed_forward;
mod init;
mod kv_cache;
mod linear;
mod norm;
mod pass;
mod position;
pub mod presets;
mod probe;
mod quantize;
mod recompute;
mod record;
mod transformer;
pub mod weights;

pub use attention::{Attention, BiasConfig};
pub use block::Block;
pub use config::ModelConfig;
pub use count::{Counts, MemoryEstimate};
pub use device::{Adapter, DeviceInfo, DeviceName, GraphicsApi, list_devices};
pub use dropout::{Dropout, DropoutConfig};
pub use error::ModelError;
pub use feed_forward::{FeedForward, FeedForwardKind};
pub use init::InitConfig;
pub use kv_cache::KvCache;
pub use linear::Linear;
pub use nextword_kernels::{Bits, CounterRng, IGNORE, Precision, QuantizedMatrix};
pub use norm::{Norm, NormKind, NormPlacement};
pub use pass::Pass;
pub use position::{Position, RotaryConfig, RotaryScaling, alibi_slopes};
pub use probe::{Hook, NoProbe, Probe, Site};
pub use record::{Card, Record, write_atomically};
pub use transformer::Transformer;
