//! The run folders that a page shows.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use nextword_base::hash::sha256_hex;
use nextword_server::{MetricsPosition, RunSource};
use nextword_train::RunFolder;
use serde_json::{Value, json};

use crate::models;

/// Depth below a given folder in which runs are found: that of a sweep in `runs`.
const MAX_DEPTH: usize = 3;

/// Runs that are shown at most.
const MAX_RUNS: usize = 200;

/// Bytes of metrics in one answer.
const MAX_BYTES: u64 = 4 << 20;

/// Bytes of the samples of one step.
const MAX_SAMPLE_BYTES: u64 = 16 << 10;

/// Steps with samples in one answer.
const MAX_SAMPLES: usize = 20;

/// Steps with probes that are listed.
const MAX_STEPS: usize = 2000;

/// Bytes before a position that identify the file, and digits of their hash.
const MARK_BYTES: u64 = 256;
const MARK_DIGITS: usize = 16;

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

    /// The folder of the run `name`.
    fn folder(&self, name: &str) -> Option<PathBuf> {
        let mut all = self.find().into_iter();
        all.find_map(|(found, folder)| (found == name).then_some(folder))
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

    fn run(&self, name: &str, position: &MetricsPosition) -> Option<Value> {
        let folder = self.folder(name)?;
        let found = MetricsPart::read(&folder.join("metrics.jsonl"), position).unwrap_or_default();
        Some(json!({
            "lines": found.lines, "from": found.from, "offset": found.next.offset, "mark": found.next.mark,
            "sample_step": steps_of(&folder.join("samples"), "txt").last(),
            "probe_steps": steps_of(&folder.join("probes"), "json"),
        }))
    }

    fn samples(&self, name: &str, after: Option<u64>) -> Option<Value> {
        let folder = self.folder(name)?.join("samples");
        let steps = steps_of(&folder, "txt");
        let newer = steps.partition_point(|step| Some(*step) <= after);
        let newest = steps.len().saturating_sub(MAX_SAMPLES).max(newer);
        let sample = |step: &u64| {
            let bytes = read_start(&file_of(&folder, *step, "txt"), MAX_SAMPLE_BYTES);
            json!({"step": step, "text": String::from_utf8_lossy(&bytes)})
        };
        Some(steps[newest..].iter().map(sample).collect())
    }

    fn probes(&self, name: &str, step: u64) -> Option<Value> {
        let file = file_of(&self.folder(name)?.join("probes"), step, "json");
        serde_json::from_slice(&read_start(&file, MAX_BYTES)).ok()
    }
}

/// Lines of a run's metrics.
#[derive(Debug, Default, PartialEq)]
struct MetricsPart {
    lines: Vec<Value>,
    /// Where the first of them begins, in bytes.
    from: u64,
    next: MetricsPosition,
}

impl MetricsPart {
    /// The complete lines from `position` on. A file that does not have what was before it, because the run was resumed or
    /// started again, is read from its start.
    fn read(path: &Path, position: &MetricsPosition) -> std::io::Result<Self> {
        let mut file = File::open(path)?;
        let is_same = position.offset <= file.metadata()?.len()
            && mark(&mut file, position.offset)? == position.mark;
        let from = if is_same { position.offset } else { 0 };
        let (lines, offset) = read_lines(&mut file, from)?;
        let mark = mark(&mut file, offset)?;
        Ok(Self {
            lines,
            from,
            next: MetricsPosition { offset, mark },
        })
    }
}

/// Identifies the bytes before `offset`: a hash of the last of them, which have a time, as every line does.
fn mark(file: &mut File, offset: u64) -> std::io::Result<String> {
    let start = offset.saturating_sub(MARK_BYTES);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(offset - start).read_to_end(&mut bytes)?;
    let hash = sha256_hex(&bytes);
    Ok(if offset == 0 {
        String::new()
    } else {
        hash[..MARK_DIGITS].to_string()
    })
}

/// The complete lines from byte `offset` on, and the offset after them.
fn read_lines(file: &mut File, offset: u64) -> std::io::Result<(Vec<Value>, u64)> {
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.by_ref().take(MAX_BYTES).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == MAX_BYTES && !bytes.contains(&b'\n') {
        // No metrics: the line is skipped once it is complete.
        let rest = BufReader::new(&mut *file).skip_until(b'\n')?;
        let end = offset + MAX_BYTES + rest as u64;
        let mut last = [0];
        file.seek(SeekFrom::Start(end - 1))?;
        file.read_exact(&mut last)?;
        return Ok((Vec::new(), if last == *b"\n" { end } else { offset }));
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

/// The steps of the files `step-N.EXTENSION` in a folder, in order: the newest ones if there are many.
fn steps_of(folder: &Path, extension: &str) -> Vec<u64> {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut steps: Vec<u64> = files
        .filter_map(|file| {
            let name = file.file_name();
            let name = name.to_str()?.strip_prefix("step-")?;
            name.strip_suffix(extension)?
                .strip_suffix('.')?
                .parse()
                .ok()
        })
        .collect();
    steps.sort_unstable();
    steps.split_off(steps.len().saturating_sub(MAX_STEPS))
}

/// The file of a step in a folder.
fn file_of(folder: &Path, step: u64, extension: &str) -> PathBuf {
    folder.join(format!("step-{step:08}.{extension}"))
}

/// The first bytes of a file; none if it cannot be read.
fn read_start(path: &Path, limit: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        let _ = file.take(limit).read_to_end(&mut bytes);
    }
    bytes
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
        assert!(runs.run(&found[1].0, &at(0)).is_some());
    }

    fn at(offset: u64) -> MetricsPosition {
        MetricsPosition {
            offset,
            mark: String::new(),
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("metrics.jsonl");
        let long = "x".repeat(MAX_BYTES as usize + 5);
        fs::write(&file, &long).unwrap();
        let first = MetricsPart::read(&file, &at(0)).unwrap();
        assert_eq!(first, MetricsPart::default());
        fs::write(&file, format!("{long}\n{{\"step\":2}}\n")).unwrap();
        let skipped = MetricsPart::read(&file, &first.next).unwrap();
        assert_eq!(
            (skipped.lines.len(), skipped.next.offset),
            (0, MAX_BYTES + 6)
        );
        let next = MetricsPart::read(&file, &skipped.next).unwrap();
        assert_eq!(next.lines, [json!({"step": 2})]);
    }

    /// A resumed run removes lines and writes others, and may have passed the position of the page before it looks again.
    #[test]
    fn a_file_that_was_rewritten_is_read_from_its_start() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("metrics.jsonl");
        let lines = |steps: std::ops::Range<u64>, time: u64| -> String {
            let lines: Vec<_> = steps
                .map(|step| format!("{{\"step\":{step},\"elapsed\":{time}}}\n"))
                .collect();
            lines.concat()
        };
        fs::write(&file, lines(0..9, 1)).unwrap();
        let read = MetricsPart::read(&file, &at(0)).unwrap();
        assert_eq!((read.lines.len(), read.from), (9, 0));
        fs::write(&file, lines(0..9, 1) + &lines(9..12, 1)).unwrap();
        let grown = MetricsPart::read(&file, &read.next).unwrap();
        assert_eq!((grown.lines.len(), grown.from), (3, read.next.offset));
        for content in [
            lines(0..4, 1),                    // shorter
            lines(0..4, 1) + &lines(4..12, 2), // as long
            lines(0..4, 1) + &lines(4..30, 2), // longer
        ] {
            fs::write(&file, &content).unwrap();
            let again = MetricsPart::read(&file, &grown.next).unwrap();
            assert_eq!(
                (again.lines.len(), again.from),
                (content.lines().count(), 0)
            );
            assert_eq!(again.next.offset, content.len() as u64);
        }
    }

    #[test]
    fn runs_are_found_by_name_with_their_metrics_samples_and_probes() {
        let folder = tempfile::tempdir().unwrap();
        for run in ["a", "sweep/arm/seed-1"] {
            let run = folder.path().join(run);
            for part in ["samples", "probes"] {
                fs::create_dir_all(run.join(part)).unwrap();
            }
            fs::write(run.join("run.toml"), "").unwrap();
            fs::write(
                run.join("metrics.jsonl"),
                "{\"step\":1}\n{\"step\":2}\n{\"st",
            )
            .unwrap();
            for step in [2, 30] {
                fs::write(
                    run.join(format!("samples/step-{step:08}.txt")),
                    format!("text {step}"),
                )
                .unwrap();
                fs::write(
                    run.join(format!("probes/step-{step:08}.json")),
                    format!("{{\"step\":{step}}}"),
                )
                .unwrap();
            }
            fs::write(run.join("samples/other.txt"), "not a sample").unwrap();
        }
        let runs = RunFolders::new(vec![folder.path().to_path_buf()]);
        let names: Vec<String> = runs.find().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a", "sweep/arm/seed-1"]);
        let first = runs.run("a", &at(0)).unwrap();
        assert_eq!(first["lines"].as_array().unwrap().len(), 2);
        assert_eq!(
            (&first["offset"], &first["sample_step"]),
            (&json!(22), &json!(30))
        );
        assert_eq!(first["probe_steps"], json!([2, 30]));
        let all = json!([{"step": 2, "text": "text 2"}, {"step": 30, "text": "text 30"}]);
        assert_eq!(runs.samples("a", None).unwrap(), all);
        assert_eq!(runs.samples("a", Some(2)).unwrap(), json!([all[1]]));
        assert_eq!(runs.samples("a", Some(30)).unwrap(), json!([]));
        assert_eq!(
            runs.probes("sweep/arm/seed-1", 30).unwrap(),
            json!({"step": 30})
        );
        assert_eq!(runs.probes("a", 31), None);
        for name in ["../a", "b", "", "sweep"] {
            assert!(runs.run(name, &at(0)).is_none(), "{name}");
            assert!(runs.samples(name, None).is_none(), "{name}");
            assert!(runs.probes(name, 2).is_none(), "{name}");
        }
    }
}
