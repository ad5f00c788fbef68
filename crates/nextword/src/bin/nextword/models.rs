//! Finds and opens the model that a path on the command line refers to.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use nextword_convert::ConvertError;
use nextword_hub::HubReference;
use nextword_model::weights::TensorFile;
use nextword_model::{AdapterDir, DeviceName, ModelDir, ModelError, is_hugging_face_folder};

use crate::{exit, output};

/// Opens the model in `path`: a model folder, an adapter folder, a checkpoint, a run folder, or a GGUF file. Of a run,
/// the best model is opened, or the last one if `last` is set.
///
/// # Errors
/// If `path` contains no model; the message states what it is instead.
pub(crate) fn open(path: &Path, last: bool) -> anyhow::Result<ModelDir> {
    open_with_base(path, last, None)
}

/// Opens the model in `path` as [`open`]; if it is an adapter, with the base model in `base`.
///
/// # Errors
/// As [`open`], and if `path` is not an adapter but there is a `base`.
pub(crate) fn open_with_base(
    path: &Path,
    last: bool,
    base: Option<&Path>,
) -> anyhow::Result<ModelDir> {
    let folder = find(path, last)?;
    if let Some(base) = base
        && !AdapterDir::is_adapter(&folder)
    {
        return Err(exit::usage(format!(
            "--base {} is for adapters, and `{}` is a model of its own; hint: leave out --base",
            base.display(),
            path.display()
        )));
    }
    let base = base.map(|base| find(base, last)).transpose()?;
    let model = nextword_convert::open_model(&folder, base.as_deref());
    let damage = match &model {
        Ok(model) if model.tokenizer_json().is_none() => {
            TensorFile::open(&model.weights_path()).err()
        }
        _ => None,
    };
    match (model, damage) {
        (Ok(model), None) => Ok(model),
        (Ok(_), Some(error)) | (Err(ConvertError::Model(error)), _) => {
            Err(with_other_model(error, path, &folder))
        }
        (Err(error), _) => Err(error.into()),
    }
}

/// The folder or file of the model in `path`.
pub(crate) fn find(path: &Path, last: bool) -> anyhow::Result<PathBuf> {
    if nextword_convert::is_gguf(path) {
        return Ok(path.to_path_buf());
    }
    find_model_dir(path, last)
}

/// Adds to `error`, about the model in `folder` of the run `path`, that the run has another model.
fn with_other_model(error: ModelError, path: &Path, folder: &Path) -> anyhow::Error {
    let (name, flag) = if folder.ends_with("best") {
        ("last", "with --last")
    } else {
        ("best", "without --last")
    };
    let other = path.join(name);
    let is_intact = || {
        let model = nextword_convert::open_model(&other, None).ok()?;
        TensorFile::open(&model.weights_path()).ok()
    };
    if folder == path || !is_run(path) || is_intact().is_none() {
        return error.into();
    }
    let error = error.to_string();
    let error = error.split("; hint: ").next().unwrap_or_default();
    exit::bad_file(format!(
        "{error}; hint: the run's {name} model can be read: use it {flag}"
    ))
}

/// Opens the device called `name`.
///
/// # Errors
/// If there is no such device or it does not work.
pub(crate) fn open_device(name: &str) -> anyhow::Result<burn::tensor::Device> {
    Ok(name.parse::<DeviceName>()?.open()?)
}

/// Opens the device called `name`, and prints which one it is if the name leaves that open.
///
/// # Errors
/// As [`open_device`].
pub(crate) fn open_and_name_device(name: &str) -> anyhow::Result<burn::tensor::Device> {
    let name: DeviceName = name.parse()?;
    let taken = name.resolve()?;
    if taken != name {
        output::eprint_line(&format!("device {name}: {taken}"));
    }
    Ok(taken.open()?)
}

/// Returns whether `path` is a run folder.
pub(crate) fn is_run(path: &Path) -> bool {
    path.join("run.toml").is_file()
}

fn find_model_dir(path: &Path, last: bool) -> anyhow::Result<PathBuf> {
    let shown = path.display();
    if path.to_str().is_some_and(HubReference::is_reference) && !path.exists() {
        return Err(exit::bad_file(format!(
            "`{shown}` names a model on the Hub, not a model folder; hint: download and convert it with `nextword import \
             {shown} --out MODEL`"
        )));
    }
    if AdapterDir::is_adapter(path) {
        return Ok(path.to_path_buf());
    }
    if path.join("adapter_config.json").is_file() {
        return Err(exit::bad_file(format!(
            "`{shown}` is an adapter of PEFT; hint: convert it with `nextword import {shown} --base MODEL --out ADAPTER`"
        )));
    }
    let config = path.join("config.json");
    if config.is_file() {
        if is_hugging_face_folder(path) {
            return Err(exit::bad_file(format!(
                "`{shown}` is a Hugging Face folder, not a model folder; hint: convert it with `nextword import \
                 {shown} --out MODEL`"
            )));
        }
        return Ok(path.to_path_buf());
    }
    if is_run(path) {
        let order = if last {
            ["last", "best"]
        } else {
            ["best", "last"]
        };
        // Runs without validation data have no `best`.
        return order
            .map(|name| path.join(name))
            .into_iter()
            .find(|folder| {
                folder.join("model.safetensors").is_file() || AdapterDir::is_adapter(folder)
            })
            .ok_or_else(|| {
                exit::bad_file(format!(
                    "the run `{shown}` has not saved a model yet; hint: wait for its first \
                     checkpoint, or continue it with `nextword resume {shown}`"
                ))
            });
    }
    // Without permission, the checks above find nothing.
    let readable = fs::metadata(path).and_then(|entry| {
        if entry.is_dir() {
            fs::read_dir(path)?;
            fs::metadata(config).map(drop).or_else(missing_is_fine)?;
        }
        Ok(())
    });
    if let Err(error) = readable.or_else(missing_is_fine) {
        return Err(unreadable(path, &error));
    }
    let problem = if path.is_dir() {
        "is neither a model folder nor a run folder (config.json and run.toml are missing)"
    } else if path.exists() {
        "is neither a GGUF file nor a folder that contains config.json and model.safetensors"
    } else {
        "does not exist"
    };
    Err(exit::bad_file(format!(
        "`{shown}` {problem}; hint: pass a run folder, e.g. runs/NAME, a model folder, or a GGUF file"
    )))
}

/// The error for a path that does not exist or may not be opened; `expected` is what to pass instead.
pub(crate) fn missing(path: &Path, expected: &str) -> anyhow::Error {
    match path.try_exists() {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => unreadable(path, &error),
        _ => exit::bad_file(format!(
            "`{}` does not exist; hint: pass {expected}",
            path.display()
        )),
    }
}

/// The error for a path that may not be opened.
fn unreadable(path: &Path, error: &std::io::Error) -> anyhow::Error {
    exit::bad_file(format!(
        "`{}` cannot be read: {error}; hint: check its permissions and those of the folders above it",
        path.display()
    ))
}

fn missing_is_fine(error: std::io::Error) -> std::io::Result<()> {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => Ok(()),
        _ => Err(error),
    }
}

/// Replaces the escapes `\n`, `\r`, `\t` and `\\` in a separator from the command line.
pub(crate) fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('t') => out.push('\t'),
            Some('\\') | None => out.push('\\'),
            Some(other) => out.extend(['\\', other]),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unescape_replaces_known_escapes_only() {
        assert_eq!(unescape(r"\n\n"), "\n\n");
        assert_eq!(unescape(r"<|end|>\t"), "<|end|>\t");
        assert_eq!(unescape(r"a\\n\x\"), r"a\n\x\");
    }

    #[test]
    fn error_describes_a_path_without_a_model() {
        let missing = find_model_dir(Path::new("no/such/folder"), false).map_err(|e| e.to_string());
        assert!(missing.is_err_and(|e| e.contains("does not exist")));
        let folder =
            find_model_dir(Path::new(env!("CARGO_MANIFEST_DIR")), false).map_err(|e| e.to_string());
        assert!(folder.is_err_and(|e| e.contains("neither a model folder nor a run")));
    }
}
