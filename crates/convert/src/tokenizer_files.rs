//! The tokenizers of models, and parts of their files: ids, and what a post-processor adds to a text.

use std::borrow::Cow;
use std::sync::Arc;

use nextword_data::{Tokenizer, load_tokenizer_with_roles, parse_tokenizer_with_roles};
use nextword_model::ModelDir;
use serde_json::{Value, json};

use crate::ConvertError;

/// The tokenizer of a model.
pub(crate) fn open(model_dir: &ModelDir) -> Result<Arc<dyn Tokenizer>, ConvertError> {
    let roles = model_dir.card.special.roles();
    let path = model_dir.tokenizer_path();
    Ok(match model_dir.tokenizer_json() {
        Some(json) => parse_tokenizer_with_roles(json, &path.display().to_string(), roles)?,
        None => load_tokenizer_with_roles(path, roles)?,
    })
}

/// The `tokenizer.json` of a model.
pub(crate) fn json(model_dir: &ModelDir) -> Result<Cow<'_, [u8]>, ConvertError> {
    if let Some(json) = model_dir.tokenizer_json() {
        return Ok(Cow::Borrowed(json.as_bytes()));
    }
    let path = model_dir.tokenizer_path();
    let bytes = std::fs::read(&path).map_err(ConvertError::io(&path, "read"))?;
    Ok(Cow::Owned(bytes))
}

/// An id, or a list of ids.
pub(crate) fn ids(value: &Value) -> Vec<u32> {
    let list = value
        .as_array()
        .map_or(std::slice::from_ref(value), Vec::as_slice);
    let ids = list.iter().filter_map(Value::as_u64);
    ids.filter_map(|id| u32::try_from(id).ok()).collect()
}

/// The tokens that a post-processor of `tokenizer.json` puts before and after a text.
pub(crate) fn around(processor: &Value) -> (Vec<u32>, Vec<u32>) {
    match processor["type"].as_str().unwrap_or("") {
        "Sequence" => {
            let (mut prefix, mut suffix) = (Vec::new(), Vec::new());
            for step in processor["processors"].as_array().into_iter().flatten() {
                let (before, after) = around(step);
                prefix.splice(0..0, before);
                suffix.extend(after);
            }
            (prefix, suffix)
        }
        "TemplateProcessing" => {
            let single = processor["single"]
                .as_array()
                .map_or(&[][..], Vec::as_slice);
            let is_text = |piece: &Value| !piece["Sequence"].is_null();
            let start = single.iter().position(is_text).unwrap_or(0);
            let end = single.iter().rposition(is_text).map_or(0, |last| last + 1);
            let tokens = |pieces: &[Value]| {
                let names = pieces
                    .iter()
                    .filter_map(|piece| piece["SpecialToken"]["id"].as_str());
                names
                    .flat_map(|name| ids(&processor["special_tokens"][name]["ids"]))
                    .collect()
            };
            (tokens(&single[..start]), tokens(&single[end..]))
        }
        "BertProcessing" | "RobertaProcessing" => {
            (ids(&processor["cls"][1]), ids(&processor["sep"][1]))
        }
        _ => (Vec::new(), Vec::new()),
    }
}

/// A post-processor of `tokenizer.json` without the steps that put tokens around a text; `null` if none remains.
pub(crate) fn without_added(processor: Value) -> Value {
    let adds = ["TemplateProcessing", "BertProcessing", "RobertaProcessing"];
    match processor["type"].as_str().unwrap_or("") {
        "Sequence" => {
            let steps = processor["processors"].as_array().cloned();
            let steps = steps.into_iter().flatten().map(without_added);
            let steps: Vec<Value> = steps.filter(|step| !step.is_null()).collect();
            if steps.is_empty() {
                return Value::Null;
            }
            json!({"type": "Sequence", "processors": steps})
        }
        kind if adds.contains(&kind) => Value::Null,
        _ => processor,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(single: &Value) -> Value {
        json!({"type": "TemplateProcessing", "single": single, "special_tokens": {
            "[gMASK]": {"id": "[gMASK]", "ids": [7], "tokens": ["[gMASK]"]},
            "<sop>": {"id": "<sop>", "ids": [8], "tokens": ["<sop>"]},
            "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]},
        }})
    }

    #[test]
    fn post_processors_put_tokens_around_a_text() {
        let token = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        let both = template(&json!([
            token("[gMASK]"),
            token("<sop>"),
            text,
            token("</s>")
        ]));
        let plain = template(&json!([text]));
        let bytes = json!({"type": "ByteLevel"});
        let roberta = json!({"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]});
        for (processor, prefix, suffix) in [
            (Value::Null, vec![], vec![]),
            (bytes.clone(), vec![], vec![]),
            (plain.clone(), vec![], vec![]),
            (both.clone(), vec![7, 8], vec![2]),
            (
                json!({"type": "Sequence", "processors": [bytes, both]}),
                vec![7, 8],
                vec![2],
            ),
            (roberta, vec![0], vec![2]),
        ] {
            assert_eq!(around(&processor), (prefix, suffix), "{processor}");
            let rest = without_added(processor.clone());
            assert_eq!(around(&rest), (vec![], vec![]), "{rest}");
            let keeps_bytes = processor.to_string().contains("ByteLevel");
            assert_eq!(rest.to_string().contains("ByteLevel"), keeps_bytes);
        }
    }
}
