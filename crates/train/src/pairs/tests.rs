use std::collections::HashSet;

use nextword_data::SplitConfig;
use nextword_model::Architecture;

use super::*;
use crate::{RunSetup, prepare_run};

/// A run on the bilingual corpus, in words.
fn config(architecture: Architecture) -> RunConfig {
    let mut config = RunConfig {
        name: "pairs".to_string(),
        ..RunConfig::default()
    };
    config.model.architecture = architecture;
    config.data.pairs = vec!["translation".into()];
    config.data.documents = 400;
    config.data.tokenizer = TokenizerConfig::words();
    config.model.d_model = 8;
    config.model.n_layers = 1;
    config.model.n_heads = 1;
    config
}

fn statquest(change: impl FnOnce(&mut RunConfig)) -> RunSetup {
    let mut config = config(Architecture::Decoder);
    config.data.pairs = vec!["statquest".into()];
    config.data.split.validation = 0.0;
    change(&mut config);
    prepare_run(config).unwrap()
}

/// The tokens of the first sample, and the number of them before the first trained one.
fn first(setup: &RunSetup) -> (String, usize) {
    let pairs = setup.pairs.as_ref().unwrap();
    let sample = pairs.train.sample(0).unwrap();
    let text = pairs.tokenizer.decode_with_special_tokens(&sample.ids);
    (text, sample.trained[0].start)
}

#[test]
fn a_separator_is_between_source_and_target() {
    let setup = statquest(|_| {});
    assert_eq!(first(&setup), ("let's go <SEP> vamos <EOS>".to_string(), 3));
    let samples = &setup.config.samples;
    assert_eq!(samples.prompt_template.as_deref(), Some("{prompt}<SEP>"));
    assert_eq!(setup.config.data.tokenizer.sep, "<SEP>");

    let both = statquest(|config| config.data.loss_on = LossOn::Both);
    assert_eq!(first(&both).1, 1);
    assert_ne!(setup.data_fingerprint(), both.data_fingerprint());
}

#[test]
fn a_prompt_template_can_separate_by_other_tokens() {
    let setup = statquest(|config| {
        config.samples.prompt_template = Some("{prompt} <EOS>".to_string());
    });
    assert_eq!(first(&setup), ("let's go <EOS> vamos <EOS>".to_string(), 3));
    // The vocabulary has no token without use: five words, <EOS> and <unk>.
    assert_eq!(setup.config.model.vocab_size, 5 + 2);
    let named = statquest(|config| config.data.tokenizer.sep = "<EOS>".to_string());
    assert_eq!(first(&named), first(&setup));
}

#[test]
fn no_source_is_in_both_splits() {
    let setup = prepare_run(config(Architecture::Decoder)).unwrap();
    let pairs = setup.pairs.as_ref().unwrap();
    let sources = |samples: &Samples| -> HashSet<Vec<u32>> {
        let samples = (0..samples.len()).map(|index| samples.sample(index).unwrap());
        samples
            .map(|s| s.ids[..s.trained[0].start].to_vec())
            .collect()
    };
    let (train, validation) = (sources(&pairs.train), sources(&pairs.validation));
    assert_eq!(pairs.report.train + pairs.report.validation, 400);
    assert!(
        (20..=60).contains(&pairs.report.validation),
        "{:?}",
        pairs.report
    );
    assert!(train.is_disjoint(&validation));
    assert!(setup.validation.is_some());
}

#[test]
fn equal_sources_with_different_targets_are_in_the_same_split() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pairs.tsv");
    let lines: Vec<String> = (0..60).map(|i| format!("a{}\tb{i}\n", i % 20)).collect();
    std::fs::write(&path, lines.concat()).unwrap();
    let mut config = config(Architecture::Decoder);
    config.data.pairs = vec![path];
    config.data.split = SplitConfig {
        validation: 0.3,
        ..SplitConfig::default()
    };
    let setup = prepare_run(config).unwrap();
    let pairs = setup.pairs.unwrap();
    assert_eq!(pairs.validation.len() % 3, 0);
    assert!(!pairs.validation.is_empty() && !pairs.train.is_empty());
}

#[test]
fn pairs_that_do_not_fit_are_left_out_and_named() {
    let mut short = config(Architecture::Decoder);
    short.model.context_length = 12;
    let setup = prepare_run(short).unwrap();
    let report = &setup.pairs.as_ref().unwrap().report;
    assert!(report.too_long > 20 && report.train > 20, "{report:?}");
    let warnings = setup.warnings();
    assert!(
        warnings
            .iter()
            .any(|line| line.contains("longer than a sequence")),
        "{warnings:?}"
    );
    let mut none = config(Architecture::Decoder);
    none.model.context_length = 2;
    let error = prepare_run(none).unwrap_err().to_string();
    assert!(
        error.contains("data.pairs") && error.contains("400 pairs"),
        "{error}"
    );
}

#[test]
fn an_encoder_reads_the_source_and_a_decoder_starts_with_eos() {
    let mut config = config(Architecture::EncoderDecoder);
    config.data.pairs = vec!["statquest".into()];
    config.data.split.validation = 0.0;
    let mut parts = config.clone();
    let tokenizer = dataset_without_tokens(&config, None).unwrap().tokenizer;
    let format = PairFormat {
        layout: SampleLayout::EncoderDecoder,
        max_length: 8,
        tokenizer: &tokenizer,
        special: &ModelTokens::trained(tokenizer.special_tokens().eos, None),
    };
    let pairs = Pairs::read(&mut parts, &format).unwrap();
    let batch = pairs.train.batch(&[0], 8, 0).unwrap();
    let text = |ids: &[u32]| tokenizer.decode_with_special_tokens(ids);
    let source = batch.source.unwrap();
    assert_eq!(text(&source.inputs[..source.lengths[0]]), "let's go <EOS>");
    assert_eq!(text(&batch.inputs[..2]), "<EOS> vamos");
    assert_eq!(text(&batch.targets[..2]), "vamos <EOS>");
    assert_eq!(
        parts.samples.prompt_template.as_deref(),
        Some("{prompt}<EOS>")
    );
}
