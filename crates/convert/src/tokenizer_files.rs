//! Parts of the files beside a Hugging Face tokenizer: what its post-processor adds, and chat templates.

use std::collections::BTreeMap;
use std::path::Path;

use nextword_model::DEFAULT_TEMPLATE;
use serde_json::Value;

use crate::{ConvertError, json};

/// Maximum size of a chat template.
const MAX_TEMPLATE_BYTES: usize = 1 << 20;

/// The folder in which transformers stores named chat templates besides the usual one.
pub(crate) const TEMPLATE_FOLDER: &str = "additional_chat_templates";

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

/// The chat templates by name: from their own files, or from the tokenizer's settings.
pub(crate) fn chat_templates(folder: &Path) -> Result<BTreeMap<String, String>, ConvertError> {
    let settings = json::read_value(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
    let mut templates = from_settings(&settings["chat_template"]);
    if let Some(usual) = json::read_text(&folder.join("chat_template.jinja"))? {
        templates.insert(DEFAULT_TEMPLATE.to_string(), usual);
    }
    let named = std::fs::read_dir(folder.join(TEMPLATE_FOLDER));
    for entry in named.into_iter().flatten().flatten() {
        let path = entry.path();
        let is_template = path
            .extension()
            .is_some_and(|extension| extension == "jinja");
        let name = path.file_stem().and_then(|name| name.to_str());
        if let Some(name) = name.filter(|_| is_template)
            && let Some(template) = json::read_text(&path)?
        {
            templates.insert(name.to_string(), template);
        }
    }
    let too_large = templates
        .values()
        .find(|text| text.len() > MAX_TEMPLATE_BYTES);
    if let Some(template) = too_large {
        let problem = format!(
            "has a chat template of {} bytes; the maximum is {MAX_TEMPLATE_BYTES}",
            template.len()
        );
        return Err(ConvertError::source(folder, problem));
    }
    Ok(templates)
}

/// The templates in the tokenizer's settings: one, a list with names, or a map.
fn from_settings(value: &Value) -> BTreeMap<String, String> {
    let usual = value
        .as_str()
        .map(|text| (DEFAULT_TEMPLATE.to_string(), text.to_string()));
    let text =
        |name: &str, template: &Value| Some((name.to_string(), template.as_str()?.to_string()));
    let list = value.as_array().into_iter().flatten();
    let list = list.filter_map(|entry| text(entry["name"].as_str()?, &entry["template"]));
    let map = value.as_object().into_iter().flatten();
    let map = map.filter_map(|(name, template)| text(name, template));
    usual.into_iter().chain(list).chain(map).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

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
        }
    }

    #[test]
    fn templates_of_each_form_are_found() {
        let named = |value: &Value| from_settings(value).into_keys().collect::<Vec<_>>();
        assert!(named(&Value::Null).is_empty());
        assert_eq!(named(&json!("x")), ["default"]);
        assert_eq!(
            named(&json!({"default": "x", "rag": "y"})),
            ["default", "rag"]
        );
        let list =
            json!([{"name": "tool_use", "template": "x"}, {"name": "default", "template": "y"}]);
        assert_eq!(named(&list), ["default", "tool_use"]);
    }
}
