//! The JSON files of model and adapter folders.

use std::fs;
use std::path::Path;

use nextword_base::atomic;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::ModelError;

/// Maximum size in bytes of the JSON files in a model folder.
const MAX_JSON_BYTES: u64 = 1 << 20;

/// Writes `bytes` to `path` atomically: to a file beside it, synced, then renamed. The target of a
/// symbolic link is replaced or created, not the link. A pipe or a device is written to directly.
///
/// # Errors
/// [`ModelError::Io`] with the operating system's reason.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), ModelError> {
    atomic::write(path, bytes).map_err(|source| ModelError::Io {
        path: path.to_path_buf(),
        action: "write",
        source,
    })
}

pub(crate) fn to_json(value: &impl Serialize) -> Vec<u8> {
    // These types contain only numbers, strings and lists, so serialization cannot fail.
    let mut json = serde_json::to_vec_pretty(value).unwrap_or_default();
    json.push(b'\n');
    json
}

/// Whether `folder` is a model of Hugging Face's transformers: its `config.json` names a model type.
///
/// ```
/// use std::path::Path;
/// use nextword_model::is_hugging_face_folder;
///
/// assert!(is_hugging_face_folder(Path::new("../../tests/fixtures/hf/llama")));
/// assert!(!is_hugging_face_folder(Path::new("../../docs/models/letters")));
/// ```
pub fn is_hugging_face_folder(folder: &Path) -> bool {
    let config = folder.join("config.json");
    let is_small = fs::metadata(&config).is_ok_and(|file| file.len() <= MAX_JSON_BYTES);
    let text = is_small.then(|| fs::read_to_string(config).ok()).flatten();
    let value: serde_json::Value = text
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default();
    value.get("model_type").is_some() || value.get("architectures").is_some()
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, ModelError> {
    let io = |source| ModelError::Io {
        path: path.to_path_buf(),
        action: "read",
        source,
    };
    let format = |problem: String| ModelError::Format {
        path: path.to_path_buf(),
        problem,
    };
    let len = fs::metadata(path).map_err(io)?.len();
    if len > MAX_JSON_BYTES {
        return Err(format(format!(
            "too large for a JSON file of a model folder: {len} bytes (limit: {MAX_JSON_BYTES})"
        )));
    }
    let bytes = fs::read(path).map_err(io)?;
    serde_json::from_slice(&bytes).map_err(|e| {
        format(format!(
            "is damaged or not a file of a nextword model ({e}); hint: copy or save the model again"
        ))
    })
}
