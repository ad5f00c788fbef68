//! Text in, text out, piece by piece.

use std::ops::ControlFlow;
use std::sync::Arc;

use burn::tensor::Device;
use nextword_data::{Encoding, Tokenizer, load_tokenizer};
use nextword_model::{Card, Record, Transformer};
use serde::{Deserialize, Serialize};

use crate::{
    DecodeOptions, Decoder, FinishReason, GenerateError, Overflow, SamplingConfig, Sequence,
    TextWriter,
};

/// Stands for the user's prompt in a prompt template.
pub const PROMPT: &str = "{prompt}";

/// How a text is continued.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TextOptions {
    /// How each token is chosen.
    pub sampling: SamplingConfig,
    /// The most tokens of an answer. Default 256.
    pub max_tokens: usize,
    /// The answer ends before the first of these strings. Default: none.
    pub stop: Vec<String>,
    /// The answer ends at the tokenizer's end token, if it has one. Default true.
    pub stop_at_eos: bool,
    /// What happens at the end of the context.
    pub overflow: Overflow,
    /// How a prompt is put, in place of the record's own way: `{prompt}` stands for the prompt, and
    /// `{prompt}` alone takes it as it is. `StatQuest`'s way is `{prompt} <EOS>`.
    pub prompt_template: Option<String>,
    /// Number of the first prompt for the random draws (see [`DecodeOptions::first_sequence`]).
    pub first_sequence: u64,
}

impl Default for TextOptions {
    fn default() -> Self {
        Self {
            sampling: SamplingConfig::default(),
            max_tokens: 256,
            stop: Vec::new(),
            stop_at_eos: true,
            overflow: Overflow::default(),
            prompt_template: None,
            first_sequence: 0,
        }
    }
}

/// The answer to one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The prompt in ids, as the template puts it, before it is cut to the context.
    pub prompt_ids: Vec<u32>,
    /// All tokens that were drawn: with an ending end token, and with the tokens of a stop string.
    pub ids: Vec<u32>,
    /// `ln p` of each of `ids` as the model found it, before temperature.
    pub logprobs: Vec<f64>,
    /// The answer: without special tokens, and without a stop string and what follows it.
    ///
    /// It continues the prompt's text (with a tokenizer of words it begins with the space between
    /// them), unless the prompt ends with the end token: then it is a text of its own.
    pub text: String,
    /// Why it ended.
    pub finish: FinishReason,
    /// Pieces of the prompt that the vocabulary does not have: each was replaced by the unknown
    /// token, or left out.
    pub unknown: Vec<String>,
    /// So many tokens of the prompt, the oldest behind the card's first one, did not fit the context and were left out.
    pub truncated: usize,
    /// How often the context was full and began anew with its last half.
    pub slides: usize,
}

/// A model with its tokenizer.
#[derive(Clone, Debug)]
pub struct TextGenerator {
    model: Transformer,
    tokenizer: Arc<dyn Tokenizer>,
    card: Card,
}

impl TextGenerator {
    /// Loads a record onto `device`.
    ///
    /// # Errors
    /// [`GenerateError::WrongTokenizer`] if the record's tokenizer is of another model; what is
    /// wrong with the tokenizer's or the weights' file.
    pub fn open(record: &Record, device: &Device) -> Result<Self, GenerateError> {
        let path = record.tokenizer_path();
        let tokenizer = load_tokenizer(&path)?;
        let model = record.path.join("config.json").display().to_string();
        let place = path.display().to_string();
        let used = record
            .config
            .vocab_size
            .saturating_sub(record.card.unused_ids);
        check_vocabulary(&*tokenizer, place, used, model)?;
        let model = record.load(device)?;
        Ok(Self {
            model,
            tokenizer,
            card: record.card.clone(),
        })
    }

    /// Puts together a model (not on an autodiff device), its tokenizer and its card.
    ///
    /// # Errors
    /// [`GenerateError::WrongTokenizer`] if they have vocabularies of different sizes.
    pub fn new(
        model: Transformer,
        tokenizer: Arc<dyn Tokenizer>,
        card: Card,
    ) -> Result<Self, GenerateError> {
        let vocab_size = model.config().vocab_size.saturating_sub(card.unused_ids);
        check_vocabulary(
            &*tokenizer,
            "the tokenizer".into(),
            vocab_size,
            "the model".into(),
        )?;
        Ok(Self {
            model,
            tokenizer,
            card,
        })
    }

    /// The model.
    pub fn model(&self) -> &Transformer {
        &self.model
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<dyn Tokenizer> {
        &self.tokenizer
    }

    /// Where the model comes from.
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// Continues `prompts` as one batch; gives the answers in the order of prompts.
    ///
    /// `on_piece` is called with the prompt's number and the text that has become certain: after
    /// each token (with no text where none is certain yet) and for what is left at the end. The
    /// pieces of a prompt, joined, are its answer's text. Breaking ends that answer as
    /// [`FinishReason::Cancelled`].
    ///
    /// An empty prompt starts from the end token, else from a line break, else from id 0.
    ///
    /// # Errors
    /// [`GenerateError::Setting`] for options that make no sense, and as [`Decoder::step`].
    pub fn generate(
        &self,
        prompts: &[impl AsRef<str>],
        options: &TextOptions,
        mut on_piece: impl FnMut(usize, &str) -> ControlFlow<()>,
    ) -> Result<Vec<Answer>, GenerateError> {
        let prompts = prompts
            .iter()
            .map(|prompt| self.read(prompt.as_ref(), options));
        let prompts = prompts.collect::<Result<Vec<Prompt>, _>>()?;
        let ids: Vec<Vec<u32>> = prompts.iter().map(|prompt| prompt.ids.clone()).collect();
        let writers = ids.iter().map(|ids| self.writer(ids, options));
        let mut writers = writers.collect::<Result<Vec<TextWriter>, _>>()?;

        let mut decoder = Decoder::new(&self.model, &ids, self.decode_options(options))?;
        while !decoder.is_done() {
            for token in decoder.step()? {
                let writer = &mut writers[token.row];
                let ends = token.finish == Some(FinishReason::Eos);
                let piece = writer.take(token.choice.id, ends);
                if let Some(stop) = writer.stop() {
                    decoder.end(token.row, FinishReason::Stop(stop.to_owned()));
                }
                if on_piece(token.row, &piece).is_break() {
                    decoder.end(token.row, FinishReason::Cancelled);
                }
            }
        }

        let sequences = decoder.into_sequences();
        let answers = prompts.into_iter().zip(writers).zip(sequences).enumerate();
        let answers = answers.map(|(row, ((prompt, mut writer), sequence))| {
            let rest = writer.finish();
            if !rest.is_empty() {
                // The answer has ended already: there is nothing left to break off.
                let _ = on_piece(row, &rest);
            }
            answer(prompt, writer, sequence)
        });
        Ok(answers.collect())
    }

    /// `prompt` in ids, as [`generate`](Self::generate) reads it: put by the template, and not empty.
    ///
    /// # Errors
    /// [`GenerateError::Setting`] for a template without a place for the prompt.
    pub fn prompt_ids(
        &self,
        prompt: &str,
        options: &TextOptions,
    ) -> Result<Encoding, GenerateError> {
        let Prompt { ids, unknown } = self.read(prompt, options)?;
        Ok(Encoding { ids, unknown })
    }

    /// A prompt in ids, as the template puts it.
    fn read(&self, prompt: &str, options: &TextOptions) -> Result<Prompt, GenerateError> {
        let template = options
            .prompt_template
            .as_ref()
            .or(self.card.prompt_template.as_ref());
        let template = template.map_or(PROMPT, String::as_str);
        if !template.contains(PROMPT) {
            return Err(GenerateError::Setting {
                key: "prompt_template",
                problem: format!("`{template}` has no {PROMPT} in it"),
                hint: "write {prompt} where the prompt should stand",
            });
        }
        let Encoding { ids, unknown } = self.encode(&template.replace(PROMPT, prompt));
        Ok(Prompt { ids, unknown })
    }

    /// `text` as the model was trained to see it: behind the card's first token, and not empty. A text
    /// that brings that token with it does not get a second one.
    pub fn encode(&self, text: &str) -> Encoding {
        let mut encoding = self.tokenizer.encode(text);
        let ids = &mut encoding.ids;
        if let Some(bos) = self.card.bos_id.filter(|bos| ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        if ids.is_empty() {
            ids.push(self.first_token());
        }
        encoding
    }

    /// Tokens that end an answer: the tokenizer's end token and those of the card.
    pub fn stop_ids(&self) -> Vec<u32> {
        let own = self.tokenizer.specials().eos;
        let all = own.into_iter().chain(self.card.eos_ids.iter().copied());
        all.collect()
    }

    /// What an empty prompt starts from.
    fn first_token(&self) -> u32 {
        let line_break = || {
            let encoding = self.tokenizer.encode("\n");
            encoding
                .ids
                .last()
                .copied()
                .filter(|_| encoding.unknown.is_empty())
        };
        self.tokenizer
            .specials()
            .eos
            .or_else(line_break)
            .unwrap_or(0)
    }

    fn writer(&self, prompt: &[u32], options: &TextOptions) -> Result<TextWriter, GenerateError> {
        TextWriter::new(self.tokenizer.clone(), prompt, &options.stop)
    }

    fn decode_options(&self, options: &TextOptions) -> DecodeOptions {
        let mut stop_ids = self.stop_ids();
        stop_ids.retain(|_| options.stop_at_eos);
        DecodeOptions {
            sampling: options.sampling.clone(),
            max_tokens: options.max_tokens,
            stop_ids,
            overflow: options.overflow,
            first_id: self.card.bos_id,
            first_sequence: options.first_sequence,
        }
    }
}

/// A prompt that was read.
struct Prompt {
    ids: Vec<u32>,
    unknown: Vec<String>,
}

fn answer(prompt: Prompt, writer: TextWriter, sequence: Sequence) -> Answer {
    let (text, stop) = writer.into_text();
    Answer {
        prompt_ids: prompt.ids,
        ids: sequence.ids(),
        logprobs: sequence.tokens.iter().map(|token| token.logprob).collect(),
        text,
        // A stop string counts more than the token limit that it came with.
        finish: stop.map_or(sequence.finish, FinishReason::Stop),
        unknown: prompt.unknown,
        truncated: sequence.truncated,
        slides: sequence.slides,
    }
}

fn check_vocabulary(
    tokenizer: &dyn Tokenizer,
    place: String,
    vocab_size: usize,
    model: String,
) -> Result<(), GenerateError> {
    let tokens = tokenizer.vocab_size();
    if tokens == vocab_size {
        return Ok(());
    }
    Err(GenerateError::WrongTokenizer {
        tokenizer: place,
        tokens,
        model,
        vocab_size,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
