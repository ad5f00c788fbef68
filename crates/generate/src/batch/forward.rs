//! Forward passes of the rows of a batch.

use burn::tensor::{Int, Tensor, TensorData};
use nextword_model::{
    Architecture, AttentionMask, ForwardContext, KvCache, RowAdapter, Transformer, weights,
};

/// The final hidden states of `tokens`, a part of the prompt of `slot`. A prefix model gets the whole prompt, whose
/// tokens see each other; an encoder-decoder model reads its `source` first.
pub(super) fn prefill_hidden(
    model: &Transformer,
    cache: &mut KvCache,
    slot: usize,
    adapters: &[Option<RowAdapter>],
    tokens: &[u32],
    source: &[u32],
) -> Tensor<3> {
    let config = model.config();
    let mut ctx = ForwardContext::inference().with_row_adapters(adapters);
    if config.architecture == Architecture::Prefix {
        let mask = AttentionMask::causal(vec![0], tokens.len());
        ctx = ctx.with_mask(mask.with_prefix(vec![tokens.len()]));
    }
    if config.has_encoder() && cache.source_len(slot) == 0 {
        let ids = token_tensor(model, source, [1, source.len()]);
        ctx = ctx.with_source(ids, vec![source.len()]);
    }
    let ids = token_tensor(model, tokens, [1, tokens.len()]);
    model.hidden_states(ids, &mut ctx.with_cache(cache, &[slot]))
}

/// The final hidden states of the next `ids` of `slots`, the same number for each row. A slot that is named
/// several times has one token per row. `adapters` are those of the rows.
pub(super) fn hidden(
    model: &Transformer,
    cache: &mut KvCache,
    slots: &[usize],
    adapters: &[Option<RowAdapter>],
    ids: &[u32],
) -> Tensor<3> {
    let tokens = token_tensor(model, ids, [slots.len(), ids.len() / slots.len()]);
    let ctx = ForwardContext::inference().with_cache(cache, slots);
    model.hidden_states(tokens, &mut ctx.with_row_adapters(adapters))
}

/// The ids as a batch of rows on the model's device.
fn token_tensor(model: &Transformer, ids: &[u32], shape: [usize; 2]) -> Tensor<2, Int> {
    let ids: Vec<i32> = ids.iter().map(|id| id.cast_signed()).collect();
    Tensor::from_data(TensorData::new(ids, shape), &model.device())
}

pub(super) fn logits(model: &Transformer, hidden: Tensor<3>) -> Vec<f32> {
    weights::to_f32_vec(
        model
            .logits(hidden, &mut ForwardContext::inference())
            .into_data(),
    )
}

/// These rows of `hidden`, `[rows, 1, d_model]`, in ascending order.
pub(super) fn select_rows(hidden: Tensor<3>, rows: &[usize]) -> Tensor<3> {
    if rows.len() == hidden.dims()[0] {
        return hidden;
    }
    let rows: Vec<i32> = rows.iter().map(|row| *row as i32).collect();
    let shape = [rows.len()];
    let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, shape), &hidden.device());
    hidden.select(0, rows)
}
