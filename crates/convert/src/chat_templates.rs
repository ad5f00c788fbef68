//! The chat templates of a Hugging Face folder: files, or entries of `tokenizer_config.json`.

use std::collections::BTreeMap;
use std::path::Path;

use nextword_model::{DEFAULT_TEMPLATE, check_chat_templates, read_chat_templates};
use serde_json::Value;

use crate::ConvertError;

/// Reads the chat templates of `folder` by name. Files take precedence over `settings`, the content of
/// `tokenizer_config.json`.
pub(crate) fn read(
    folder: &Path,
    settings: &Value,
) -> Result<BTreeMap<String, String>, ConvertError> {
    let mut templates = read_chat_templates(folder)?;
    if templates.is_empty() {
        templates = from_settings(&settings["chat_template"]);
        check_chat_templates(&templates)
            .map_err(|problem| ConvertError::source(folder, problem))?;
    }
    if !templates.is_empty() && !templates.contains_key(DEFAULT_TEMPLATE) {
        let names: Vec<&str> = templates.keys().map(String::as_str).collect();
        let problem = format!(
            "has chat templates ({}), but none is called `default`; hint: save the one to use as chat_template.jinja",
            names.join(", ")
        );
        return Err(ConvertError::source(folder, problem));
    }
    Ok(templates)
}

/// The templates of the setting: one, a list of named ones, or a dict of them.
fn from_settings(setting: &Value) -> BTreeMap<String, String> {
    let named = |name: Option<&str>, template: &Value| {
        Some((name?.to_owned(), template.as_str()?.to_owned()))
    };
    match setting {
        Value::String(template) => [(DEFAULT_TEMPLATE.to_owned(), template.clone())].into(),
        Value::Array(list) => list
            .iter()
            .filter_map(|entry| named(entry["name"].as_str(), &entry["template"]))
            .collect(),
        Value::Object(templates) => templates
            .iter()
            .filter_map(|(name, template)| named(Some(name), template))
            .collect(),
        _ => BTreeMap::new(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use nextword_model::TEMPLATE_FOLDER;
    use serde_json::json;

    use super::*;

    #[test]
    fn templates_are_read_from_files_and_settings() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let read = |setting: Value| read(path, &json!({"chat_template": setting}));
        for (setting, expected) in [
            (json!(null), vec![]),
            (json!("a"), vec![("default", "a")]),
            (
                json!([{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}]),
                vec![("default", "a"), ("rag", "b")],
            ),
            (
                json!({"default": "a", "tool_use": "b"}),
                vec![("default", "a"), ("tool_use", "b")],
            ),
        ] {
            let found = read(setting).unwrap();
            let found: Vec<_> = found
                .iter()
                .map(|(name, text)| (name.as_str(), text.as_str()))
                .collect();
            assert_eq!(found, expected);
        }
        for invalid in [
            json!({"tool_use": "b"}),
            json!({"default": "a", "../x": "b"}),
            json!({"default": "a", "": "b"}),
            json!({"default": "a".repeat((1 << 20) + 1)}),
        ] {
            assert!(read(invalid).is_err());
        }
        fs::write(path.join("chat_template.jinja"), "file").unwrap();
        fs::create_dir(path.join(TEMPLATE_FOLDER)).unwrap();
        fs::write(path.join(TEMPLATE_FOLDER).join("tool_use.jinja"), "tools").unwrap();
        let templates = read(json!("a")).unwrap();
        assert_eq!(templates["default"], "file");
        assert_eq!(templates["tool_use"], "tools");
        assert_eq!(templates.len(), 2);
    }
}
