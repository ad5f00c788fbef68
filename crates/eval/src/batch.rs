//! A batch of token ids as input of a model: tensors, mask and source.

use burn::tensor::{Device, Int, Tensor, TensorData};
use nextword_data::{BatchMask, IGNORE, SampleSegment, TokenBatch};
use nextword_model::{Architecture, AttentionMask, ForwardContext, Probe, Segment, Transformer};

use crate::EvalError;

/// The attention mask of all rows of `batch`.
///
/// ```
/// use nextword_data::{BatchMask, TokenBatch};
/// use nextword_eval::attention_mask;
///
/// let mask = BatchMask::Bidirectional(vec![3, 2]);
/// let mask = attention_mask(&TokenBatch { batch: 2, seq: 3, mask, ..TokenBatch::default() });
/// assert_eq!(mask.visible_keys(1, 0, None), 0..2);
/// ```
///
/// # Panics
/// If the mask does not fit the rows of the batch.
pub fn attention_mask(batch: &TokenBatch) -> AttentionMask {
    let causal = AttentionMask::causal(vec![0], batch.seq);
    match &batch.mask {
        BatchMask::Causal => causal,
        BatchMask::Bidirectional(lengths) => {
            AttentionMask::bidirectional(lengths.clone(), batch.seq)
        }
        BatchMask::Segments(rows) => {
            let segment = |segment: &SampleSegment| Segment {
                len: segment.len,
                prefix: segment.prefix,
            };
            let rows: Vec<Vec<Segment>> = rows
                .iter()
                .map(|row| row.iter().map(segment).collect())
                .collect();
            causal.with_segments(&rows)
        }
    }
}

/// Gives `ctx` the attention mask and the source of `batch`, on `device`.
///
/// ```
/// use burn::tensor::Device;
/// use nextword_data::{SourceBatch, TokenBatch};
/// use nextword_eval::{batch_context, batch_tokens};
/// use nextword_model::{ForwardContext, presets};
///
/// let device = Device::flex();
/// let model = presets::statquest_normal(9).init(&device, 1)?;
/// let source = Some(SourceBatch { seq: 2, inputs: vec![4, 6], lengths: vec![2] });
/// let batch = TokenBatch { batch: 1, seq: 1, inputs: vec![0], targets: vec![7], source, ..TokenBatch::default() };
/// let mut ctx = batch_context(ForwardContext::inference(), &batch, &device);
/// assert_eq!(model.forward(batch_tokens(&batch, &device), &mut ctx).dims(), [1, 1, 9]);
/// # Ok::<(), nextword_model::ModelError>(())
/// ```
///
/// # Panics
/// As [`attention_mask`].
#[must_use]
pub fn batch_context<'a, P: Probe>(
    ctx: ForwardContext<'a, P>,
    batch: &TokenBatch,
    device: &Device,
) -> ForwardContext<'a, P> {
    let ctx = match batch.mask {
        BatchMask::Causal => ctx, // The default, except in encoders.
        _ => ctx.with_mask(attention_mask(batch)),
    };
    let Some(source) = &batch.source else {
        return ctx;
    };
    let tokens = ids_tensor(&source.inputs, [batch.batch, source.seq], device);
    ctx.with_source(tokens, source.lengths.clone())
}

/// The input ids of `batch`, `[batch, seq]`, on `device`.
pub fn batch_tokens(batch: &TokenBatch, device: &Device) -> Tensor<2, Int> {
    ids_tensor(&batch.inputs, [batch.batch, batch.seq], device)
}

fn ids_tensor(ids: &[u32], shape: [usize; 2], device: &Device) -> Tensor<2, Int> {
    let ids: Vec<i32> = ids.iter().map(|id| id.cast_signed()).collect();
    Tensor::from_data(TensorData::new(ids, shape), device)
}

/// Whether `model` can compute the loss of `batch`.
///
/// # Errors
/// [`EvalError`] if rows are too long, ids are unknown, or mask and source do not fit the architecture.
pub(crate) fn check_batch(model: &Transformer, batch: &TokenBatch) -> Result<(), EvalError> {
    let config = model.config();
    let (context_length, vocab_size) = (config.context_length, config.vocab_size);
    if batch.seq > context_length {
        return Err(EvalError::TooLong {
            seq: batch.seq,
            context_length,
        });
    }
    if config.architecture == Architecture::Encoder
        && !matches!(batch.mask, BatchMask::Bidirectional(_))
    {
        // It would see the next token.
        let others = [
            Architecture::Decoder,
            Architecture::Prefix,
            Architecture::EncoderDecoder,
        ];
        config.require(&others, "predict the next token")?;
    }
    if config.has_encoder() != batch.source.is_some() {
        return Err(EvalError::Source {
            architecture: config.architecture,
        });
    }
    let source = batch.source.iter();
    if let Some(source) = source.clone().find(|source| source.seq > context_length) {
        return Err(EvalError::TooLong {
            seq: source.seq,
            context_length,
        });
    }
    let targets = batch.targets.iter().filter(|id| **id != IGNORE);
    match batch
        .inputs
        .iter()
        .chain(targets)
        .chain(source.flat_map(|source| &source.inputs))
        .find(|id| **id as usize >= vocab_size)
    {
        Some(&id) => Err(EvalError::UnknownToken { id, vocab_size }),
        None => Ok(()),
    }
}
