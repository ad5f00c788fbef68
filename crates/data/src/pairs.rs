//! Pairs of a source and a target, such as a sentence and its translation.
//!
//! Files are UTF-8 text with a pair on each line: two columns separated by a tab, or for `.jsonl` files an object
//! with the keys `source` and `target` (or `src` and `tgt`, `input` and `output`). Blank lines are skipped.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

use nextword_base::git_lfs;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::corpus::{STATQUEST_PAIRS, Translations};
use crate::error::DataError;

/// Maximum length of a line.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// Maximum size of all files together: pairs are in memory.
const MAX_BYTES: u64 = 1 << 30;

/// The name of the pairs of `StatQuest` in the description of a run's data.
const STATQUEST_NAME: &str = "builtin statquest pairs";

/// Keys of source and target in a JSON-lines file.
const KEYS: [[&str; 2]; 3] = [["source", "target"], ["src", "tgt"], ["input", "output"]];

/// A source and the target that belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// What is given.
    pub source: String,
    /// What the model is to generate.
    pub target: String,
    /// Where the pair comes from, for messages: "file, line 3".
    pub place: String,
}

/// Which tokens of a pair are trained, where source and target are one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossOn {
    /// The target, with the token that ends it.
    #[default]
    Target,
    /// All tokens after the first, those of the source too, as in `StatQuest`'s decoder-only Transformer.
    Both,
}

/// Where pairs come from.
///
/// ```
/// use nextword_data::PairSources;
///
/// let sources = PairSources { paths: vec!["statquest".into()], ..PairSources::default() };
/// let pairs = sources.read()?;
/// assert_eq!((pairs[0].source.as_str(), pairs[0].target.as_str()), ("let's go", "vamos"));
/// # Ok::<(), nextword_data::DataError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PairSources {
    /// Files, or names of built-in pairs: `translation` for sentences of the bilingual grammar, `statquest`.
    pub paths: Vec<PathBuf>,
    /// Seed of the bilingual grammar.
    pub seed: u64,
    /// Number of its sentences.
    pub sentences: usize,
}

/// The built-in pairs that a path can name instead of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BuiltinPairs {
    /// [`Translations`].
    Translation,
    /// [`STATQUEST_PAIRS`].
    Statquest,
}

impl BuiltinPairs {
    fn from_path(path: &Path) -> Option<Self> {
        match path.to_str()? {
            "translation" => Some(Self::Translation),
            "statquest" => Some(Self::Statquest),
            _ => None,
        }
    }
}

/// Whether `path` names built-in pairs, and not a file.
///
/// ```
/// use nextword_data::is_pairs_name;
///
/// assert!(is_pairs_name("translation".as_ref()) && is_pairs_name("statquest".as_ref()));
/// assert!(!is_pairs_name("./translation".as_ref()));
/// ```
pub fn is_pairs_name(path: &Path) -> bool {
    BuiltinPairs::from_path(path).is_some()
}

impl PairSources {
    /// Reads all pairs.
    ///
    /// # Errors
    /// [`DataError::Missing`], [`DataError::Read`]; [`DataError::JsonLine`] with the line that is not a pair;
    /// [`DataError::Config`] for more than 1 GiB.
    pub fn read(&self) -> Result<Vec<Pair>, DataError> {
        let mut pairs = Vec::new();
        let mut remaining = MAX_BYTES;
        for path in &self.paths {
            match BuiltinPairs::from_path(path) {
                Some(BuiltinPairs::Translation) => {
                    let corpus = self.translations();
                    pairs.extend(numbered(corpus.iter(), &corpus.name()));
                }
                Some(BuiltinPairs::Statquest) => {
                    let texts = STATQUEST_PAIRS.iter();
                    let texts = texts.map(|(source, target)| ((*source).into(), (*target).into()));
                    pairs.extend(numbered(texts, STATQUEST_NAME));
                }
                None => read_file(path, &mut remaining, &mut pairs)?,
            }
        }
        Ok(pairs)
    }

    /// Describes the sources, for the model card.
    ///
    /// ```
    /// use nextword_data::PairSources;
    ///
    /// let sources = PairSources { paths: vec!["translation".into()], seed: 0, sentences: 50 };
    /// assert_eq!(sources.name(), "builtin translation, seed 0, 50 sentences");
    /// ```
    pub fn name(&self) -> String {
        let names = self.paths.iter();
        let names = names.map(|path| match BuiltinPairs::from_path(path) {
            Some(BuiltinPairs::Translation) => self.translations().name(),
            Some(BuiltinPairs::Statquest) => STATQUEST_NAME.to_string(),
            None => path.display().to_string(),
        });
        names.collect::<Vec<_>>().join(", ")
    }

    fn translations(&self) -> Translations {
        Translations::new(self.seed, self.sentences)
    }
}

fn numbered(
    texts: impl Iterator<Item = (String, String)>,
    name: &str,
) -> impl Iterator<Item = Pair> {
    texts.zip(1..).map(move |((source, target), number)| Pair {
        source,
        target,
        place: format!("{name}, pair {number}"),
    })
}

/// Appends the pairs of a file; `remaining` bytes may be read.
fn read_file(path: &Path, remaining: &mut u64, pairs: &mut Vec<Pair>) -> Result<(), DataError> {
    let failed = |error| DataError::read(path, error);
    let is_json = path
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("jsonl"));
    let mut reader = BufReader::new(File::open(path).map_err(failed)?);
    let mut bytes = Vec::new();
    for line in 1_u64.. {
        bytes.clear();
        let mut limited = reader.by_ref().take(MAX_LINE_BYTES + 1);
        let count = limited.read_until(b'\n', &mut bytes).map_err(failed)? as u64;
        if count == 0 {
            return Ok(());
        }
        let problem = |reason: String| DataError::JsonLine {
            path: path.to_path_buf(),
            line,
            reason,
        };
        if count > MAX_LINE_BYTES {
            return Err(problem(
                "is longer than 1 MiB; hint: give shorter pairs".to_string(),
            ));
        }
        *remaining = remaining.checked_sub(count).ok_or_else(|| {
            DataError::config("the pairs have more than 1 GiB; hint: give fewer of them")
        })?;
        let start = usize::from(line == 1 && bytes.starts_with(b"\xEF\xBB\xBF")) * 3;
        let text = std::str::from_utf8(&bytes[start..])
            .map_err(|_| problem("is not UTF-8 text; hint: convert the file".to_string()))?;
        if line == 1 && git_lfs::is_pointer(text.as_bytes()) {
            return Err(problem(git_lfs::POINTER_PROBLEM.to_string()));
        }
        let text = text.trim_end_matches(['\n', '\r']);
        if text.trim().is_empty() {
            continue;
        }
        let [source, target] = if is_json {
            json_pair(text)
        } else {
            tsv_pair(text)
        }
        .map_err(problem)?;
        pairs.push(Pair {
            source,
            target,
            place: format!("{}, line {line}", path.display()),
        });
    }
    Ok(())
}

/// The two columns of a line.
fn tsv_pair(line: &str) -> Result<[String; 2], String> {
    let columns: Vec<&str> = line.split('\t').collect();
    let [source, target] = columns[..] else {
        return Err(format!(
            "has {} in place of 2, source and target separated by a tab; hint: correct the line, or use a .jsonl file",
            nextword_base::count(columns.len() as u64, "column")
        ));
    };
    non_empty([source, target])
}

/// Source and target of an object.
fn json_pair(line: &str) -> Result<[String; 2], String> {
    let value: Value = serde_json::from_str(line)
        .map_err(|error| format!("is not JSON ({error}); hint: give an object on each line"))?;
    let texts = |keys: &[&str; 2]| {
        let [source, target] = keys.map(|key| value.get(key).and_then(Value::as_str));
        Some([source?, target?])
    };
    match KEYS.iter().find_map(texts) {
        Some(pair) => non_empty(pair),
        None => Err(
            "has no texts `source` and `target` (or `src` and `tgt`, `input` and `output`); hint: rename its keys"
                .to_string(),
        ),
    }
}

fn non_empty(pair: [&str; 2]) -> Result<[String; 2], String> {
    let pair = pair.map(str::trim);
    match pair.iter().position(|text| text.is_empty()) {
        Some(0) => Err("has an empty source; hint: remove the line".to_string()),
        Some(_) => Err("has an empty target; hint: remove the line".to_string()),
        None => Ok(pair.map(str::to_string)),
    }
}

/// Resolves the paths of files against `base`; names of built-in pairs stay as they are.
pub(crate) fn resolve_paths(pairs: &mut [PathBuf], base: &Path) {
    for path in pairs.iter_mut().filter(|path| !is_pairs_name(path)) {
        if path.is_relative() {
            *path = base.join(&path);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(name: &str, content: &[u8]) -> Result<Vec<(String, String)>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let sources = PairSources {
            paths: vec![path],
            ..PairSources::default()
        };
        let pairs = sources.read().map_err(|error| error.to_string())?;
        let texts = pairs.into_iter().map(|pair| (pair.source, pair.target));
        Ok(texts.collect())
    }

    #[test]
    fn files_of_both_formats_have_the_same_pairs() {
        let expected = Ok(vec![
            ("to go".to_string(), "ir".to_string()),
            ("let's go".to_string(), "vamos".to_string()),
        ]);
        let tsv = b"\xEF\xBB\xBFto go\tir\r\n\r\nlet's go\tvamos";
        assert_eq!(read("a.tsv", tsv), expected);
        let jsonl = br#"{"source": "to go", "target": "ir"}
            {"src": "let's go", "tgt": "vamos", "id": 3}"#;
        assert_eq!(read("a.jsonl", jsonl), expected);
    }

    #[test]
    fn lines_that_are_not_pairs_are_errors_with_their_number() {
        let error = |name, content: &[u8]| read(name, content).unwrap_err();
        let tsv = |content: &str| error("a.tsv", content.as_bytes());
        assert!(tsv("a\tb\nonly one").contains("line 2: has 1 column in place of 2"));
        assert!(tsv("a\tb\tc").contains("line 1: has 3 columns"));
        assert!(tsv("a\tb\n\tb").contains("line 2: has an empty source"));
        assert!(tsv("a\t ").contains("has an empty target"));
        assert!(error("a.tsv", b"a\t\xFF").contains("not UTF-8"));
        assert!(error("a.jsonl", b"{\"source\": \"a\"}").contains("no texts"));
        assert!(error("a.jsonl", b"{\"source\": 1, \"target\": \"b\"}").contains("no texts"));
        assert!(error("a.jsonl", b"a\tb").contains("is not JSON"));
        let long = vec![b'a'; MAX_LINE_BYTES as usize + 5];
        assert!(error("a.tsv", &long).contains("longer than 1 MiB"));
    }
}
