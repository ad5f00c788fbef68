//! Event files of `TensorBoard`: `TFRecord`s of `Event` messages with scalar summaries.

use nextword_train::MetricsLine;

use super::crc32c::masked;
use super::{METRICS, further};

/// Wire types of protocol buffers.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH_DELIMITED: u64 = 2;
const FIXED32: u64 = 5;

/// The metrics as an event file. `start` is the time of the run's start, in seconds since 1970. The file must have a name
/// that begins with `events.out.tfevents.`.
///
/// ```
/// use nextword_experiments::export::to_tensorboard;
/// use nextword_train::MetricsLine;
///
/// let line = MetricsLine { step: 10, loss: Some(2.5), ..MetricsLine::default() };
/// let bytes = to_tensorboard(&[line], 1.7e9);
/// // The first record says which version of the format follows.
/// assert_eq!(&bytes[23..36], b"brain.Event:2");
/// ```
pub fn to_tensorboard(lines: &[MetricsLine], start: f64) -> Vec<u8> {
    let mut file = Vec::new();
    let mut version = Message::default();
    version.double(1, start);
    version.bytes(3, b"brain.Event:2");
    push_record(&mut file, &version.0);
    for line in lines {
        let mut summary = Message::default();
        let known = METRICS
            .iter()
            .map(|(_, tag, value)| Some((tag.to_string(), value(line)?)));
        for (tag, value) in known.flatten().chain(further(line)) {
            let mut entry = Message::default();
            entry.bytes(1, tag.as_bytes());
            entry.float(2, value as f32);
            summary.bytes(1, &entry.0);
        }
        let mut event = Message::default();
        event.double(1, start + line.elapsed);
        event.integer(2, line.step);
        event.bytes(5, &summary.0);
        push_record(&mut file, &event.0);
    }
    file
}

/// Appends a record: its length, the checksum of that, the data, and the checksum of these.
fn push_record(file: &mut Vec<u8>, data: &[u8]) {
    let length = (data.len() as u64).to_le_bytes();
    file.extend(length);
    file.extend(masked(&length).to_le_bytes());
    file.extend(data);
    file.extend(masked(data).to_le_bytes());
}

/// A message of protocol buffers.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn key(&mut self, field: u64, wire_type: u64) {
        self.varint(field << 3 | wire_type);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7F) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn integer(&mut self, field: u64, value: u64) {
        self.key(field, VARINT);
        self.varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.key(field, FIXED64);
        self.0.extend(value.to_le_bytes());
    }

    fn float(&mut self, field: u64, value: f32) {
        self.key(field, FIXED32);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.key(field, LENGTH_DELIMITED);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `scripts/make_event_fixture.py` wrote this file with `TensorBoard`'s writer.
    #[test]
    fn the_file_is_the_one_that_tensorboard_writes() {
        let lines = [
            MetricsLine {
                step: 1,
                loss: Some(4.5),
                lr: Some(0.001),
                elapsed: 0.25,
                ..MetricsLine::default()
            },
            MetricsLine {
                step: 300,
                val_loss: Some(2.25),
                elapsed: 9.5,
                ..MetricsLine::default()
            },
        ];
        let expected = include_bytes!("events.out.tfevents.fixture");
        assert_eq!(to_tensorboard(&lines, 1.7e9), expected);
    }
}
