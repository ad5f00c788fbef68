//! The files of a foreign model.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use nextword_model::weights::TensorFile;
use nextword_model::{ModelError, TEMPLATE_FOLDER};
use serde_json::Value;

use crate::{ConvertError, json};

const SINGLE_FILE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// More shards than any model has.
const MAX_SHARDS: usize = 4096;

/// The tensors of one or several safetensors files.
pub(crate) struct Tensors {
    files: Vec<TensorFile>,
    /// The index of the file that contains each tensor, and its name there. The keys are names without
    /// wrappers.
    file_index: BTreeMap<String, (usize, String)>,
}

/// Modules that PyTorch wraps around others, whose names end up in those of parameters: of
/// `torch.compile`, FSDP and activation checkpointing.
const WRAPPERS: [&str; 3] = [
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
];

/// The name of a parameter without the names of wrappers: `module` (data-parallel training) at its
/// beginning, and [`WRAPPERS`] anywhere.
fn without_wrappers(name: &str) -> String {
    let parts = name.split('.').filter(|part| !WRAPPERS.contains(part));
    let parts: Vec<&str> = parts.skip_while(|part| *part == "module").collect();
    parts.join(".")
}

impl Tensors {
    /// Opens `model.safetensors`, or the files that the index names.
    pub(crate) fn open(folder: &Path) -> Result<Self, ConvertError> {
        let single = folder.join(SINGLE_FILE);
        let index = folder.join(INDEX);
        if single.is_file() {
            return Self::from_files(folder, vec![TensorFile::open(&single)?], None);
        }
        let Some(value) = json::read_value(&index)? else {
            return Err(no_model_found(folder));
        };
        let Some(map) = value["weight_map"].as_object() else {
            return Err(ConvertError::source(&index, "has no `weight_map`"));
        };
        let names: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
        if names.is_empty() || names.len() > MAX_SHARDS || map.values().any(|v| !v.is_string()) {
            let problem = format!("`weight_map` must contain 1 to {MAX_SHARDS} file names");
            return Err(ConvertError::source(&index, problem));
        }
        let open = |name: &&str| {
            // Prevent paths that leave the folder.
            let is_file_name = Path::new(name).file_name() == Some(name.as_ref());
            if !is_file_name
                || name.contains(['/', '\\'])
                || !has_extension(Path::new(name), "safetensors")
            {
                let problem =
                    format!("lists {name:?}, which is not a safetensors file in the same folder");
                return Err(ConvertError::source(&index, problem));
            }
            let path = folder.join(name);
            if !path.is_file() {
                let problem = format!("lists `{name}`, which is missing; hint: download it, too");
                return Err(ConvertError::source(&index, problem));
            }
            Ok(TensorFile::open(&path)?)
        };
        let files: Result<Vec<_>, _> = names.iter().map(open).collect();
        let listed = map.keys().map(String::as_str).collect();
        Self::from_files(folder, files?, Some((&index, listed)))
    }

    fn from_files(
        folder: &Path,
        files: Vec<TensorFile>,
        index: Option<(&Path, BTreeSet<&str>)>,
    ) -> Result<Self, ConvertError> {
        let mut file_index = BTreeMap::new();
        for (number, file) in files.iter().enumerate() {
            for name in file.names() {
                let plain = without_wrappers(name);
                let entry = (number, name.to_string());
                if let Some((_, other)) = file_index.insert(plain, entry) {
                    let problem = if other == name {
                        format!("two files contain `{name}`")
                    } else {
                        format!("contains `{other}` and `{name}`, which are the same tensor")
                    };
                    return Err(ConvertError::source(folder, problem));
                }
            }
        }
        if let Some((index, listed)) = index
            && let Some(name) = listed
                .iter()
                .find(|name| !file_index.contains_key(&without_wrappers(name)))
        {
            let problem =
                format!("lists `{name}`, but no file contains it; hint: download the model again");
            return Err(ConvertError::source(index, problem));
        }
        Ok(Self { files, file_index })
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.file_index.keys().map(String::as_str)
    }

    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        let (file, name) = self.find(name)?;
        file.shape(name)
    }

    /// The problem with the type of tensor `name`, if it does not contain floats.
    pub(crate) fn check_float(&self, name: &str) -> Option<String> {
        let (file, name) = self.find(name)?;
        file.check_float(name)
    }

    pub(crate) fn values(&self, name: &str) -> Result<Vec<f32>, ConvertError> {
        let missing = || ModelError::Format {
            path: PathBuf::from(name),
            problem: "is not a tensor of this model".to_string(),
        };
        let (file, name) = self.find(name).ok_or_else(missing)?;
        Ok(file.values(name)?)
    }

    /// The file that contains the tensor `name`, and its name there.
    fn find(&self, name: &str) -> Option<(&TensorFile, &str)> {
        let (number, name) = self.file_index.get(name)?;
        Some((self.files.get(*number)?, name))
    }
}

/// Files of a model folder that may be overwritten.
const OUR_FILES: [&str; 9] = [
    "config.json",
    "card.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    TEMPLATE_FOLDER,
    INDEX,
];

/// Files of an adapter folder, ours or of PEFT, that may be overwritten.
const ADAPTER_FILES: [&str; 7] = [
    "adapter.json",
    "adapter.safetensors",
    "adapter_config.json",
    "adapter_model.safetensors",
    "card.json",
    "chat_template.jinja",
    TEMPLATE_FOLDER,
];

/// Checks that writing the folder `to` overwrites nothing except an earlier model, and not the model
/// in `from`.
pub(crate) fn check_destination(to: &Path, from: &Path) -> Result<(), ConvertError> {
    check_folder(to, from, "model", |name| {
        let is_tensors = name.starts_with("model") && name.ends_with(".safetensors");
        is_tensors || OUR_FILES.contains(&name)
    })
}

/// As [`check_destination`], for an adapter.
pub(crate) fn check_adapter_destination(to: &Path, from: &Path) -> Result<(), ConvertError> {
    let is_peft = to.join("adapter_config.json").is_file();
    check_folder(to, from, "adapter", |name| {
        ADAPTER_FILES.contains(&name) || is_peft && name == "README.md"
    })
}

/// Checks that writing the folder `to` overwrites nothing except files of a `kind` that `is_known` recognizes.
fn check_folder(
    to: &Path,
    from: &Path,
    kind: &str,
    is_known: impl Fn(&str) -> bool,
) -> Result<(), ConvertError> {
    let Ok(destination) = to.canonicalize() else {
        return Ok(()); // It does not exist yet.
    };
    if from
        .canonicalize()
        .is_ok_and(|from| from.starts_with(&destination))
    {
        let problem =
            format!("is, or contains, the {kind} that is read; hint: choose another folder");
        return Err(ConvertError::source(to, problem));
    }
    let entries = std::fs::read_dir(to).map_err(ConvertError::io(to, "write"))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        if !name.to_str().is_some_and(&is_known) {
            let (name, article) = (name.display(), if kind == "adapter" { "an" } else { "a" });
            let problem = format!(
                "contains `{name}`, which does not belong to {article} {kind}; hint: choose a new folder"
            );
            return Err(ConvertError::source(to, problem));
        }
    }
    Ok(())
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

/// The error for a folder without a model. Names a pickle file if there is one.
pub(crate) fn no_model_found(folder: &Path) -> ConvertError {
    let mut pickles: Vec<String> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| is_pickle(path))
        .filter_map(|path| Some(path.file_name()?.to_str()?.to_string()))
        .collect();
    pickles.sort_unstable();
    if folder.join("run.toml").is_file() {
        let problem = "is a run folder of nextword; hint: use it as it is, with `nextword generate`, for example";
        return ConvertError::source(folder, problem);
    }
    match pickles.first() {
        Some(pickle) => ConvertError::source(folder, pickle_error(pickle)),
        None => ConvertError::source(
            folder,
            format!(
                "no {SINGLE_FILE} found; hint: pass a folder with config.json, {SINGLE_FILE} (or its index) and tokenizer.json"
            ),
        ),
    }
}

/// Whether the file name is that of a pickle.
pub(crate) fn is_pickle(path: &Path) -> bool {
    let extensions = ["bin", "pt", "pth", "ckpt", "pkl"];
    extensions
        .iter()
        .any(|extension| has_extension(path, extension))
}

/// The error message for the pickle `name`, with instructions to convert it.
pub(crate) fn pickle_error(name: &str) -> String {
    let load = format!("torch.load('{name}', map_location='cpu', weights_only=True)");
    let save = "safetensors.torch.save_file({k: v.clone().contiguous() for k, v in d.items()}, \
                'model.safetensors')";
    let python = format!("python -c \"import torch, safetensors.torch; d = {load}; {save}\"");
    let nanogpt = if has_extension(Path::new(name), "bin") {
        String::new()
    } else {
        format!(
            "nanoGPT checkpoints with scripts/nanogpt_to_hf.py of nextword's repository (`python \
             nanogpt_to_hf.py {name} FOLDER --meta meta.pkl`, or --tokenizer without a meta.pkl), other models with "
        )
    };
    format!(
        "`{name}` is a pickle file, which can run code and is therefore never opened; hint: if you trust it, \
         convert it: {nanogpt}{python}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrappers_are_removed_from_names() {
        for (name, plain) in [
            ("lm_head.weight", "lm_head.weight"),
            ("_orig_mod.lm_head.weight", "lm_head.weight"),
            ("module.lm_head.weight", "lm_head.weight"),
            ("module._orig_mod.lm_head.weight", "lm_head.weight"),
            ("_orig_mod.module.module.norm.weight", "norm.weight"),
            (
                "model.layers.3._orig_mod.mlp._checkpoint_wrapped_module.up.weight",
                "model.layers.3.mlp.up.weight",
            ),
            ("model.module.weight", "model.module.weight"),
            ("modules.weight", "modules.weight"),
        ] {
            assert_eq!(without_wrappers(name), plain);
        }
    }
}
