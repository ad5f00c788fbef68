//! The special tokens and chat templates of a GGUF file.

use std::collections::BTreeMap;

use nextword_model::{DEFAULT_TEMPLATE, ModelTokens, TokenSource, check_chat_templates};

use super::metadata::{Metadata, MetadataError, ReadValue};
use super::pre_tokenizers;
use super::read_tokenizer::{TokenKind, Vocabulary};
use super::reader::GgufFile;
use super::special::{EOS_KEYS, KNOWN_EOS};
use super::{BOS_IDS_KEY, EOS_IDS_KEY};
use crate::ConvertError;

/// Where the chat templates are.
const TEMPLATE_KEY: &str = "tokenizer.chat_template";

/// The special tokens that the file declares, with the defaults of `llama.cpp`. As there, control tokens with the name of
/// one that ends a completion do so too, unless the file was written by nextword, which lists them all.
pub(super) fn tokens(vocabulary: &Vocabulary) -> Result<ModelTokens, ConvertError> {
    let is_sentencepiece = vocabulary.model == "llama";
    let in_vocabulary = |id: usize| {
        u32::try_from(id)
            .ok()
            .filter(|_| id < vocabulary.tokens.len())
    };
    let id_at = |key: &str, default: Option<u32>| -> Result<Option<u32>, ConvertError> {
        // Some files have -1 where there is no token.
        let is_number = matches!(
            vocabulary
                .file
                .metadata
                .get(&format!("tokenizer.ggml.{key}")),
            Some(ReadValue::Number(_))
        );
        if is_number {
            let id = vocabulary.get(key, Metadata::number)?.unwrap_or(-1.0);
            return Ok(if id >= 0.0 {
                in_vocabulary(id as usize)
            } else {
                None
            });
        }
        let default = default.filter(|_| is_sentencepiece);
        Ok(default.filter(|id| {
            let kind = vocabulary.kinds.get(*id as usize);
            matches!(kind, Some(TokenKind::Control | TokenKind::Unknown))
        }))
    };
    let file_bos = id_at("bos_token_id", Some(1))?;
    let mut bos_id = file_bos;
    let main_eos = id_at(EOS_KEYS[0], Some(2))?;
    let mut eos_ids: Vec<u32> = main_eos.into_iter().collect();
    for key in &EOS_KEYS[1..] {
        eos_ids.extend(id_at(key, None)?.filter(|id| !eos_ids.contains(id)));
    }
    let metadata = &vocabulary.file.metadata;
    let invalid = |MetadataError(problem)| ConvertError::source(vocabulary.file.path(), problem);
    let declared = metadata.counts(EOS_IDS_KEY).map_err(invalid)?;
    if let Some(declared) = declared {
        eos_ids = declared.into_iter().filter_map(in_vocabulary).collect();
        // A model without an EOS token has one in its file all the same, also as BOS token.
        bos_id = bos_id
            .filter(|_| bos_id != main_eos || main_eos.is_some_and(|id| eos_ids.contains(&id)));
    } else {
        let named = vocabulary.of_kind(TokenKind::Control);
        let named = named.filter(|(_, text)| KNOWN_EOS.contains(text));
        let named: Vec<u32> = named.map(|(id, _)| id as u32).collect();
        eos_ids.extend(named.into_iter().filter(|id| Some(*id) != main_eos));
        let mut distinct = Vec::new();
        for id in eos_ids {
            if !distinct.contains(&id) {
                distinct.push(id);
            }
        }
        eos_ids = distinct;
    }
    if let Some(declared) = metadata.counts(BOS_IDS_KEY).map_err(invalid)? {
        bos_id = declared.into_iter().find_map(in_vocabulary);
    }
    let document_eos_id = main_eos.filter(|id| eos_ids.contains(id));
    let pad_id = id_at("padding_token_id", None)?;
    let unknown_id = id_at("unknown_token_id", Some(0))?;
    let adds_bos = match vocabulary.get("add_bos_token", Metadata::flag)? {
        Some(adds_bos) => adds_bos,
        None => {
            let by_name = pre_tokenizers::find(vocabulary.pre_tokenizer);
            is_sentencepiece
                || (vocabulary.model == "gpt2" && by_name.is_ok_and(|known| known.adds_bos))
        }
    };
    let adds_eos = vocabulary
        .get("add_eos_token", Metadata::flag)?
        .unwrap_or(false);
    let text = |id: Option<u32>| id.and_then(|id| vocabulary.text(id)).map(str::to_string);
    let first_eos = document_eos_id.or(eos_ids.first().copied());
    Ok(ModelTokens {
        bos_id,
        bos_token: text(bos_id),
        eos_token: text(first_eos),
        document_eos_id: first_eos,
        config_eos_ids: None,
        evaluation_id: bos_id.or(first_eos),
        pad_id,
        pad_token: text(pad_id),
        unk_token: text(unknown_id),
        prefix_ids: Some(file_bos.filter(|_| adds_bos).into_iter().collect()),
        target_start_id: None,
        suffix_ids: first_eos.filter(|_| adds_eos).into_iter().collect(),
        eos_ids,
        further_settings: BTreeMap::new(),
        sampling_settings: BTreeMap::new(),
        source: Some(TokenSource::Declared),
    })
}

/// The chat templates by name.
pub(super) fn chat_templates(file: &GgufFile) -> Result<BTreeMap<String, String>, ConvertError> {
    let mut templates = BTreeMap::new();
    for (key, value) in file.metadata.iter() {
        let name = match key.strip_prefix(TEMPLATE_KEY) {
            Some("") => DEFAULT_TEMPLATE,
            Some(rest) if rest.starts_with('.') => &rest[1..],
            _ => continue,
        };
        let ReadValue::Text(text) = value else {
            let problem = format!(
                "the metadata key `{key}` is {}, but must be a string",
                value.show()
            );
            return Err(ConvertError::source(file.path(), problem));
        };
        templates.insert(name.to_string(), text.clone());
    }
    if !templates.is_empty() && !templates.contains_key(DEFAULT_TEMPLATE) {
        templates.clear(); // llama.cpp uses none either.
    }
    check_chat_templates(&templates)
        .map_err(|problem| ConvertError::source(file.path(), problem))?;
    Ok(templates)
}
