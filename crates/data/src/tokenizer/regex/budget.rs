//! The work that the patterns and replacements of a tokenizer may do for one text.
//!
//! Time on a clock does not count: the same text must not be refused because the machine was busy or the
//! process was stopped for a while.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use nextword_base::thread_cpu_time;

/// Steps back that a text may take, plus those for each of its bytes. Python's `tokenizers` gives up
/// after ten million for one match.
const RETRIES: u64 = 16_000_000;
const RETRIES_PER_BYTE: u64 = 64;
/// Time that the thread may compute for a text, plus that for each of its bytes: a hundred times what
/// published patterns need. It bounds work without steps back.
const CPU_TIME: Duration = Duration::from_secs(1);
const CPU_TIME_PER_BYTE: Duration = Duration::from_micros(20);
/// Bytes that the rules of a normalizer may add to a text, plus those for each of its bytes. NFKD, the
/// longest published rule, adds up to ten.
const GROWTH: usize = 64 << 10;
const GROWTH_PER_BYTE: usize = 16;

/// The rest of a budget.
#[derive(Debug)]
struct Budget {
    retries: u64,
    /// The [`thread_cpu_time`] at which the budget ends.
    deadline: Option<Duration>,
    /// When that can be at the earliest. Reading the clock is cheaper than reading the thread's time.
    next_look: Instant,
    growth: usize,
    /// What used the budget up.
    exhausted_by: Option<String>,
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

/// What used the current budget up, such as "the pattern a* takes too long"; `None` if there is some left.
pub(crate) fn exhausted_by() -> Option<String> {
    BUDGET.with_borrow(|budget| budget.as_ref()?.exhausted_by.clone())
}

/// Steps back that one search may take at most. `None` if the budget is used up.
pub(super) fn remaining_retries() -> Option<u64> {
    BUDGET.with_borrow_mut(|budget| match budget {
        None => Some(RETRIES),
        Some(budget) => {
            let is_exhausted =
                budget.exhausted_by.is_some() || budget.retries == 0 || budget.is_late();
            (!is_exhausted).then_some(budget.retries)
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

/// Records that a rule adds `bytes` to the text. Returns whether the budget allows that.
pub(super) fn grow(bytes: usize) -> bool {
    BUDGET.with_borrow_mut(|budget| match budget {
        None => bytes <= GROWTH,
        Some(budget) => {
            let rest = budget.growth.checked_sub(bytes);
            budget.growth = rest.unwrap_or(0);
            rest.is_some()
        }
    })
}

/// Ends the budget, for the reason `by`.
pub(super) fn exhaust(by: impl FnOnce() -> String) {
    BUDGET.with_borrow_mut(|budget| {
        if let Some(budget) = budget {
            budget.exhausted_by.get_or_insert_with(by);
        }
    });
}

impl Budget {
    fn new(bytes: usize) -> Self {
        let time = CPU_TIME_PER_BYTE.saturating_mul(u32::try_from(bytes).unwrap_or(u32::MAX));
        let time = CPU_TIME + time;
        Self {
            retries: RETRIES.saturating_add(RETRIES_PER_BYTE.saturating_mul(bytes as u64)),
            deadline: thread_cpu_time().map(|now| now + time),
            next_look: Instant::now() + time,
            growth: GROWTH.saturating_add(GROWTH_PER_BYTE.saturating_mul(bytes)),
            exhausted_by: None,
        }
    }

    fn is_late(&mut self) -> bool {
        let now = Instant::now();
        if now < self.next_look {
            return false;
        }
        let (Some(deadline), Some(time)) = (self.deadline, thread_cpu_time()) else {
            return false;
        };
        // A thread computes no longer than the clock runs.
        self.next_look = now + deadline.saturating_sub(time);
        time > deadline
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_uses_no_budget() {
        with_budget(0, || {
            // As after a pause of the process that was longer than the whole budget.
            BUDGET.with_borrow_mut(|budget| {
                let budget = budget.as_mut();
                assert!(budget.is_some_and(|budget| {
                    budget.next_look = Instant::now();
                    !budget.is_late() && budget.next_look > Instant::now()
                }));
            });
            assert!(remaining_retries().is_some() && exhausted_by().is_none());
        });
        with_budget(0, || {
            BUDGET.with_borrow_mut(|budget| {
                let budget = budget.as_mut();
                // Computing does, where the system reports it.
                assert!(budget.is_some_and(|budget| {
                    budget.next_look = Instant::now();
                    budget.deadline = Some(Duration::ZERO);
                    budget.is_late() == thread_cpu_time().is_some()
                }));
            });
        });
    }

    #[test]
    fn growth_is_counted_over_all_rules() {
        with_budget(10, || {
            assert!(grow(GROWTH) && grow(10 * GROWTH_PER_BYTE) && !grow(1));
            exhaust(|| "first".to_owned());
            exhaust(|| "second".to_owned());
            assert_eq!(exhausted_by().as_deref(), Some("first"));
            assert_eq!(remaining_retries(), None);
        });
        assert_eq!(exhausted_by(), None);
    }
}
