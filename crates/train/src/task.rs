//! What a model learns from its data: next tokens, masked tokens, or targets of pairs, as its architecture and the data
//! decide.

use nextword_data::{
    DataConfig, LossOn, MaskedConfig, MaskedTokens, SampleLayout, Tokenizer, TokenizerConfig,
    mask_token,
};
use nextword_model::Architecture;

use crate::{RunConfig, TrainError};

/// What a run trains its model to predict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// The next token of texts or conversations.
    NextToken,
    /// Tokens that are hidden from an encoder.
    MaskedTokens,
    /// The targets of pairs.
    Pairs(SampleLayout),
}

impl Task {
    /// The task of `config`, whose architecture is final.
    ///
    /// # Errors
    /// [`TrainError::Config`] for data from which a model of this architecture cannot learn.
    pub(crate) fn of(config: &RunConfig) -> Result<Self, TrainError> {
        let (architecture, data) = (config.model.architecture, &config.data);
        if data.masked.is_some() && architecture != Architecture::Encoder {
            return Err(TrainError::config(
                "data.masked",
                format!(
                    "only encoders learn to predict masked tokens, and this model is \"{architecture}\""
                ),
                "remove it, or set model.architecture = \"encoder\"",
            ));
        }
        let needs_pairs = match architecture {
            Architecture::Prefix | Architecture::EncoderDecoder => !data.has_pairs(),
            Architecture::Decoder | Architecture::Encoder => false,
        };
        if needs_pairs {
            return Err(TrainError::config(
                "data.pairs",
                format!(
                    "is missing: a model of architecture \"{architecture}\" learns from sources with targets"
                ),
                "set data.pairs to a .tsv or .jsonl file, or to \"translation\"",
            ));
        }
        let is_sequence = architecture == Architecture::Decoder;
        if data.loss_on == LossOn::Both && !is_sequence {
            return Err(TrainError::config(
                "data.loss_on",
                format!(
                    "a model of architecture \"{architecture}\" sees the whole source, so that it is not predicted"
                ),
                "remove it; only decoders can be trained on both parts",
            ));
        }
        let predicts_texts = matches!(architecture, Architecture::Decoder | Architecture::Prefix);
        if !config.validation.also.is_empty() && !predicts_texts {
            return Err(TrainError::config(
                "validation.also",
                format!(
                    "a model of architecture \"{architecture}\" does not predict the next tokens of texts"
                ),
                "remove it",
            ));
        }
        match architecture {
            Architecture::Encoder if data.has_pairs() || data.has_conversations() => {
                Err(TrainError::config(
                    "model.architecture",
                    "an encoder learns from texts: it does not generate targets or messages",
                    "set data.path or data.builtin, or use another architecture",
                ))
            }
            Architecture::Encoder => Ok(Self::MaskedTokens),
            Architecture::Prefix => Ok(Self::Pairs(SampleLayout::Prefix)),
            Architecture::EncoderDecoder => Ok(Self::Pairs(SampleLayout::EncoderDecoder)),
            Architecture::Decoder if data.has_pairs() => Ok(Self::Pairs(SampleLayout::Sequence)),
            Architecture::Decoder => Ok(Self::NextToken),
        }
    }

    /// What hides tokens of texts from an encoder; `None` for other tasks.
    ///
    /// # Errors
    /// [`TrainError::Config`] for a tokenizer without a mask token.
    pub(crate) fn masked_tokens(
        self,
        config: &RunConfig,
        tokenizer: &dyn Tokenizer,
    ) -> Result<Option<MaskedTokens>, TrainError> {
        if self != Self::MaskedTokens {
            return Ok(None);
        }
        let mask_id = mask_token(tokenizer).ok_or_else(|| {
            TrainError::config(
                "data.tokenizer.mask",
                "the tokenizer has no mask token, which hides the tokens that an encoder predicts",
                "build a tokenizer with data.tokenizer.mask = \"[MASK]\" or `prepare --mask`, or use a file that has one",
            )
        })?;
        let settings = config.data.masked.unwrap_or_default();
        let masked = MaskedTokens::new(settings, tokenizer, mask_id, config.seed)?;
        Ok(Some(masked))
    }

    /// Completes the settings that the task needs: how tokens are masked, and the special tokens of a tokenizer that is
    /// built from the data.
    pub(crate) fn complete(self, config: &mut RunConfig) {
        if self == Self::MaskedTokens {
            config.data.masked.get_or_insert_with(MaskedConfig::default);
        }
        let has_template = config.samples.prompt_template.is_some();
        let DataConfig {
            tokenizer,
            prepared,
            ..
        } = &mut config.data;
        if tokenizer.file.is_some() || prepared.is_some() {
            return;
        }
        let set = |name: &mut String, default: &str| {
            if name.is_empty() {
                default.clone_into(name);
            }
        };
        match self {
            Self::MaskedTokens => set(&mut tokenizer.mask, TokenizerConfig::DEFAULT_MASK),
            Self::Pairs(SampleLayout::Sequence | SampleLayout::Prefix) if !has_template => {
                set(&mut tokenizer.sep, TokenizerConfig::DEFAULT_SEP);
            }
            Self::Pairs(_) | Self::NextToken => {}
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use nextword_data::Builtin;

    use super::*;
    use crate::OtherText;

    fn config(architecture: Architecture, has_pairs: bool) -> RunConfig {
        let mut config = RunConfig::default();
        config.model.architecture = architecture;
        if has_pairs {
            config.data.pairs = vec!["translation".into()];
        } else {
            config.data.builtin = Some(Builtin::Stories);
        }
        config
    }

    #[test]
    fn the_architecture_and_the_data_decide_on_the_task() {
        let of = |architecture, has_pairs| Task::of(&config(architecture, has_pairs)).ok();
        let pairs = |layout| Some(Task::Pairs(layout));
        assert_eq!(of(Architecture::Decoder, false), Some(Task::NextToken));
        assert_eq!(
            of(Architecture::Decoder, true),
            pairs(SampleLayout::Sequence)
        );
        assert_eq!(of(Architecture::Prefix, true), pairs(SampleLayout::Prefix));
        let layout = SampleLayout::EncoderDecoder;
        assert_eq!(of(Architecture::EncoderDecoder, true), pairs(layout));
        assert_eq!(of(Architecture::Encoder, false), Some(Task::MaskedTokens));
        assert_eq!(of(Architecture::Encoder, true), None);
        assert_eq!(of(Architecture::Prefix, false), None);
        assert_eq!(of(Architecture::EncoderDecoder, false), None);
    }

    #[test]
    fn settings_without_effect_are_errors() {
        let error = |config: &RunConfig| Task::of(config).unwrap_err().to_string();
        let mut both = config(Architecture::Prefix, true);
        both.data.loss_on = LossOn::Both;
        assert!(error(&both).contains("data.loss_on"));
        let mut masked = config(Architecture::Decoder, false);
        masked.data.masked = Some(MaskedConfig::default());
        assert!(error(&masked).contains("data.masked"));
        for (architecture, has_pairs) in [
            (Architecture::Encoder, false),
            (Architecture::EncoderDecoder, true),
        ] {
            let mut also = config(architecture, has_pairs);
            also.validation.also = vec![OtherText {
                name: "general".to_string(),
                path: "text.txt".into(),
            }];
            assert!(error(&also).contains("validation.also"));
        }
    }

    #[test]
    fn tokenizers_get_the_special_tokens_of_the_task() {
        let completed = |mut config: RunConfig| {
            Task::of(&config).unwrap().complete(&mut config);
            (config.data.tokenizer.sep, config.data.tokenizer.mask)
        };
        let names = |sep: &str, mask: &str| (sep.to_string(), mask.to_string());
        assert_eq!(
            completed(config(Architecture::Decoder, true)),
            names("<SEP>", "")
        );
        assert_eq!(
            completed(config(Architecture::Decoder, false)),
            names("", "")
        );
        assert_eq!(
            completed(config(Architecture::EncoderDecoder, true)),
            names("", "")
        );
        assert_eq!(
            completed(config(Architecture::Encoder, false)),
            names("", "[MASK]")
        );
        let mut own = config(Architecture::Decoder, true);
        own.samples.prompt_template = Some("{prompt} <EOS>".to_string());
        assert_eq!(completed(own), names("", ""));
    }
}
