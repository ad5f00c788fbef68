//! Rows of several samples.
#![allow(clippy::single_range_in_vec_init)] // Samples with one span.

use crate::tests::random;
use crate::*;

/// Samples whose second id is their number plus 1000, with some trained tokens at the end.
fn numbered(lengths: impl IntoIterator<Item = usize>) -> Samples {
    let mut builder = SamplesBuilder::default();
    for (index, length) in lengths.into_iter().enumerate() {
        let mut ids: Vec<u32> = (0..length as u32).collect();
        ids[1] = 1000 + index as u32;
        let trained = 2 + (index % (length - 2))..length;
        builder.push(&ids, &[trained]).unwrap();
    }
    builder.finish()
}

fn random_samples(count: usize) -> Samples {
    let mut random = random(8);
    numbered((0..count).map(|_| 3 + random.below(40)))
}

fn loader(samples: &Samples, batch_size: usize, grad_accum_steps: usize) -> Loader {
    let config = LoaderConfig {
        context_length: 48,
        batch_size,
        grad_accum_steps,
        packing: Packing::Samples,
        seed: 5,
        padding_id: 3,
        ..LoaderConfig::default()
    };
    Loader::from_samples(samples.clone(), config).unwrap()
}

/// The samples of each row of a batch, by their numbers. Checks that each is there as it would be in a row of its own,
/// and that the rest of the row is padding.
fn numbers(samples: &Samples, batch: &TokenBatch) -> Vec<Vec<usize>> {
    let alone = |row: usize| {
        let index = batch.inputs[row * batch.seq + 1] as usize - 1000;
        let (len, prefix) = (samples.row_length(index), 0);
        vec![SampleSegment { len, prefix }]
    };
    let rows = match &batch.mask {
        BatchMask::Segments(rows) => rows.clone(),
        mask => {
            assert_eq!(*mask, BatchMask::Causal);
            (0..batch.batch).map(alone).collect()
        }
    };
    assert_eq!(rows.len(), batch.batch);
    let mut found = Vec::new();
    for (row, segments) in rows.iter().enumerate() {
        let (mut at, mut in_row) = (row * batch.seq, Vec::new());
        for segment in segments {
            let index = batch.inputs[at + 1] as usize - 1000;
            let alone = samples.batch(&[index], segment.len, 3).unwrap();
            let positions = at..at + segment.len;
            assert_eq!(segment.len, samples.row_length(index));
            assert_eq!(batch.inputs[positions.clone()], alone.inputs);
            assert_eq!(batch.targets[positions], alone.targets);
            at += segment.len;
            in_row.push(index);
        }
        let padding = at..(row + 1) * batch.seq;
        assert!(batch.inputs[padding.clone()].iter().all(|id| *id == 3));
        assert!(batch.targets[padding].iter().all(|id| *id == IGNORE));
        found.push(in_row);
    }
    found
}

#[test]
fn every_epoch_has_each_sample_once_and_as_many_rows() {
    let samples = random_samples(101);
    let loader = loader(&samples, 1, 1);
    let rows = loader.sequences_per_epoch();
    assert!(rows < samples.len() * 2 / 3, "{rows}");
    let mut epochs = Vec::new();
    for epoch in 0..3 {
        let steps = epoch * rows as u64..(epoch + 1) * rows as u64;
        let mut rows = Vec::new();
        for batch in steps.map(|step| loader.batch(step, 0).unwrap()) {
            rows.extend(numbers(&samples, &batch));
        }
        let mut all: Vec<usize> = rows.iter().flatten().copied().collect();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..samples.len()), "epoch {epoch}");
        epochs.push(rows);
    }
    assert_ne!(epochs[0], epochs[1]);
}

#[test]
fn a_step_has_the_same_rows_for_every_split_into_micro_batches() {
    let samples = random_samples(200);
    let loaders = [(6, 1), (3, 2), (1, 6)].map(|(rows, micro)| loader(&samples, rows, micro));
    for step in [7, 0, 30, 3] {
        let whole = loaders[0].batch(step, 0).unwrap();
        let expected = numbers(&samples, &whole);
        for loader in &loaders[1..] {
            let micro = 0..loader.config().grad_accum_steps;
            let parts: Vec<_> = micro.map(|at| loader.batch(step, at).unwrap()).collect();
            let inputs: Vec<u32> = parts.iter().flat_map(|part| part.inputs.clone()).collect();
            assert_eq!(inputs, whole.inputs, "step {step}");
            let masks = parts.iter().zip(expected.chunks(parts[0].batch));
            for (part, rows) in masks {
                assert_eq!(numbers(&samples, part), rows);
            }
        }
    }
}

#[test]
fn the_first_row_is_the_longest() {
    let samples = random_samples(90);
    let loader = loader(&samples, 4, 2);
    let used = |row: &Vec<usize>| -> usize { row.iter().map(|at| samples.row_length(*at)).sum() };
    let longest = |step| {
        let batches = (0..2).map(|micro| loader.batch(step, micro).unwrap());
        let rows = batches.flat_map(|batch| numbers(&samples, &batch));
        rows.map(|row| used(&row)).collect::<Vec<_>>()
    };
    let first = longest(0)[0];
    let steps = loader.sequences_per_epoch() as u64 / 8;
    assert!((0..steps).flat_map(longest).all(|length| length <= first));
}

#[test]
fn samples_of_which_no_two_fit_have_the_batches_of_unpacked_ones() {
    let mut random = random(2);
    let samples = numbered((0..70).map(|_| 26 + random.below(20)));
    let packed = loader(&samples, 4, 1);
    let config = LoaderConfig {
        packing: Packing::Packed,
        ..*packed.config()
    };
    let unpacked = Loader::from_samples(samples, config).unwrap();
    for step in 0..40 {
        let batches = [&packed, &unpacked].map(|loader| loader.batch(step, 0).unwrap());
        assert_eq!(batches[0], batches[1], "step {step}");
    }
}

#[test]
fn a_text_has_no_samples_to_pack() {
    let tokens = Tokens::from_ids((0..100).collect());
    let config = LoaderConfig {
        packing: Packing::Samples,
        ..LoaderConfig::default()
    };
    let errors = [
        Loader::new(tokens.clone(), config).unwrap_err(),
        EvalWindows::new(tokens, 8, Packing::Samples, 0).unwrap_err(),
        DataConfig {
            builtin: Some(Builtin::Stories),
            packing: Packing::Samples,
            ..DataConfig::default()
        }
        .validate()
        .unwrap_err(),
    ];
    for error in errors {
        assert!(
            error.to_string().contains("set data.conversations"),
            "{error}"
        );
    }
}
