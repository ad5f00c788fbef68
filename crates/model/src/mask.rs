//! The causal mask: a token sees itself and what came before, up to a window.

use burn::tensor::{Bool, Device, Tensor, TensorData};

/// True where a query may not look, `[rows, 1, seq, keys]`; `None` if it may look everywhere.
///
/// Row i's queries stand at places `starts[i]..starts[i] + seq`; keys at `0..keys`. A key is hidden
/// if it stands after the query, or `window` or more places before it.
pub(crate) fn hidden(
    starts: &[usize],
    seq: usize,
    keys: usize,
    window: Option<usize>,
    device: &Device,
) -> Option<Tensor<4, Bool>> {
    let window = window.unwrap_or(usize::MAX);
    let one_query_sees_all = seq == 1 && starts.len() == 1 && keys <= window;
    if one_query_sees_all {
        return None;
    }
    let mut values = Vec::with_capacity(starts.len() * seq * keys);
    for &start in starts {
        for query in start..start + seq {
            values.extend((0..keys).map(|key| key > query || query - key >= window));
        }
    }
    let shape = [starts.len(), 1, seq, keys];
    Some(Tensor::from_data(TensorData::new(values, shape), device))
}
