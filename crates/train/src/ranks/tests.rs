#![allow(clippy::unwrap_used, clippy::float_cmp)] // The order of additions determines each bit.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Device, TensorData};
use nextword_data::{Dataset, MaskedConfig, Packing, TokenBatch, TokenizerConfig, Tokens};
use nextword_kernels::SQUARES_CHUNK;
use nextword_model::{presets, weights};
use nextword_parallel::{ParallelError, ShardedParameter, Shards};

use super::*;
use crate::checkpoint::State;
use crate::reduction::StepPart;
use crate::{
    Gradients, Optimizer, OptimizerConfig, OptimizerKind, OtherText, RunConfig, RunSetup, Stepper,
    prepare_run,
};

/// Runs `work` on `ranks` threads and returns the results in the order of the ranks.
pub(crate) fn on_ranks<T: Send>(ranks: usize, work: impl Fn(Group) -> T + Sync) -> Vec<T> {
    let groups = Group::threads(ranks).unwrap();
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = groups
            .into_iter()
            .map(|group| scope.spawn(move || work(group)))
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, T>| thread.join().unwrap();
        threads.into_iter().map(join).collect()
    })
}

#[test]
fn gradients_larger_than_a_bucket_are_summed() {
    let device = Device::flex();
    // The second length fills two buckets, with the loss.
    for len in [BUCKET + 1000, 2 * BUCKET - 9] {
        check_sums(len, &device);
    }
}

/// Sends the gradients that `values` returns for each name and length, and returns what comes back.
fn exchange<'a>(
    group: &Group,
    shards: Option<&Shards>,
    lengths: impl IntoIterator<Item = (&'a str, usize)>,
    values: impl Fn(usize) -> Vec<f32>,
) -> Exchanged {
    let device = Device::flex();
    let mut exchange = GradientExchange::new(group, shards);
    for (name, len) in lengths {
        let data = TensorData::new(values(len), [len]);
        exchange
            .send(name.to_string(), Tensor::from_data(data, &device))
            .unwrap();
    }
    let loss = Tensor::from_data([values(2)[1]], &device);
    let found = exchange.finish(loss).unwrap();
    group.gather(Vec::new()).unwrap(); // No response of a sum is left.
    found
}

fn by_name(gradients: Gradients) -> BTreeMap<String, Vec<f32>> {
    let gradients = gradients.into_map().into_iter();
    gradients
        .map(|(name, sum)| (name, weights::to_f32_vec(sum.into_data())))
        .collect()
}

fn check_sums(len: usize, device: &Device) {
    let lengths = [("a", 3), ("b", len), ("c", 5)];
    let sums = on_ranks(2, |group| {
        let factor = (group.rank() + 1) as f32;
        let values = |n: usize| -> Vec<f32> { (0..n).map(|i| factor * i as f32).collect() };
        let found = exchange(&group, None, lengths, values);
        assert_eq!(found.loss.device(), *device);
        (found.loss.into_scalar::<f32>(), by_name(found.gradients))
    });
    for (loss, sums) in sums {
        assert_eq!(loss, 3.0);
        for ((name, sum), (expected, n)) in sums.iter().zip(lengths) {
            assert_eq!((name.as_str(), sum.len()), (expected, n));
            let is_sum = |(i, value): (usize, &f32)| *value == 3.0 * i as f32;
            assert!(sum.iter().enumerate().all(is_sum), "{name}");
        }
    }
}

#[test]
fn shards_have_the_bits_of_all_sums_and_of_their_norm() {
    let lengths = [
        ("c", 5),
        ("a", 3 * BUCKET + 7),
        ("b", 40_000),
        ("d", 1 << 14),
    ];
    let parameters = lengths.map(|(name, len)| ShardedParameter {
        name: name.to_string(),
        len,
        state_per_value: 2,
        is_whole: name == "b",
    });
    for ranks in [2, 3, 4] {
        let shards = Shards::new(&parameters, SQUARES_CHUNK, ranks);
        let results = on_ranks(ranks, |group| {
            let seed = group.rank() as u32 + 1;
            let value = |i: usize| ((i as u32).wrapping_mul(2_654_435_761 + seed) >> 8) as f32;
            let values = |n: usize| (0..n).map(|i| value(i) / 1e7 - 0.7).collect::<Vec<f32>>();
            let all = exchange(&group, None, lengths, values);
            let own = exchange(&group, Some(&shards), lengths, values);
            let norm = all.gradients.norm().unwrap().into_scalar::<f32>();
            assert_eq!(own.norm.unwrap().to_bits(), f64::from(norm).to_bits());
            let losses = [all.loss, own.loss].map(Tensor::into_scalar::<f32>);
            assert_eq!(losses[0].to_bits(), losses[1].to_bits());
            let all = by_name(all.gradients);
            let own = by_name(own.gradients);
            for (name, _) in lengths {
                let range = shards.range(name, group.rank());
                let found = own.get(name).map_or(&[][..], Vec::as_slice);
                assert_eq!(found, &all[name][range], "{name}");
            }
            // What each rank has is collected again.
            let layout = own_layout(&group, &shards, lengths, values);
            let collected = layout.collect(&group, &shards, &own).unwrap();
            assert_eq!(collected, all, "{ranks} ranks");
            own.values().map(Vec::len).sum::<usize>()
        });
        let total: usize = lengths.iter().map(|(_, len)| len).sum();
        assert_eq!(results.iter().sum::<usize>(), total);
        for own in results {
            let share = own as f64 * ranks as f64 / total as f64;
            assert!((share - 1.0).abs() < 0.05, "{ranks} ranks: {share}");
        }
    }
}

fn own_layout<'a>(
    group: &Group,
    shards: &Shards,
    lengths: impl IntoIterator<Item = (&'a str, usize)>,
    values: impl Fn(usize) -> Vec<f32>,
) -> ShardLayout {
    exchange(group, Some(shards), lengths, values)
        .sharded
        .unwrap()
}

/// Numbers of the optimizer's state on each rank after an update.
fn state_sizes(ranks: usize, kind: OptimizerKind) -> Vec<usize> {
    on_ranks(ranks, |group| {
        let model = presets::shakespeare_char_cpu(65)
            .init(&Device::flex(), 7)
            .unwrap()
            .train();
        let config = OptimizerConfig {
            kind,
            ..OptimizerConfig::default()
        };
        let shards = crate::optimizer::shards_of(&model, &config, ranks);
        let mut stepper =
            Stepper::new(model, config, 7, false).with_shards((ranks > 1).then_some(shards));
        let batch = TokenBatch {
            batch: 1,
            seq: 4,
            inputs: vec![0, 1, 2, 3],
            targets: vec![1, 2, 3, 4],
            ..TokenBatch::default()
        };
        let batches = [batch];
        let part = StepPart::whole(&batches);
        let found = stepper
            .gradients_of_ranks(&batches, &part, 0, &group)
            .unwrap();
        stepper.update_on_ranks(found, 0.1, 0.1, &group).unwrap();
        let tensors = stepper.optimizer().state_tensors().into_iter();
        tensors.map(|(_, len)| len).sum()
    })
}

#[test]
fn each_rank_has_its_part_of_the_moments_in_memory() {
    for kind in [
        OptimizerKind::Adamw,
        OptimizerKind::Sgd,
        OptimizerKind::Muon,
    ] {
        let all = state_sizes(1, kind)[0];
        for ranks in [2, 4] {
            let parts = state_sizes(ranks, kind);
            assert_eq!(parts.iter().sum::<usize>(), all, "{kind:?}");
            for part in parts {
                let share = (part * ranks) as f64 / all as f64;
                assert!((share - 1.0).abs() < 0.05, "{kind:?} on {ranks}: {share}");
            }
        }
    }
}

#[test]
fn a_weight_that_differs_on_a_rank_is_found() {
    for (other_seed, differs) in [(7, false), (8, true)] {
        let results = on_ranks(3, |group| {
            let seed = if group.rank() == 2 { other_seed } else { 7 };
            let model = presets::statquest(5).init(&Device::flex(), seed).unwrap();
            check_same_weights(&group, &model.train())
        });
        for result in results {
            let is_named = matches!(
                &result,
                Err(TrainError::Parallel(ParallelError::Differs { rank, .. })) if rank.starts_with("rank 2")
            );
            assert_eq!(is_named, differs, "{result:?}");
            assert_eq!(result.is_err(), differs);
        }
    }
}

#[test]
fn a_shared_evaluation_has_the_bits_of_one_process() {
    let ids = (0..330).map(|i| (i * i % 5) as u32).collect();
    let windows = EvalWindows::new(Tokens::from_ids(ids), 6, Packing::Packed, 0).unwrap();
    let model = || presets::statquest(5).init(&Device::flex(), 7).unwrap();
    let expected = nextword_eval::evaluate(&model(), &windows, 4).unwrap();
    for ranks in [1, 2, 3] {
        for report in on_ranks(ranks, |group| {
            let mut seen = 0;
            let report = evaluate(&group, &model(), &windows, 4, &mut |done, all| {
                assert_eq!((done, all), (seen, (14 - group.rank()).div_ceil(ranks)));
                seen += 1;
                ControlFlow::Continue(())
            });
            report.unwrap()
        }) {
            assert_eq!(report, expected, "{ranks} ranks");
        }
    }
}

/// A rank that is not asked to stop leaves the evaluation with the others when losses are exchanged next.
#[test]
fn a_rank_that_stops_an_evaluation_stops_it_on_all() {
    let windows = Tokens::from_ids([1, 2, 3, 4].repeat(200));
    let windows = EvalWindows::new(windows, 6, Packing::Packed, 0).unwrap();
    let model = || presets::statquest(5).init(&Device::flex(), 7).unwrap();
    for ranks in [1, 3] {
        for result in on_ranks(ranks, |group| {
            let stops = group.rank() + 1 == ranks;
            let result = evaluate(&group, &model(), &windows, 4, &mut |done, all| {
                assert!(done < EVALUATED_AT_ONCE && all > 2 * EVALUATED_AT_ONCE);
                if stops && done == 1 {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            });
            result.map(|report| report.tokens)
        }) {
            assert!(matches!(result, Err(TrainError::Interrupted)), "{result:?}");
        }
    }
}

#[test]
fn all_ranks_continue_with_the_model_moments_and_state_of_rank_0() {
    let results = on_ranks(2, |group| {
        let device = Device::flex();
        let seed = group.rank() as u64;
        let model = presets::statquest(5).init(&device, seed).unwrap();
        let mut optimizer = Optimizer::new(OptimizerConfig::default());
        let mut state = State::default();
        if group.is_first() {
            let moment = Tensor::from_data([1.5_f32, -2.0], &device);
            optimizer.set_moment("blocks.0.norm.gain.first", moment);
            state.step = 9;
        }
        let start = Start {
            model,
            optimizer,
            moments: None,
            state,
        };
        let (model, optimizer, state) = share_start(&group, start, None).unwrap();
        let mut values = Vec::new();
        weights::for_each(&model, |_, data| values.extend(weights::to_f32_vec(data)));
        let moments: Vec<_> = optimizer
            .state()
            .into_iter()
            .map(|(name, moment)| (name, weights::to_f32_vec(moment.clone().into_data())))
            .collect();
        (values, moments, state)
    });
    assert_eq!(results[0], results[1]);
    assert_eq!(results[0].1.len(), 1);
    assert_eq!(results[1].2.step, 9);
    assert_eq!(results[0].0.len(), 37);
}

/// The subject of the disagreement of two ranks, whose setups `setup` makes from their numbers.
fn disagreement(setup: impl Fn(usize) -> RunSetup + Sync) -> Option<String> {
    let results = on_ranks(2, |group| {
        let mut setup = setup(group.rank());
        setup.group = group;
        check_agreement(&setup)
    });
    let subjects = results.into_iter().map(|result| match result {
        Ok(()) => None,
        Err(TrainError::Parallel(ParallelError::Differs { subject, .. })) => Some(subject),
        Err(error) => panic!("{error}"),
    });
    let subjects: Vec<_> = subjects.collect();
    assert_eq!(subjects[0], subjects[1]);
    subjects[0].clone()
}

/// A setup with the text in the file `path` as `validation.also`.
fn with_other_text(path: &Path) -> RunSetup {
    let text = "to be or not to be ".repeat(50);
    let dataset = Dataset::from_text(&text, &TokenizerConfig::chars()).unwrap();
    let mut config = RunConfig::default();
    config.validation.also = vec![OtherText {
        name: "general".to_string(),
        path: path.to_path_buf(),
    }];
    RunSetup::from_dataset(config, dataset).unwrap()
}

#[test]
fn ranks_compare_the_content_of_other_texts_and_not_their_places() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text.repeat(40)).unwrap();
        path
    };
    let texts = [
        file("a.txt", "not to be "),
        file("b.txt", "not to be "),
        file("c.txt", "no to bee "),
    ];
    assert_eq!(disagreement(|rank| with_other_text(&texts[rank])), None);
    let subject = disagreement(|rank| with_other_text(&texts[2 * rank])).unwrap();
    assert!(subject.contains("the text general"), "{subject}");
}

#[test]
fn ranks_compare_how_tokens_are_masked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.txt");
    std::fs::write(&path, "not to be ".repeat(40)).unwrap();
    let subject = disagreement(|rank| {
        let mut setup = with_other_text(&path);
        setup.config.data.masked = Some(MaskedConfig {
            rate: [0.15, 0.2][rank],
            ..MaskedConfig::default()
        });
        setup
    });
    assert_eq!(subject.as_deref(), Some("the configuration (SHA-256)"));
}

#[test]
fn ranks_compare_the_model_that_they_adapt() {
    let text = "start_from = '../../docs/models/letters'\n[data]\nbuiltin = 'stories'\ndocuments = 12\n\
                [train]\nsequence_length = 16\n[lora]\nrank = 2\n";
    let setup = |_| {
        let config = crate::parse_config(text, Path::new("x.toml"), &[]).unwrap();
        prepare_run(config).unwrap()
    };
    assert_eq!(disagreement(setup), None);
    let subject = disagreement(|rank| {
        let mut setup = setup(rank);
        let base = setup.lora.as_mut().unwrap();
        base.description.weights_sha256.truncate(64 - rank);
        setup
    });
    assert_eq!(
        subject.as_deref(),
        Some("the model in start_from (SHA-256)")
    );
}
