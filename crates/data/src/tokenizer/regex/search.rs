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
/// The longest text that is searched as a whole, in bytes: its square bounds the work between two looks at the
/// time.
const MAX_SEARCHED: usize = 1 << 11;

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

    /// The first match that starts at or after `from`. In a long text, each position is tried by itself: the
    /// engine does not bound the time of a search, and a search of a part does not see what follows the part.
    fn find_from(&mut self, mut from: usize) -> tokenizers::Result<Option<(usize, usize)>> {
        if self.pattern.has_search_start || self.text.len() <= MAX_SEARCHED {
            let is_found = self.attempt(from, true)?;
            return Ok(self.region.pos(0).filter(|_| is_found));
        }
        loop {
            if self.attempt(from, false)? {
                return Ok(self.region.pos(0));
            }
            let Some(character) = self.text[from..].chars().next() else {
                return Ok(None);
            };
            from += character.len_utf8();
        }
    }

    /// Whether there is a match that starts at `from`, or also after it if `is_search` is set.
    fn attempt(&mut self, from: usize, is_search: bool) -> tokenizers::Result<bool> {
        let stack = STACK + STACK_PER_BYTE * self.text.len();
        let mut limit = FREE_RETRIES;
        loop {
            let remaining = budget::remaining_retries().ok_or_else(|| self.give_up())?;
            let limit_now = limit.min(remaining.max(1));
            let (regex, options) = (&self.pattern.regex, SearchOptions::SEARCH_OPTION_NONE);
            let limits = limits(limit_now, stack);
            self.region.clear();
            let region = Some(&mut self.region);
            let found = if is_search {
                regex.search_with_param(self.text, from, self.text.len(), options, region, limits)
            } else {
                regex.match_with_param(self.text, from, options, region, limits)
            };
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
