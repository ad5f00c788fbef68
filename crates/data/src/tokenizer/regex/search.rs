//! Searches with limits.

use onig::{MatchParam, Region, SearchOptions};

use super::{BoundedRegex, budget};

/// Steps back that a search may take without being counted. A text of n bytes has about n searches.
const FREE_RETRIES: u64 = 256;
/// How much a search that took too many steps back may take when it is repeated.
const GROWTH: u64 = 8;
/// Entries of the engine's stack (about 40 bytes each): a fixed number and those for each byte.
const STACK: usize = 1 << 20;
const STACK_PER_BYTE: usize = 2;
/// The product of the positions where a search may begin and the length of the text: the work
/// between two looks at the time.
const UNCHECKED_WORK: usize = 1 << 22;
const MIN_POSITIONS: usize = 16;

/// The code of the engine for a search beyond its limits.
const LIMIT_CODES: [i32; 2] = [
    onig_sys::ONIGERR_RETRY_LIMIT_IN_MATCH_OVER,
    onig_sys::ONIGERR_RETRY_LIMIT_IN_SEARCH_OVER,
];

/// The matches in one text, in order, as Python's `tokenizers` finds them.
pub(super) struct Matches<'a> {
    pattern: &'a BoundedRegex,
    text: &'a str,
    position: usize,
    last_match_end: Option<usize>,
    region: Region,
}

impl<'a> Matches<'a> {
    pub(super) fn new(pattern: &'a BoundedRegex, text: &'a str) -> Self {
        Self {
            pattern,
            text,
            position: 0,
            last_match_end: None,
            region: Region::new(),
        }
    }

    /// Returns the range of the next match.
    pub(super) fn next_match(&mut self) -> tokenizers::Result<Option<(usize, usize)>> {
        while self.position <= self.text.len() {
            let Some((start, end)) = self.find_from(self.position)? else {
                return Ok(None);
            };
            // An empty match does not count just after another match.
            if start == end && self.last_match_end == Some(end) {
                let next = self.text[self.position..].chars().next();
                self.position += next.map_or(1, char::len_utf8);
                continue;
            }
            self.position = end;
            self.last_match_end = Some(end);
            return Ok(Some((start, end)));
        }
        Ok(None)
    }

    /// The first match that starts at or after `from`. Searches a number of positions at a time.
    fn find_from(&mut self, mut from: usize) -> tokenizers::Result<Option<(usize, usize)>> {
        let length = self.text.len();
        let positions = (UNCHECKED_WORK / length.max(1)).max(MIN_POSITIONS);
        loop {
            let to = if self.pattern.has_search_start {
                length
            } else {
                let end = from.saturating_add(positions).min(length);
                self.text.ceil_char_boundary(end)
            };
            if self.search(from, to)? {
                return Ok(self.region.pos(0));
            }
            if to >= length {
                return Ok(None);
            }
            from = to;
        }
    }

    /// Searches for a match that starts in `from..to`, or at the end of the text if `to` is that.
    fn search(&mut self, from: usize, to: usize) -> tokenizers::Result<bool> {
        let stack = STACK + STACK_PER_BYTE * self.text.len();
        let mut limit = FREE_RETRIES;
        loop {
            let remaining = budget::remaining_retries().ok_or_else(|| self.give_up())?;
            let limit_now = limit.min(remaining.max(1));
            self.region.clear();
            let found = self.pattern.regex.search_with_param(
                self.text,
                from,
                to,
                SearchOptions::SEARCH_OPTION_NONE,
                Some(&mut self.region),
                limits(limit_now, stack),
            );
            if limit > FREE_RETRIES {
                budget::spend(limit_now);
            }
            match found {
                Ok(found) => return Ok(found.is_some()),
                Err(error) if LIMIT_CODES.contains(&error.code()) && limit_now < remaining => {
                    if limit == FREE_RETRIES {
                        budget::spend(limit_now);
                    }
                    limit = limit_now * GROWTH;
                }
                Err(_) => return Err(self.give_up()),
            }
        }
    }

    /// Ends the budget, and returns the error.
    fn give_up(&self) -> tokenizers::Error {
        let pattern = &self.pattern.shown;
        budget::exhaust(|| format!("the pattern {pattern:?} takes too long"));
        "a pattern takes too long".into()
    }
}

/// The limits of one search.
#[allow(unsafe_code)] // The wrapper has no function for the limit of a whole search.
fn limits(retries: u64, stack: usize) -> MatchParam {
    let mut limits = MatchParam::default();
    limits.set_retry_limit_in_match(u32::try_from(retries).unwrap_or(u32::MAX));
    limits.set_match_stack_limit(u32::try_from(stack).unwrap_or(u32::MAX));
    let retries = retries.min(u64::from(u32::MAX)) as std::ffi::c_ulong;
    // SAFETY: the pointer is that of `limits`, which is alive and not shared; the function stores a
    // number in it.
    unsafe {
        onig_sys::onig_set_retry_limit_in_search_of_match_param(limits.as_raw(), retries);
    }
    limits
}
