use std::collections::BTreeSet;

use super::*;
use crate::tokenizer::{TokenizerConfig, TokenizerKind, build_tokenizer};
use crate::{EvalWindows, Loader, LoaderConfig, Packing, Tokens};

const SEQ: usize = 40;

fn tokenizer(kind: TokenizerKind, text: &str) -> Arc<dyn Tokenizer> {
    let config = TokenizerConfig {
        kind,
        mask: "[MASK]".to_string(),
        vocab_size: (kind == TokenizerKind::Bpe).then_some(300),
        ..TokenizerConfig::default()
    };
    build_tokenizer(&config, [Ok(text.to_string())].into_iter()).unwrap()
}

fn masked(tokenizer: &Arc<dyn Tokenizer>, config: MaskedConfig) -> MaskedTokens {
    let mask_id = crate::mask_token(&**tokenizer).unwrap();
    MaskedTokens::new(config, &**tokenizer, mask_id, 11).unwrap()
}

fn row(masked: &MaskedTokens, ids: &[u32], rows: MaskedRows, number: u64) -> TokenBatch {
    let mut batch = MaskedTokens::empty_batch(1, SEQ);
    masked.push_row(&mut batch, ids, rows, number, 0);
    batch
}

#[test]
fn the_shares_are_those_of_bert() {
    let words: Vec<String> = (0..200).map(|i| format!("w{i}")).collect();
    let tokenizer = tokenizer(TokenizerKind::Word, &words.join(" "));
    let masked = masked(&tokenizer, MaskedConfig::default());
    let (mut targets, mut hidden, mut kept) = (0, 0, 0);
    let rows = 3000;
    for number in 0..rows {
        let ids: Vec<u32> = (0..SEQ as u32).map(|i| (i * 7 + number) % 200).collect();
        let batch = row(&masked, &ids, MaskedRows::Training, u64::from(number));
        for ((input, target), id) in batch.inputs.iter().zip(&batch.targets).zip(&ids) {
            if *target == IGNORE {
                assert_eq!(input, id);
                continue;
            }
            assert_eq!(target, id);
            targets += 1;
            hidden += usize::from(*input == masked.mask_id);
            kept += usize::from(input == id);
        }
    }
    assert_eq!(targets, rows as usize * 6); // 15 % of 40 tokens
    let share = |count: usize| count as f64 / targets as f64;
    assert!((share(hidden) - 0.8).abs() < 0.01, "{}", share(hidden));
    assert!((share(kept) - 0.1).abs() < 0.01, "{}", share(kept));
}

#[test]
fn masks_depend_on_the_number_of_the_row_and_are_fixed_in_validation() {
    let tokenizer = tokenizer(TokenizerKind::Word, "a b c d e f g h i j k l m n");
    let masked = masked(&tokenizer, MaskedConfig::default());
    let ids: Vec<u32> = (0..14).collect();
    let of = |rows, number| row(&masked, &ids, rows, number).targets;
    assert_eq!(of(MaskedRows::Training, 3), of(MaskedRows::Training, 3));
    let training: BTreeSet<_> = (0..50)
        .map(|number| of(MaskedRows::Training, number))
        .collect();
    assert!(training.len() > 20);
    assert_ne!(
        (0..5)
            .map(|n| of(MaskedRows::Training, n))
            .collect::<Vec<_>>(),
        (0..5)
            .map(|n| of(MaskedRows::Validation, n))
            .collect::<Vec<_>>()
    );
}

#[test]
fn special_tokens_and_padding_are_never_targets() {
    let tokenizer = tokenizer(TokenizerKind::Word, "a b c");
    let config = MaskedConfig {
        rate: 1.0,
        mask: 0.0,
        random: 1.0,
        ..MaskedConfig::default()
    };
    let masked = masked(&tokenizer, config);
    let eos = tokenizer.special_tokens().eos.unwrap();
    for number in 0..100 {
        let batch = row(&masked, &[0, eos, 1], MaskedRows::Training, number);
        assert_eq!(batch.targets[..4], [0, IGNORE, 1, IGNORE]);
        assert_eq!((batch.inputs[1], batch.inputs[3]), (eos, 0));
        assert!(batch.inputs[0] < 3 && batch.inputs[2] < 3); // random, but not special
        assert_eq!(batch.mask, BatchMask::Bidirectional(vec![3]));
    }
}

#[test]
fn whole_words_are_masked_together() {
    let text = "walking talking asking walking talking asking, walked, walking";
    let tokenizer = tokenizer(TokenizerKind::Bpe, text);
    let ids = tokenizer
        .encode("walked talking asking, walking masked walked")
        .ids;
    let config = MaskedConfig {
        rate: 0.3,
        whole_words: true,
        ..MaskedConfig::default()
    };
    let masked = masked(&tokenizer, config);
    let words = Words::new(&*tokenizer);
    assert!(ids.len() > 8, "{ids:?}"); // words of several tokens
    let mut partial = 0;
    for number in 0..100 {
        let targets = row(&masked, &ids, MaskedRows::Training, number).targets;
        for at in 1..ids.len() {
            if words.continues(ids[at - 1], ids[at]) {
                partial += 1;
                let is_target = |at: usize| targets[at] != IGNORE;
                assert_eq!(is_target(at - 1), is_target(at), "{targets:?}");
            }
        }
    }
    assert!(partial > 100);
    let comma = tokenizer.encode(",").ids[0];
    assert!(!words.continues(ids[0], comma));
}

#[test]
fn masks_do_not_depend_on_how_a_step_is_divided() {
    let tokenizer = tokenizer(TokenizerKind::Word, "a b c d e f g");
    let tokens = Tokens::from_ids((0..7).cycle().take(500).collect());
    let masked = masked(&tokenizer, MaskedConfig::default());
    let loader = |batch_size, grad_accum_steps| {
        let config = LoaderConfig {
            context_length: 20,
            batch_size,
            grad_accum_steps,
            ..LoaderConfig::default()
        };
        let loader = Loader::new(tokens.clone(), config).unwrap();
        loader.with_masked_tokens(masked.clone())
    };
    let mean = loader(4, 1).targets_per_step();
    assert!((mean - 4.0 * 3.0).abs() < 1e-9, "{mean}");
    for step in 0..5 {
        let whole = loader(4, 1).batch(step, 0).unwrap();
        let halves = [0, 1].map(|micro| loader(2, 2).batch(step, micro).unwrap());
        assert_eq!(
            halves.clone().map(|half| half.inputs).concat(),
            whole.inputs
        );
        assert_eq!(halves.map(|half| half.targets).concat(), whole.targets);
        assert_eq!(whole.target_count(), 4 * 3);
    }
}

#[test]
fn a_validation_window_always_has_the_same_masks() {
    let tokenizer = tokenizer(TokenizerKind::Word, "a b c d e f g");
    let tokens = Tokens::from_ids((0..7).cycle().take(500).collect());
    let masked = masked(&tokenizer, MaskedConfig::default());
    let windows = EvalWindows::new(tokens, 20, Packing::Packed, 0).unwrap();
    let windows = windows.with_masked_tokens(masked);
    let whole = windows.batch(0..6).unwrap();
    let parts = [0..1, 1..6].map(|range| windows.batch(range).unwrap().targets);
    assert_eq!(parts.concat(), whole.targets);
    let few = windows.clone().limit(5).batch(0..5).unwrap();
    assert_eq!(few.targets[..20], whole.targets[..20]);
    // The last window is short, and nothing beyond it is a target.
    let last = windows.batch(windows.len() - 1..windows.len()).unwrap();
    let BatchMask::Bidirectional(lengths) = last.mask else {
        panic!("{:?}", last.mask)
    };
    assert!(last.targets[lengths[0]..].iter().all(|id| *id == IGNORE));
}
