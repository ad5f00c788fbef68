//! Conversations that are longer than a sequence.

use std::ops::Range;

use nextword_chat::TokenSample;
use nextword_data::TooLong;

/// A sample that fits into a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fitted {
    pub(super) ids: Vec<u32>,
    pub(super) trained: Vec<Range<usize>>,
    /// The numbers of ids before each of the assistant's trained messages.
    pub(super) prompt_ends: Vec<usize>,
    /// Whether tokens were cut off.
    pub(super) is_cut: bool,
}

impl Fitted {
    /// Whether a trained token has another one before it, which predicts it.
    pub(super) fn has_target(&self) -> bool {
        self.trained.iter().any(|span| span.end > span.start.max(1))
    }

    /// The ids before the first trained one.
    pub(super) fn prompt(&self) -> &[u32] {
        let start = self.trained.first().map_or(0, |span| span.start);
        self.ids.get(..start).unwrap_or_default()
    }
}

/// Why a sample cannot be trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Misfit {
    /// It is longer than a sequence, and its first message of the assistant does not end within one.
    TooLong,
    /// It is longer than a sequence, which is an error.
    Error,
}

/// Fits a sample into rows of `max_length` tokens, the last of which predicts one more.
pub(super) fn fit(
    sample: &TokenSample,
    max_length: usize,
    too_long: TooLong,
) -> Result<Fitted, Misfit> {
    let needed = sample.trained.last().map_or(0, |span| span.end);
    if needed <= max_length + 1 {
        return Ok(Fitted {
            ids: sample.ids.clone(),
            trained: sample.trained.clone(),
            prompt_ends: sample.prompt_ends.clone(),
            is_cut: false,
        });
    }
    let end = match too_long {
        TooLong::Error => return Err(Misfit::Error),
        TooLong::Truncate => max_length + 1,
        TooLong::Turns => {
            let mut ends = sample.turn_ends.iter().rev();
            let fitting = ends.find(|end| **end <= max_length + 1);
            *fitting.ok_or(Misfit::TooLong)?
        }
    };
    let clipped = sample
        .trained
        .iter()
        .map(|span| span.start..span.end.min(end));
    let trained: Vec<_> = clipped.filter(|span| span.start < span.end).collect();
    if trained.is_empty() {
        return Err(Misfit::TooLong);
    }
    let prompt_ends = sample.prompt_ends.iter().copied();
    Ok(Fitted {
        ids: sample.ids[..end].to_vec(),
        trained,
        prompt_ends: prompt_ends.filter(|at| *at < end).collect(),
        is_cut: true,
    })
}
