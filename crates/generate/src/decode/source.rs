//! What models with a bidirectional part compute before the first token: the prompt of a prefix model, and the
//! source of an encoder-decoder model.

use burn::tensor::{Int, Tensor, TensorData};
use nextword_kernels::AttentionMask;
use nextword_model::Architecture;

use super::{DecodeOptions, Decoder, Row};

impl Decoder<'_> {
    /// Whether only the last token of `row` is to be computed.
    pub(super) fn is_prefilled(&self, row: usize) -> bool {
        let has_source = !self.model.config().has_encoder() || self.cache.source_len(row) > 0;
        has_source && self.rows[row].context.len() == self.cache.len(row) + 1
    }

    /// The mask of a prefix model's prompt, all of whose `seq` tokens see each other.
    pub(super) fn prefix_mask(&self, rows: &[usize], seq: usize) -> Option<AttentionMask> {
        let is_prefix = self.model.config().architecture == Architecture::Prefix;
        let is_prompt = rows.iter().all(|row| self.cache.len(*row) == 0);
        (is_prefix && is_prompt).then(|| AttentionMask::causal(vec![0], seq).with_prefix(vec![seq]))
    }

    /// The source of `rows` that the encoder has not read, `[1, source]`.
    pub(super) fn new_source(&self, rows: &[usize]) -> Option<Tensor<2, Int>> {
        let [row] = *rows else { return None };
        if !self.model.config().has_encoder() || self.cache.source_len(row) > 0 {
            return None;
        }
        let ids = self.rows[row].source.iter();
        let ids: Vec<i32> = ids.map(|id| id.cast_signed()).collect();
        let data = TensorData::new(ids, [1, self.rows[row].source.len()]);
        Some(Tensor::from_data(data, &self.model.device()))
    }
}

impl Row {
    /// A row of an encoder-decoder model: the end of a long source is truncated.
    pub(super) fn from_source(source: &[u32], max_len: usize, options: &DecodeOptions) -> Self {
        let start = [options.start_id.unwrap_or(0)];
        let len = source.len().min(max_len);
        Self {
            source: source[..len].to_vec(),
            truncated: source.len() - len,
            ..Self::new(&start, 1, options)
        }
    }
}
