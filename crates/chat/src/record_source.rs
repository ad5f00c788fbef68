//! Where training data comes from.

use std::fmt;
use std::path::PathBuf;

/// Where a record is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RecordSource {
    /// The file.
    pub path: PathBuf,
    /// The line, or the position in the list of a `.json` file, counted from 1.
    pub number: u64,
    /// Whether the file is a list, not lines.
    pub is_list: bool,
}

impl fmt::Display for RecordSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_list { "record" } else { "line" };
        write!(f, "{}, {kind} {}", self.path.display(), self.number)
    }
}
