//! From what a user points at to the record that is meant.

use std::path::{Path, PathBuf};

use nextword_model::{DeviceName, Record};

use crate::exit;

/// Opens the record in `path`: a record or checkpoint itself, or that of a run's folder, the best
/// one unless `last` asks for the newest.
///
/// # Errors
/// If there is none, with what stands there instead.
pub(crate) fn open(path: &Path, last: bool) -> anyhow::Result<Record> {
    Ok(Record::open(&find(path, last)?)?)
}

/// Opens the device of that name.
///
/// # Errors
/// If there is no such device or it does not work.
pub(crate) fn device(name: &str) -> anyhow::Result<burn::tensor::Device> {
    Ok(name.parse::<DeviceName>()?.open()?)
}

/// Whether `path` is a run's folder.
pub(crate) fn is_run(path: &Path) -> bool {
    path.join("run.toml").is_file()
}

/// Whether this is the configuration of a Hugging Face folder, which names a type.
fn is_foreign(config: &Path) -> bool {
    let Ok(text) = std::fs::read_to_string(config) else {
        return false;
    };
    let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    value.get("model_type").is_some() || value.get("architectures").is_some()
}

fn find(path: &Path, last: bool) -> anyhow::Result<PathBuf> {
    let shown = path.display();
    let config = path.join("config.json");
    if config.is_file() {
        if is_foreign(&config) {
            return Err(exit::bad_file(format!(
                "`{shown}` is a Hugging Face folder and no record; hint: make one of it by `nextword import \
                 {shown} --out RECORD`"
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
        // Without validation data there is no best record.
        return order
            .map(|name| path.join(name))
            .into_iter()
            .find(|record| record.join("model.safetensors").is_file())
            .ok_or_else(|| {
                exit::bad_file(format!(
                    "`{shown}` is a run that has saved no record yet; hint: let it train, or \
                     continue it with `nextword resume {shown}`"
                ))
            });
    }
    let problem = if path.is_dir() {
        "is neither a record nor a run: it holds no config.json and no run.toml"
    } else if path.exists() {
        "is a file; a record is a folder with config.json and model.safetensors in it"
    } else {
        "does not exist"
    };
    Err(exit::bad_file(format!(
        "`{shown}` {problem}; hint: give the folder of a run, as in runs/NAME, or of a record"
    )))
}

/// `\n`, `\t` and `\\` in what a user typed for a separator.
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
    fn separators_understand_line_breaks_and_keep_the_rest() {
        assert_eq!(unescape(r"\n\n"), "\n\n");
        assert_eq!(unescape(r"<|end|>\t"), "<|end|>\t");
        assert_eq!(unescape(r"a\\n\x\"), r"a\n\x\");
    }

    #[test]
    fn a_path_that_is_no_record_says_what_it_is() {
        let missing = find(Path::new("no/such/folder"), false).map_err(|e| e.to_string());
        assert!(missing.is_err_and(|e| e.contains("does not exist")));
        let folder = find(Path::new(env!("CARGO_MANIFEST_DIR")), false).map_err(|e| e.to_string());
        assert!(folder.is_err_and(|e| e.contains("neither a record nor a run")));
    }
}
