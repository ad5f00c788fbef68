//! Logits of adapted models, merged and unmerged, and of the base model.

use super::*;
use crate::{SavedTensor, weights};

#[test]
fn a_new_adapter_changes_no_bit_of_the_logits() {
    for config in [llama(), gpt2()] {
        for bits in [None, Some(Bits::Int8), Some(Bits::Int4)] {
            let base = build(&config, bits);
            let adapted = base.clone().with_new_adapter(&lora(8), 3).unwrap();
            assert!(adapted.has_adapter());
            assert_eq!(
                bits_of(&logits(&adapted)),
                bits_of(&logits(&base)),
                "{bits:?}"
            );
        }
    }
}

#[test]
fn a_new_dora_adapter_keeps_the_logits() {
    let config = LoraConfig {
        use_dora: true,
        ..lora(8)
    };
    for bits in [None, Some(Bits::Int8)] {
        let base = build(&gpt2(), bits);
        let adapted = base.clone().with_new_adapter(&config, 3).unwrap();
        assert!(largest_difference(&logits(&adapted), &logits(&base)) < 1e-5);
    }
}

#[test]
fn a_trained_adapter_changes_the_logits_and_merges_into_the_same_ones() {
    for use_dora in [false, true] {
        for config in [llama(), gpt2()] {
            let base = build(&config, None);
            let adapter = trained(
                &base,
                &LoraConfig {
                    use_dora,
                    ..lora(8)
                },
            );
            let adapted = base.clone().with_adapter(&adapter).unwrap();
            assert!(largest_difference(&logits(&adapted), &logits(&base)) > 1e-2);
            let merged = adapted.clone().merge_adapter().unwrap();
            assert!(!merged.has_adapter() && merged.adapter().is_none());
            assert!(
                largest_difference(&logits(&merged), &logits(&adapted)) < 1e-5,
                "DoRA: {use_dora}"
            );
        }
    }
}

#[test]
fn merging_into_quantized_weights_is_refused() {
    let adapted = build(&llama(), Some(Bits::Int8))
        .with_new_adapter(&lora(4), 1)
        .unwrap();
    let error = adapted.merge_adapter().unwrap_err().to_string();
    assert!(
        error.contains("`blocks.0.attention.query.weight` is quantized"),
        "{error}"
    );
    assert!(build(&llama(), None).merge_adapter().is_err());
}

#[test]
fn a_model_without_its_adapter_is_the_base_model() {
    let modules_to_save = vec!["token_embedding".to_string(), "norms".to_string()];
    for config in [llama(), gpt2()] {
        for bits in [None, Some(Bits::Int4)] {
            let base = build(&config, bits);
            let settings = LoraConfig {
                modules_to_save: modules_to_save.clone(),
                ..lora(4)
            };
            let adapted = base
                .clone()
                .with_adapter(&trained(&base, &settings))
                .unwrap();
            assert_ne!(logits(&adapted), logits(&base));
            let folder = tempfile::tempdir().unwrap();
            let paths = ["base", "adapted", "without"].map(|name| folder.path().join(name));
            weights::save(&base, &paths[0]).unwrap();
            weights::save(&adapted, &paths[1]).unwrap();
            let without = adapted.without_adapter();
            weights::save(&without, &paths[2]).unwrap();
            let [expected, of_adapted, of_without] = paths.map(|path| std::fs::read(path).unwrap());
            assert!(of_adapted == expected && of_without == expected, "{bits:?}");
            assert_eq!(logits(&without), logits(&base));
        }
    }
}

#[test]
fn a_full_copy_of_a_quantized_embedding_keeps_the_logits_near() {
    let modules_to_save = vec!["token_embedding".to_string()];
    let config = LoraConfig {
        modules_to_save,
        ..lora(4)
    };
    let base = build(&gpt2(), Some(Bits::Int8));
    let adapted = base.clone().with_new_adapter(&config, 1).unwrap();
    // The tied output layer is now a float product: without rounding of its inputs to 16 bits.
    assert!(largest_difference(&logits(&adapted), &logits(&base)) < 1e-3);
    assert_eq!(
        adapted.adapter().unwrap().saved["token_embedding.weight"].shape,
        [41, 32]
    );
}

#[test]
fn initial_values_depend_on_the_path_alone() {
    let adapter = |n_layers: usize, seed| {
        let config = ModelConfig {
            n_layers,
            ..llama()
        };
        build(&config, None)
            .with_new_adapter(&lora(4), seed)
            .unwrap()
            .adapter()
            .unwrap()
    };
    let (small, large, other) = (adapter(1, 9), adapter(3, 9), adapter(1, 10));
    let name = "blocks.0.feed_forward.down";
    assert_eq!(small.modules[name], large.modules[name]);
    assert_ne!(small.modules[name].a, other.modules[name].a);
    assert_ne!(
        large.modules["blocks.1.attention.query"].a,
        large.modules["blocks.0.attention.query"].a
    );
    let a = &large.modules["blocks.1.attention.query"].a;
    let largest = a.iter().map(|value| value.abs()).fold(0.0, f32::max);
    let bound = 1.0 / 32f32.sqrt();
    assert!(
        largest <= bound && largest > 0.9 * bound,
        "{largest} of {bound}"
    );
}

#[test]
fn a_second_adapter_is_refused() {
    let model = build(&llama(), None).with_new_adapter(&lora(4), 1).unwrap();
    let error = model.with_new_adapter(&lora(4), 1).unwrap_err().to_string();
    assert!(error.contains("already has an adapter"), "{error}");
}

#[test]
fn an_adapter_for_another_model_is_refused() {
    let adapter = trained(&build(&llama(), None), &lora(4));
    let wide = ModelConfig {
        d_model: 64,
        ..llama()
    };
    let shallow = ModelConfig {
        n_layers: 2,
        ..llama()
    };
    for (other, name) in [
        (wide, "blocks.0.attention.key"),
        (shallow, "blocks.2.attention.key"),
        (gpt2(), "blocks.0.attention.key"),
    ] {
        let error = build(&other, None)
            .with_adapter(&adapter)
            .unwrap_err()
            .to_string();
        assert!(error.contains(&format!("`{name}`")), "{error}");
    }
    let mut damaged = adapter.clone();
    let matrix = SavedTensor {
        shape: vec![32, 32],
        values: vec![0.0; 32 * 32],
    };
    let name = "blocks.0.attention.query.weight";
    damaged.saved.insert(name.to_string(), matrix);
    let quantized = build(&llama(), Some(Bits::Int8));
    let error = quantized.with_adapter(&damaged).unwrap_err().to_string();
    assert!(error.contains(&format!("`{name}`")), "{error}");
    damaged.saved.clear();
    damaged
        .modules
        .get_mut("blocks.1.attention.value")
        .unwrap()
        .b[3] = f32::NAN;
    let error = build(&llama(), None)
        .with_adapter(&damaged)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("`blocks.1.attention.value`: lora_b contains NaN"),
        "{error}"
    );
}
