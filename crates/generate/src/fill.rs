//! Blanks in a text, and the tokens with which an encoder fills them.

use nextword_data::{Encoding, mask_token};
use nextword_model::{Architecture, weights};
use serde::Serialize;

use crate::{GenerateError, TextGenerator};

/// A blank is a run of at least this many underscores.
const MIN_UNDERSCORES: usize = 3;

/// The marks of a token that begins with a space, in vocabularies of byte-level BPE and of `SentencePiece`.
const SPACES: [char; 2] = ['Ġ', '▁'];

/// A text whose blanks were filled.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FilledText {
    /// The text with the most likely token in each blank.
    pub text: String,
    /// What may stand in each blank, in the order of the text.
    pub blanks: Vec<Blank>,
}

/// A blank of a text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Blank {
    /// Its position among the tokens.
    pub position: usize,
    /// The most likely tokens, the first of which is the most likely one.
    pub candidates: Vec<FillCandidate>,
}

/// A token that may stand in a blank.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FillCandidate {
    /// Its id.
    pub id: u32,
    /// Its text.
    pub text: String,
    /// Its probability, from 0 to 1.
    pub probability: f64,
}

impl TextGenerator {
    /// Fills the blanks of `text`: each run of three or more underscores, and each mask token. A blank is one token. All
    /// blanks are filled at once, each with `count` candidates, so that no blank knows what is in another one.
    ///
    /// # Errors
    /// [`GenerateError::Unsupported`] for models that are not encoders, for tokenizers without mask token, and for texts
    /// without blanks; those of [`encode`](Self::encode); [`GenerateError::TooLong`];
    /// [`GenerateError::NotFinite`] if the model computes NaN or infinity.
    pub fn fill(&self, text: &str, count: usize) -> Result<FilledText, GenerateError> {
        let (Encoding { mut ids, .. }, mask_id) = self.encode_blanks(text)?;
        let positions: Vec<usize> = (0..ids.len()).filter(|at| ids[*at] == mask_id).collect();
        if positions.is_empty() {
            return Err(GenerateError::Unsupported {
                problem: "the text has no blank".to_string(),
                hint: "write ___ in place of each token to predict",
            });
        }
        let logits = self.all_logits(&ids);
        let vocab_size = self.model().config().vocab_size;
        let mut blanks = Vec::with_capacity(positions.len());
        for position in positions {
            let row = &logits[position * vocab_size..][..vocab_size];
            let candidates = self.candidates(row, count)?;
            if let Some(best) = candidates.first() {
                ids[position] = best.id;
            }
            blanks.push(Blank {
                position,
                candidates,
            });
        }
        let text = self.tokenizer().decode(&ids);
        Ok(FilledText { text, blanks })
    }

    /// Encodes `text` as an encoder reads it, with the mask token in place of each blank. Returns the mask token too.
    ///
    /// # Errors
    /// Those of [`fill`](Self::fill) except that of texts without blanks.
    pub fn encode_blanks(&self, text: &str) -> Result<(Encoding, u32), GenerateError> {
        let architecture = self.model().config().architecture;
        if architecture != Architecture::Encoder {
            return Err(GenerateError::Unsupported {
                problem: format!(
                    "a model of architecture \"{architecture}\" does not predict what is between words"
                ),
                hint: "train a model with model.architecture = \"encoder\" to fill blanks, or use `nextword generate`",
            });
        }
        let mask_id =
            mask_token(&**self.tokenizer()).ok_or_else(|| GenerateError::Unsupported {
                problem: "the model's tokenizer has no mask token".to_string(),
                hint: "use a model that was trained to predict masked tokens",
            })?;
        let mask = self.tokenizer().id_to_token(mask_id).unwrap_or_default();
        let text = with_masks(text, &mask, self.tokens_begin_with_spaces());
        let encoding = self.encode_whole(&text)?;
        self.check_whole(&encoding.ids)?;
        Ok((encoding, mask_id))
    }

    /// The logits of all positions, `[seq, vocab_size]`.
    fn all_logits(&self, ids: &[u32]) -> Vec<f32> {
        let ctx = &mut self.whole_context(ids.len());
        let logits = self.model().forward(self.token_tensor(ids), ctx);
        weights::to_f32_vec(logits.into_data())
    }

    /// The `count` most likely tokens of the tokenizer.
    fn candidates(
        &self,
        logits: &[f32],
        count: usize,
    ) -> Result<Vec<FillCandidate>, GenerateError> {
        if let Some(id) = logits.iter().position(|logit| !logit.is_finite()) {
            let value = logits[id];
            return Err(GenerateError::NotFinite { id, value });
        }
        let probabilities = softmax(logits);
        let mut order: Vec<usize> = (0..self.tokenizer().vocab_size().min(logits.len())).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
        let candidate = |id: usize| {
            let token = id as u32;
            let text = self.tokenizer().token_text(token);
            let text = text.filter(|text| !text.is_empty());
            FillCandidate {
                id: token,
                text: text
                    .or(self.tokenizer().id_to_token(token))
                    .unwrap_or_default(),
                probability: probabilities[id],
            }
        };
        Ok(order.into_iter().take(count).map(candidate).collect())
    }

    /// Whether the space before a word is part of its first token.
    fn tokens_begin_with_spaces(&self) -> bool {
        let tokenizer = self.tokenizer();
        (0..tokenizer.vocab_size() as u32).any(|id| {
            let token = tokenizer.id_to_token(id).unwrap_or_default();
            token.chars().count() > 1 && token.starts_with(SPACES)
        })
    }
}

/// Replaces blanks by the mask token. A token that begins with a space takes that before the blank with it.
fn with_masks(text: &str, mask: &str, begins_with_space: bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    loop {
        let blank = "_".repeat(MIN_UNDERSCORES);
        let found = [(rest.find(&blank), true), (rest.find(mask), false)];
        let next = found
            .into_iter()
            .filter_map(|(at, is_run)| Some((at?, is_run)))
            .min();
        let Some((at, is_run)) = next else {
            out.push_str(rest);
            return out;
        };
        let before = &rest[..at];
        let before = before
            .strip_suffix(' ')
            .filter(|_| begins_with_space)
            .unwrap_or(before);
        out.push_str(before);
        out.push_str(mask);
        rest = &rest[at..];
        rest = if is_run {
            rest.trim_start_matches('_')
        } else {
            &rest[mask.len()..]
        };
    }
}

/// The probabilities of `logits`, in f64.
fn softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers = logits.iter().map(|logit| f64::from(*logit - max).exp());
    let powers: Vec<f64> = powers.collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::test_model::of_words;

    fn generator(architecture: Architecture, mask: &str) -> TextGenerator {
        of_words(architecture, "the cat sat on mat", mask)
    }

    #[test]
    fn blanks_are_runs_of_underscores_and_mask_tokens() {
        let words = |text: &str| with_masks(text, "[M]", false);
        assert_eq!(words("the ___ sat"), "the [M] sat");
        assert_eq!(words("_____ [M] a__b"), "[M] [M] a__b");
        assert_eq!(words(""), "");
        assert_eq!(with_masks("the ___ sat", "[M]", true), "the[M] sat");
        assert_eq!(with_masks("the [M] sat", "[M]", true), "the[M] sat");
    }

    #[test]
    fn each_blank_has_its_most_likely_tokens() {
        let generator = generator(Architecture::Encoder, "[MASK]");
        let vocab_size = generator.model().config().vocab_size;
        let filled = generator.fill("the ___ sat ___", vocab_size).unwrap();
        let positions: Vec<usize> = filled.blanks.iter().map(|blank| blank.position).collect();
        assert_eq!(positions, [1, 3]);
        for blank in &filled.blanks {
            let sum: f64 = blank.candidates.iter().map(|c| c.probability).sum();
            assert!((sum - 1.0).abs() < 1e-9);
            let is_ordered = |pair: &[FillCandidate]| pair[0].probability >= pair[1].probability;
            assert!(blank.candidates.windows(2).all(is_ordered));
        }
        let few = generator.fill("the ___ sat ___", 2).unwrap();
        assert_eq!(few.blanks[0].candidates, filled.blanks[0].candidates[..2]);
        assert_eq!(few.text, filled.text);
    }

    #[test]
    fn what_cannot_be_filled_is_an_error() {
        let error = |architecture, mask: &str, text: &str| {
            let filled = generator(architecture, mask).fill(text, 3);
            filled.unwrap_err().to_string()
        };
        assert!(error(Architecture::Decoder, "[MASK]", "the ___").contains("\"decoder\""));
        assert!(error(Architecture::Encoder, "", "the ___").contains("no mask token"));
        assert!(error(Architecture::Encoder, "[MASK]", "the cat").contains("no blank"));
        let long = "___ ".repeat(9);
        assert!(error(Architecture::Encoder, "[MASK]", &long).contains("9 tokens"));
    }

    #[test]
    fn probabilities_are_those_of_the_softmax() {
        let found = softmax(&[1.0, 3.0]);
        let expected = 1.0 / (1.0 + 2f64.exp());
        assert!((found[0] - expected).abs() < 1e-12 && (found[1] - 1.0 + expected).abs() < 1e-12);
        assert_eq!(softmax(&[1000.0, 1000.0]), [0.5, 0.5]);
    }
}
