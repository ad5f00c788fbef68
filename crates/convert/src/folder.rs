//! The files of a foreign model.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use nextword_model::ModelError;
use nextword_model::weights::TensorFile;
use serde_json::Value;

use crate::{ConvertError, json};

const WHOLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// More files than any model is cut into.
const MOST_SHARDS: usize = 4096;

/// The tensors of one or several safetensors files.
pub(crate) struct Tensors {
    files: Vec<TensorFile>,
    /// Which file holds a name.
    home: BTreeMap<String, usize>,
}

impl Tensors {
    /// Opens `model.safetensors`, or the files that the index names.
    pub(crate) fn open(folder: &Path) -> Result<Self, ConvertError> {
        let whole = folder.join(WHOLE);
        let index = folder.join(INDEX);
        if whole.is_file() {
            return Self::gather(folder, vec![TensorFile::open(&whole)?], None);
        }
        let Some(value) = json::value(&index)? else {
            return Err(nothing_to_read(folder));
        };
        let Some(map) = value["weight_map"].as_object() else {
            return Err(ConvertError::source(&index, "has no `weight_map`"));
        };
        let names: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
        if names.is_empty() || names.len() > MOST_SHARDS || map.values().any(|v| !v.is_string()) {
            let problem = format!("names {} files for its tensors", names.len());
            return Err(ConvertError::source(&index, problem));
        }
        let open = |name: &&str| {
            // A name is a name, not a way out of the folder.
            let is_plain = Path::new(name).file_name() == Some(name.as_ref());
            if !is_plain
                || name.contains(['/', '\\'])
                || !has_ending(Path::new(name), "safetensors")
            {
                let problem = format!("names {name:?}, which is no safetensors file of its folder");
                return Err(ConvertError::source(&index, problem));
            }
            Ok(TensorFile::open(&folder.join(name))?)
        };
        let files: Result<Vec<_>, _> = names.iter().map(open).collect();
        let listed = map.keys().map(String::as_str).collect();
        Self::gather(folder, files?, Some((&index, listed)))
    }

    fn gather(
        folder: &Path,
        files: Vec<TensorFile>,
        index: Option<(&Path, BTreeSet<&str>)>,
    ) -> Result<Self, ConvertError> {
        let mut home = BTreeMap::new();
        for (number, file) in files.iter().enumerate() {
            for name in file.names() {
                if home.insert(name.to_string(), number).is_some() {
                    let problem = format!("`{name}` stands in two of its files");
                    return Err(ConvertError::source(folder, problem));
                }
            }
        }
        if let Some((index, listed)) = index
            && let Some(name) = listed.iter().find(|name| !home.contains_key(**name))
        {
            let problem = format!("lists `{name}`, which none of its files holds");
            return Err(ConvertError::source(index, problem));
        }
        Ok(Self { files, home })
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.home.keys().map(String::as_str)
    }

    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.file(name)?.shape(name)
    }

    pub(crate) fn not_floats(&self, name: &str) -> Option<String> {
        self.file(name)?.not_floats(name)
    }

    pub(crate) fn values(&self, name: &str) -> Result<Vec<f32>, ConvertError> {
        let missing = || ModelError::Format {
            path: PathBuf::from(name),
            problem: "is no tensor of this model".to_string(),
        };
        Ok(self.file(name).ok_or_else(missing)?.values(name)?)
    }

    fn file(&self, name: &str) -> Option<&TensorFile> {
        self.files.get(*self.home.get(name)?)
    }
}

/// What a folder that we write, or may replace, can hold.
const OURS: [&str; 8] = [
    "config.json",
    "card.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    INDEX,
];

/// Makes sure that writing the folder `to` takes nothing away but an earlier model, and not the one
/// in `from` that is read.
pub(crate) fn check_place(to: &Path, from: &Path) -> Result<(), ConvertError> {
    let Ok(place) = to.canonicalize() else {
        return Ok(()); // There is nothing yet.
    };
    if from
        .canonicalize()
        .is_ok_and(|from| from.starts_with(&place))
    {
        let problem = "is, or holds, the model that is read; hint: name another folder";
        return Err(ConvertError::source(to, problem));
    }
    let entries = std::fs::read_dir(to).map_err(ConvertError::io(to, "write"))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let known = name.to_str().is_some_and(|name| {
            let is_tensors = name.starts_with("model") && name.ends_with(".safetensors");
            is_tensors || OURS.contains(&name)
        });
        if !known {
            let name = name.display();
            let problem =
                format!("holds `{name}`, which is no part of a model; hint: name a new folder");
            return Err(ConvertError::source(to, problem));
        }
    }
    Ok(())
}

fn has_ending(path: &Path, ending: &str) -> bool {
    path.extension().is_some_and(|found| found == ending)
}

/// Why a folder gives no model. A pickle is a program: it is named and left shut.
pub(crate) fn nothing_to_read(folder: &Path) -> ConvertError {
    let mut pickles: Vec<String> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| is_pickle(path))
        .filter_map(|path| Some(path.file_name()?.to_str()?.to_string()))
        .collect();
    pickles.sort_unstable();
    match pickles.first() {
        Some(pickle) => ConvertError::source(folder, refusal(pickle)),
        None => ConvertError::source(
            folder,
            format!(
                "holds no {WHOLE}; hint: give a folder with config.json, {WHOLE} (or its index) and tokenizer.json"
            ),
        ),
    }
}

/// Whether files with such a name are pickles.
pub(crate) fn is_pickle(path: &Path) -> bool {
    let endings = ["bin", "pt", "pth", "ckpt", "pkl"];
    endings.iter().any(|ending| has_ending(path, ending))
}

/// What is said of a pickle called `name`, and how it is converted where it is trusted.
pub(crate) fn refusal(name: &str) -> String {
    let load = format!("torch.load('{name}', map_location='cpu', weights_only=True)");
    let save = "safetensors.torch.save_file({k: v.clone().contiguous() for k, v in d.items()}, \
                'model.safetensors')";
    let python = format!("python -c \"import torch, safetensors.torch; d = {load}; {save}\"");
    let nanogpt = if has_ending(Path::new(name), "bin") {
        String::new()
    } else {
        format!(
            "nanoGPT's with scripts/nanogpt_to_hf.py of nextword's repository (`python \
             nanogpt_to_hf.py {name} FOLDER --meta meta.pkl`, or --tokenizer where there is no meta.pkl), another model's with "
        )
    };
    format!(
        "`{name}` is a pickle, which is a program and is never opened here; hint: convert it where \
         you trust it: {nanogpt}{python}"
    )
}
