//! The stacks of a model: their number of blocks, and settings that only some architectures have.

use super::ModelConfig;
use crate::{Architecture, ModelError};

impl ModelConfig {
    /// Number of blocks of the encoder of an encoder-decoder model, with the default filled in; 0 for
    /// others, whose blocks are those of [`n_layers`](Self::n_layers).
    pub fn encoder_layers(&self) -> usize {
        match self.architecture {
            Architecture::EncoderDecoder => self.n_encoder_layers.unwrap_or(self.n_layers),
            _ => 0,
        }
    }

    /// Whether the model has an encoder and a decoder.
    pub fn has_encoder(&self) -> bool {
        self.architecture == Architecture::EncoderDecoder
    }

    /// Whether the loss of such a model [can be computed in parts](crate::Transformer::supports_loss_in_parts).
    pub fn supports_loss_in_parts(&self) -> bool {
        !self.has_encoder() && self.score_soft_cap.is_none()
    }

    /// Checks that `operation` supports this model's architecture.
    ///
    /// # Errors
    /// [`ModelError::Architecture`] with the names of those that it supports.
    ///
    /// ```
    /// use nextword_model::{Architecture, ModelConfig};
    ///
    /// let bert = ModelConfig { architecture: Architecture::Encoder, ..ModelConfig::default() };
    /// let error = bert.require(&[Architecture::Decoder], "export to GGUF").unwrap_err().to_string();
    /// assert!(error.contains("export to GGUF") && error.contains("encoder"));
    /// ```
    pub fn require(
        &self,
        supported: &[Architecture],
        operation: &'static str,
    ) -> Result<(), ModelError> {
        if supported.contains(&self.architecture) {
            return Ok(());
        }
        let names: Vec<_> = supported.iter().map(|a| a.name()).collect();
        Err(ModelError::Architecture {
            architecture: self.architecture,
            operation,
            supported: names.join(", "),
        })
    }

    /// Checks the settings that only some architectures have.
    pub(crate) fn check_architecture(&self) -> Result<(), ModelError> {
        let is = |architecture| self.architecture == architecture;
        if !is(Architecture::EncoderDecoder) {
            let keys = [
                ("n_encoder_layers", self.n_encoder_layers.is_some()),
                ("share_embeddings", !self.share_embeddings),
            ];
            if let Some((key, _)) = keys.into_iter().find(|(_, is_set)| *is_set) {
                return Err(ModelError::config(
                    key,
                    format!(
                        "a model of architecture \"{}\" has one stack",
                        self.architecture
                    ),
                    "leave it out, or use architecture = \"encoder_decoder\"",
                ));
            }
        }
        if is(Architecture::EncoderDecoder) && self.parallel {
            return Err(ModelError::config(
                "parallel",
                "a parallel block has no place for cross-attention between its sublayers",
                "leave parallel out",
            ));
        }
        if self.head_transform && !is(Architecture::Encoder) {
            return Err(ModelError::config(
                "head_transform",
                format!(
                    "is part of encoders, but the architecture is \"{}\"",
                    self.architecture
                ),
                "leave it out, or use architecture = \"encoder\"",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(config: &ModelConfig) -> String {
        let config = ModelConfig {
            vocab_size: 7,
            ..config.clone()
        };
        config
            .validate()
            .err()
            .map_or_else(String::new, |e| e.to_string())
    }

    #[test]
    fn older_configuration_files_stay_the_same() {
        let json = serde_json::to_value(ModelConfig::default()).unwrap_or_default();
        for key in [
            "architecture",
            "n_encoder_layers",
            "share_embeddings",
            "embedding_norm",
            "head_transform",
        ] {
            assert!(json.get(key).is_none(), "{key}");
        }
    }

    #[test]
    fn settings_of_other_architectures_are_rejected() {
        let decoder = ModelConfig::default();
        assert_eq!(error(&decoder), "");
        let layers = ModelConfig {
            n_encoder_layers: Some(2),
            ..decoder.clone()
        };
        assert!(error(&layers).starts_with("model.n_encoder_layers: "));
        let separate = ModelConfig {
            share_embeddings: false,
            ..decoder.clone()
        };
        assert!(error(&separate).starts_with("model.share_embeddings: "));
        let head = ModelConfig {
            head_transform: true,
            ..decoder.clone()
        };
        assert!(error(&head).starts_with("model.head_transform: "));
        let parallel = ModelConfig {
            architecture: Architecture::EncoderDecoder,
            parallel: true,
            ..decoder
        };
        assert!(error(&parallel).starts_with("model.parallel: "));
    }
}
