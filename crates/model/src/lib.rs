//! Transformers as Burn modules: decoders, prefix models, encoders and encoder-decoders.
//!
//! This crate contains the network only: tensors, layers and weights. Text is handled elsewhere; the
//! input is token ids and the output is logits.
//!
//! | to read about | open |
//! |---|---|
//! | the architecture and its options | [`ModelConfig`], [`Architecture`], [`presets`] |
//! | the forward pass | [`Transformer`], [`Block`], [`Attention`], [`FeedForward`] |
//! | incremental decoding | [`KvCache`] |
//! | intermediate activations | [`Probe`] |
//! | weights on disk | [`weights`], [`ModelDir`] |
//! | adapters | [`Adapter`], [`AdapterDir`], [`LoraConfig`] |
//! | devices | [`DeviceName`] |
//! | memory that training takes, and that is available | [`MemoryEstimate`], [`available_memory`] |
//!
//! # Example
//!
//! ```
//! use burn::tensor::{Device, Int, Tensor};
//! use nextword_model::{ForwardContext, presets};
//!
//! let device = Device::flex();
//! let model = presets::statquest(5).init(&device, 7)?; // a vocabulary of 5, seed 7
//! let tokens = Tensor::<2, Int>::from_ints([[0, 1, 2]], &device); // [batch, seq]
//! let logits = model.forward(tokens, &mut ForwardContext::inference());
//! assert_eq!(logits.dims(), [1, 3, 5]); // [batch, seq, vocab_size]
//! # Ok::<(), nextword_model::ModelError>(())
//! ```

// Burn's nested tensor types overflow the default limit in release builds with wgpu.
#![recursion_limit = "256"]

mod adapter;
mod architecture;
mod attention;
mod block;
mod chat_templates;
mod config;
mod count;
mod device;
mod dropout;
mod error;
mod feed_forward;
mod forward_context;
mod init;
mod input_squares;
mod kv_cache;
mod linear;
mod lora;
mod memory;
mod model_card;
mod model_dir;
mod model_tokens;
mod norm;
mod origin;
mod parts;
mod position;
pub mod presets;
mod probe;
mod quantize;
mod recompute;
mod rounding_error;
mod row_adapter;
mod small_files;
mod tensor_data;
mod token_texts;
mod transformer;
pub mod weights;

pub use adapter::{Adapter, AdapterDir, BaseModel, SavedTensor, WeightChange, linear_modules};
pub use architecture::Architecture;
pub use attention::{Attention, BiasConfig};
pub use block::Block;
pub use chat_templates::{
    DEFAULT_TEMPLATE, TEMPLATE_FOLDER, TemplateProblem, check_chat_templates, read_chat_templates,
    write_chat_templates,
};
pub use config::ModelConfig;
pub use count::{MemoryEstimate, ParameterCounts, TrainingShape};
pub use device::{DeviceInfo, DeviceName, GraphicsAdapter, GraphicsApi, list_devices};
pub use dropout::{Dropout, DropoutConfig};
pub use error::ModelError;
pub use feed_forward::{FeedForward, FeedForwardKind};
pub use forward_context::ForwardContext;
pub use init::InitConfig;
pub use input_squares::InputSquares;
pub use kv_cache::{CachePrecision, KvCache, PAGE_LEN};
pub use linear::Linear;
pub use lora::{LoraConfig, LowRank, SAVED_MODULES, TargetModule, TargetModules};
pub use memory::{ByteSize, available_memory, peak_memory, resident_memory};
pub use model_card::ModelCard;
pub use model_dir::ModelDir;
pub use model_tokens::{ModelTokens, TokenSource};
pub use nextword_kernels::{
    AttentionMask, Bits, BlockFormat, CounterRng, IGNORE, Precision, QuantizedMatrix, Segment,
};
pub use norm::{Norm, NormKind, NormPlacement};
pub use origin::ModelOrigin;
pub use position::{Position, RotaryConfig, RotaryScaling, alibi_slopes};
pub use probe::{Hook, NoProbe, Probe, Site};
pub use row_adapter::RowAdapter;
pub use small_files::{is_hugging_face_folder, write_atomically};
pub use token_texts::{TokenTexts, TokenizerRoles};
pub use transformer::{Encoder, HeadTransform, Transformer};
