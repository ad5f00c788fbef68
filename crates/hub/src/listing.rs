//! The Hub's list of the files of a revision.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::cache::{MAX_FILES, is_commit};
use crate::reference::is_safe_path;

/// Maximum size in bytes of the list.
pub(crate) const MAX_BYTES: u64 = 32 << 20;

/// The files of a revision.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) commit: String,
    /// The paths of the files, with their sizes if the server tells them. Paths that would leave a folder are left
    /// out.
    pub(crate) files: BTreeMap<String, Option<u64>>,
}

#[derive(Deserialize)]
struct ModelInfo {
    sha: Option<String>,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    #[serde(default)]
    size: Option<u64>,
}

impl Listing {
    /// Parses the answer of `/api/models/REPOSITORY/revision/REVISION`.
    ///
    /// # Errors
    /// What is wrong, to follow the address.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, String> {
        let hint = "hint: check HF_ENDPOINT, and whether a proxy asks for a login";
        let info: ModelInfo = serde_json::from_slice(json)
            .map_err(|error| format!("does not describe a model ({error}); {hint}"))?;
        let commit = info.sha.filter(|sha| is_commit(sha));
        let commit = commit.ok_or_else(|| format!("names no commit; {hint}"))?;
        if info.siblings.len() > MAX_FILES {
            let count = info.siblings.len();
            return Err(format!(
                "lists {count} files, and the maximum is {MAX_FILES}; {hint}"
            ));
        }
        let files = info.siblings.into_iter();
        let files = files.map(|file| (file.rfilename, file.size));
        Ok(Self {
            commit,
            files: files.filter(|(name, _)| is_safe_path(name)).collect(),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn files_and_sizes_are_read_and_other_fields_ignored() {
        let json = format!(
            r#"{{"id": "a/b", "sha": "{COMMIT}", "gated": false, "siblings": [{{"rfilename": "config.json", "size": 7,
            "blobId": "x"}}, {{"rfilename": "x/y", "lfs": null}}, {{"rfilename": "z", "size": null}}]}}"#
        );
        let listing = Listing::parse(json.as_bytes()).unwrap();
        assert_eq!(listing.commit, COMMIT);
        let files: Vec<_> = listing.files.into_iter().collect();
        let expected = [("config.json", Some(7)), ("x/y", None), ("z", None)];
        assert_eq!(files, expected.map(|(name, size)| (name.to_string(), size)));
    }

    #[test]
    fn paths_that_leave_the_folder_are_left_out() {
        let names = [
            "../x",
            "/etc/passwd",
            "a/../../x",
            "c:\\x",
            "..",
            "",
            "a\u{0}",
            "ok",
        ];
        let siblings: Vec<_> = names
            .iter()
            .map(|name| serde_json::json!({"rfilename": name}))
            .collect();
        let json = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
        let listing = Listing::parse(json.as_bytes()).unwrap();
        assert_eq!(listing.files.into_keys().collect::<Vec<_>>(), ["ok"]);
    }

    #[test]
    fn other_answers_are_rejected() {
        for json in [
            "",
            "<html>",
            "[]",
            "null",
            "{}",
            r#"{"sha": "main"}"#,
            r#"{"sha": "../../x"}"#,
            &format!(r#"{{"sha": "{COMMIT}", "siblings": 7}}"#),
            &format!(r#"{{"sha": "{COMMIT}", "siblings": [{{"rfilename": 7}}]}}"#),
            &format!(r#"{{"sha": "{COMMIT}", "siblings": [{{"rfilename": "x", "size": -1}}]}}"#),
            &format!(r#"{{"sha": "{}"}}"#, COMMIT.to_uppercase()),
            &"[".repeat(100_000),
        ] {
            let error = Listing::parse(json.as_bytes()).unwrap_err();
            assert!(error.contains("hint: "), "{error}");
        }
    }
}
