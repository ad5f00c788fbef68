#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use super::waiting::STOP_TIMEOUT;
use super::*;
use crate::TreeSum;

/// Runs `work` on `size` threads and returns the results in the order of the ranks.
fn on_ranks<T: Send>(size: usize, work: impl Fn(Group) -> T + Sync) -> Vec<T> {
    let groups = Group::threads(size).unwrap();
    std::thread::scope(|scope| {
        let work = &work;
        let ranks: Vec<_> = groups
            .into_iter()
            .map(|group| scope.spawn(move || work(group)))
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn value(rank: usize, i: usize) -> f32 {
    ((rank * 7919 + i * 104_729) % 9973) as f32 / 13.0
}

#[test]
fn all_ranks_get_the_sums_of_the_tree() {
    for size in [2, 3, 4, 8] {
        for len in [0, 1, 5, 1000] {
            let sums = on_ranks(size, |group| {
                let values = (0..len).map(|i| value(group.rank(), i)).collect();
                group.sum(values).unwrap()
            });
            let expected: Vec<f32> = (0..len)
                .map(|i| {
                    let mut tree = TreeSum::default();
                    (0..size).for_each(|rank| tree.push(value(rank, i), |a, b| a + b));
                    tree.finish(|a, b| a + b).unwrap()
                })
                .collect();
            for sum in sums {
                assert_eq!(sum, expected, "{size} ranks, {len} numbers");
            }
        }
    }
}

#[test]
fn sums_that_were_started_finish_in_order() {
    let results = on_ranks(2, |group| {
        for n in 1..=5_u8 {
            let values = vec![f32::from(n); usize::from(n)];
            group.start_sum(values).unwrap();
            if n == 2 && group.is_first() {
                std::thread::sleep(Duration::from_millis(100)); // The other rank sends two at a time, this one does not.
            }
        }
        (0..5)
            .map(|_| group.finish_numbers().unwrap())
            .collect::<Vec<_>>()
    });
    for result in results {
        let expected: Vec<Vec<f32>> = (1..=5_u8)
            .map(|n| vec![2.0 * f32::from(n); usize::from(n)])
            .collect();
        assert_eq!(result, expected);
    }
}

#[test]
fn gathered_bytes_come_in_the_order_of_the_ranks() {
    let all = on_ranks(3, |group| group.gather(vec![b'x'; group.rank()]).unwrap());
    assert_eq!(all, vec![vec![vec![], vec![b'x'], vec![b'x'; 2]]; 3]);
}

#[test]
fn messages_of_any_length_are_gathered() {
    let packet = PACKET / 2;
    let message = |rank: usize, len: usize| (0..len).map(move |i| (i * 7 + rank) as u8).collect();
    for lengths in [[packet + 3, 5], [packet, packet], [packet - 1, 2 * packet]] {
        let expected: Vec<Vec<u8>> = (0..2).map(|rank| message(rank, lengths[rank])).collect();
        let all = on_ranks(2, |group| {
            let own = message(group.rank(), lengths[group.rank()]);
            (group.gather(own).unwrap(), group.gather(vec![1]).unwrap())
        });
        for (gathered, next) in all {
            assert!(gathered == expected, "{lengths:?}");
            assert_eq!(next, [[1], [1]]);
        }
    }
}

#[test]
fn only_rank_0_keeps_what_is_gathered_for_it() {
    let all = on_ranks(2, |group| {
        let own = vec![group.rank() as u8; 2];
        group.gather_on_first(own).unwrap()
    });
    assert_eq!(all, [[vec![0, 0], vec![1, 1]], [vec![], vec![]]]);
}

#[test]
fn only_the_bytes_of_rank_0_are_broadcast() {
    let sent: Vec<u8> = (0..PACKET + 5).map(|i| i as u8).collect();
    let all = on_ranks(2, |group| {
        let bytes = if group.is_first() {
            sent.clone()
        } else {
            vec![9; 3]
        };
        group.broadcast(bytes).unwrap()
    });
    assert!(all.iter().all(|bytes| *bytes == sent));
}

#[test]
fn a_rank_that_differs_is_named_on_all_ranks() {
    let errors = on_ranks(3, |group| {
        let value = if group.rank() == 1 { "b" } else { "a" };
        group.check_equal("the data", value, "copy it").unwrap_err()
    });
    for error in errors {
        let message = error.to_string();
        let expected =
            "rank 1 on this process differs from rank 0 in the data: b instead of a; hint: copy it";
        assert_eq!(message, expected);
    }
    on_ranks(2, |group| group.check_equal("the data", "a", "").unwrap());
}

#[test]
fn an_abort_of_one_rank_ends_the_others() {
    let start = Instant::now();
    let errors = on_ranks(3, |group| {
        if group.rank() == 1 {
            group.abort(4);
            return None;
        }
        group.sum(vec![0.0; 10]).err()
    });
    let lost = |error: &Option<ParallelError>| matches!(error, Some(ParallelError::Lost { .. }));
    assert!(lost(&errors[0]) && lost(&errors[2]), "{errors:?}");
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_rank_that_does_not_answer_is_an_error_after_the_timeout() {
    let errors = on_ranks(2, |group| {
        group.set_timeout(Duration::from_millis(300));
        if group.rank() == 1 {
            std::thread::sleep(Duration::from_millis(1200));
            return None;
        }
        group.gather(Vec::new()).err()
    });
    let is_timeout = matches!(errors[0], Some(ParallelError::Timeout { .. }));
    assert!(is_timeout, "{errors:?}");
}

#[test]
fn finishing_waits_for_all_ranks() {
    let start = Instant::now();
    let ends = on_ranks(2, |group| {
        if group.rank() == 1 {
            std::thread::sleep(Duration::from_millis(200));
        }
        group.finish().unwrap();
        start.elapsed()
    });
    assert!(ends[0] >= Duration::from_millis(200), "{ends:?}");
}

#[test]
fn a_rank_that_is_alone_needs_nobody() {
    let group = Group::alone();
    assert_eq!(group.broadcast(vec![1, 2]).unwrap(), [1, 2]);
    assert_eq!(group.gather(vec![3]).unwrap(), [[3]]);
    group.check_equal("x", "y", "z").unwrap();
    group.finish().unwrap();
    group.abort(1);
    assert_eq!(group.waited(), Duration::ZERO);
}

/// Whether a rank that has waited for longer than [`STOP_TIMEOUT`] still waits.
fn waits_long(group: &Group) -> bool {
    let link = group.0.link.as_ref().unwrap();
    group
        .check_others(link, STOP_TIMEOUT + Duration::from_secs(1))
        .is_ok()
}

#[test]
fn a_stopped_rank_waits_long_for_other_machines_only_while_rank_0_may_save() {
    on_ranks(2, |mut group| {
        let inner = Arc::get_mut(&mut group.0).unwrap();
        inner.peers[1 - inner.rank].host = "another machine".to_string();
        assert!(waits_long(&group));
        group.watch(|| true);
        assert!(!waits_long(&group));
        group.expect_save();
        assert!(waits_long(&group));
        group.gather(Vec::new()).unwrap(); // It has answered.
        assert!(!waits_long(&group));
        group.finish().unwrap(); // Rank 0 may save before it calls this.
    });
}

#[test]
fn a_reduced_part_has_the_bits_of_the_whole_sum_and_is_collected_from_all_ranks() {
    for size in [2, 3, 4] {
        // One rank has no part.
        let parts: Vec<_> = (0..size)
            .scan(0, |end, rank| {
                *end += 7 * rank;
                Some(*end - 7 * rank..*end)
            })
            .collect();
        let len = parts.last().unwrap().end;
        let results = on_ranks(size, |group| {
            let values: Vec<f32> = (0..len).map(|i| value(group.rank(), i)).collect();
            group.start_sum(values.clone()).unwrap();
            group.start_reduce(values, parts.clone()).unwrap();
            let sum = group.finish_numbers().unwrap();
            let own = group.finish_numbers().unwrap();
            assert_eq!(own, sum[parts[group.rank()].clone()]);
            group.start_collect(own, parts.clone()).unwrap();
            (sum, group.finish_numbers().unwrap())
        });
        for (sum, collected) in results {
            assert_eq!(sum, collected, "{size} ranks");
        }
    }
}
