//! The chat templates of a folder, as transformers reads and writes them: `chat_template.jinja` and named
//! ones in a folder, or all of them in `tokenizer_config.json`.

use std::collections::BTreeMap;
use std::path::Path;

use nextword_model::write_atomically;
use serde_json::Value;

use crate::{ConvertError, json};

/// Maximum size of a chat template.
const MAX_TEMPLATE_BYTES: usize = 1 << 20;
/// Maximum number of named templates.
const MAX_TEMPLATES: usize = 64;
/// Maximum length of the name of a template.
const MAX_NAME_BYTES: usize = 64;

const FILE: &str = "chat_template.jinja";
/// The folder with the templates that are not the default one, each as `NAME.jinja`.
pub(crate) const FOLDER: &str = "additional_chat_templates";
const DEFAULT: &str = "default";

/// Chat templates by name.
#[derive(Debug, Default)]
pub(crate) struct ChatTemplates(Vec<(String, String)>);

impl ChatTemplates {
    /// Reads the templates of `folder`. Files take precedence over `settings`, the content of
    /// `tokenizer_config.json`.
    pub(crate) fn read(folder: &Path, settings: &Value) -> Result<Self, ConvertError> {
        let mut templates = from_files(folder)?;
        if templates.is_empty() {
            templates = from_settings(&settings["chat_template"]);
        }
        for (name, template) in &templates {
            if template.len() > MAX_TEMPLATE_BYTES {
                let problem = format!(
                    "has a chat template of {} bytes; the maximum is {MAX_TEMPLATE_BYTES}",
                    template.len()
                );
                return Err(ConvertError::source(folder, problem));
            }
            if !is_file_name(name) {
                let shown: String = name.chars().take(MAX_NAME_BYTES).collect();
                let problem = format!(
                    "has a chat template named {shown:?}; hint: rename it, with letters, digits, `_` and `-` only"
                );
                return Err(ConvertError::source(folder, problem));
            }
        }
        let has_default = templates.iter().any(|(name, _)| name == DEFAULT);
        if !templates.is_empty() && !has_default {
            let names: Vec<&str> = templates.iter().map(|(name, _)| name.as_str()).collect();
            let problem = format!(
                "has chat templates ({}), but none is called `default`; hint: save the one to use as {FILE}",
                names.join(", ")
            );
            return Err(ConvertError::source(folder, problem));
        }
        Ok(Self(templates))
    }

    /// The templates, for a model card.
    pub(crate) fn to_map(&self) -> BTreeMap<String, String> {
        self.0.iter().cloned().collect()
    }

    /// Whether there is any template.
    pub(crate) fn exists(&self) -> bool {
        !self.0.is_empty()
    }

    /// Writes the templates as files of `folder`.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), ConvertError> {
        for (name, template) in &self.0 {
            let path = if name == DEFAULT {
                folder.join(FILE)
            } else {
                let more = folder.join(FOLDER);
                std::fs::create_dir_all(&more).map_err(ConvertError::io(&more, "write"))?;
                more.join(format!("{name}.jinja"))
            };
            write_atomically(&path, template.as_bytes())?;
        }
        Ok(())
    }
}

fn from_files(folder: &Path) -> Result<Vec<(String, String)>, ConvertError> {
    let default = json::read_text(&folder.join(FILE))?;
    let mut templates: Vec<_> = default
        .map(|template| (DEFAULT.to_owned(), template))
        .into_iter()
        .collect();
    let entries = std::fs::read_dir(folder.join(FOLDER));
    let mut paths: Vec<_> = entries
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "jinja")
        })
        .take(MAX_TEMPLATES)
        .collect();
    paths.sort_unstable();
    for path in paths {
        let name = path
            .file_stem()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if let Some(template) = json::read_text(&path)?
            && name != DEFAULT
        {
            templates.push((name.to_owned(), template));
        }
    }
    Ok(templates)
}

/// The templates of the setting: one, a list of named ones, or a dict of them.
fn from_settings(setting: &Value) -> Vec<(String, String)> {
    let named = |name: Option<&str>, template: &Value| {
        Some((name?.to_owned(), template.as_str()?.to_owned()))
    };
    let templates: Vec<_> = match setting {
        Value::String(template) => vec![(DEFAULT.to_owned(), template.clone())],
        Value::Array(list) => list
            .iter()
            .filter_map(|entry| named(entry["name"].as_str(), &entry["template"]))
            .collect(),
        Value::Object(templates) => templates
            .iter()
            .filter_map(|(name, template)| named(Some(name), template))
            .collect(),
        _ => Vec::new(),
    };
    templates.into_iter().take(MAX_TEMPLATES).collect()
}

/// Whether `name` is safe as the name of a file.
fn is_file_name(name: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    !name.is_empty()
        && name.len() <= MAX_NAME_BYTES
        && !name.starts_with('.')
        && name.chars().all(is_allowed)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    #[test]
    fn templates_are_read_from_files_and_settings() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let read = |setting: Value| ChatTemplates::read(path, &json!({"chat_template": setting}));
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
            let found = read(setting).unwrap().0;
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
        ] {
            assert!(read(invalid).is_err());
        }
        fs::write(path.join(FILE), "file").unwrap();
        fs::create_dir(path.join(FOLDER)).unwrap();
        fs::write(path.join(FOLDER).join("tool_use.jinja"), "tools").unwrap();
        let templates = read(json!("a")).unwrap();
        assert_eq!(templates.0.len(), 2);
        let copy = path.join("copy");
        fs::create_dir(&copy).unwrap();
        templates.write(&copy).unwrap();
        assert_eq!(fs::read_to_string(copy.join(FILE)).unwrap(), "file");
        assert_eq!(
            fs::read_to_string(copy.join(FOLDER).join("tool_use.jinja")).unwrap(),
            "tools"
        );
    }
}
