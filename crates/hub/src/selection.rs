//! Which files of a repository an import needs.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

/// Configuration, tokenizer and chat template: everything except weights. The first two are required.
const SETTINGS: [&str; 7] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
];
/// How many of [`SETTINGS`] are required.
const REQUIRED: usize = 2;

/// The folder of further chat templates.
const TEMPLATE_FOLDER: &str = "additional_chat_templates/";
/// Maximum number of further chat templates.
const MAX_TEMPLATES: usize = 64;

/// Weights in one file.
const SINGLE_FILE: &str = "model.safetensors";
/// The list of the files of weights in several files.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// More shards than any model has.
const MAX_SHARDS: usize = 4096;

/// The paths of a repository.
type Files = BTreeMap<String, Option<u64>>;

/// Where the weights are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Weights {
    /// In this file.
    Single(&'static str),
    /// In several files, which [`INDEX`] lists.
    Sharded,
}

/// The small files that an import reads.
///
/// # Errors
/// What is missing, and a hint.
pub(crate) fn settings(files: &Files, repository: &str) -> Result<Vec<String>, String> {
    if let Some(missing) = SETTINGS[..REQUIRED]
        .iter()
        .find(|name| !files.contains_key(**name))
    {
        let hint = gguf_hint(files, repository).unwrap_or_else(|| {
            "hint: use a repository in the format of transformers, with safetensors and tokenizer.json".to_string()
        });
        return Err(format!("contains no `{missing}`; {hint}"));
    }
    let known = SETTINGS.iter().filter(|name| files.contains_key(**name));
    let is_template = |name: &&String| {
        let name = name.strip_prefix(TEMPLATE_FOLDER);
        name.is_some_and(|name| !name.contains('/') && has_extension(name, &["jinja"]))
    };
    let templates = files.keys().filter(is_template).take(MAX_TEMPLATES);
    Ok(known
        .map(|name| (*name).to_string())
        .chain(templates.cloned())
        .collect())
}

/// Where the weights of a repository are.
///
/// # Errors
/// What is there instead, and a hint.
pub(crate) fn weights(files: &Files, repository: &str) -> Result<Weights, String> {
    if files.contains_key(SINGLE_FILE) {
        return Ok(Weights::Single(SINGLE_FILE));
    }
    if files.contains_key(INDEX) {
        return Ok(Weights::Sharded);
    }
    let pickles = ["bin", "pt", "pth", "ckpt", "pkl"];
    if let Some(hint) = gguf_hint(files, repository) {
        return Err(format!("contains no `{SINGLE_FILE}`; {hint}"));
    }
    if let Some(pickle) = files.keys().find(|name| has_extension(name, &pickles)) {
        return Err(format!(
            "contains weights only as a pickle (`{pickle}`), which can run code and is therefore never opened; hint: \
             the Hub converts models to safetensors on request, often on the branch refs/pr/1: hf:{repository}@refs/pr/1"
        ));
    }
    Err(format!(
        "contains no `{SINGLE_FILE}`; hint: use a repository with a whole model in safetensors format (adapters and \
         other formats cannot be imported)"
    ))
}

/// The files that the index of sharded weights lists.
///
/// # Errors
/// What is wrong with the index.
pub(crate) fn shards(index: &[u8], files: &Files) -> Result<Vec<String>, String> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(index).map_err(|error| {
        format!("`{INDEX}` is not a valid index ({error}); hint: report it to the owner")
    })?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    if names.is_empty() || names.len() > MAX_SHARDS {
        let count = names.len();
        return Err(format!(
            "`{INDEX}` lists {count} files instead of 1 to {MAX_SHARDS}; hint: report it to the owner"
        ));
    }
    let is_present = |name: &&String| {
        let is_shard = has_extension(name, &["safetensors"]) && !name.contains('/');
        is_shard && files.contains_key(*name)
    };
    if let Some(missing) = names.iter().find(|name| !is_present(name)) {
        return Err(format!(
            "`{INDEX}` lists {missing:?}, which is not a safetensors file of the repository; hint: report it to the owner"
        ));
    }
    Ok(names.into_iter().collect())
}

/// Whether a missing GGUF file `file` may be a typing error: the GGUF files that there are.
pub(crate) fn gguf_hint(files: &Files, repository: &str) -> Option<String> {
    let mut names = files.keys().filter(|name| has_extension(name, &["gguf"]));
    let first = names.next()?;
    let more = match names.count() {
        0 => String::new(),
        count => format!(" ({count} more GGUF files are at {repository})"),
    };
    Some(format!(
        "hint: name a GGUF file, as in hf:{repository}:{first}{more}"
    ))
}

fn has_extension(name: &str, extensions: &[&str]) -> bool {
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    extensions.contains(&extension)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> Files {
        names
            .iter()
            .map(|name| ((*name).to_string(), None))
            .collect()
    }

    #[test]
    fn only_needed_files_are_selected() {
        let files = files(&[
            "README.md",
            "config.json",
            "tokenizer.json",
            "vocab.json",
            "merges.txt",
            "onnx/model.onnx",
            "pytorch_model.bin",
            "consolidated.safetensors",
            "model.safetensors",
            "original/tokenizer.json",
            "chat_template.jinja",
            "additional_chat_templates/tool_use.jinja",
            "additional_chat_templates/a/b.jinja",
            "additional_chat_templates/x.txt",
        ]);
        let found = settings(&files, "a/b").unwrap();
        assert_eq!(
            found,
            [
                "config.json",
                "tokenizer.json",
                "chat_template.jinja",
                "additional_chat_templates/tool_use.jinja"
            ]
        );
        assert_eq!(
            weights(&files, "a/b").unwrap(),
            Weights::Single(SINGLE_FILE)
        );
    }

    #[test]
    fn repositories_without_a_model_are_rejected_with_what_they_have() {
        let base = ["config.json", "tokenizer.json"];
        for (names, expected) in [
            (vec![], "`config.json`"),
            (vec!["config.json", "model.safetensors"], "`tokenizer.json`"),
            (
                vec!["x-q8_0.gguf", "y/x-q4_0.gguf"],
                "hf:a/b:x-q8_0.gguf (1 more",
            ),
            ([&base[..], &["x.gguf"]].concat(), "hf:a/b:x.gguf"),
            (
                [&base[..], &["pytorch_model.bin"]].concat(),
                "pickle (`pytorch_model.bin`)",
            ),
            (
                [&base[..], &["adapter_model.safetensors"]].concat(),
                "adapters",
            ),
            (
                [&base[..], &["onnx/model.safetensors"]].concat(),
                "no `model.safetensors`",
            ),
        ] {
            let files = files(&names);
            let error = settings(&files, "a/b")
                .and_then(|_| weights(&files, "a/b"))
                .unwrap_err();
            assert!(
                error.contains(expected) && error.contains("hint: "),
                "{names:?}: {error}"
            );
        }
    }

    #[test]
    fn an_index_lists_shards_of_the_repository_only() {
        let files = files(&["a.safetensors", "b.safetensors", "x.bin", "f/c.safetensors"]);
        let index = |map: &str| {
            shards(
                format!(r#"{{"metadata": {{}}, "weight_map": {map}}}"#).as_bytes(),
                &files,
            )
        };
        let found = index(r#"{"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}"#);
        assert_eq!(found.unwrap(), ["a.safetensors", "b.safetensors"]);
        for map in [
            "{}",
            "7",
            r#"{"x": 7}"#,
            r#"{"x": "c.safetensors"}"#,
            r#"{"x": "x.bin"}"#,
            r#"{"x": "../a.safetensors"}"#,
            r#"{"x": "f/c.safetensors"}"#,
            r#"{"x": "/a.safetensors"}"#,
            r#"{"x": ""}"#,
        ] {
            assert!(index(map).unwrap_err().contains("hint: "), "{map}");
        }
    }
}
