//! References to models on the Hub: `hf:OWNER/NAME[@REVISION][:FILE]`.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use crate::HubError;

/// What a reference begins with.
const PREFIX: &str = "hf:";

/// Maximum length of the name of an owner or a repository.
const MAX_NAME: usize = 96;

/// A model on the Hub.
///
/// ```
/// use nextword_hub::HubReference;
///
/// let reference: HubReference = "hf:HuggingFaceTB/SmolLM2-135M@v1.0".parse()?;
/// assert_eq!((reference.repository.as_str(), reference.revision.as_str()), ("HuggingFaceTB/SmolLM2-135M", "v1.0"));
/// let file: HubReference = "hf:owner/models:q8/model.gguf".parse()?;
/// assert_eq!((file.revision.as_str(), file.file.as_deref()), ("main", Some("q8/model.gguf")));
/// assert!("hf:owner/../other".parse::<HubReference>().is_err());
/// # Ok::<(), nextword_hub::HubError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubReference {
    /// The owner and the name of the repository, separated by `/`; repositories of the Hub's first years have a name
    /// only.
    pub repository: String,
    /// A branch, a tag or a commit; `main` by default.
    pub revision: String,
    /// The path of a GGUF file in the repository. `None` stands for the model in safetensors format.
    pub file: Option<String>,
}

impl HubReference {
    /// The revision of references that do not name one.
    pub const DEFAULT_REVISION: &'static str = "main";

    /// Returns whether `text` is meant as a reference to the Hub, whether or not it is valid.
    ///
    /// ```
    /// assert!(nextword_hub::HubReference::is_reference("hf:owner/name"));
    /// assert!(!nextword_hub::HubReference::is_reference("models/hf"));
    /// ```
    pub fn is_reference(text: &str) -> bool {
        text.starts_with(PREFIX)
    }
}

impl fmt::Display for HubReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.repository)?;
        if self.revision != Self::DEFAULT_REVISION {
            write!(f, "@{}", self.revision)?;
        }
        match &self.file {
            Some(file) => write!(f, ":{file}"),
            None => Ok(()),
        }
    }
}

impl FromStr for HubReference {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        parse(text).map_err(|problem| HubError::Reference {
            reference: text.chars().take(200).collect(),
            problem,
        })
    }
}

fn parse(text: &str) -> Result<HubReference, String> {
    let rest = text.strip_prefix(PREFIX);
    let rest = rest.ok_or_else(|| format!("it does not begin with `{PREFIX}`"))?;
    // Neither repositories nor revisions contain a colon.
    let (model, file) = match rest.split_once(':') {
        Some((model, file)) => (model, Some(file)),
        None => (rest, None),
    };
    let (repository, revision) = match model.split_once('@') {
        Some((repository, revision)) => (repository, revision),
        None => (model, HubReference::DEFAULT_REVISION),
    };
    check_repository(repository)?;
    if !is_revision(revision) {
        return Err(format!("`{revision}` is not a branch, a tag or a commit"));
    }
    if let Some(file) = file {
        if !is_safe_path(file) {
            return Err(format!("`{file}` is not a path inside a repository"));
        }
        if !has_extension(file, "gguf") {
            return Err(format!(
                "`{file}` is not a .gguf file; without a file name, the safetensors are taken"
            ));
        }
    }
    Ok(HubReference {
        repository: repository.to_string(),
        revision: revision.to_string(),
        file: file.map(str::to_string),
    })
}

/// Checks the name of a repository by the Hub's rules.
fn check_repository(repository: &str) -> Result<(), String> {
    let is_name = |name: &str| {
        let is_inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let is_edge = |c: char| c.is_ascii_alphanumeric() || c == '_';
        (1..=MAX_NAME).contains(&name.len())
            && name.chars().all(is_inner)
            && name.starts_with(is_edge)
            && name.ends_with(is_edge)
    };
    let names: Vec<&str> = repository.split('/').collect();
    if names.len() > 2 || !names.iter().all(|name| is_name(name)) {
        return Err(format!(
            "`{repository}` is not the name of a repository (OWNER/NAME of ASCII letters, digits, `-`, `_` and `.`)"
        ));
    }
    if repository.contains("--") || repository.contains("..") || has_extension(repository, "git") {
        return Err(format!(
            "`{repository}` contains `--` or `..`, or ends with `.git`"
        ));
    }
    Ok(())
}

fn has_extension(name: &str, expected: &str) -> bool {
    let extension = Path::new(name).extension();
    extension.is_some_and(|extension| extension == expected)
}

/// Whether `revision` may be the name of a branch or a tag, or a commit, and may be used as a path.
fn is_revision(revision: &str) -> bool {
    let is_allowed =
        |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '+' | '#' | '=');
    is_safe_path(revision) && revision.len() <= 250 && revision.chars().all(is_allowed)
}

/// Whether `path` is a relative path that stays in its folder, on every system.
pub(crate) fn is_safe_path(path: &str) -> bool {
    let is_allowed =
        |c: char| !c.is_control() && !matches!(c, '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|');
    let is_name = |name: &str| {
        (1..=255).contains(&name.len()) && name.chars().any(|c| c != '.') && !name.ends_with(' ')
    };
    path.len() <= 1000 && path.chars().all(is_allowed) && path.split('/').all(is_name)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn valid_references_are_read_and_written_alike() {
        for (text, repository, revision, file) in [
            ("hf:a/b", "a/b", "main", None),
            ("hf:gpt2", "gpt2", "main", None),
            ("hf:A-1/b.c_d@main", "A-1/b.c_d", "main", None),
            ("hf:a/b@refs/pr/1", "a/b", "refs/pr/1", None),
            (
                "hf:a/b@0123456789abcdef0123456789abcdef01234567",
                "a/b",
                "0123456789abcdef0123456789abcdef01234567",
                None,
            ),
            ("hf:a/b:x.gguf", "a/b", "main", Some("x.gguf")),
            (
                "hf:a/b@v1.0:q4/x y.gguf",
                "a/b",
                "v1.0",
                Some("q4/x y.gguf"),
            ),
            ("hf:a/b:x@y.gguf", "a/b", "main", Some("x@y.gguf")),
        ] {
            let found: HubReference = text.parse().unwrap();
            assert_eq!(found.repository, repository);
            assert_eq!(found.revision, revision);
            assert_eq!(found.file.as_deref(), file);
            assert_eq!(found.to_string().parse::<HubReference>().unwrap(), found);
        }
    }

    #[test]
    fn invalid_references_are_rejected_with_the_grammar() {
        let long = format!("hf:a/{}", "b".repeat(97));
        for text in [
            "",
            "a/b",
            "hf:",
            "hf:/",
            "hf:a/",
            "hf:/b",
            "hf:a/b/c",
            "hf://a/b",
            "hf:..",
            "hf:a/..",
            "hf:../b",
            "hf:a--b/c",
            "hf:a/b.git",
            "hf:-a/b",
            "hf:a/b-",
            "hf:.a/b",
            "hf:a b/c",
            "hf:ä/b",
            "hf:a\\b",
            "hf:a/b@",
            "hf:a/b@..",
            "hf:a/b@/x",
            "hf:a/b@x/../../y",
            "hf:a/b@x y",
            "hf:a/b@x\\y",
            "hf:a/b@x\u{0}",
            "hf:a/b:",
            "hf:a/b:x",
            "hf:a/b:model.safetensors",
            "hf:a/b:../x.gguf",
            "hf:a/b:/x.gguf",
            "hf:a/b:x//y.gguf",
            "hf:a/b:c:x.gguf",
            "hf:a/b:x\\y.gguf",
            "hf:a/b:x\n.gguf",
            long.as_str(),
        ] {
            let error = text.parse::<HubReference>().unwrap_err().to_string();
            assert!(error.contains("hf:OWNER/NAME"), "{text:?}: {error}");
        }
    }

    #[test]
    fn paths_that_leave_their_folder_are_not_safe() {
        for path in [
            "", ".", "..", "...", "../x", "x/..", "x/./y", "/x", "x/", "x//y", "a\\b", "c:x",
            "x\r", "a?", "x \u{0}", "x /y",
        ] {
            assert!(!is_safe_path(path), "{path:?}");
        }
        for path in ["x", "x/y.z", ".hidden", "a b", "ü.txt", "..x", "a/b/c"] {
            assert!(is_safe_path(path), "{path:?}");
        }
    }
}
