//! The special tokens that a Hugging Face folder declares.

use std::collections::BTreeMap;
use std::path::Path;

use nextword_data::{Tokenizer, is_eos_name};
use nextword_model::{ModelTokens, TokenSource};
use serde_json::Value;

use crate::hf::ModelType;
use crate::tokenizer_files::{around, ids};
use crate::{ConvertError, json};

/// Reads the special tokens that the folder `from` declares. Each role is taken from the first file that
/// names a token for it, in the order that transformers uses: `generation_config.json`, `config.json`, the
/// tokenizer's settings, and the defaults of the model type. `vocab_size` is the model's. Also returns the EOS ids in the files
/// that this vocabulary does not have.
pub(crate) fn read(
    from: &Path,
    kind: ModelType,
    tokenizer: &dyn Tokenizer,
    tokenizer_json: &Value,
    vocab_size: usize,
) -> Result<(ModelTokens, Vec<u32>), ConvertError> {
    let files = Files::read(from)?;
    let text = |role: &str| files.token_text(&format!("{role}_token"));
    let id_of = |text: &Option<String>| {
        let text = text.as_ref()?;
        let mut ids = 0..tokenizer.vocab_size() as u32;
        let in_tokenizer = ids.find(|id| tokenizer.id_to_token(*id).as_ref() == Some(text));
        in_tokenizer.or_else(|| files.added_id(text))
    };
    let in_vocab = |id: &u32| (*id as usize) < vocab_size;
    let declared = |role: &str, in_tokenizer: Option<u32>| {
        let key = format!("{role}_token_id");
        let lists = [ids(&files.generation[&key]), ids(&files.config[&key])];
        let [generation, config] =
            lists.map(|list| list.into_iter().filter(in_vocab).collect::<Vec<u32>>());
        let lists: [Vec<u32>; 3] = [generation, config, in_tokenizer.into_iter().collect()];
        lists.into_iter().find(|list| !list.is_empty())
    };
    let special_ids = special_ids(tokenizer_json);
    let default = |id: Option<u32>| id.filter(|id| special_ids.contains(id) && in_vocab(id));
    let (bos_default, eos_default, pad_default) = type_defaults(kind);

    let [bos_token, eos_token, pad_token, unk_token] = ["bos", "eos", "pad", "unk"].map(text);
    let tokenizer_eos = id_of(&eos_token).filter(in_vocab);
    let first = |list: Option<Vec<u32>>| list?.first().copied();
    let tokenizer_bos = id_of(&bos_token).filter(in_vocab);
    let bos_id = first(declared("bos", tokenizer_bos));
    let pad_id = first(declared("pad", id_of(&pad_token).filter(in_vocab)));
    let bos_id = bos_id.or(default(bos_default.filter(|_| !files.mentions("bos"))));
    let pad_id = pad_id.or(default(pad_default.filter(|_| !files.mentions("pad"))));
    let mut source = TokenSource::Declared;
    let mut eos_ids = declared("eos", tokenizer_eos).unwrap_or_default();
    if !files.mentions("eos") {
        eos_ids.extend(default(eos_default));
        if eos_ids.is_empty()
            && let Some(guess) = tokenizer.special_tokens().eos
            && tokenizer
                .id_to_token(guess)
                .is_some_and(|name| is_eos_name(&name))
        {
            eos_ids.push(guess);
            source = TokenSource::Guessed;
        }
    }
    let config_eos: Vec<u32> = ids(&files.config["eos_token_id"]);
    let differs = files.config.get("eos_token_id").is_some() && config_eos != eos_ids;
    let (mut prefix, mut suffix) = around(&tokenizer_json["post_processor"]);
    let class = files.tokenizer_class(kind);
    match files.settings["add_bos_token"].as_bool() {
        Some(true) if prefix.is_empty() => prefix.extend(bos_id),
        Some(false) if obeys_add_tokens(class) => prefix.clear(),
        _ => {}
    }
    match files.settings["add_eos_token"].as_bool() {
        Some(true) if suffix.is_empty() => {
            suffix.extend(tokenizer_eos.or(eos_ids.first().copied()));
        }
        Some(false) if obeys_add_tokens(class) => suffix.clear(),
        _ => {}
    }
    prefix.retain(in_vocab);
    suffix.retain(in_vocab);
    // Only encoder-decoder models have one.
    let target_start = first(declared("decoder_start", None)).or(eos_ids.first().copied());
    let target_start = target_start.filter(|_| kind == ModelType::Bart);
    let document_eos = tokenizer_eos.filter(|id| eos_ids.contains(id));
    let tokens = ModelTokens {
        bos_id,
        bos_token,
        eos_token,
        document_eos_id: document_eos.or(eos_ids.first().copied()),
        config_eos_ids: differs.then(|| config_eos.into_iter().filter(in_vocab).collect()),
        eos_ids,
        evaluation_id: tokenizer_bos.or(tokenizer_eos),
        pad_id,
        pad_token,
        unk_token,
        prefix_ids: Some(prefix),
        target_start_id: target_start,
        suffix_ids: suffix,
        further_settings: files.further_settings(),
        sampling_settings: files.sampling_settings(),
        source: Some(source),
    };
    Ok((tokens, files.eos_outside(vocab_size)))
}

/// Settings that name special tokens without a role of their own, in older and newer versions of transformers.
const FURTHER_SETTINGS: [&str; 2] = ["extra_special_tokens", "additional_special_tokens"];

/// How transformers samples a completion, in `generation_config.json`.
const SAMPLING_SETTINGS: [&str; 9] = [
    "do_sample",
    "min_p",
    "no_repeat_ngram_size",
    "num_beams",
    "repetition_penalty",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
];

/// The files of a folder that name special tokens; `null` for missing ones.
struct Files {
    config: Value,
    generation: Value,
    /// `tokenizer_config.json`.
    settings: Value,
    /// `special_tokens_map.json`, which older versions of transformers write.
    map: Value,
    /// `added_tokens.json`.
    added: Value,
}

impl Files {
    /// The settings that name special tokens without a role of their own.
    fn further_settings(&self) -> BTreeMap<String, Value> {
        let is_filled = |value: &&Value| match value {
            Value::Array(list) => !list.is_empty(),
            Value::Object(map) => !map.is_empty(),
            _ => false,
        };
        let setting = |key: &str| {
            let value = [&self.settings[key], &self.map[key]]
                .into_iter()
                .find(is_filled)?;
            Some((key.to_string(), value.clone()))
        };
        FURTHER_SETTINGS.into_iter().filter_map(setting).collect()
    }

    /// The EOS ids of `generation_config.json` and `config.json` that a vocabulary of `vocab_size` ids does not have; of the
    /// latter only if the former has no other.
    fn eos_outside(&self, vocab_size: usize) -> Vec<u32> {
        let mut outside = Vec::new();
        for file in [&self.generation, &self.config] {
            let (known, others): (Vec<u32>, Vec<u32>) = ids(&file["eos_token_id"])
                .into_iter()
                .partition(|id| (*id as usize) < vocab_size);
            outside.extend(others);
            if !known.is_empty() {
                break;
            }
        }
        outside
    }

    fn sampling_settings(&self) -> BTreeMap<String, Value> {
        let setting = |key: &str| {
            let value = &self.generation[key];
            (value.is_number() || value.is_boolean()).then(|| (key.to_string(), value.clone()))
        };
        SAMPLING_SETTINGS.into_iter().filter_map(setting).collect()
    }

    fn read(from: &Path) -> Result<Self, ConvertError> {
        let read = |name: &str| json::read_value(&from.join(name)).map(Option::unwrap_or_default);
        Ok(Self {
            config: read("config.json")?,
            generation: read("generation_config.json")?,
            settings: read("tokenizer_config.json")?,
            map: read("special_tokens_map.json")?,
            added: read("added_tokens.json")?,
        })
    }

    /// The text of the token with the key `key`, such as `eos_token`.
    fn token_text(&self, key: &str) -> Option<String> {
        let file = if self.settings.get(key).is_some() {
            &self.settings
        } else {
            &self.map
        };
        let token = &file[key];
        let text = token.as_str().or_else(|| token["content"].as_str());
        text.filter(|text| !text.is_empty()).map(str::to_owned)
    }

    /// The id of a token that only the lists of added tokens name.
    fn added_id(&self, text: &str) -> Option<u32> {
        let decoder = self.settings["added_tokens_decoder"].as_object();
        let mut decoder = decoder.into_iter().flatten();
        let found = decoder.find(|(_, token)| token["content"] == text);
        let in_settings = found.and_then(|(id, _)| id.parse().ok());
        let in_list = || u32::try_from(self.added[text].as_u64()?).ok();
        in_settings.or_else(in_list)
    }

    /// Whether any file says which token has this role, or that none has.
    fn mentions(&self, role: &str) -> bool {
        let (id, token) = (format!("{role}_token_id"), format!("{role}_token"));
        [&self.generation, &self.config]
            .iter()
            .any(|file| file.get(&id).is_some())
            || [&self.settings, &self.map]
                .iter()
                .any(|file| file.get(&token).is_some())
    }

    /// The class of the tokenizer in transformers, without `Fast`; if it is not named, that of the model type.
    fn tokenizer_class(&self, kind: ModelType) -> &str {
        let class = self.settings["tokenizer_class"].as_str();
        let class = class.or_else(|| self.config["tokenizer_class"].as_str());
        let class = class.unwrap_or(match kind {
            ModelType::Gpt2 => "GPT2Tokenizer",
            ModelType::Llama | ModelType::Mistral => "LlamaTokenizer",
            ModelType::Qwen2 | ModelType::Qwen3 => "Qwen2Tokenizer",
            ModelType::GptNeox => "GPTNeoXTokenizer",
            ModelType::Gemma | ModelType::Gemma2 | ModelType::Gemma3Text => "GemmaTokenizer",
            ModelType::Bert => "BertTokenizer",
            ModelType::Bart => "BartTokenizer",
        });
        class.strip_suffix("Fast").unwrap_or(class)
    }
}

/// Whether tokenizers of this class replace the post-processor of `tokenizer.json` by what `add_bos_token` and
/// `add_eos_token` say, as version 4 of transformers does. Others keep the post-processor.
fn obeys_add_tokens(class: &str) -> bool {
    [
        "LlamaTokenizer",
        "CodeLlamaTokenizer",
        "GemmaTokenizer",
        "CohereTokenizer",
        "GPTNeoXTokenizer",
    ]
    .contains(&class)
}

/// The BOS, EOS and padding ids that transformers assumes if no file mentions them.
fn type_defaults(kind: ModelType) -> (Option<u32>, Option<u32>, Option<u32>) {
    match kind {
        ModelType::Gpt2 => (Some(50256), Some(50256), None),
        ModelType::Llama | ModelType::Mistral => (Some(1), Some(2), None),
        ModelType::Qwen2 | ModelType::Qwen3 => (None, None, None),
        ModelType::Bert => (None, None, Some(0)),
        ModelType::Bart => (Some(0), Some(2), Some(1)),
        ModelType::GptNeox => (Some(0), Some(2), None),
        ModelType::Gemma | ModelType::Gemma2 | ModelType::Gemma3Text => (Some(2), Some(1), Some(0)),
    }
}

/// The ids of the tokens that `tokenizer.json` marks as special.
fn special_ids(tokenizer: &Value) -> Vec<u32> {
    let added = tokenizer["added_tokens"].as_array();
    let special = added
        .into_iter()
        .flatten()
        .filter(|token| token["special"] == true);
    special.flat_map(|token| ids(&token["id"])).collect()
}
