//! Random small models that cover every option of the configuration.

use nextword_model::{
    BiasConfig, Bits, CounterRng, FeedForwardKind, InitConfig, ModelConfig, NormKind,
    NormPlacement, Position, RotaryConfig, RotaryScaling, Transformer, weights,
};

use crate::util::flex;

/// A random element of `options`.
fn pick<T: Copy>(rng: CounterRng, at: u64, options: &[T]) -> T {
    options[(rng.at(at) % options.len() as u64) as usize]
}

/// A random small model; over many cases every option of the configuration occurs.
pub(crate) fn random_config(case: u64) -> ModelConfig {
    let rng = CounterRng::new(5).named("models").stream(case);
    let bit = |at| rng.at(at) & 1 == 1;
    let rarely = |at| rng.at(at).is_multiple_of(4);
    let (n_heads, n_kv_heads) = pick(rng, 0, &[(1, 1), (2, 1), (2, 2), (4, 2), (3, 1)]);
    let position = pick(
        rng,
        6,
        &[
            Position::Sinusoidal,
            Position::Learned,
            Position::Rotary,
            Position::Rotary,
            Position::Alibi,
            Position::None,
        ],
    );
    let rotary = random_rotary(rng.named("rotary"));
    let rotates_all = position == Position::Rotary && rotary.width.is_none();
    let head_dim = match pick(rng, 1, &[2, 4, 5, 6]) {
        5 if rotates_all => 4,
        head_dim => head_dim,
    };
    let independent_width = bit(2);
    let parallel = rarely(21);
    let norm_placement = match pick(
        rng,
        8,
        &[
            NormPlacement::Pre,
            NormPlacement::Post,
            NormPlacement::Sandwich,
        ],
    ) {
        NormPlacement::Post if parallel => NormPlacement::Pre,
        placement => placement,
    };
    ModelConfig {
        vocab_size: pick(rng, 3, &[3, 7, 12]),
        context_length: 10,
        n_layers: pick(rng, 4, &[1, 2, 3]),
        n_heads,
        n_kv_heads: Some(n_kv_heads),
        head_dim: Some(head_dim),
        d_model: n_heads * head_dim + usize::from(independent_width) * 2,
        d_ff: bit(5).then_some(5),
        position,
        rotary,
        norm: pick(rng, 7, &[NormKind::None, NormKind::Layer, NormKind::Rms]),
        norm_eps: pick(rng, 22, &[1e-5, 1e-2]),
        norm_placement,
        feed_forward: pick(
            rng,
            9,
            &[
                FeedForwardKind::None,
                FeedForwardKind::Gelu,
                FeedForwardKind::GeluTanh,
                FeedForwardKind::Relu,
                FeedForwardKind::ReluSquared,
                FeedForwardKind::Silu,
                FeedForwardKind::Swiglu,
                FeedForwardKind::Geglu,
                FeedForwardKind::GegluTanh,
            ],
        ),
        bias: BiasConfig {
            qkv: bit(10),
            attention_output: bit(11),
            feed_forward: bit(12),
            norm: bit(13),
            head: bit(14),
        },
        tied_head: bit(15),
        output_projection: independent_width || bit(16),
        qk_norm: bit(17),
        norm_unit_offset: rarely(23),
        embedding_scale: rarely(24).then_some(2.5),
        score_width: rarely(25).then_some(7.0),
        score_soft_cap: rarely(26).then_some(1.5),
        parallel,
        logit_soft_cap: bit(18).then_some(3.0),
        windows: pick::<&[usize]>(rng, 19, &[&[], &[3], &[2, 0]]).to_vec(),
        residual: !rarely(20),
        init: InitConfig {
            std: 0.5,
            scale_output: false,
        },
        ..ModelConfig::default()
    }
}

/// A random rotary configuration for a head dimension of at least two.
fn random_rotary(rng: CounterRng) -> RotaryConfig {
    let scaling = pick(
        rng,
        0,
        &[
            RotaryScaling::None,
            RotaryScaling::Linear { factor: 2.5 },
            RotaryScaling::Ntk { factor: 3.0 },
            RotaryScaling::Llama3 {
                factor: 4.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_context_length: 8,
            },
            RotaryScaling::Yarn {
                factor: 4.0,
                original_context_length: 16,
                beta_fast: 2.0,
                beta_slow: 0.5,
                attention_factor: 1.14,
                truncate: rng.at(1) & 1 == 1,
            },
        ],
    );
    let yarn = matches!(scaling, RotaryScaling::Yarn { .. });
    RotaryConfig {
        base: pick(rng, 2, &[100.0, 10_000.0]),
        scaling,
        width: (!yarn && rng.at(3) & 1 == 1).then_some(2),
        local_base: (!yarn && rng.at(4) & 1 == 1).then_some(10.0),
    }
}

/// Random weights, with biases that are not 0 and norm scales that are not 1.
pub(crate) fn random_model(config: &ModelConfig, seed: u64) -> Transformer {
    let mut tensors = weights::NamedTensors::new();
    let scales = if config.norm_unit_offset { 0.0 } else { 1.0 };
    for (name, shape) in weights::layout(config) {
        let rng = CounterRng::new(seed).named(&name);
        let is_scale = name.contains("norm.weight");
        let centre = if is_scale { scales } else { 0.0 };
        let n = shape.iter().product::<usize>() as u64;
        let spread = if shape.len() == 1 {
            0.4
        } else {
            (shape[0] as f64).powf(-0.5)
        };
        let value = |i| (centre + spread * rng.normal(i)) as f32;
        let values = (0..n).map(value).collect();
        tensors.insert(name, (shape, values));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    weights::save_tensors(&tensors, &path).unwrap();
    weights::load(config, &path, &flex()).unwrap()
}

/// The model of a case; three in ten are quantized.
pub(crate) fn random_case_model(case: u64) -> Transformer {
    let model = random_model(&random_config(case), case);
    match case % 10 {
        3 | 6 => model.quantize(Bits::Int8),
        9 => model.quantize(Bits::Int4),
        _ => model,
    }
}

/// The options of `model` that affect the computation.
pub(crate) fn options_used(model: &Transformer) -> Vec<String> {
    let config = model.config();
    let rotary = config.position == Position::Rotary;
    let normed = config.norm != NormKind::None;
    let scaling = format!("{:?}", config.rotary.scaling);
    let scaling = scaling.split(' ').next().unwrap_or_default();
    let named = [
        (true, format!("position {:?}", config.position)),
        (true, format!("norm {:?}", config.norm)),
        (normed, format!("placement {:?}", config.norm_placement)),
        (true, format!("feed-forward {:?}", config.feed_forward)),
        (rotary, format!("scaling {scaling}")),
        (true, format!("bits {:?}", model.bits())),
    ];
    let flags = [
        (rotary && config.rotary.width.is_some(), "rotary.width"),
        (
            rotary && config.is_local(0) && config.n_layers > 1 && !config.is_local(1),
            "rotary.local_base",
        ),
        (config.qk_norm, "qk_norm"),
        (normed && config.norm_unit_offset, "norm_unit_offset"),
        (config.embedding_scale.is_some(), "embedding_scale"),
        (config.score_width.is_some(), "score_width"),
        (config.score_soft_cap.is_some(), "score_soft_cap"),
        (config.logit_soft_cap.is_some(), "logit_soft_cap"),
        (config.parallel, "parallel"),
        (!config.windows.is_empty(), "windows"),
        (!config.residual, "no residual"),
        (config.tied_head, "tied_head"),
        (!config.output_projection, "no output_projection"),
        (config.kv_heads() < config.n_heads, "grouped queries"),
        (config.bias.qkv, "bias.qkv"),
        (config.bias.attention_output, "bias.attention_output"),
        (config.bias.feed_forward, "bias.feed_forward"),
        (config.bias.norm, "bias.norm"),
        (config.bias.head, "bias.head"),
    ];
    let named = named
        .into_iter()
        .filter(|(applies, _)| *applies)
        .map(|(_, o)| o);
    let flags = flags.into_iter().filter(|(applies, _)| *applies);
    named.chain(flags.map(|(_, o)| o.to_string())).collect()
}

/// Number of different options.
pub(crate) const ALL_OPTIONS: usize = 5 + 3 + 3 + 9 + 5 + 3 + 19;
