//! Stop strings in a stream of text.

use crate::GenerateError;

/// Finds stop strings that span several chunks, and holds back text that may be the start of one.
///
/// The stop string that completes first ends the text, just before its first character. If two
/// complete at the same character, the longer one wins. The result depends on the text alone, not
/// on how it is split into chunks.
///
/// # Example
///
/// ```
/// use nextword_generate::StopScanner;
///
/// let mut scanner = StopScanner::new(&["END".to_owned()])?;
/// assert_eq!(scanner.push("once upon E").text, "once upon "); // "E" may begin "END"
/// let scan = scanner.push("ND and more");
/// assert_eq!((scan.text.as_str(), scan.stop.as_deref()), ("", Some("END")));
/// # Ok::<(), nextword_generate::GenerateError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct StopScanner {
    stops: Vec<String>,
    /// Text held back because it may be the start of a stop string.
    pending: String,
}

/// The result of scanning one chunk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Text that cannot be part of a stop string.
    pub text: String,
    /// The stop string that was found. The text ends before it.
    pub stop: Option<String>,
}

impl StopScanner {
    /// Creates a scanner for `stops`. Without stop strings all text passes through.
    ///
    /// # Errors
    /// [`GenerateError::Setting`] if a stop string is empty: it would match before the first token.
    pub fn new(stops: &[String]) -> Result<Self, GenerateError> {
        if stops.iter().any(String::is_empty) {
            return Err(GenerateError::Setting {
                key: "stop",
                problem: "a stop string is empty".to_owned(),
                hint: "omit it to stop only at the EOS token or at max_tokens",
            });
        }
        Ok(Self {
            stops: stops.to_vec(),
            pending: String::new(),
        })
    }

    /// Scans the next chunk of text.
    pub fn push(&mut self, chunk: &str) -> Scan {
        self.pending.push_str(chunk);
        if let Some((start, stop)) = self.first_stop() {
            let mut text = std::mem::take(&mut self.pending);
            text.truncate(start);
            return Scan {
                text,
                stop: Some(stop),
            };
        }
        let rest = self.pending.split_off(self.safe_len());
        let text = std::mem::replace(&mut self.pending, rest);
        Scan { text, stop: None }
    }

    /// Ends the stream and returns the text still held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.pending)
    }

    /// The start of the stop string that completes first, and the string itself.
    fn first_stop(&self) -> Option<(usize, String)> {
        let found = self.stops.iter().filter_map(|stop| {
            let start = self.pending.find(stop.as_str())?;
            Some((start + stop.len(), start, stop))
        });
        let (_, start, stop) = found.min()?;
        Some((start, stop.clone()))
    }

    /// Length of the pending text that cannot be part of a stop string.
    fn safe_len(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let first = self.pending.len().saturating_sub(longest);
        let starts =
            (first..self.pending.len()).filter(|start| self.pending.is_char_boundary(*start));
        let is_prefix = |start: &usize| {
            self.stops
                .iter()
                .any(|stop| stop.starts_with(&self.pending[*start..]))
        };
        starts
            .into_iter()
            .find(is_prefix)
            .unwrap_or(self.pending.len())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use nextword_model::CounterRng;

    use super::*;

    fn scanner(stops: &[&str]) -> StopScanner {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        StopScanner::new(&stops).unwrap()
    }

    /// The emitted text and the stop string found in `chunks`.
    fn run(scanner: &mut StopScanner, chunks: &[String]) -> (String, Option<String>) {
        let mut text = String::new();
        for chunk in chunks {
            let scan = scanner.push(chunk);
            text.push_str(&scan.text);
            if scan.stop.is_some() {
                return (text, scan.stop);
            }
        }
        text.push_str(&scanner.finish());
        (text, None)
    }

    /// Random text over four characters (one of two bytes, one of four), so that stops are common.
    fn random_text(rng: CounterRng, max: u64) -> String {
        let characters = ['a', 'b', 'é', '🦀'];
        (0..rng.at(0) % (max + 1))
            .map(|i| characters[(rng.at(i + 1) % 4) as usize])
            .collect()
    }

    fn random_chunks(rng: CounterRng, text: &str) -> Vec<String> {
        let mut chunks = vec![String::new()];
        for (i, c) in (0..).zip(text.chars()) {
            if rng.at(i).is_multiple_of(3) {
                chunks.push(String::new());
            }
            chunks.last_mut().unwrap().push(c);
        }
        chunks
    }

    #[test]
    fn stop_string_is_found_for_any_chunking() {
        let mut stopped = 0;
        for case in 0..4000 {
            let rng = CounterRng::new(7).stream(case);
            let text = random_text(rng.stream(1), 30);
            let stop = format!("{}a", random_text(rng.stream(2), 3));
            let chunks = random_chunks(rng.stream(3), &text);
            let (emitted, found) = run(&mut scanner(&[&stop]), &chunks);
            let expected = text.find(&stop);
            assert_eq!(
                emitted,
                text[..expected.unwrap_or(text.len())],
                "{chunks:?} {stop:?}"
            );
            assert_eq!(found.is_some(), expected.is_some());
            stopped += usize::from(found.is_some());
        }
        assert!(
            (1000..3500).contains(&stopped),
            "both outcomes occur: {stopped}"
        );
    }

    #[test]
    fn first_complete_stop_string_wins_for_any_chunking() {
        for case in 0..4000 {
            let rng = CounterRng::new(8).stream(case);
            let text = random_text(rng.stream(1), 25);
            let stops: Vec<String> = (2..5)
                .map(|s| format!("{}b", random_text(rng.stream(s), 3)))
                .collect();
            let mut ends = text.char_indices().map(|(i, c)| i + c.len_utf8());
            let first = ends.find_map(|end| {
                let complete = stops
                    .iter()
                    .filter(|stop| text[..end].ends_with(stop.as_str()));
                complete
                    .max_by_key(|stop| stop.len())
                    .map(|stop| (end - stop.len(), stop.clone()))
            });
            let chunks = random_chunks(rng.stream(9), &text);
            let (emitted, found) = run(&mut StopScanner::new(&stops).unwrap(), &chunks);
            let (cut, stop) = first.map_or((text.len(), None), |(cut, stop)| (cut, Some(stop)));
            assert_eq!(
                (emitted.as_str(), found),
                (&text[..cut], stop),
                "{chunks:?} {stops:?}"
            );
        }
    }

    #[test]
    fn only_a_possible_stop_prefix_is_held_back() {
        let mut scanner = scanner(&["\n\nUser:", "END"]);
        let texts: Vec<String> = ["Hi\n", "\nUse", "ful. E", "N", "T"]
            .iter()
            .map(|chunk| scanner.push(chunk).text)
            .collect();
        assert_eq!(texts, ["Hi", "", "\n\nUseful. ", "", "ENT"]);
        assert_eq!(scanner.push("\n\nUser").text, "");
        assert_eq!(scanner.finish(), "\n\nUser");
    }

    #[test]
    fn an_empty_stop_string_is_rejected() {
        assert!(StopScanner::new(&["x".to_owned(), String::new()]).is_err());
    }
}
