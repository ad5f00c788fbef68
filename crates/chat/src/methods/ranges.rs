//! Ranges of Python's `start` and `stop` arguments.

use std::ops::Range;

/// The range of `start..stop` in a sequence of `len` items, where negative numbers count from the end.
/// `None` if it ends before it starts: there, not even an empty text is found.
pub(super) fn clamp(start: Option<i64>, stop: Option<i64>, len: usize) -> Option<Range<usize>> {
    let resolve = |at: i64| {
        let distance = usize::try_from(at.unsigned_abs()).unwrap_or(usize::MAX);
        if at < 0 {
            len.saturating_sub(distance)
        } else {
            distance
        }
    };
    let start = start.map_or(0, resolve);
    let stop = stop.map_or(len, resolve).min(len);
    (start <= stop).then_some(start..stop)
}

/// The part of `text` between two character positions, and the number of characters before it.
pub(super) fn window(text: &str, start: Option<i64>, stop: Option<i64>) -> Option<(&str, usize)> {
    if start.is_none() && stop.is_none() {
        return Some((text, 0));
    }
    let range = clamp(start, stop, text.chars().count())?;
    let offset = |at: usize| {
        let mut offsets = text.char_indices().map(|(byte, _)| byte);
        offsets.nth(at).unwrap_or(text.len())
    };
    Some((&text[offset(range.start)..offset(range.end)], range.start))
}
