//! Opening a model of any kind: a model folder, a GGUF file, or an adapter together with its base model.

use std::fs;
use std::path::{Path, PathBuf};

use nextword_base::hash::hash_file;
use nextword_model::{AdapterDir, BaseModel, ModelDir};

use crate::{ConvertError, is_gguf, open_gguf};

/// Number of hexadecimal digits of a hash in messages.
const SHOWN_DIGITS: usize = 8;

/// How many folders around an adapter the path of its base may be relative to: a checkpoint is four levels below the
/// folder of a project.
const MAX_ANCESTORS: usize = 4;

/// Maximum number of models beside the expected place that are compared with the base of an adapter.
const MAX_NEIGHBORS: usize = 64;

/// Opens a model folder, a GGUF file, or an adapter folder with the model that it was trained for: `base` if it is
/// given, otherwise the one at the path that the adapter contains, or a copy of it in the same folder.
///
/// # Errors
/// [`ConvertError::Source`] if there is no such base, or another one; the errors of the formats.
///
/// ```
/// use nextword_convert::open_model;
///
/// let model = open_model("../../docs/models/letters".as_ref(), None)?;
/// assert!(model.base().is_none()); // not an adapter
/// # Ok::<(), nextword_convert::ConvertError>(())
/// ```
pub fn open_model(path: &Path, base: Option<&Path>) -> Result<ModelDir, ConvertError> {
    if !AdapterDir::is_adapter(path) {
        return open_base(path);
    }
    let adapter = AdapterDir::open(path)?;
    let base = find_base(&adapter, base)?;
    Ok(adapter.with_base(base)?)
}

/// Opens a model folder or a GGUF file.
fn open_base(path: &Path) -> Result<ModelDir, ConvertError> {
    if is_gguf(path) {
        open_gguf(path)
    } else {
        Ok(ModelDir::open(path)?)
    }
}

/// Opens the model that `adapter` was trained for: `base` if it is given, otherwise the one at the path that the adapter
/// contains, or a copy of it in the same folder.
///
/// # Errors
/// As [`open_model`].
pub fn find_base(adapter: &AdapterDir, base: Option<&Path>) -> Result<ModelDir, ConvertError> {
    let (expected, path) = (&adapter.base, &*adapter.path);
    if let Some(base) = base {
        let model = open_base(base)?;
        check_base(expected, path, &model)?;
        return Ok(model);
    }
    let mut other = None;
    let paths = possible_paths(&expected.path_hint, path);
    let existing = paths.iter().filter(|place| place.exists());
    for place in existing.clone() {
        let checked = open_base(place).and_then(|model| {
            check_base(expected, path, &model)?;
            Ok(model)
        });
        match checked {
            Ok(model) => return Ok(model),
            Err(error) => other = other.or(Some(error)),
        }
    }
    let folders = paths.iter().filter_map(|place| place.parent());
    if let Some(model) = folders
        .flat_map(neighbors)
        .find_map(|place| same_model(expected, &place))
    {
        return Ok(model);
    }
    Err(other.unwrap_or_else(|| {
        let problem = format!(
            "this adapter was made for {}, which was not found there; hint: name its place with --base PATH, \
             or to resume a run with --set start_from=PATH",
            describe_base(expected)
        );
        ConvertError::source(path, problem)
    }))
}

/// Checks that `model` is the one that the adapter in `path` was made for, or its quantized form.
///
/// # Errors
/// [`ConvertError::Source`] if it is another model.
fn check_base(expected: &BaseModel, path: &Path, model: &ModelDir) -> Result<(), ConvertError> {
    let found = BaseModel::of(model)?;
    if is_base(expected, &found, model) {
        return Ok(());
    }
    let problem = format!(
        "this adapter was made for {}, but this is {}; hint: name the right model with --base PATH",
        describe_base(expected),
        describe_base(&found)
    );
    Err(ConvertError::source(path, problem))
}

/// Whether `model`, of which `found` is the description, is the one that `expected` describes, or its quantized form.
pub fn is_base(expected: &BaseModel, found: &BaseModel, model: &ModelDir) -> bool {
    let is_same = found.weights_sha256 == expected.weights_sha256
        && found.config_sha256 == expected.config_sha256;
    let is_rounded = model.card.made_from.as_ref() == Some(&expected.weights_sha256);
    (is_same || is_rounded) && found.tokenizer_sha256 == expected.tokenizer_sha256
}

/// A base model in messages: its path and the first digits of its hash.
///
/// ```
/// use nextword_model::BaseModel;
///
/// let base = BaseModel {
///     path_hint: "models/base".to_string(),
///     weights_sha256: "3f2a90bc".repeat(8),
///     ..BaseModel::default()
/// };
/// assert_eq!(nextword_convert::describe_base(&base), "`models/base` (3f2a90bc…)");
/// ```
pub fn describe_base(base: &BaseModel) -> String {
    let hash: String = base.weights_sha256.chars().take(SHOWN_DIGITS).collect();
    format!("`{}` ({hash}…)", base.path_hint.escape_debug())
}

/// Where the model at the path `hint` may be: there, or relative to a folder around the adapter in `path`, which has been
/// moved together with the model.
fn possible_paths(hint: &str, path: &Path) -> Vec<PathBuf> {
    let hint = Path::new(hint);
    let mut paths = vec![hint.to_path_buf()];
    if hint.is_relative() {
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        paths.extend(
            path.ancestors()
                .skip(1)
                .take(MAX_ANCESTORS)
                .map(|folder| folder.join(hint)),
        );
    }
    paths
}

/// The files and folders in `folder`, in the order of their names.
fn neighbors(folder: &Path) -> Vec<PathBuf> {
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    found.sort();
    found.truncate(MAX_NEIGHBORS);
    found
}

/// Opens the model in `place` if it is the expected one. Its weights are read only if it has the expected configuration
/// and tokenizer.
fn same_model(expected: &BaseModel, place: &Path) -> Option<ModelDir> {
    let has_config = || {
        let config = hash_file(&place.join("config.json"));
        config.is_ok_and(|config| config.hex() == expected.config_sha256)
    };
    let is_file = Path::new(&expected.path_hint)
        .extension()
        .is_some_and(|end| end == "gguf");
    let is_candidate = is_file && is_gguf(place) || has_config();
    let model = is_candidate.then(|| open_base(place).ok())??;
    let is_same = expected.has_small_files_of(&model).ok()? && expected.check(&model).is_ok();
    is_same.then_some(model)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{GgufType, export_gguf};

    fn letters() -> ModelDir {
        ModelDir::open("../../docs/models/letters".as_ref()).unwrap()
    }

    #[test]
    fn a_renamed_file_is_told_by_its_configuration_tokenizer_and_weights() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("renamed.gguf");
        export_gguf(&letters(), GgufType::F32, &path).unwrap();
        let mut expected = BaseModel::of(&open_gguf(&path).unwrap()).unwrap();
        expected.path_hint = "gone.gguf".to_string();
        assert!(same_model(&expected, &path).is_some());
        let hash = "0".repeat(64);
        let mut others = [expected.clone(), expected.clone(), expected];
        others[0].config_sha256.clone_from(&hash);
        others[1].tokenizer_sha256.clone_from(&hash);
        others[2].weights_sha256.clone_from(&hash);
        for other in &others {
            assert!(same_model(other, &path).is_none(), "{other:?}");
        }
    }
}
