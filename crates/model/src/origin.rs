//! Where an imported model comes from.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The revision of a repository on the Hugging Face Hub that a model was imported from.
///
/// ```
/// use nextword_model::ModelOrigin;
///
/// let origin = ModelOrigin {
///     repository: "owner/name".to_string(),
///     commit: "0123456789abcdef0123456789abcdef01234567".to_string(),
///     file: Some("name-q8_0.gguf".to_string()),
/// };
/// assert_eq!(origin.to_string(), "hf:owner/name@0123456789abcdef0123456789abcdef01234567:name-q8_0.gguf");
/// assert_eq!(origin.name(), "name");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelOrigin {
    /// The owner and the name of the repository, separated by `/`.
    pub repository: String,
    /// The commit, as 40 hexadecimal digits.
    pub commit: String,
    /// The file, if the model is one file of the repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

impl ModelOrigin {
    /// The name of the repository without its owner.
    pub fn name(&self) -> &str {
        let name = self.repository.rsplit('/').next();
        name.unwrap_or(&self.repository)
    }
}

impl fmt::Display for ModelOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf:{}@{}", self.repository, self.commit)?;
        match &self.file {
            Some(file) => write!(f, ":{file}"),
            None => Ok(()),
        }
    }
}
