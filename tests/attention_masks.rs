//! Attention with every kind of mask on every backend.

use burn::tensor::{Device, Tensor, TensorData};
use nextword_kernels::{AttentionMask, AttentionOptions, CounterRng, Segment, attention};

use crate::util::devices;

const BATCH: usize = 2;
const SEQ: usize = 37;
const SOURCE: usize = 50;

fn masks() -> Vec<(&'static str, AttentionMask)> {
    let packed = [
        vec![Segment::new(12).with_prefix(5), Segment::new(21)],
        vec![Segment::new(37)],
    ];
    let causal = || AttentionMask::causal(vec![0], SEQ);
    let bidirectional = || AttentionMask::bidirectional(vec![SEQ, 0], SEQ);
    vec![
        ("causal", causal()),
        ("prefix", causal().with_prefix(vec![9, 30])),
        ("packed", causal().with_segments(&packed)),
        ("bidirectional", bidirectional()),
        (
            "bidirectional packed",
            bidirectional().with_segments(&packed),
        ),
        ("cross", AttentionMask::cross(vec![SOURCE, 7], SEQ, SOURCE)),
    ]
}

/// The output and the gradients of queries, keys and values of four heads in two groups.
fn run(mask: &AttentionMask, window: Option<usize>, alibi: &[f64], device: &Device) -> Vec<f32> {
    let shapes = [
        [BATCH, SEQ, 4, 8],
        [BATCH, mask.keys(), 2, 8],
        [BATCH, mask.keys(), 2, 8],
        [BATCH, SEQ, 4, 8],
    ];
    let mut stream = 0;
    let [q, k, v, factor] = shapes.map(|shape| {
        stream += 1;
        let rng = CounterRng::new(stream);
        let len = shape.iter().product::<usize>() as u64;
        let values: Vec<f32> = (0..len).map(|i| rng.normal(i) as f32).collect();
        Tensor::<4>::from_data(TensorData::new(values, shape), device)
    });
    let qkv = [q, k, v].map(Tensor::require_grad);
    let options = AttentionOptions {
        scale: 0.35,
        soft_cap: Some(2.0),
        mask,
        window,
        alibi,
        dropout: None,
    };
    let z = attention(qkv.clone(), &options);
    let gradients = (z.clone() * factor).sum().backward();
    let gradients = qkv.map(|x| x.grad(&gradients).unwrap());
    std::iter::once(z)
        .chain(gradients)
        .flat_map(|x| x.into_data().try_to_vec::<f32>().unwrap())
        .collect()
}

#[test]
fn every_kind_of_mask_agrees_on_all_backends() {
    let devices = devices();
    for (name, mask) in masks() {
        for (window, alibi) in [
            (None, &[][..]),
            (Some(6), &[0.5, 0.25, 0.125, 0.0625]),
            (None, &[0.5, 0.25, 0.125, 0.0625]),
        ] {
            let (_, first) = &devices[0];
            let want = run(&mask, window, alibi, &first.clone().autodiff());
            for (device_name, device) in &devices[1..] {
                let got = run(&mask, window, alibi, &device.clone().autodiff());
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    assert!(
                        (got - want).abs() <= 1e-5 * want.abs() + 1e-5,
                        "{name}, window {window:?}, {device_name}: [{i}] is {got}, not {want}"
                    );
                }
            }
        }
    }
}
