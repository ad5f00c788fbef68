//! Forward passes in which each row has its own adapter.

use super::*;
use crate::{KvCache, RowAdapter};

/// Three adapters, of different modules and ranks, attached to `base`.
fn adapted_models(base: &Transformer) -> Vec<Transformer> {
    let configs = [
        lora(4),
        lora(9),
        LoraConfig {
            layers: Some([1, 1]),
            use_rslora: true,
            ..lora(2)
        },
    ];
    let attach = |(number, config): (usize, &LoraConfig)| {
        let mut adapter = trained(base, config);
        for module in adapter.modules.values_mut() {
            module.b.iter_mut().for_each(|b| *b *= 1.0 + number as f32);
        }
        base.clone().with_adapter(&adapter).unwrap()
    };
    configs.iter().enumerate().map(attach).collect()
}

fn row_adapter(model: &Transformer) -> Option<RowAdapter> {
    model.has_adapter().then(|| model.row_adapter().unwrap())
}

/// Prefills `rows` one by one and decodes two tokens of all in each step; the logits of all steps by row.
fn decode(base: &Transformer, rows: &[Option<RowAdapter>]) -> Vec<Vec<u32>> {
    let count = rows.len();
    let slots: Vec<usize> = (0..count).collect();
    let mut cache = KvCache::with_pages(base.config(), count, 4, 8 * count, &Device::flex());
    let mut output = vec![Vec::new(); count];
    let ids = |ids: &[i32], rows: usize| {
        let shape = [rows, ids.len() / rows];
        Tensor::<2, Int>::from_data(TensorData::new(ids.to_vec(), shape), &Device::flex())
    };
    for slot in slots.chunks(1) {
        let adapter = &rows[slot[0]..=slot[0]];
        let prompt: Vec<i32> = (0..11).map(|i| (i * 7 + 3) % 41).collect();
        let mut ctx = ForwardContext::inference().with_cache(&mut cache, slot);
        ctx = ctx.with_row_adapters(adapter);
        let logits = base.forward(ids(&prompt, 1), &mut ctx);
        output[slot[0]].extend(bits_of(&logits.into_data().try_to_vec::<f32>().unwrap()));
    }
    for step in 0..2 {
        let ctx = ForwardContext::inference().with_cache(&mut cache, &slots);
        let mut ctx = ctx.with_row_adapters(rows);
        let logits = base.forward(ids(&vec![5 + step; count], count), &mut ctx);
        let logits: Vec<f32> = logits.into_data().try_to_vec().unwrap();
        for (output, logits) in output.iter_mut().zip(logits.chunks(41)) {
            output.extend(bits_of(logits));
        }
    }
    output
}

#[test]
fn a_row_has_the_bits_of_its_adapter_alone_and_attached() {
    for config in [llama(), gpt2()] {
        for bits in [None, Some(Bits::Int8), Some(Bits::Int4)] {
            let base = build(&config, bits);
            let mut models = vec![base.clone()];
            models.extend(adapted_models(&base));
            // Rows of one adapter are not neighbours.
            let order = [1, 0, 2, 3, 1, 2, 0, 1, 3, 3, 1];
            let rows: Vec<_> = order.iter().map(|i| row_adapter(&models[*i])).collect();
            let mixed = decode(&base, &rows);
            for (model, expected) in models.iter().enumerate() {
                let attached = decode(expected, &[None]);
                let alone = decode(&base, &[row_adapter(expected)]);
                assert!(attached == alone, "{bits:?}: attached and passed for a row");
                for (row, _) in order.iter().enumerate().filter(|(_, i)| **i == model) {
                    assert!(mixed[row] == alone[0], "{bits:?}: row {row} of {model}");
                }
            }
            assert_ne!(mixed[0], mixed[2], "the adapters differ");
        }
    }
}

#[test]
fn a_factor_scales_the_update_of_a_row() {
    let base = build(&llama(), None);
    let model = &adapted_models(&base)[0];
    let adapter = model.row_adapter().unwrap();
    let mut scaled = model.adapter().unwrap();
    for module in scaled.modules.values_mut() {
        module.scale *= 0.5;
    }
    let scaled = base.clone().with_adapter(&scaled).unwrap();
    let rows = [0.5, 1.0, 0.0].map(|factor| Some(adapter.clone().with_factor(factor)));
    let output = decode(&base, &rows);
    assert_eq!(output[0], decode(&scaled, &[None])[0]);
    assert_eq!(output[1], decode(model, &[None])[0]);
    assert_eq!(output[2], decode(&base, &[None])[0]);
}

#[test]
fn the_id_of_an_adapter_depends_on_its_values_and_factor() {
    let base = build(&llama(), None);
    let models = adapted_models(&base);
    let id = |model: &Transformer| model.row_adapter().unwrap().id();
    let same = base.clone().with_adapter(&models[0].adapter().unwrap());
    assert_eq!(id(&same.unwrap()), id(&models[0]));
    assert_ne!(id(&models[0]), id(&models[1]));
    let mut other = models[0].adapter().unwrap();
    other.modules.values_mut().next().unwrap().a[0] += 1e-3;
    assert_ne!(
        id(&base.clone().with_adapter(&other).unwrap()),
        id(&models[0])
    );
    let adapter = models[0].row_adapter().unwrap();
    assert_ne!(adapter.clone().with_factor(0.5).id(), adapter.id());
}

#[test]
fn adapters_that_change_more_than_sums_are_refused_for_rows() {
    let base = build(&llama(), None);
    let refusal = |config: &LoraConfig| {
        let model = base.clone().with_new_adapter(config, 1).unwrap();
        model.row_adapter().unwrap_err().to_string()
    };
    let dora = LoraConfig {
        use_dora: true,
        ..lora(2)
    };
    assert!(refusal(&dora).contains("DoRA"));
    let saved = LoraConfig {
        modules_to_save: vec!["norms".to_string()],
        ..lora(2)
    };
    assert!(refusal(&saved).contains("modules_to_save"));
    assert!(base.row_adapter().is_err());
}

#[test]
#[should_panic(expected = "rows cannot have adapters of their own")]
fn rows_of_an_adapted_model_have_no_adapters() {
    let base = build(&llama(), None);
    let model = &adapted_models(&base)[0];
    decode(model, &[row_adapter(model)]);
}
