//! Checks of documents as text.

use std::collections::HashMap;

use nextword_data::{DataConfig, DataError, Sources};

use super::near_duplicates;
use super::{Finding, FindingKind, agree};

/// Texts that other programs put between documents.
const BOUNDARIES: [&str; 5] = ["<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "\u{c}"];

/// Lines that separate documents, if there are several of them.
const RULES: [&str; 4] = ["---", "***", "===", "%"];

/// How often a line separates documents, and is not a decoration.
const MIN_RULES: usize = 3;

/// Bytes of a document whose repetition matters.
const MIN_BYTES: usize = 32;

/// UTF-8 of common characters, decoded as Windows-1252.
const MOJIBAKE: [&str; 10] = [
    "Ã©", "Ã¨", "Ã¤", "Ã¶", "Ã¼", "Ã±", "Ã¡", "â€™", "â€œ", "â€“",
];

/// All documents.
pub(super) fn read(sources: &Sources) -> Result<Vec<String>, DataError> {
    let mut documents = Vec::new();
    let mut document = String::new();
    for chunk in sources.chunks() {
        let chunk = chunk?;
        document.push_str(&chunk.text);
        if chunk.is_last {
            documents.push(std::mem::take(&mut document));
        }
    }
    if !document.is_empty() {
        documents.push(document);
    }
    Ok(documents)
}

/// Checks all documents.
pub(super) fn check(documents: &[String], data: &DataConfig) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(characters(documents));
    let (duplicates, originals) = duplicates(documents);
    findings.extend(duplicates);
    findings.extend(near_duplicates::check(documents, &originals));
    if data.separator.is_none() && data.builtin.is_none() {
        findings.extend(boundaries(documents));
    }
    findings
}

fn characters(documents: &[String]) -> Vec<Finding> {
    let count = |patterns: &[&str]| -> (u64, String) {
        let (mut count, mut example) = (0, String::new());
        for document in documents {
            for pattern in patterns {
                for (at, _) in document.match_indices(pattern) {
                    if count == 0 {
                        example = around(document, at);
                    }
                    count += 1;
                }
            }
        }
        (count, example)
    };
    let kinds = [
        (
            FindingKind::ByteOrderMark,
            count(&["\u{feff}"]),
            "byte order marks are within the text, where files were joined",
            "remove U+FEFF from the text",
        ),
        (
            FindingKind::Nul,
            count(&["\0"]),
            "times NUL in the text",
            "remove \\u0000 from the JSON strings",
        ),
        (
            FindingKind::ReplacementCharacters,
            count(&["\u{fffd}"]),
            "times U+FFFD, in place of text that was lost in an earlier conversion",
            "convert the original text again, with its right encoding",
        ),
        (
            FindingKind::Mojibake,
            count(&MOJIBAKE),
            "times text that was decoded with the wrong encoding",
            "convert the original text again: it was UTF-8 and was read as Windows-1252",
        ),
    ];
    let found = kinds.into_iter().filter(|(_, (count, _), ..)| *count > 0);
    found
        .map(|(kind, (count, example), problem, fix)| {
            Finding::new(kind, count, problem, &example, fix)
        })
        .collect()
}

/// The text around the byte `at`.
fn around(text: &str, at: usize) -> String {
    let start = text[..at]
        .char_indices()
        .rev()
        .nth(15)
        .map_or(0, |(start, _)| start);
    let shown: String = text[start..].chars().take(40).collect();
    shown.escape_debug().to_string()
}

/// Copies of earlier documents, and the indices of the documents that are not copies.
fn duplicates(documents: &[String]) -> (Option<Finding>, Vec<usize>) {
    let mut seen: HashMap<&str, usize> = HashMap::new();
    let (mut originals, mut copies) = (Vec::new(), Vec::new());
    for (index, document) in documents.iter().enumerate() {
        let text = document.trim();
        match seen.get(text) {
            Some(first) if text.len() >= MIN_BYTES => copies.push((index, *first)),
            Some(_) => {}
            None => {
                seen.insert(text, index);
                originals.push(index);
            }
        }
    }
    let finding = copies.first().map(|(copy, original)| {
        let text = documents[*copy].trim().escape_debug().to_string();
        Finding::new(
            FindingKind::DuplicateDocuments,
            copies.len() as u64,
            format!(
                "{} of earlier ones, such as number {} of number {}",
                agree(
                    copies.len() as u64,
                    "document is a copy",
                    "documents are copies"
                ),
                copy + 1,
                original + 1
            ),
            &text,
            "keep one copy of each: repeated text is memorized, and may be in both splits",
        )
    });
    (finding, originals)
}

fn boundaries(documents: &[String]) -> Option<Finding> {
    let count = |boundary: &str| {
        let matches = documents.iter().map(|text| text.matches(boundary).count());
        matches.sum::<usize>()
    };
    let rule_count = |rule: &str| {
        let lines = documents.iter().flat_map(|text| text.lines());
        lines.filter(|line| line.trim_end() == rule).count()
    };
    // A single one within a line may be in a text about such marks.
    let is_alone = |mark: &str| mark == "\u{c}" || rule_count(mark) > 0;
    let least = |mark| if is_alone(mark) { 1 } else { 2 };
    let marks = BOUNDARIES
        .iter()
        .map(|mark| (*mark, count(mark), least(mark)));
    let rules = RULES
        .iter()
        .map(|rule| (*rule, rule_count(rule), MIN_RULES));
    let (boundary, count, _) = marks
        .chain(rules)
        .filter(|(_, count, least)| count >= least)
        .max_by_key(|(_, count, _)| *count)?;
    let escaped = boundary.escape_debug().to_string();
    Some(Finding::new(
        FindingKind::MissingBoundaries,
        count as u64,
        format!("times {escaped:?} between documents, but files are read as single documents"),
        &escaped,
        format!("set data.separator = {escaped:?}, so that each document ends with the EOS token"),
    ))
}
