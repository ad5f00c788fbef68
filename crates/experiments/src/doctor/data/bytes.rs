//! Checks of files before they are text.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use super::{Finding, FindingKind, agree};
use crate::ExperimentError;

const BOM: &[u8] = b"\xef\xbb\xbf";

/// Bytes that are read at a time.
const CHUNK: usize = 1 << 20;

/// What is counted in a file.
#[derive(Default)]
struct Counts {
    starts_with_bom: bool,
    invalid: u64,
    /// The place of the first invalid byte.
    first_invalid: Option<u64>,
    carriage_returns: u64,
    zeros: u64,
    json_lines: bool,
}

/// Checks the bytes of all files.
pub(super) fn check_files(names: &[String]) -> Result<Vec<Finding>, ExperimentError> {
    let mut findings = Vec::new();
    let (mut marks, mut returns, mut json) = (Vec::new(), Vec::new(), Vec::new());
    for name in names {
        let path = Path::new(name);
        let counts = count(path)?;
        if counts.starts_with_bom {
            marks.push(name.as_str());
        }
        if counts.carriage_returns > 0 {
            returns.push((name.as_str(), counts.carriage_returns));
        }
        if counts.json_lines
            && path
                .extension()
                .is_none_or(|extension| extension != "jsonl")
        {
            json.push(name.as_str());
        }
        if counts.zeros > 0 {
            findings.push(Finding::new(
                FindingKind::Nul,
                counts.zeros,
                format!(
                    "{} of {name} {} 0, so that it cannot be read as text",
                    agree(counts.zeros, "byte", "bytes"),
                    agree(counts.zeros, "is", "are")
                ),
                "",
                "remove them: tr -d '\\000'; text in UTF-16 has one in every second byte: iconv -f UTF-16 -t UTF-8",
            ));
        }
        if let Some(at) = counts.first_invalid {
            findings.push(Finding::new(
                FindingKind::InvalidUtf8,
                counts.invalid,
                format!(
                    "{} of {name} {} not UTF-8",
                    agree(counts.invalid, "byte", "bytes"),
                    agree(counts.invalid, "is", "are")
                ),
                &format!("byte {at}"),
                "convert the file: iconv -f WINDOWS-1252 -t UTF-8",
            ));
        }
    }
    if let [first, ..] = marks.as_slice() {
        findings.push(Finding::new(
            FindingKind::ByteOrderMark,
            marks.len() as u64,
            format!(
                "{} with a byte order mark: nextword skips it, other programs may not",
                agree(marks.len() as u64, "file begins", "files begin")
            ),
            first,
            "remove it: sed -i '1s/^\\xEF\\xBB\\xBF//' FILE",
        ));
    }
    if let [(first, _), ..] = returns.as_slice() {
        let lines = returns.iter().map(|(_, count)| count).sum();
        findings.push(Finding::new(
            FindingKind::CarriageReturns,
            lines,
            format!(
                "{} with CR LF, so that the model learns two tokens for each line end",
                agree(lines, "line ends", "lines end")
            ),
            first,
            "convert the files: dos2unix FILE",
        ));
    }
    if let [first, ..] = json.as_slice() {
        findings.push(Finding::new(
            FindingKind::JsonAsText,
            json.len() as u64,
            format!(
                "{} JSON objects, one per line, which are read as plain text",
                agree(json.len() as u64, "file contains", "files contain")
            ),
            first,
            "set data.format = \"jsonl\" and data.field, or rename the file to .jsonl",
        ));
    }
    Ok(findings)
}

fn count(path: &Path) -> Result<Counts, ExperimentError> {
    let file = File::open(path).map_err(ExperimentError::io(path, "read"))?;
    let mut reader = BufReader::new(file);
    let mut counts = Counts::default();
    // The end of a chunk may be within a character.
    let (mut bytes, mut offset) = (Vec::new(), 0_u64);
    loop {
        let before = bytes.len();
        let read = (&mut reader)
            .take(CHUNK as u64)
            .read_to_end(&mut bytes)
            .map_err(ExperimentError::io(path, "read"))?;
        if offset == 0 && before == 0 {
            counts.starts_with_bom = bytes.starts_with(BOM);
            counts.json_lines = looks_like_json_lines(&bytes);
        }
        let at_end = read == 0;
        let used = counts.add(&bytes, offset, at_end);
        offset += used as u64;
        bytes.drain(..used);
        if at_end {
            return Ok(counts);
        }
    }
}

impl Counts {
    /// Counts what is in `bytes`, which begin at `offset` of the file. Returns the number of bytes that are done.
    fn add(&mut self, bytes: &[u8], offset: u64, at_end: bool) -> usize {
        let mut at = 0;
        while let Err(error) = std::str::from_utf8(&bytes[at..]) {
            let valid_end = at + error.valid_up_to();
            let Some(length) = error
                .error_len()
                .or(at_end.then_some(bytes.len() - valid_end))
            else {
                self.count_bytes(&bytes[..valid_end]);
                return valid_end;
            };
            self.first_invalid.get_or_insert(offset + valid_end as u64);
            self.invalid += length as u64;
            at = valid_end + length;
        }
        // A line end that is cut in two is counted with the next bytes.
        let end = match bytes {
            [.., b'\r'] if !at_end => bytes.len() - 1,
            _ => bytes.len(),
        };
        self.count_bytes(&bytes[..end]);
        end
    }

    fn count_bytes(&mut self, bytes: &[u8]) {
        let pairs = bytes.windows(2).filter(|pair| *pair == b"\r\n");
        self.carriage_returns += pairs.count() as u64;
        self.zeros += bytes.split(|byte| *byte == 0).count() as u64 - 1;
    }
}

/// Whether the first lines are JSON objects.
fn looks_like_json_lines(head: &[u8]) -> bool {
    let text = String::from_utf8_lossy(head);
    let mut lines = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .take(3)
        .peekable();
    let is_object = |line: &str| {
        let value = serde_json::from_str::<serde_json::Value>(line);
        value.is_ok_and(|value| value.is_object())
    };
    lines.peek().is_some() && lines.all(is_object)
}
