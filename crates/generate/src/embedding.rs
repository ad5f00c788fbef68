//! Embeddings of texts: vectors whose angles say how similar texts are to a model.

use burn::tensor::{Int, Tensor, TensorData};
use nextword_data::Encoding;
use nextword_model::{Architecture, AttentionMask, ForwardContext, weights};
use serde::{Deserialize, Serialize};

use crate::decode::check_prompt;
use crate::{GenerateError, TextGenerator};

/// Which hidden states of a text become its embedding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// The mean of all of them.
    #[default]
    Mean,
    /// That of the first token, as of BERT's `[CLS]`: for encoders, in which it depends on the whole text.
    First,
}

impl TextGenerator {
    /// Encodes `text` as [`embed`](Self::embed) and [`fill`](Self::fill) read it: with the tokens that the tokenizer puts
    /// before and after every text.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_whole(&self, text: &str) -> Result<Encoding, GenerateError> {
        let mut encoding = self.encode(text)?;
        encoding.ids.extend(&self.card().special.suffix_ids);
        Ok(encoding)
    }

    /// The embedding of a text of these tokens: the input of the output layer, `[d_model]`, pooled over the tokens and
    /// scaled to length 1. It does not depend on what else is embedded. Decoders and prefix models have embeddings too,
    /// but they are trained to predict the next token, and their hidden states are about that.
    ///
    /// # Errors
    /// [`GenerateError::Unsupported`] for encoder-decoder models; [`GenerateError::EmptyPrompt`],
    /// [`GenerateError::UnknownToken`] and [`GenerateError::TooLong`] for invalid tokens; [`GenerateError::NotFinite`]
    /// if the model computes NaN or infinity.
    ///
    /// ```
    /// use burn::tensor::Device;
    /// use nextword_generate::{Pooling, TextGenerator};
    /// use nextword_model::ModelDir;
    ///
    /// let model = ModelDir::open("../../docs/models/letters".as_ref())?;
    /// let generator = TextGenerator::open(&model, &Device::flex())?;
    /// let embed = |text: &str| generator.embed(&generator.encode_whole(text)?.ids, Pooling::Mean);
    /// let (boat, boats) = (embed("a boat")?, embed("a boat.")?);
    /// let similarity: f32 = boat.iter().zip(&boats).map(|(a, b)| a * b).sum();
    /// assert!(similarity > 0.5 && similarity < 1.0); // the cosine of their angle
    /// # Ok::<(), nextword_generate::GenerateError>(())
    /// ```
    pub fn embed(&self, ids: &[u32], pooling: Pooling) -> Result<Vec<f32>, GenerateError> {
        let config = self.model().config();
        if config.architecture == Architecture::EncoderDecoder {
            return Err(GenerateError::Unsupported {
                problem: "embeddings of encoder-decoder models are not supported".to_string(),
                hint: "use an encoder, a decoder or a prefix model",
            });
        }
        if pooling == Pooling::First && config.architecture != Architecture::Encoder {
            return Err(GenerateError::Unsupported {
                problem: format!(
                    "the first token of a model of architecture \"{}\" does not stand for the whole text",
                    config.architecture
                ),
                hint: "use the mean over all tokens",
            });
        }
        self.check_whole(ids)?;
        let hidden = self.hidden_states(ids);
        let pooled: Vec<f64> = match pooling {
            Pooling::First => hidden[..config.d_model]
                .iter()
                .map(|x| f64::from(*x))
                .collect(),
            Pooling::Mean => mean(&hidden, config.d_model),
        };
        if let Some(id) = pooled.iter().position(|x| !x.is_finite()) {
            let value = pooled[id] as f32;
            return Err(GenerateError::NotFinite { id, value });
        }
        let norm = pooled.iter().map(|x| x * x).sum::<f64>().sqrt();
        // A vector of zeros has no direction, and stays as it is.
        let scale = if norm > 0.0 { 1.0 / norm } else { 1.0 };
        Ok(pooled.iter().map(|x| (x * scale) as f32).collect())
    }

    /// Checks the ids of a text that is read as a whole.
    pub(crate) fn check_whole(&self, ids: &[u32]) -> Result<(), GenerateError> {
        let config = self.model().config();
        check_prompt(0, ids, config.vocab_size)?;
        if ids.len() > config.context_length {
            return Err(GenerateError::TooLong {
                tokens: ids.len(),
                context_length: config.context_length,
            });
        }
        Ok(())
    }

    /// The input of the output layer for all tokens, `[seq, d_model]`.
    fn hidden_states(&self, ids: &[u32]) -> Vec<f32> {
        let tokens = self.token_tensor(ids);
        let ctx = &mut self.whole_context(ids.len());
        weights::to_f32_vec(self.model().hidden_states(tokens, ctx).into_data())
    }

    /// A forward pass over a whole text of `len` tokens, which see each other in both directions in an encoder and, as a
    /// prefix, in a prefix model.
    pub(crate) fn whole_context(&self, len: usize) -> ForwardContext<'static> {
        let ctx = ForwardContext::inference();
        match self.model().config().architecture {
            Architecture::Encoder => ctx.with_mask(AttentionMask::bidirectional(vec![len], len)),
            Architecture::Prefix => {
                ctx.with_mask(AttentionMask::causal(vec![0], len).with_prefix(vec![len]))
            }
            _ => ctx,
        }
    }

    /// The ids as a batch of one row on the model's device.
    pub(crate) fn token_tensor(&self, ids: &[u32]) -> Tensor<2, Int> {
        let data: Vec<i32> = ids.iter().map(|id| id.cast_signed()).collect();
        Tensor::from_data(
            TensorData::new(data, [1, ids.len()]),
            &self.model().device(),
        )
    }
}

/// The mean of rows of `width` values, summed in order.
fn mean(rows: &[f32], width: usize) -> Vec<f64> {
    let mut sum = vec![0.0; width];
    for row in rows.chunks_exact(width) {
        for (sum, x) in sum.iter_mut().zip(row) {
            *sum += f64::from(*x);
        }
    }
    let count = (rows.len() / width).max(1) as f64;
    sum.into_iter().map(|sum| sum / count).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::test_model::of_words;

    fn generator(architecture: Architecture) -> TextGenerator {
        of_words(architecture, "a b c d", "")
    }

    #[test]
    fn an_embedding_is_the_normalized_mean_of_the_hidden_states() {
        let generator = generator(Architecture::Decoder);
        let ids = [0, 1, 2];
        let hidden = generator.hidden_states(&ids);
        let sum: Vec<f64> = (0..8)
            .map(|i| (0..3).map(|t| f64::from(hidden[8 * t + i])).sum())
            .collect();
        let norm = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
        let embedding = generator.embed(&ids, Pooling::Mean).unwrap();
        for (x, sum) in embedding.iter().zip(&sum) {
            assert!((f64::from(*x) - sum / norm).abs() < 1e-6);
        }
        assert_eq!(generator.embed(&ids, Pooling::Mean).unwrap(), embedding);
        assert_ne!(
            generator.embed(&[2, 1, 0], Pooling::Mean).unwrap(),
            embedding
        );
    }

    #[test]
    fn tokens_that_the_model_cannot_read_are_errors() {
        let generator = generator(Architecture::Decoder);
        let error = |ids: &[u32], pooling| generator.embed(ids, pooling).unwrap_err().to_string();
        assert!(error(&[], Pooling::Mean).contains("is empty"));
        assert!(error(&[77], Pooling::Mean).contains("contains token 77"));
        assert!(error(&[1; 9], Pooling::Mean).contains("9 tokens"));
        assert!(error(&[1], Pooling::First).contains("does not stand for"));
    }

    #[test]
    fn the_first_token_of_an_encoder_sees_the_whole_text() {
        let generator = generator(Architecture::Encoder);
        let embed = |ids: &[u32]| generator.embed(ids, Pooling::First).unwrap();
        assert_ne!(embed(&[0, 1, 2]), embed(&[0, 1, 3]));
        let norm: f32 = embed(&[0, 1, 2]).iter().map(|x| x * x).sum();
        assert!((norm - 1.0).abs() < 1e-5);
    }

    #[test]
    fn the_text_of_an_embedding_is_a_prefix_of_a_prefix_model() {
        let first = |architecture, last| {
            let hidden = generator(architecture).hidden_states(&[0, 1, last]);
            hidden[..8].to_vec()
        };
        let (prefix, causal) = (Architecture::Prefix, Architecture::Decoder);
        assert_ne!(first(prefix, 2), first(prefix, 3));
        assert_eq!(first(causal, 2), first(causal, 3));
    }

    #[test]
    fn a_mean_is_over_rows() {
        assert_eq!(mean(&[1.0, 2.0, 3.0, 6.0], 2), [2.0, 4.0]);
    }
}
