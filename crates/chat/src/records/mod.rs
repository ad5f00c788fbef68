//! Training data: files of records in the formats that people have.

mod counts;
mod fields;
mod files;
mod formats;
mod messages;
mod preferences;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::path::PathBuf;

pub use self::counts::{DropReason, Dropped, RecordCounts, RecordFormat};

use crate::{ChatError, Example, RecordSource};

/// A record with the place that it comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct SourcedRecord {
    /// Where it is.
    pub source: RecordSource,
    /// The format that it has there.
    pub format: RecordFormat,
    /// What is in it.
    pub example: Example,
}

/// Reads the records of files and folders, in order. The format of each record is told by its keys, so that they
/// can be mixed (see [`RecordFormat`]).
///
/// A `.json` file is a list of records, other files have one record per line; blank lines are skipped. Of a folder,
/// the `.jsonl` and `.json` files are read, those of its subfolders included, in the order of their names.
///
/// Records that cannot be trained are left out and counted, with the reason.
///
/// # Errors
/// [`ChatError::Read`] for a file that cannot be read, and [`ChatError::Record`] for a record that has no known
/// format, a wrong value or more than 1000 messages, with its line and the key.
///
/// ```
/// use nextword_chat::{Example, RecordFormat, read_records};
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("support.jsonl");
/// std::fs::write(
///     &path,
///     r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
/// {"prompt": "2+2=", "completion": "4"}
/// {"conversations": [{"from": "human", "value": "Hi"}]}"#,
/// )?;
/// let (records, counts) = read_records(&[path])?;
/// assert!(matches!(&records[0].example, Example::Conversation(talk) if talk.messages.len() == 2));
/// assert_eq!(records[1].format, RecordFormat::Completion);
/// assert_eq!((records.len(), counts.total()), (2, 3)); // The third has nothing that a model could learn.
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn read_records(paths: &[PathBuf]) -> Result<(Vec<SourcedRecord>, RecordCounts), ChatError> {
    let mut records = Vec::new();
    let mut counts = RecordCounts::default();
    for file in files::find_files(paths)? {
        files::read_file(&file, |source, json| {
            let record = formats::parse(json).map_err(|problem| ChatError::Record {
                place: source.clone(),
                problem,
            })?;
            *counts.formats.entry(record.format).or_default() += 1;
            for reason in &record.dropped {
                counts.drop_record(*reason, &source);
            }
            if let Some(example) = record.example {
                records.push(SourcedRecord {
                    source,
                    format: record.format,
                    example,
                });
            }
            Ok(())
        })?;
    }
    Ok((records, counts))
}
