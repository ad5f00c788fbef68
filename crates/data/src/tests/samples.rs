#![allow(clippy::single_range_in_vec_init)] // Samples with one span.

use std::collections::BTreeMap;

use crate::rng::RandomSequence;
use crate::tests::random;
use crate::*;

/// Samples with distinct ids at position 1 and trained spans of random lengths.
fn random_samples(count: usize, max_length: usize, random: &mut RandomSequence) -> Samples {
    let mut builder = SamplesBuilder::default();
    for index in 0..count {
        let length = 3 + random.below(max_length - 2);
        let mut ids: Vec<u32> = (0..length).map(|_| random.below(50) as u32).collect();
        ids[1] = 1000 + index as u32;
        let start = 1 + random.below(length - 1);
        let end = start + 1 + random.below(length - start);
        let trained = match start {
            1..4 => vec![start..end],
            _ => vec![2..3, start..end],
        };
        builder.push(&ids, &trained).unwrap();
    }
    builder.finish()
}

fn config(batch_size: usize, grad_accum_steps: usize) -> LoaderConfig {
    LoaderConfig {
        context_length: 100,
        batch_size,
        grad_accum_steps,
        seed: 5,
        padding_id: 3,
        ..LoaderConfig::default()
    }
}

/// The rows of a step without padding: inputs and targets up to the last trained one.
fn rows(loader: &Loader, step: u64) -> Vec<(Vec<u32>, Vec<u32>)> {
    let batches = (0..loader.config().grad_accum_steps).map(|micro| loader.batch(step, micro));
    let mut rows = Vec::new();
    for batch in batches.map(Result::unwrap) {
        for row in 0..batch.batch {
            let targets = &batch.targets[row * batch.seq..][..batch.seq];
            let end = targets.iter().rposition(|id| *id != IGNORE).unwrap() + 1;
            let inputs = &batch.inputs[row * batch.seq..][..batch.seq];
            assert!(inputs[end..].iter().all(|id| *id == 3), "{inputs:?}");
            rows.push((inputs[..end].to_vec(), targets[..end].to_vec()));
        }
    }
    rows
}

/// The sample that a row was made of, by its second id.
fn index_of(row: &(Vec<u32>, Vec<u32>)) -> usize {
    row.0.get(1).map_or(row.1[0], |id| *id) as usize - 1000
}

#[test]
fn a_step_has_the_same_samples_for_every_split_into_micro_batches() {
    let samples = random_samples(57, 90, &mut random(1));
    let loaders = [(12, 1), (6, 2), (4, 3), (1, 12)]
        .map(|(rows, micro)| Loader::from_samples(samples.clone(), config(rows, micro)).unwrap());
    for step in 0..20 {
        let whole = loaders[0].batch(step, 0).unwrap();
        assert_eq!(whole.batch, 12);
        for loader in &loaders[1..] {
            // With the padding: dropout depends on the place of a token in the step.
            let parts = (0..loader.config().grad_accum_steps)
                .map(|micro| loader.batch(step, micro).unwrap());
            let parts: Vec<TokenBatch> = parts.collect();
            let inputs: Vec<u32> = parts.iter().flat_map(|part| part.inputs.clone()).collect();
            let targets: Vec<u32> = parts.iter().flat_map(|part| part.targets.clone()).collect();
            assert_eq!(
                (inputs, targets),
                (whole.inputs.clone(), whole.targets.clone()),
                "step {step}"
            );
        }
    }
}

#[test]
fn only_trained_tokens_are_targets() {
    let samples = random_samples(40, 60, &mut random(2));
    let loader = Loader::from_samples(samples.clone(), config(8, 1)).unwrap();
    for row in (0..5).flat_map(|step| rows(&loader, step)) {
        let sample = samples.sample(index_of(&row)).unwrap();
        for (at, target) in row.1.iter().enumerate() {
            let is_trained = sample.trained.iter().any(|span| span.contains(&(at + 1)));
            let expected = if is_trained {
                sample.ids[at + 1]
            } else {
                IGNORE
            };
            assert_eq!(*target, expected, "{sample:?} at {at}");
        }
        assert_eq!(row.0, sample.ids[..row.0.len()]);
        assert_eq!(row.0.len(), sample.trained.last().unwrap().end - 1);
    }
}

#[test]
fn every_sample_occurs_once_per_epoch() {
    for (count, per_step) in [(1, 4), (3, 4), (4, 4), (57, 12), (500, 8), (1000, 3)] {
        let samples = random_samples(count, 90, &mut random(count as u64));
        let loader = Loader::from_samples(samples, config(per_step, 1)).unwrap();
        let steps = (3 * count).div_ceil(per_step) as u64;
        let stream: Vec<usize> = (0..steps)
            .flat_map(|step| rows(&loader, step))
            .map(|row| index_of(&row))
            .collect();
        let mut orders = Vec::new();
        for epoch in stream.chunks_exact(count).take(3) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert!(
                sorted.into_iter().eq(0..count),
                "{count} {per_step}: {epoch:?}"
            );
            orders.push(epoch.to_vec());
        }
        assert!(count < 50 || orders[0] != orders[1], "{count}");
    }
}

#[test]
fn the_first_micro_batch_has_the_longest_row() {
    for seed in 0..30 {
        let samples = random_samples(5 + 17 * seed as usize, 98, &mut random(seed));
        let loader = Loader::from_samples(samples.clone(), config(2, 4)).unwrap();
        let first = loader.batch(0, 0).unwrap();
        let longest = samples.longest_row();
        assert_eq!(first.seq, longest.next_multiple_of(32).min(100), "{seed}");
        for step in 1..50 {
            assert!(loader.batch(step, 0).unwrap().seq <= first.seq);
        }
    }
}

#[test]
fn rows_of_a_step_have_similar_lengths() {
    let samples = random_samples(2000, 900, &mut random(3));
    let config = LoaderConfig {
        context_length: 1000,
        ..config(10, 1)
    };
    let loader = Loader::from_samples(samples, config).unwrap();
    // In the second epoch too, which starts within a step.
    for steps in [0..200, 201..400] {
        let (mut padded, mut used) = (0, 0);
        for step in steps {
            let batch = loader.batch(step, 0).unwrap();
            padded += batch.inputs.len();
            used += rows(&loader, step)
                .iter()
                .map(|row| row.0.len())
                .sum::<usize>();
        }
        // Without buckets it would be about half.
        assert!(used as f64 > 0.8 * padded as f64, "{used} of {padded}");
    }
}

#[test]
fn the_stream_depends_on_the_seed_and_not_on_the_order_of_requests() {
    let samples = random_samples(100, 60, &mut random(4));
    let loader = Loader::from_samples(samples.clone(), config(8, 1)).unwrap();
    let forward: BTreeMap<u64, _> = (0..40).map(|step| (step, rows(&loader, step))).collect();
    for step in (0..40).rev() {
        assert_eq!(rows(&loader, step), forward[&step]);
    }
    let other = LoaderConfig {
        seed: 6,
        ..config(8, 1)
    };
    let other = Loader::from_samples(samples, other).unwrap();
    assert_ne!(rows(&other, 1), forward[&1]);
    let prefetched: Vec<_> = loader.prefetch(7, 2).take(3).map(Result::unwrap).collect();
    assert_eq!(prefetched[2], loader.batch(9, 0).unwrap());
}

#[test]
fn evaluation_predicts_each_trained_token_once() {
    let samples = random_samples(33, 70, &mut random(5));
    let windows = EvalWindows::from_samples(samples.clone(), 100, 0).unwrap();
    assert_eq!(windows.len(), 33);
    for rows in [1, 4, 50] {
        let batches = windows.batches(rows).map(Result::unwrap);
        let targets: usize = batches.map(|batch| batch.target_count()).sum();
        assert_eq!(targets, samples.trained_count());
    }
    let limited = windows.limit(5);
    let batches: Vec<_> = limited.batches(2).map(Result::unwrap).collect();
    assert_eq!(batches.iter().map(|batch| batch.batch).sum::<usize>(), 5);
}

#[test]
fn samples_that_do_not_fit_are_rejected() {
    let config = LoaderConfig {
        context_length: 4,
        ..config(1, 1)
    };
    let of_length = |length: usize| {
        let mut builder = SamplesBuilder::default();
        builder.push(&vec![1; length], &[1..length]).unwrap();
        builder.finish()
    };
    assert!(Loader::from_samples(of_length(5), config).is_ok());
    let error = Loader::from_samples(of_length(6), config)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("a row of 5 tokens") && error.contains("hint"),
        "{error}"
    );
    assert!(EvalWindows::from_samples(of_length(6), 4, 0).is_err());
    assert!(Loader::from_samples(Samples::default(), config).is_err());
    assert!(EvalWindows::from_samples(Samples::default(), 4, 0).is_err());
}

#[test]
fn spans_are_checked() {
    let mut builder = SamplesBuilder::default();
    for spans in [
        vec![],
        vec![0..1],
        vec![2..2],
        vec![2..6],
        vec![2..4, 3..5],
        vec![3..5, 1..2],
        vec![std::ops::Range { start: 3, end: 2 }],
    ] {
        assert!(builder.push(&[1; 5], &spans).is_err(), "{spans:?}");
    }
    assert!(builder.is_empty());
    builder.push(&[1; 5], &[1..2, 2..5]).unwrap();
    let samples = builder.finish();
    assert_eq!((samples.len(), samples.trained_count()), (1, 4));
}

#[test]
fn the_hash_covers_ids_and_spans() {
    let hash = |ids: &[u32], spans: &[std::ops::Range<usize>]| {
        let mut builder = SamplesBuilder::default();
        builder.push(ids, spans).unwrap();
        builder.finish().content_hash()
    };
    let hashes = [
        hash(&[1, 2, 3], &[1..3]),
        hash(&[1, 2, 4], &[1..3]),
        hash(&[1, 2, 3], &[2..3]),
        hash(&[1, 2, 3], &[1..2, 2..3]),
        Samples::default().content_hash(),
    ];
    for (index, hash) in hashes.iter().enumerate() {
        assert!(!hashes[..index].contains(hash), "{index}");
    }
}

#[test]
fn a_file_has_the_samples_that_were_written() {
    let samples = random_samples(200, 50, &mut random(6));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("samples.bin");
    samples.write(&path, 2000).unwrap();
    let mapped = Samples::open(&path).unwrap();
    mapped.verify().unwrap();
    assert_eq!(mapped.content_hash(), samples.content_hash());
    let loaders =
        [samples, mapped].map(|samples| Loader::from_samples(samples, config(8, 1)).unwrap());
    for step in 0..60 {
        assert_eq!(
            loaders[0].batch(step, 0).unwrap(),
            loaders[1].batch(step, 0).unwrap()
        );
    }
    loaders[0].batch(0, 0).unwrap();
    // An id outside the vocabulary is found when it is read.
    let samples = random_samples(3, 20, &mut random(7));
    samples.write(&path, 1001).unwrap();
    let mapped = Samples::open(&path).unwrap();
    let error = mapped.sample(1).unwrap_err().to_string();
    assert!(
        error.contains("has id 1001, but the vocabulary has 1001"),
        "{error}"
    );
}

#[test]
fn damaged_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("samples.bin");
    random_samples(20, 30, &mut random(8))
        .write(&path, 2000)
        .unwrap();
    let intact = std::fs::read(&path).unwrap();
    let mut random = random(9);
    for round in 0..400 {
        let mut bytes = intact.clone();
        let at = random.below(bytes.len());
        match round % 4 {
            0 => bytes.truncate(at),
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes.extend([0; 8]),
            // The numbers and tables follow the header, which has its own checksum.
            _ => bytes[64 + random.below(400)] ^= 0xff,
        }
        std::fs::write(&path, &bytes).unwrap();
        let result = Samples::open(&path).and_then(|samples| {
            for index in 0..samples.len() {
                let sample = samples.sample(index)?;
                assert!(
                    sample
                        .trained
                        .iter()
                        .all(|span| span.end <= sample.ids.len())
                );
            }
            samples.verify()
        });
        assert!(result.is_err(), "round {round}, byte {at}");
    }
}

#[test]
fn replies_about_stories_follow_from_the_story() {
    let chats = StoryChats::new(3, 300);
    let (mut seen, mut questions) = (0, BTreeMap::new());
    for (index, chat) in chats.iter().enumerate() {
        assert!(!chat.story.contains(['{', '[', '|']), "{}", chat.story);
        assert!((1..=3).contains(&chat.exchanges.len()));
        for (number, (question, reply)) in chat.exchanges.iter().enumerate() {
            let asked = match number {
                0 => question
                    .strip_prefix(&format!("{}\n\n", chat.story))
                    .unwrap(),
                _ => question,
            };
            assert_eq!(chats.reply(index, asked).as_ref(), Some(reply));
            assert_eq!(reply.matches('.').count(), 1, "{reply}");
            *questions
                .entry(asked.split(' ').next().unwrap().to_owned())
                .or_insert(0) += 1;
            // What the reply says is in the story, without its article.
            let last = reply.trim_end_matches(" in it.").trim_end_matches('.');
            let last = last.rsplit(' ').next().unwrap();
            assert!(chat.story.contains(last), "{last:?} in {:?}", chat.story);
            seen += 1;
        }
    }
    assert!(seen > 450, "{seen}");
    assert_eq!(
        questions.keys().collect::<Vec<_>>(),
        ["What", "Where", "Who"]
    );
    assert_eq!(
        StoryChats::new(3, 2).name(),
        "builtin stories_chat, seed 3, 2 conversations"
    );
}

#[test]
fn conversations_are_one_path_or_several() {
    let read = |json: &str| serde_json::from_str::<DataConfig>(json);
    let one = read(r#"{"conversations": "a.jsonl", "train_on": "last_assistant"}"#).unwrap();
    let several = read(r#"{"conversations": ["a.jsonl"], "train_on": "last_assistant"}"#).unwrap();
    assert_eq!(one, several);
    one.validate().unwrap();
    assert!(one.has_conversations() && one.train_on == TrainOn::LastAssistant);
    assert!(Sources::from_config(&one).is_err());
    let json = serde_json::to_string(&DataConfig::default()).unwrap();
    assert!(
        !json.contains("conversations") && !json.contains("too_long"),
        "{json}"
    );
    assert!(read(r#"{"conversations": 5}"#).is_err());
    let builtin = read(r#"{"builtin": "stories_chat", "too_long": "error"}"#).unwrap();
    builtin.validate().unwrap();
    let unused = read(r#"{"builtin": "stories", "too_long": "error"}"#).unwrap();
    let error = unused.validate().unwrap_err().to_string();
    assert!(
        error.contains("data.too_long is set, but the data has no conversations"),
        "{error}"
    );
    let both = read(r#"{"builtin": "stories", "conversations": "a.jsonl"}"#).unwrap();
    assert!(both.validate().is_err());
}

#[test]
fn both_samples_of_a_pair_are_neighbors_for_every_split_into_micro_batches() {
    let mut random = random(8);
    let samples = random_samples(2 * 41, 90, &mut random);
    let loader = |batch_size, micro_batches| {
        Loader::from_pairs(samples.clone(), config(batch_size, micro_batches)).unwrap()
    };
    let (whole, divided) = (loader(12, 1), loader(3, 4));
    assert_eq!(whole.sequences_per_epoch(), 41);
    let mut seen = [0; 41];
    for step in 0..7 {
        let of_step = rows(&whole, step);
        assert_eq!(of_step, rows(&divided, step));
        let pairs = whole.indices(step, 0);
        let of_parts = (0..4).flat_map(|micro| divided.indices(step, micro));
        assert_eq!(pairs, of_parts.collect::<Vec<_>>());
        for (pair, rows) in pairs.iter().zip(of_step.chunks(2)) {
            let found = rows.iter().map(index_of).collect::<Vec<_>>();
            assert_eq!(found, [2 * pair, 2 * pair + 1]);
            seen[*pair] += 1;
        }
    }
    assert!(seen.iter().all(|count| [2, 3].contains(count)), "{seen:?}");
    let longest = samples.longest_row();
    let first = whole.batch(0, 0).unwrap();
    assert!(first.seq >= longest, "{} {longest}", first.seq);
    let odd = random_samples(3, 20, &mut random);
    let error = Loader::from_pairs(odd, config(1, 1)).unwrap_err();
    assert!(error.to_string().contains("3 samples are not pairs"));
}

#[test]
fn wrong_replies_differ_from_the_right_ones_in_their_facts() {
    let chats = StoryChats::new(5, 200);
    let mut different = 0;
    for (index, chat) in chats.iter().enumerate() {
        for (question, right) in &chat.exchanges {
            let question = question.rsplit("\n\n").next().unwrap();
            let wrong = chats.wrong_reply(index, question).unwrap();
            assert_eq!(
                Some(wrong.clone()),
                StoryChats::new(5, 1).wrong_reply(index, question)
            );
            assert_ne!(&wrong, right);
            // The same wording: the first words of the reply.
            let words = |text: &str| text.split(' ').take(1).collect::<String>();
            different += usize::from(words(&wrong) != words(right));
        }
    }
    assert_eq!(different, 0);
    assert_eq!(chats.wrong_reply(0, "Is it long?"), None);
}
