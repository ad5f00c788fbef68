//! Files of chat templates, as transformers writes them: `chat_template.jinja`, and further ones as
//! `additional_chat_templates/NAME.jinja`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use nextword_base::{atomic, git_lfs};

use crate::ModelError;

/// Maximum size in bytes of a chat template.
const MAX_TEMPLATE_BYTES: usize = 1 << 20;
/// Maximum number of chat templates.
const MAX_TEMPLATES: usize = 64;
/// Maximum length of the name of a chat template.
const MAX_NAME_BYTES: usize = 64;

/// The file of the usual chat template.
pub(crate) const TEMPLATE_FILE: &str = "chat_template.jinja";

/// The folder of the chat templates that are not the usual one, each in a file `NAME.jinja`.
pub const TEMPLATE_FOLDER: &str = "additional_chat_templates";

/// The name of a model's usual chat template in [`ModelCard::chat_templates`](crate::ModelCard).
pub const DEFAULT_TEMPLATE: &str = "default";

/// Why the chat templates of a model folder could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateProblem {
    path: PathBuf,
    problem: String,
}

impl TemplateProblem {
    /// The problem as an error.
    pub(crate) fn to_error(&self) -> ModelError {
        ModelError::Format {
            path: self.path.clone(),
            problem: self.problem.clone(),
        }
    }
}

impl From<ModelError> for TemplateProblem {
    fn from(error: ModelError) -> Self {
        match error {
            ModelError::Format { path, problem } => Self { path, problem },
            ModelError::Io {
                path,
                action,
                source,
            } => Self {
                path,
                problem: format!("cannot {action}: {source}"),
            },
            other => Self {
                path: PathBuf::from(TEMPLATE_FILE),
                problem: other.to_string(),
            },
        }
    }
}

/// Reads the chat templates in the files of `folder`, by name.
///
/// # Errors
/// [`ModelError::Io`] or [`ModelError::Format`] for a file that cannot be read, that is not UTF-8 text or larger
/// than 1 MiB, or whose name has other characters than ASCII letters, digits, `_`, `-` and `.`.
pub fn read_chat_templates(folder: &Path) -> Result<BTreeMap<String, String>, ModelError> {
    let usual = read(&folder.join(TEMPLATE_FILE))?;
    let usual = usual.map(|text| (DEFAULT_TEMPLATE.to_string(), text));
    let mut templates: BTreeMap<String, String> = usual.into_iter().collect();
    let more = folder.join(TEMPLATE_FOLDER);
    let entries = match fs::read_dir(&more) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(templates),
        Err(error) => return Err(io(&more, "read")(error)),
    };
    for entry in entries {
        let path = entry.map_err(io(&more, "read"))?.path();
        if path
            .extension()
            .is_none_or(|extension| extension != "jinja")
        {
            continue;
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        if name == DEFAULT_TEMPLATE {
            continue; // As in transformers, the usual template has its own file.
        }
        if let Some(text) = read(&path)? {
            templates.insert(name.into_owned(), text);
        }
    }
    check_chat_templates(&templates).map_err(|problem| format_error(folder, problem))?;
    Ok(templates)
}

/// Checks the names, the sizes and the number of `templates`.
///
/// # Errors
/// A text that says what is wrong and how to mend it, to follow the name of a folder.
///
/// ```
/// use nextword_model::check_chat_templates;
///
/// let named = |name: &str| [(name.to_string(), "{{ messages }}".to_string())].into();
/// assert!(check_chat_templates(&named("tool_use")).is_ok());
/// assert!(check_chat_templates(&named("../tool_use")).is_err()); // would not stay in the model folder
/// ```
pub fn check_chat_templates(templates: &BTreeMap<String, String>) -> Result<(), String> {
    if templates.len() > MAX_TEMPLATES {
        let count = templates.len();
        return Err(format!(
            "has {count} chat templates; the maximum is {MAX_TEMPLATES}; hint: remove some"
        ));
    }
    for (name, template) in templates {
        if template.len() > MAX_TEMPLATE_BYTES {
            let bytes = template.len();
            return Err(format!(
                "has a chat template of {bytes} bytes; the maximum is {MAX_TEMPLATE_BYTES}; hint: shorten it"
            ));
        }
        if !is_file_name(name) {
            let shown: String = name.chars().take(MAX_NAME_BYTES).collect();
            return Err(format!(
                "has a chat template named {shown:?}; hint: rename it, with letters, digits, `_` and `-` only"
            ));
        }
    }
    Ok(())
}

/// Writes `templates` as files of `folder`.
///
/// # Errors
/// [`ModelError::Io`] if a file cannot be written, and [`ModelError::Format`] if one of them could not be read
/// again (see [`read_chat_templates`]); then nothing is written.
pub fn write_chat_templates(
    folder: &Path,
    templates: &BTreeMap<String, String>,
) -> Result<(), ModelError> {
    check_chat_templates(templates).map_err(|problem| format_error(folder, problem))?;
    for (name, template) in templates {
        let path = if name == DEFAULT_TEMPLATE {
            folder.join(TEMPLATE_FILE)
        } else {
            let more = folder.join(TEMPLATE_FOLDER);
            fs::create_dir_all(&more).map_err(io(&more, "create"))?;
            more.join(format!("{name}.jinja"))
        };
        atomic::write(&path, template.as_bytes()).map_err(io(&path, "write"))?;
    }
    Ok(())
}

/// The text of a template's file; `None` if it does not exist.
fn read(path: &Path) -> Result<Option<String>, ModelError> {
    let info = match fs::metadata(path) {
        Ok(info) => info,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(path, "read")(error)),
    };
    if !info.is_file() {
        return Err(format_error(
            path,
            "is not a file; hint: remove it".to_string(),
        ));
    }
    let file = File::open(path).map_err(io(path, "read"))?;
    let mut bytes = Vec::new();
    file.take(MAX_TEMPLATE_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(io(path, "read"))?;
    if bytes.len() > MAX_TEMPLATE_BYTES {
        let problem = format!(
            "is larger than {MAX_TEMPLATE_BYTES} bytes, the maximum for a chat template; hint: shorten or remove it"
        );
        return Err(format_error(path, problem));
    }
    if git_lfs::is_pointer(&bytes) {
        return Err(format_error(path, git_lfs::POINTER_PROBLEM.to_string()));
    }
    let text = String::from_utf8(bytes);
    text.map(Some).map_err(|_| {
        format_error(
            path,
            "is not UTF-8 text; hint: convert or remove it".to_string(),
        )
    })
}

/// Whether `name` is safe as the name of a file, and remains the same as one.
fn is_file_name(name: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    !name.is_empty()
        && name.len() <= MAX_NAME_BYTES
        && !name.starts_with('.')
        && name.chars().all(is_allowed)
}

fn io<'a>(path: &'a Path, action: &'static str) -> impl FnOnce(std::io::Error) -> ModelError + 'a {
    move |source| ModelError::Io {
        path: path.to_path_buf(),
        action,
        source,
    }
}

fn format_error(path: &Path, problem: String) -> ModelError {
    ModelError::Format {
        path: path.to_path_buf(),
        problem,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn templates(list: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = |(name, text): &(&str, &str)| ((*name).to_string(), (*text).to_string());
        list.iter().map(owned).collect()
    }

    #[test]
    fn templates_are_read_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        for list in [
            &[][..],
            &[("default", "a")],
            &[("default", "a"), ("rag", "b"), ("a_b", "c"), ("a-b.c", "")],
        ] {
            let templates = templates(list);
            write_chat_templates(folder.path(), &templates).unwrap();
            assert_eq!(read_chat_templates(folder.path()).unwrap(), templates);
        }
        let more = folder.path().join(TEMPLATE_FOLDER);
        fs::write(more.join("default.jinja"), "other").unwrap();
        fs::write(more.join("notes.txt"), [0xff]).unwrap();
        let found = read_chat_templates(folder.path()).unwrap();
        assert_eq!((found.len(), found["default"].as_str()), (4, "a"));
    }

    #[test]
    fn names_that_are_not_file_names_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "a/b", "../a", "", ".", ".hidden", "ä", "a b", "a\\b", "a\0b",
        ] {
            let templates = templates(&[("default", "a"), (name, "b")]);
            let error = write_chat_templates(folder.path(), &templates).unwrap_err();
            assert!(error.to_string().contains("rename it"), "{error}");
        }
        let many: BTreeMap<_, _> = (0..65).map(|n| (n.to_string(), String::new())).collect();
        assert!(write_chat_templates(folder.path(), &many).is_err());
        assert!(fs::read_dir(folder.path()).unwrap().next().is_none());
    }

    #[test]
    fn files_that_are_not_templates_are_errors() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\n".to_vec();
        for (content, part) in [
            (Some(vec![b'x'; MAX_TEMPLATE_BYTES + 1]), "is larger than"),
            (Some(vec![b'x', 0xff]), "is not UTF-8"),
            (Some(pointer), "git lfs pull"),
            (None, "is not a file"),
        ] {
            for file in [TEMPLATE_FILE, "additional_chat_templates/rag.jinja"] {
                let folder = tempfile::tempdir().unwrap();
                fs::create_dir(folder.path().join(TEMPLATE_FOLDER)).unwrap();
                let path = folder.path().join(file);
                match &content {
                    Some(content) => fs::write(&path, content).unwrap(),
                    None => fs::create_dir(&path).unwrap(),
                }
                let error = read_chat_templates(folder.path()).unwrap_err().to_string();
                assert!(error.contains(file) && error.contains(part), "{error}");
            }
        }
    }
}
