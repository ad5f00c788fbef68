//! Stop strings in a stream of text pieces.

use crate::GenerateError;

/// Finds stop strings across the borders of pieces and holds back what may be the beginning of
/// one.
///
/// The stop string that is complete first ends the text, before its first character; of two that
/// are complete at the same character the longer one counts. So the outcome depends on the text
/// alone, not on how it is cut into pieces.
#[derive(Clone, Debug, Default)]
pub struct StopScanner {
    stops: Vec<String>,
    /// Text that was not given out: it may be the beginning of a stop string.
    held: String,
}

/// What a [`StopScanner`] knows after a piece.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Text that is certain to come before any stop string.
    pub text: String,
    /// The stop string that was found. Nothing after it is text of the answer.
    pub stop: Option<String>,
}

impl StopScanner {
    /// Stops at each of `stops`; with none all text passes at once.
    ///
    /// # Errors
    /// [`GenerateError::Setting`] if one is empty: it would stop before the first token.
    pub fn new(stops: &[String]) -> Result<Self, GenerateError> {
        if stops.iter().any(String::is_empty) {
            return Err(GenerateError::Setting {
                key: "stop",
                problem: "a stop string is empty".to_owned(),
                hint: "leave it out to stop at the end token or at max_tokens alone",
            });
        }
        Ok(Self {
            stops: stops.to_vec(),
            held: String::new(),
        })
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, piece: &str) -> Scan {
        self.held.push_str(piece);
        if let Some((start, stop)) = self.first_stop() {
            let mut text = std::mem::take(&mut self.held);
            text.truncate(start);
            return Scan {
                text,
                stop: Some(stop),
            };
        }
        let rest = self.held.split_off(self.certain());
        let text = std::mem::replace(&mut self.held, rest);
        Scan { text, stop: None }
    }

    /// The text that is still held back, at the end of the stream.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Where the stop string that ends first begins, and which one it is.
    fn first_stop(&self) -> Option<(usize, String)> {
        let found = self.stops.iter().filter_map(|stop| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start, stop))
        });
        let (_, start, stop) = found.min()?;
        Some((start, stop.clone()))
    }

    /// How much of the held text cannot be the beginning of a stop string.
    fn certain(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let first = self.held.len().saturating_sub(longest);
        let starts = (first..self.held.len()).filter(|start| self.held.is_char_boundary(*start));
        let begins = |start: &usize| {
            self.stops
                .iter()
                .any(|stop| stop.starts_with(&self.held[*start..]))
        };
        starts.into_iter().find(begins).unwrap_or(self.held.len())
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

    /// The text given out and the stop string, for a text that comes in these pieces.
    fn run(scanner: &mut StopScanner, pieces: &[String]) -> (String, Option<String>) {
        let mut text = String::new();
        for piece in pieces {
            let scan = scanner.push(piece);
            text.push_str(&scan.text);
            if scan.stop.is_some() {
                return (text, scan.stop);
            }
        }
        text.push_str(&scanner.finish());
        (text, None)
    }

    /// Random text over few characters (one of two bytes, one of four), so that stops are common.
    fn random_text(rng: CounterRng, max: u64) -> String {
        let characters = ['a', 'b', 'é', '🦀'];
        (0..rng.at(0) % (max + 1))
            .map(|i| characters[(rng.at(i + 1) % 4) as usize])
            .collect()
    }

    fn random_pieces(rng: CounterRng, text: &str) -> Vec<String> {
        let mut pieces = vec![String::new()];
        for (i, c) in (0..).zip(text.chars()) {
            if rng.at(i).is_multiple_of(3) {
                pieces.push(String::new());
            }
            pieces.last_mut().unwrap().push(c);
        }
        pieces
    }

    #[test]
    fn one_stop_string_cuts_where_find_finds_it_however_the_text_is_split() {
        let mut stopped = 0;
        for case in 0..4000 {
            let rng = CounterRng::new(7).stream(case);
            let text = random_text(rng.stream(1), 30);
            let stop = format!("{}a", random_text(rng.stream(2), 3));
            let pieces = random_pieces(rng.stream(3), &text);
            let (given, found) = run(&mut scanner(&[&stop]), &pieces);
            let expected = text.find(&stop);
            assert_eq!(
                given,
                text[..expected.unwrap_or(text.len())],
                "{pieces:?} {stop:?}"
            );
            assert_eq!(found.is_some(), expected.is_some());
            stopped += usize::from(found.is_some());
        }
        assert!(
            (1000..3500).contains(&stopped),
            "both outcomes are tried: {stopped}"
        );
    }

    #[test]
    fn of_several_stop_strings_the_first_complete_one_counts_however_the_text_is_split() {
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
            let pieces = random_pieces(rng.stream(9), &text);
            let (given, found) = run(&mut StopScanner::new(&stops).unwrap(), &pieces);
            let (cut, stop) = first.map_or((text.len(), None), |(cut, stop)| (cut, Some(stop)));
            assert_eq!(
                (given.as_str(), found),
                (&text[..cut], stop),
                "{pieces:?} {stops:?}"
            );
        }
    }

    #[test]
    fn only_what_may_begin_a_stop_string_is_held_back() {
        let mut scanner = scanner(&["\n\nUser:", "END"]);
        let texts: Vec<String> = ["Hi\n", "\nUse", "ful. E", "N", "T"]
            .iter()
            .map(|piece| scanner.push(piece).text)
            .collect();
        assert_eq!(texts, ["Hi", "", "\n\nUseful. ", "", "ENT"]);
        assert_eq!(scanner.push("\n\nUser").text, "");
        assert_eq!(scanner.finish(), "\n\nUser");
    }

    #[test]
    fn an_empty_stop_string_is_refused() {
        assert!(StopScanner::new(&["x".to_owned(), String::new()]).is_err());
    }
}
