use std::collections::HashSet;

use crate::tests::random;
use crate::*;

fn counting_tokens(count: usize) -> Tokens {
    Tokens::from_ids((0..count as u32).collect())
}

/// Documents of different lengths; every id occurs once.
fn documents() -> Tokens {
    let mut next = 0;
    let lengths = [5, 1, 12, 2, 9, 30, 3, 8, 1, 4];
    Tokens::from_documents(lengths.map(|length| {
        next += length;
        (next - length..next).collect()
    }))
}

fn config(order: Order, packing: Packing) -> LoaderConfig {
    LoaderConfig {
        context_length: 8,
        batch_size: 4,
        grad_accum_steps: 2,
        order,
        packing,
        seed: 7,
        padding_id: 0,
    }
}

const ALL_MODES: [(Order, Packing); 4] = [
    (Order::Random, Packing::Packed),
    (Order::Random, Packing::Documents),
    (Order::Epoch, Packing::Packed),
    (Order::Epoch, Packing::Documents),
];

/// Returns the rows of `steps` steps from `first` on.
fn rows(loader: &Loader, first: u64, steps: u64) -> Vec<(Vec<u32>, Vec<u32>)> {
    let mut rows = Vec::new();
    for step in first..first + steps {
        for micro in 0..loader.config().grad_accum_steps {
            let batch = loader.batch(step, micro).unwrap();
            assert_eq!(batch.inputs.len(), batch.batch * batch.seq);
            let inputs = batch.inputs.chunks(batch.seq).map(<[u32]>::to_vec);
            rows.extend(inputs.zip(batch.targets.chunks(batch.seq).map(<[u32]>::to_vec)));
        }
    }
    rows
}

#[test]
fn stream_is_independent_of_micro_batch_split() {
    for (order, packing) in ALL_MODES {
        let split = |batch_size, grad_accum_steps| {
            let config = LoaderConfig {
                batch_size,
                grad_accum_steps,
                ..config(order, packing)
            };
            rows(&Loader::new(documents(), config).unwrap(), 0, 5)
        };
        let unsplit = split(32, 1);
        assert_eq!(unsplit.len(), 160);
        assert_eq!(unsplit, split(16, 2));
        assert_eq!(unsplit, split(8, 4));
    }
}

#[test]
fn prefetch_matches_direct_batches_at_any_depth() {
    for (order, packing) in ALL_MODES {
        let loader = Loader::new(documents(), config(order, packing)).unwrap();
        for (from, depth) in [(0, 0), (0, 1), (3, 4), (1000, 32)] {
            let fetched: Vec<TokenBatch> = loader
                .prefetch(from, depth)
                .take(10)
                .map(Result::unwrap)
                .collect();
            let direct: Vec<TokenBatch> = (from..from + 5)
                .flat_map(|s| [loader.batch(s, 0).unwrap(), loader.batch(s, 1).unwrap()])
                .collect();
            assert_eq!(fetched, direct);
        }
    }
}

#[test]
fn resumed_stream_matches_uninterrupted_stream() {
    for (order, packing) in ALL_MODES {
        let uninterrupted = rows(
            &Loader::new(documents(), config(order, packing)).unwrap(),
            0,
            20,
        );
        let resumed = rows(
            &Loader::new(documents(), config(order, packing)).unwrap(),
            13,
            7,
        );
        assert_eq!(uninterrupted[13 * 8..], resumed);
        let other_seed = LoaderConfig {
            seed: 8,
            ..config(order, packing)
        };
        assert_ne!(
            uninterrupted,
            rows(&Loader::new(documents(), other_seed).unwrap(), 0, 20)
        );
    }
}

#[test]
fn epoch_visits_each_window_once_and_reshuffles() {
    for packing in [Packing::Packed, Packing::Documents] {
        let config = LoaderConfig {
            batch_size: 1,
            grad_accum_steps: 1,
            ..config(Order::Epoch, packing)
        };
        let loader = Loader::new(documents(), config).unwrap();
        let epoch = loader.sequences_per_epoch();
        let starts = |first| {
            rows(&loader, first, epoch as u64)
                .iter()
                .map(|row| row.0[0])
                .collect::<Vec<u32>>()
        };
        let (first, second) = (starts(0), starts(epoch as u64));
        assert_eq!(first.iter().collect::<HashSet<_>>().len(), epoch);
        assert_ne!(first, second);
    }
    // Every token of a document except its first is a target once per epoch.
    let config = LoaderConfig {
        batch_size: 1,
        grad_accum_steps: 1,
        ..config(Order::Epoch, Packing::Documents)
    };
    let loader = Loader::new(documents(), config).unwrap();
    let all = rows(&loader, 0, loader.sequences_per_epoch() as u64);
    let mut targets: Vec<u32> = all
        .into_iter()
        .flat_map(|row| row.1)
        .filter(|&id| id != IGNORE)
        .collect();
    targets.sort_unstable();
    let firsts: HashSet<u32> = documents()
        .document_starts()
        .map(|start| start as u32)
        .collect();
    assert_eq!(
        targets,
        (0..75)
            .filter(|id| !firsts.contains(id))
            .collect::<Vec<u32>>()
    );
}

#[test]
fn every_token_is_a_target_in_some_epoch() {
    let config = LoaderConfig {
        batch_size: 1,
        grad_accum_steps: 1,
        ..config(Order::Epoch, Packing::Packed)
    };
    let loader = Loader::new(counting_tokens(8 * 5 + 7), config).unwrap();
    let seen: HashSet<u32> = rows(&loader, 0, 5 * 60)
        .into_iter()
        .flat_map(|row| row.1)
        .collect();
    assert_eq!(
        seen.len(),
        8 * 5 + 6,
        "all tokens except the very first are targets in some epoch"
    );
}

#[test]
fn random_windows_start_anywhere_with_shifted_targets() {
    let loader = Loader::new(counting_tokens(40), config(Order::Random, Packing::Packed)).unwrap();
    let rows = rows(&loader, 0, 100);
    for (inputs, targets) in &rows {
        assert!(
            inputs
                .iter()
                .zip(targets)
                .all(|(input, target)| input + 1 == *target)
        );
        assert!(inputs.windows(2).all(|pair| pair[0] + 1 == pair[1]));
    }
    let starts: HashSet<u32> = rows.iter().map(|row| row.0[0]).collect();
    assert_eq!(starts.len(), 40 - 8, "every valid start of a window");
}

#[test]
fn document_windows_are_padded_and_padding_has_no_loss() {
    let tokens = Tokens::from_documents([vec![1, 2, 3], vec![4; 12]]);
    let config = LoaderConfig {
        padding_id: 9,
        batch_size: 3,
        grad_accum_steps: 1,
        ..config(Order::Epoch, Packing::Documents)
    };
    let batch = Loader::new(tokens, config).unwrap().batch(0, 0).unwrap();
    let mut rows: Vec<(&[u32], &[u32])> = batch
        .inputs
        .chunks(8)
        .zip(batch.targets.chunks(8))
        .collect();
    rows.sort_unstable();
    let i = IGNORE;
    let short = (&[1, 2, 9, 9, 9, 9, 9, 9][..], &[2, 3, i, i, i, i, i, i][..]);
    let rest = (&[4, 4, 4, 9, 9, 9, 9, 9][..], &[4, 4, 4, i, i, i, i, i][..]);
    assert_eq!(rows, [short, (&[4; 8][..], &[4; 8][..]), rest]);
    assert_eq!(batch.target_count(), 2 + 11);
}

#[test]
fn eval_targets_each_token_after_the_first_once() {
    let mut random = random(6);
    for _ in 0..60 {
        let (count, context, rows) = (
            2 + random.below(100),
            1 + random.below(20),
            1 + random.below(9),
        );
        let windows =
            EvalWindows::new(counting_tokens(count), context, Packing::Packed, 0).unwrap();
        let batches: Vec<TokenBatch> = windows.batches(rows).map(Result::unwrap).collect();
        assert_eq!(
            batches.iter().map(|batch| batch.batch).sum::<usize>(),
            windows.len()
        );
        let targets = batches
            .iter()
            .flat_map(|batch| batch.targets.iter().copied());
        let targets: Vec<u32> = targets.filter(|&id| id != IGNORE).collect();
        assert_eq!(targets, (1..count as u32).collect::<Vec<u32>>());
        for batch in &batches {
            let pairs = batch.inputs.iter().zip(&batch.targets);
            assert!(
                pairs
                    .filter(|pair| *pair.1 != IGNORE)
                    .all(|(input, target)| input + 1 == *target)
            );
        }
    }
}

#[test]
fn rolling_windows_give_each_target_all_the_context_that_fits() {
    let mut random = random(7);
    for _ in 0..60 {
        let (context, prefix) = (1 + random.below(9), 1 + random.below(3));
        let lens: Vec<usize> = (0..=random.below(5)).map(|_| random.below(40)).collect();
        let id = |document: usize, at: usize| (1000 * document + at) as u32;
        let document = |(document, len): (usize, &usize)| -> Vec<u32> {
            (0..*len).map(|at| id(document, at)).collect()
        };
        let tokens = Tokens::from_documents(lens.iter().enumerate().map(document));
        let windows = EvalWindows::rolling(tokens, context, prefix, 0);
        let Some(windows) = windows.ok() else {
            assert!(lens.iter().all(|len| *len <= prefix));
            continue;
        };
        // Each token after the prefix once, with the inputs before it that lm-evaluation-harness gives it.
        let mut expected = Vec::new();
        for (document, len) in lens.iter().enumerate() {
            let mut done = prefix;
            while done < *len {
                // The whole prefix precedes the first targets, if there is space for it.
                let is_first = done == prefix;
                let before = if is_first { prefix - 1 } else { 0 };
                let end = (done + context.saturating_sub(before).max(1)).min(*len);
                let start = end.saturating_sub(context + 1);
                for at in done..end {
                    expected.push((id(document, start), at - start, id(document, at)));
                }
                done = end;
            }
        }
        let mut found = Vec::new();
        for batch in windows.batches(3).map(Result::unwrap) {
            for (row, targets) in batch.targets.chunks(context).enumerate() {
                let inputs = &batch.inputs[row * context..][..context];
                let targets = targets.iter().enumerate().filter(|(_, id)| **id != IGNORE);
                found.extend(targets.map(|(at, target)| (inputs[0], at + 1, *target)));
            }
        }
        assert_eq!(found, expected, "{lens:?} {context} {prefix}");
    }
}

#[test]
fn eval_windows_respect_documents_and_limit_spreads_evenly() {
    let windows = EvalWindows::new(documents(), 8, Packing::Documents, 0).unwrap();
    let targets: usize = windows
        .batches(4)
        .map(|batch| batch.unwrap().target_count())
        .sum();
    assert_eq!(targets, 75 - 10);
    let limited = EvalWindows::new(counting_tokens(8001), 8, Packing::Packed, 0)
        .unwrap()
        .limit(10);
    let starts: Vec<u32> = limited
        .batches(1)
        .map(|batch| batch.unwrap().inputs[0])
        .collect();
    assert_eq!(starts, (0..10).map(|i| i * 800).collect::<Vec<u32>>());
}

#[test]
fn too_short_data_error_names_both_lengths_and_the_fix() {
    let error = Loader::new(counting_tokens(8), config(Order::Random, Packing::Packed))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("has 8 tokens")
            && error.contains("needs 9")
            && error.contains("to 7 or less"),
        "{error}"
    );
    assert!(Loader::new(counting_tokens(9), config(Order::Epoch, Packing::Packed)).is_ok());
    let single = Tokens::from_documents([vec![1], vec![2]]);
    assert!(
        Loader::new(single, config(Order::Epoch, Packing::Documents))
            .unwrap_err()
            .to_string()
            .contains("hint:")
    );
    assert!(EvalWindows::new(counting_tokens(1), 8, Packing::Packed, 0).is_err());
    let zero = LoaderConfig {
        batch_size: 0,
        ..config(Order::Epoch, Packing::Packed)
    };
    assert!(
        Loader::new(counting_tokens(100), zero)
            .unwrap_err()
            .to_string()
            .contains("batch_size = 0")
    );
}

#[test]
fn baselines_match_hand_computed_counts() {
    // Training: 0 1 0 1 0; validation: 0 1.
    let (train, validation) = (
        Tokens::from_ids(vec![0, 1, 0, 1, 0]),
        Tokens::from_ids(vec![0, 1]),
    );
    let baselines = Baselines::compute(&train, &validation, 2).unwrap();
    let unigram: f64 = 3.0 / 7.0; // (2 + 1) / (5 + 2)
    let bigram = (2.0 + unigram) / 3.0; // seen twice after 0, which occurs twice, followed by 1 distinct token
    assert!((baselines.uniform - 2f64.ln()).abs() < 1e-12);
    assert!((baselines.unigram + unigram.ln()).abs() < 1e-12);
    assert!((baselines.bigram + bigram.ln()).abs() < 1e-12);
    assert_eq!(baselines.targets, 1);
}

#[test]
fn bigram_beats_unigram_beats_uniform_on_stories() {
    let config = DataConfig {
        builtin: Some(Builtin::Stories),
        documents: 100,
        ..DataConfig::default()
    };
    let data = Dataset::build(&config).unwrap();
    let b = Baselines::compute(&data.train, &data.validation, data.tokenizer.vocab_size()).unwrap();
    assert!(
        b.bigram + 0.3 < b.unigram && b.unigram + 0.3 < b.uniform,
        "{b:?}"
    );
}
