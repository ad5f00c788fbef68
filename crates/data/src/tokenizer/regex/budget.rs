//! The work that the patterns of a tokenizer may do for one text.

use std::cell::RefCell;
use std::time::{Duration, Instant};

/// Steps back that a text may take, plus those for each of its bytes. Python's `tokenizers` gives up
/// after ten million for one match.
const RETRIES: u64 = 16_000_000;
const RETRIES_PER_BYTE: u64 = 64;
/// Time that a text may take, plus that for each of its bytes: a hundred times what published
/// patterns need.
const TIME: Duration = Duration::from_secs(5);
const TIME_PER_BYTE: Duration = Duration::from_micros(20);

/// The rest of a budget.
#[derive(Debug)]
struct Budget {
    retries: u64,
    deadline: Instant,
    is_exhausted: bool,
}

thread_local! {
    static BUDGET: RefCell<Option<Budget>> = const { RefCell::new(None) };
}

/// Runs `work`, whose patterns may do the work that is allowed for a text of `bytes` bytes. Within
/// another budget, `work` draws on that one.
pub(crate) fn with_budget<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    /// Ends the budget, also when the work panics.
    struct Guard(bool);
    impl Drop for Guard {
        fn drop(&mut self) {
            if self.0 {
                BUDGET.with_borrow_mut(Option::take);
            }
        }
    }
    let is_outermost = BUDGET.with_borrow_mut(|budget| {
        let is_outermost = budget.is_none();
        budget.get_or_insert_with(|| Budget::new(bytes));
        is_outermost
    });
    let _guard = Guard(is_outermost);
    work()
}

/// Whether the current budget is used up.
pub(crate) fn is_exhausted() -> bool {
    BUDGET.with_borrow(|budget| budget.as_ref().is_some_and(|budget| budget.is_exhausted))
}

/// Steps back that one search may take at most. `None` if the budget is used up.
pub(super) fn remaining_retries() -> Option<u64> {
    BUDGET.with_borrow_mut(|budget| match budget {
        None => Some(RETRIES),
        Some(budget) => {
            budget.is_exhausted |= budget.retries == 0 || Instant::now() > budget.deadline;
            (!budget.is_exhausted).then_some(budget.retries)
        }
    })
}

/// Records a search that took up to `retries` steps back.
pub(super) fn spend(retries: u64) {
    BUDGET.with_borrow_mut(|budget| {
        if let Some(budget) = budget {
            budget.retries = budget.retries.saturating_sub(retries);
        }
    });
}

/// Ends the budget: the pattern needs more than it has.
pub(super) fn exhaust() {
    BUDGET.with_borrow_mut(|budget| {
        if let Some(budget) = budget {
            budget.is_exhausted = true;
        }
    });
}

impl Budget {
    fn new(bytes: usize) -> Self {
        let time = TIME_PER_BYTE.saturating_mul(u32::try_from(bytes).unwrap_or(u32::MAX));
        Self {
            retries: RETRIES + RETRIES_PER_BYTE * bytes as u64,
            deadline: Instant::now() + TIME + time,
            is_exhausted: false,
        }
    }
}
