//! How source and target of a sample become a row.

use super::{Sample, Samples, push_sample};
use crate::batch::{SourceBatch, TokenBatch};
use crate::error::DataError;

/// How the samples become rows, which depends on the architecture of the model.
///
/// Except in sequences, a sample has a source and a target: the first trained token is the first one of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SampleLayout {
    /// One sequence, in which each token sees those before it.
    #[default]
    Sequence,
    /// One sequence, in which the tokens before the target see each other in both directions (prefix models).
    Prefix,
    /// Two sequences: the tokens before the target, without the last of them, are the input of an encoder. The last
    /// one starts the input of the decoder.
    EncoderDecoder,
}

/// Number of tokens before the target.
fn source_end(sample: &Sample) -> usize {
    sample.trained.first().map_or(0, |span| span.start)
}

impl Samples {
    /// The same samples in another layout, which batches then have.
    ///
    /// ```
    /// use nextword_data::{SampleLayout, SamplesBuilder};
    ///
    /// let mut builder = SamplesBuilder::default();
    /// builder.push(&[5, 6, 2, /* start */ 2, 7, 2], &[4..6])?; // 5 6 EOS is the source, 7 EOS the target.
    /// let samples = builder.finish().with_layout(SampleLayout::EncoderDecoder);
    /// let batch = samples.batch(&[0], 3, 0)?;
    /// assert_eq!((batch.inputs, batch.targets[..2].to_vec()), (vec![2, 7, 0], vec![7, 2]));
    /// assert_eq!(batch.source.map(|source| source.inputs), Some(vec![5, 6, 2]));
    /// # Ok::<(), nextword_data::DataError>(())
    /// ```
    #[must_use]
    pub fn with_layout(self, layout: SampleLayout) -> Self {
        Self { layout, ..self }
    }

    /// How the samples become rows.
    pub fn layout(&self) -> SampleLayout {
        self.layout
    }

    /// The longer one of source and target of sample `index`, in which the decoder's input begins with a start token.
    pub(super) fn longer_part(&self, index: usize) -> usize {
        let mut spans = self.spans(index);
        let start = spans.next().map_or(1, |span| span.start);
        let end = self.spans(index).next_back().map_or(start, |span| span.end);
        (start - 1).max(end - start)
    }

    /// The samples of `rows`, one in each, as rows of an encoder-decoder model. `seq` is not less than their row lengths.
    pub(super) fn rows_with_source(
        &self,
        rows: &[Vec<usize>],
        seq: usize,
        padding_id: u32,
    ) -> Result<TokenBatch, DataError> {
        let mut batch = TokenBatch::with_capacity(rows.len(), seq);
        // As long as the decoder's rows: the length must not depend on how a step is divided.
        let mut source = SourceBatch {
            seq,
            ..SourceBatch::default()
        };
        for index in rows.iter().flatten() {
            let sample = self.sample(*index)?;
            push_source(&mut source, &sample, padding_id);
            push_sample(&mut batch, &decoder_part(&sample));
            batch.end_row(padding_id);
        }
        batch.source = Some(source);
        Ok(batch)
    }
}

impl SampleLayout {
    /// Number of tokens of `sample` that all its tokens see.
    pub(super) fn prefix(self, sample: &Sample) -> usize {
        match self {
            Self::Prefix => source_end(sample),
            Self::Sequence | Self::EncoderDecoder => 0,
        }
    }
}

/// Appends the source of `sample` as a row.
fn push_source(batch: &mut SourceBatch, sample: &Sample, padding_id: u32) {
    let used = source_end(sample) - 1;
    batch.lengths.push(used);
    batch.inputs.extend_from_slice(&sample.ids[..used]);
    batch
        .inputs
        .resize(batch.lengths.len() * batch.seq, padding_id);
}

/// The start token and the target.
fn decoder_part(sample: &Sample) -> Sample {
    let start = source_end(sample) - 1;
    let spans = sample.trained.iter();
    Sample {
        ids: sample.ids[start..].to_vec(),
        trained: spans
            .map(|span| span.start - start..span.end - start)
            .collect(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::batch_mask::{BatchMask, SampleSegment};
    use crate::{EvalWindows, IGNORE, Loader, LoaderConfig, SamplesBuilder};

    const EOS: u32 = 9;

    /// Pairs with sources of 1 to `count` tokens, each with a target that is one token longer.
    fn samples(count: u32) -> Samples {
        let mut builder = SamplesBuilder::default();
        for length in 1..=count {
            let mut ids: Vec<u32> = (0..length).map(|_| 1).collect();
            ids.push(EOS);
            ids.extend((0..=length).map(|_| 2));
            ids.push(EOS);
            let trained = length as usize + 1..ids.len();
            builder.push(&ids, &[trained]).unwrap();
        }
        builder.finish()
    }

    fn loader(layout: SampleLayout, context_length: usize) -> Result<Loader, DataError> {
        let config = LoaderConfig {
            context_length,
            batch_size: 4,
            ..LoaderConfig::default()
        };
        Loader::from_samples(samples(40).with_layout(layout), config)
    }

    #[test]
    fn the_prefix_ends_where_the_target_begins() {
        let batch = loader(SampleLayout::Prefix, 96)
            .unwrap()
            .batch(3, 0)
            .unwrap();
        let BatchMask::Segments(rows) = &batch.mask else {
            panic!("{:?}", batch.mask)
        };
        for (row, segments) in rows.iter().enumerate() {
            let [SampleSegment { len, prefix }] = segments[..] else {
                panic!("{segments:?}")
            };
            let of_row = row * batch.seq..(row + 1) * batch.seq;
            let (inputs, targets) = (&batch.inputs[of_row.clone()], &batch.targets[of_row]);
            assert_eq!(inputs[prefix - 1], EOS);
            assert!(targets[..prefix - 1].iter().all(|id| *id == IGNORE));
            assert!(targets[prefix - 1..len].iter().all(|id| *id != IGNORE));
            assert!(targets[len..].iter().all(|id| *id == IGNORE));
        }
    }

    #[test]
    fn sources_and_targets_are_rows_of_their_own() {
        let batch = loader(SampleLayout::EncoderDecoder, 64).unwrap();
        let batch = batch.batch(3, 0).unwrap();
        let source = batch.source.as_ref().unwrap();
        assert_eq!(source.lengths.len(), batch.batch);
        assert_eq!(source.inputs.len(), batch.batch * source.seq);
        for (row, length) in source.lengths.iter().enumerate() {
            let inputs = &batch.inputs[row * batch.seq..(row + 1) * batch.seq];
            let targets = &batch.targets[row * batch.seq..(row + 1) * batch.seq];
            let of_source = &source.inputs[row * source.seq..(row + 1) * source.seq];
            assert!(of_source[..*length].iter().all(|id| *id == 1));
            // The start token, then `length + 1` tokens; the targets are one to the left, and end with EOS.
            assert_eq!(inputs[0], EOS);
            assert!(inputs[1..length + 2].iter().all(|id| *id == 2));
            assert_eq!((targets[*length], targets[length + 1]), (2, EOS));
            assert!(targets[length + 2..].iter().all(|id| *id == IGNORE));
        }
    }

    #[test]
    fn rows_do_not_depend_on_how_a_step_is_divided() {
        let loader = |batch_size, grad_accum_steps| {
            let config = LoaderConfig {
                context_length: 64,
                batch_size,
                grad_accum_steps,
                ..LoaderConfig::default()
            };
            let samples = samples(40).with_layout(SampleLayout::EncoderDecoder);
            Loader::from_samples(samples, config).unwrap()
        };
        for step in 0..4 {
            let whole = loader(4, 1).batch(step, 0).unwrap();
            let halves = [0, 1].map(|micro| loader(2, 2).batch(step, micro).unwrap());
            assert_eq!(halves[0].inputs, whole.inputs[..2 * whole.seq]);
            let sources = halves.map(|half| half.source.unwrap().inputs);
            assert_eq!(sources.concat(), whole.source.unwrap().inputs);
        }
    }

    #[test]
    fn both_layouts_train_each_target_once_per_epoch() {
        let count = |layout, context| {
            let loader = loader(layout, context).unwrap();
            let batches = (0..10).map(|step| loader.batch(step, 0).unwrap());
            batches.map(|batch| batch.target_count()).sum::<usize>()
        };
        let expected = samples(40).trained_count();
        assert_eq!(count(SampleLayout::Sequence, 96), expected);
        assert_eq!(count(SampleLayout::Prefix, 96), expected);
        assert_eq!(count(SampleLayout::EncoderDecoder, 64), expected);
    }

    #[test]
    fn source_and_target_fit_into_the_context_each() {
        // 40 tokens of source, 43 of the decoder; as one sequence 82.
        assert!(loader(SampleLayout::EncoderDecoder, 42).is_ok());
        assert!(loader(SampleLayout::EncoderDecoder, 41).is_err());
        assert!(loader(SampleLayout::Prefix, 81).is_err());
        let samples = samples(3).with_layout(SampleLayout::EncoderDecoder);
        let windows = EvalWindows::from_samples(samples, 64, 0).unwrap();
        let source = windows.batch(0..3).unwrap().source.unwrap();
        assert_eq!(source.lengths, [1, 2, 3]);
    }
}
