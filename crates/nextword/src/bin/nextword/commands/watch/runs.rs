//! The run folders that a page shows.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use nextword_server::RunSource;
use nextword_train::RunFolder;
use serde_json::{Value, json};

use crate::models;

/// Depth below a given folder in which runs are found: that of a sweep in `runs`.
const MAX_DEPTH: usize = 3;

/// Runs that are shown at most.
const MAX_RUNS: usize = 200;

/// Bytes of metrics in one answer.
const MAX_BYTES: u64 = 4 << 20;

/// Bytes of samples in one answer.
const MAX_SAMPLE_BYTES: u64 = 16 << 10;

/// Runs in folders, found again for each request.
pub(super) struct RunFolders {
    folders: Vec<PathBuf>,
}

impl RunFolders {
    pub(super) fn new(folders: Vec<PathBuf>) -> Self {
        Self { folders }
    }

    /// Names and folders of all runs. If two runs below different folders had the same name, all are named by their paths.
    fn find(&self) -> Vec<(String, PathBuf)> {
        let mut found = Vec::new();
        for folder in &self.folders {
            let mut below = Vec::new();
            find_runs(folder, MAX_DEPTH, &mut below);
            below.sort();
            found.extend(below.into_iter().map(|run| (name_of(&run, folder), run)));
        }
        let mut paths = HashSet::new();
        found.retain(|(_, run)| paths.insert(resolved(run)));
        let names: HashSet<&String> = found.iter().map(|(name, _)| name).collect();
        if names.len() < found.len() {
            for (name, run) in &mut found {
                *name = path_name(run);
            }
        }
        found.truncate(MAX_RUNS);
        found
    }
}

fn find_runs(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    if models::is_run(folder) {
        found.push(folder.to_path_buf());
        return;
    }
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries {
        // A link could lead in a circle.
        if depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            find_runs(&entry.path(), depth - 1, found);
        }
    }
}

fn resolved(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf())
}

/// The path of a run as its name. A browser would resolve `.` and `..` in an address.
fn path_name(run: &Path) -> String {
    let shown = match run.file_name() {
        Some(_) => run.to_path_buf(),
        None => resolved(run),
    };
    shown.to_string_lossy().replace('\\', "/")
}

/// The name of a run: its place below the given folder, or if it is that folder, the folder's name.
fn name_of(run: &Path, folder: &Path) -> String {
    let below = run.strip_prefix(folder).unwrap_or(run);
    let shown = if below.as_os_str().is_empty() {
        resolved(run)
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    } else {
        below.to_string_lossy().into_owned()
    };
    shown.replace('\\', "/")
}

impl RunSource for RunFolders {
    fn runs(&self) -> Value {
        let run = |(name, folder): (String, PathBuf)| {
            let steps = RunFolder::stored_config(&folder)
                .ok()
                .map(|config| config.train.steps);
            json!({"name": name, "steps": steps})
        };
        self.find().into_iter().map(run).collect()
    }

    fn run(&self, name: &str, offset: u64) -> Option<Value> {
        let (_, folder) = self.find().into_iter().find(|(found, _)| found == name)?;
        let (lines, offset) = read_lines(&folder.join("metrics.jsonl"), offset).unwrap_or_default();
        Some(
            json!({"lines": lines, "offset": offset, "samples": newest_sample(&folder.join("samples"))}),
        )
    }
}

/// The complete lines from byte `offset` on, and the offset after them. A file that became shorter, because its run was
/// resumed, is read from its start.
fn read_lines(path: &Path, offset: u64) -> std::io::Result<(Vec<Value>, u64)> {
    let mut file = File::open(path)?;
    let offset = if offset > file.metadata()?.len() {
        0
    } else {
        offset
    };
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    (&mut file).take(MAX_BYTES).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == MAX_BYTES && !bytes.contains(&b'\n') {
        // No metrics: the line is skipped once it is complete.
        let mut rest = Vec::new();
        BufReader::new(file).read_until(b'\n', &mut rest)?;
        let is_complete = rest.ends_with(b"\n");
        let skipped = if is_complete {
            MAX_BYTES + rest.len() as u64
        } else {
            0
        };
        return Ok((Vec::new(), offset + skipped));
    }
    let end = bytes
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |end| end + 1);
    let text = String::from_utf8_lossy(&bytes[..end]);
    let lines = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    Ok((lines.collect(), offset + end as u64))
}

/// The text of the newest samples, or an empty one.
fn newest_sample(folder: &Path) -> String {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let newest = files.map(|file| file.path()).max();
    let mut bytes = Vec::new();
    if let Some(file) = newest.and_then(|path| File::open(path).ok()) {
        let _ = file.take(MAX_SAMPLE_BYTES).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_of_runs_are_unique() {
        let folder = tempfile::tempdir().unwrap();
        let given = ["a", "b"].map(|name| folder.path().join(name));
        for folder in &given {
            fs::create_dir_all(folder.join("x")).unwrap();
            fs::write(folder.join("x/run.toml"), "").unwrap();
        }
        let runs = RunFolders::new([given.as_slice(), &given[..1]].concat());
        let found = runs.find();
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].0.ends_with("a/x") && found[1].0.ends_with("b/x"));
        assert!(runs.run(&found[1].0, 0).is_some());
    }

    #[test]
    fn a_line_that_is_too_long_is_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("metrics.jsonl");
        let long = "x".repeat(MAX_BYTES as usize + 5);
        fs::write(&file, &long).unwrap();
        assert_eq!(read_lines(&file, 0).unwrap(), (vec![], 0));
        fs::write(&file, format!("{long}\n{{\"step\":2}}\n")).unwrap();
        let (lines, offset) = read_lines(&file, 0).unwrap();
        assert_eq!((lines.len(), offset), (0, MAX_BYTES + 6));
        assert_eq!(read_lines(&file, offset).unwrap().0, [json!({"step": 2})]);
    }

    #[test]
    fn runs_are_found_by_name_and_read_from_an_offset() {
        let folder = tempfile::tempdir().unwrap();
        for run in ["a", "sweep/arm/seed-1"] {
            let run = folder.path().join(run);
            fs::create_dir_all(run.join("samples")).unwrap();
            fs::write(run.join("run.toml"), "").unwrap();
            fs::write(
                run.join("metrics.jsonl"),
                "{\"step\":1}\n{\"step\":2}\n{\"st",
            )
            .unwrap();
            fs::write(run.join("samples/step-00000002.txt"), "text").unwrap();
        }
        let runs = RunFolders::new(vec![folder.path().to_path_buf()]);
        let names: Vec<String> = runs.find().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a", "sweep/arm/seed-1"]);
        let first = runs.run("a", 0).unwrap();
        assert_eq!(
            (
                first["lines"].as_array().unwrap().len(),
                first["offset"].as_u64()
            ),
            (2, Some(22))
        );
        assert_eq!(first["samples"], "text");
        let next = runs.run("sweep/arm/seed-1", 11).unwrap();
        assert_eq!(next["lines"], json!([{"step": 2}]));
        assert_eq!(runs.run("a", 1000).unwrap()["offset"], 22);
        for name in ["../a", "b", "", "sweep"] {
            assert!(runs.run(name, 0).is_none(), "{name}");
        }
    }
}
