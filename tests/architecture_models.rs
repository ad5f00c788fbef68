//! Properties of encoders, prefix models and encoder-decoders: decoding, padding, probes, adapters, and
//! `StatQuest`'s normal Transformer.

use std::ops::ControlFlow;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use nextword_data::{SourceBatch, TokenBatch};
use nextword_generate::{
    DecodeOptions, Decoder, FinishReason, GenerateError, SamplingConfig, Sequence, Speculation,
    generate_ids,
};
use nextword_model::{
    Architecture, AttentionMask, Dropout, DropoutConfig, ForwardContext, Hook, InitConfig,
    LoraConfig, ModelConfig, Position, Probe, Site, Transformer, presets, weights,
};
use nextword_train::{OptimizerConfig, Stepper, forward_backward};

use crate::architectures::{load, values};
use crate::util::{Tolerance, assert_close, flex};

fn ids(ids: &[u32], device: &Device) -> Tensor<2, Int> {
    let ids: Vec<i32> = ids.iter().map(|id| id.cast_signed()).collect();
    let shape = [1, ids.len()];
    Tensor::from_data(TensorData::new(ids, shape), device)
}

/// A small model with random weights that are not near 0.
fn random(architecture: Architecture) -> Transformer {
    let config = ModelConfig {
        architecture,
        vocab_size: 11,
        context_length: 24,
        n_layers: 2,
        n_heads: 2,
        d_model: 8,
        init: InitConfig {
            std: 0.4,
            scale_output: false,
        },
        ..ModelConfig::default()
    };
    config.init(&flex(), 5).unwrap()
}

/// The logits after each token of `completion`, from one pass over everything.
fn whole_pass(model: &Transformer, prompt: &[u32], completion: &[u32]) -> Vec<f32> {
    let device = flex();
    let before = &completion[..completion.len() - 1];
    let (input, mut ctx) = if model.config().has_encoder() {
        let ctx = ForwardContext::inference();
        let ctx = ctx.with_source(ids(prompt, &device), vec![prompt.len()]);
        ([&[1], before].concat(), ctx)
    } else {
        let input = [prompt, before].concat();
        let mask = AttentionMask::causal(vec![0], input.len());
        let mask = match model.config().architecture {
            Architecture::Prefix => mask.with_prefix(vec![prompt.len()]),
            _ => mask,
        };
        (input, ForwardContext::inference().with_mask(mask))
    };
    let seq = input.len();
    let logits = model.forward(ids(&input, &device), &mut ctx);
    let count = completion.len();
    values(logits.narrow(1, seq - count, count))
}

/// Receives the logits of each step.
struct Logits(Vec<f32>);

impl Probe for Logits {
    fn record<const D: usize>(&mut self, site: Site, tensor: &Tensor<D>) {
        if site.hook == Hook::Logits {
            self.0.extend(values(tensor.clone()));
        }
    }
}

fn options(max_tokens: usize) -> DecodeOptions {
    DecodeOptions {
        sampling: SamplingConfig::greedy(),
        max_tokens,
        start_id: Some(1),
        ..DecodeOptions::default()
    }
}

#[test]
fn cached_decoding_equals_a_pass_over_everything() {
    let generating = [
        Architecture::Decoder,
        Architecture::Prefix,
        Architecture::EncoderDecoder,
    ];
    // One page of the cache has 16 tokens: sources and targets on both sides of that.
    for (architecture, prompt_len, count) in generating
        .into_iter()
        .flat_map(|a| [(a, 5, 18), (a, 20, 4)])
    {
        let model = random(architecture);
        let prompt: Vec<u32> = (0..prompt_len).map(|i| 2 + i * 7 % 9).collect();
        let mut decoder =
            Decoder::new(&model, std::slice::from_ref(&prompt), options(count)).unwrap();
        let mut probe = Logits(Vec::new());
        while !decoder.is_done() {
            decoder.step_with_probe(&mut probe).unwrap();
        }
        let completion = decoder.into_sequences().remove(0).ids();
        assert_eq!(completion.len(), count);
        let expected = whole_pass(&model, &prompt, &completion);
        let label = format!("{architecture} after {prompt_len} tokens");
        assert_close(&probe.0, &expected, Tolerance::new(1e-4, 1e-5), &label);
    }
}

#[test]
fn completions_do_not_depend_on_the_other_prompts() {
    for architecture in [Architecture::Prefix, Architecture::EncoderDecoder] {
        let model = random(architecture);
        let prompts = [vec![3, 4, 5], vec![6], vec![2, 9, 8, 7, 3, 2, 10]];
        let generate = |prompts: &[Vec<u32>]| {
            let sequences =
                generate_ids(&model, prompts, options(9), |_| ControlFlow::Continue(()));
            sequences
                .unwrap()
                .iter()
                .map(Sequence::ids)
                .collect::<Vec<_>>()
        };
        let together = generate(&prompts);
        let alone: Vec<_> = prompts
            .iter()
            .flat_map(|p| generate(std::slice::from_ref(p)))
            .collect();
        assert_eq!(together, alone, "{architecture}");
    }
}

#[test]
fn speculative_decoding_keeps_the_completions() {
    for architecture in [Architecture::Prefix, Architecture::EncoderDecoder] {
        let model = random(architecture);
        let prompts = [vec![3, 4, 3, 4, 3], vec![6, 6, 6]];
        let generate = |speculation: Option<&Speculation>| {
            let mut decoder = Decoder::new(&model, &prompts, options(14)).unwrap();
            if let Some(speculation) = speculation {
                decoder = decoder.with_speculation(speculation).unwrap();
            }
            while !decoder.is_done() {
                decoder.step().unwrap();
            }
            let sequences = decoder.into_sequences();
            sequences.iter().map(Sequence::ids).collect::<Vec<_>>()
        };
        let lookup = Speculation::PromptLookup { max_tokens: 4 };
        assert_eq!(generate(Some(&lookup)), generate(None), "{architecture}");
        let draft = Speculation::Draft {
            model: Box::new(model.clone()),
            max_tokens: 2,
        };
        let decoder = Decoder::new(&model, &prompts, options(1)).unwrap();
        let error = decoder
            .with_speculation(&draft)
            .err()
            .map(|e| e.to_string());
        assert!(
            error.unwrap_or_default().contains("draft"),
            "{architecture}"
        );
    }
}

#[test]
fn a_long_target_ends_at_the_context() {
    let model = random(Architecture::EncoderDecoder);
    let sequences = generate_ids(&model, &[vec![3, 4]], options(100), |_| {
        ControlFlow::Continue(())
    });
    let sequence = sequences.unwrap().remove(0);
    assert_eq!(sequence.tokens.len(), 24);
    assert_eq!(sequence.finish, FinishReason::ContextFull);
}

#[test]
fn an_encoder_sees_later_tokens_and_does_not_generate() {
    let (model, device) = (random(Architecture::Encoder), flex());
    let first = |last: u32| {
        let logits = model.forward(
            ids(&[2, 3, last], &device),
            &mut ForwardContext::inference(),
        );
        values(logits.narrow(1, 0, 1))
    };
    assert_ne!(first(4), first(5));
    let error = Decoder::new(&model, &[vec![2]], options(1)).err();
    assert!(matches!(error, Some(GenerateError::Encoder)));
}

#[test]
fn padding_of_a_source_changes_nothing() {
    let (model, device) = (random(Architecture::EncoderDecoder), flex());
    let logits = |source: &[u32], len: usize| {
        let ctx = ForwardContext::inference();
        let mut ctx = ctx.with_source(ids(source, &device), vec![len]);
        values(model.forward(ids(&[1, 4, 5], &device), &mut ctx))
    };
    let (plain, padded) = (logits(&[6, 7, 8], 3), logits(&[6, 7, 8, 9, 2], 3));
    assert_eq!(plain, padded);
    assert_ne!(plain, logits(&[6, 7, 8, 9, 2], 5));
}

#[test]
fn probes_name_the_encoder_and_cross_attention() {
    struct Names(Vec<(String, Vec<usize>)>);
    impl Probe for Names {
        fn record<const D: usize>(&mut self, site: Site, tensor: &Tensor<D>) {
            self.0.push((site.to_string(), tensor.dims().to_vec()));
        }
    }
    let (model, device) = (random(Architecture::EncoderDecoder), flex());
    let mut probe = Names(Vec::new());
    let ctx = ForwardContext::with_probe(&mut probe);
    let mut ctx = ctx.with_source(ids(&[6, 7, 8], &device), vec![3]);
    model.forward(ids(&[1, 4], &device), &mut ctx);
    let shape = |name: &str| {
        let found: Vec<_> = probe.0.iter().filter(|(found, _)| found == name).collect();
        assert_eq!(found.len(), 1, "{name} is recorded once");
        found[0].1.clone()
    };
    assert_eq!(shape("encoder.hook_embed"), [1, 3, 8]);
    assert_eq!(shape("encoder.blocks.1.attn.hook_pattern"), [1, 2, 3, 3]);
    assert_eq!(shape("encoder.ln_final.hook_normalized"), [1, 3, 8]);
    assert_eq!(shape("blocks.1.attn.hook_pattern"), [1, 2, 2, 2]);
    assert_eq!(shape("blocks.1.cross_attn.hook_pattern"), [1, 2, 2, 3]);
    assert_eq!(shape("blocks.0.hook_cross_attn_out"), [1, 2, 8]);
    assert_eq!(shape("blocks.0.hook_resid_mid_cross"), [1, 2, 8]);
    assert_eq!(shape("logits"), [1, 2, 11]);
}

#[test]
fn encoder_and_decoder_have_different_dropout_masks() {
    struct Outputs(Vec<(Site, Vec<f32>)>);
    impl Probe for Outputs {
        fn record<const D: usize>(&mut self, site: Site, tensor: &Tensor<D>) {
            if site.hook == Hook::ResidPre && site.layer == Some(0) {
                self.0.push((site, values(tensor.clone())));
            }
        }
    }
    let device = flex();
    let config = ModelConfig {
        position: Position::None,
        dropout: DropoutConfig {
            embedding: 0.5,
            ..DropoutConfig::default()
        },
        ..random(Architecture::EncoderDecoder).config().clone()
    };
    let model = config.init(&device, 1).unwrap();
    let mut probe = Outputs(Vec::new());
    let dropout = Dropout::training(1, 2, 0);
    let ctx = ForwardContext::with_probe(&mut probe).with_dropout(dropout);
    let tokens = [3, 4, 5, 6];
    let mut ctx = ctx.with_source(ids(&tokens, &device), vec![4]);
    model.forward(ids(&tokens, &device), &mut ctx);
    let [(encoder, a), (decoder, b)] = &probe.0[..] else {
        panic!("one input for each stack")
    };
    assert!(encoder.in_encoder && !decoder.in_encoder);
    let zeros = |x: &[f32]| x.iter().map(|x| *x == 0.0).collect::<Vec<_>>();
    assert_ne!(zeros(a), zeros(b)); // The same embeddings, dropped differently.
}

#[test]
fn adapters_reach_the_encoder_and_cross_attention() {
    let model = random(Architecture::EncoderDecoder);
    let config = LoraConfig {
        rank: 2,
        ..LoraConfig::default()
    };
    let modules = config.modules(model.config()).unwrap();
    assert_eq!(modules.len(), 2 * 6 + 2 * 10); // Two blocks of each stack.
    let has = |name: &str| modules.iter().any(|(module, _)| module == name);
    assert!(has("encoder.blocks.1.attention.query") && has("blocks.0.cross_attention.output"));
    let adapted = model.with_new_adapter(&config, 3).unwrap();
    let (_, batch) = load("bart", &flex());
    let batches = [TokenBatch {
        inputs: batch.inputs.iter().map(|id| id % 11).collect(),
        targets: batch.inputs.iter().map(|id| id % 11).collect(),
        source: batch.source.map(|source| SourceBatch {
            inputs: source.inputs.iter().map(|id| id % 11).collect(),
            ..source
        }),
        ..batch
    }];
    let (_, gradients) = forward_backward(&adapted.clone().train(), &batches, 0, 0, false);
    let (_, recomputed) = forward_backward(&adapted.train(), &batches, 0, 0, true);
    let names: Vec<_> = gradients.iter().map(|(name, _)| name.to_string()).collect();
    assert!(names.contains(&"encoder.blocks.0.attention.key.lora.b".to_string()));
    assert!(names.contains(&"blocks.1.cross_attention.value.lora.b".to_string()));
    assert!(names.iter().all(|name| name.contains(".lora.")));
    for ((name, a), (other, b)) in gradients.iter().zip(recomputed.iter()) {
        assert_eq!(name, other);
        assert_close(
            &values(a.clone()),
            &values(b.clone()),
            Tolerance::new(1e-4, 1e-6),
            name,
        );
    }
}

#[test]
fn unsupported_operations_name_the_architecture() {
    let model = random(Architecture::EncoderDecoder);
    let row = model.clone().with_new_adapter(
        &LoraConfig {
            rank: 2,
            ..LoraConfig::default()
        },
        1,
    );
    let error = row.unwrap().row_adapter().unwrap_err().to_string();
    assert!(
        error.contains("encoder_decoder") && error.contains("single rows"),
        "{error}"
    );
}

/// Trains `StatQuest`'s normal Transformer on "let's go" -> "vamos" and "to go" -> "ir". The ids are
/// those of `<EOS>`, let's, to, go, ir, vamos and y. Returns the two answers.
fn train_normal_transformer(seed: u64) -> Vec<Vec<u32>> {
    let sources = [vec![1, 3], vec![2, 3]];
    let batch = TokenBatch {
        batch: 2,
        seq: 2,
        inputs: vec![0, 5, 0, 4], // <EOS> vamos, <EOS> ir
        targets: vec![5, 0, 4, 0],
        source: Some(SourceBatch {
            seq: 2,
            inputs: sources.concat(),
            lengths: vec![2, 2],
        }),
        ..TokenBatch::default()
    };
    let optimizer = OptimizerConfig {
        weight_decay: 0.0,
        beta2: 0.999,
        clip_norm: 0.0,
        ..OptimizerConfig::default()
    };
    let model = presets::statquest_normal(7).init(&flex(), seed).unwrap();
    let mut stepper = Stepper::new(model.train(), optimizer, seed, false);
    for step in 0..500 {
        stepper.step(std::slice::from_ref(&batch), step, 0.03, 0.03);
    }
    let options = DecodeOptions {
        stop_ids: vec![0],
        start_id: Some(0),
        ..options(4)
    };
    let model = stepper.inference_model();
    let sequences = generate_ids(&model, &sources, options, |_| ControlFlow::Continue(()));
    sequences.unwrap().iter().map(Sequence::ids).collect()
}

#[test]
fn the_normal_transformer_of_statquest_learns_its_sentences_from_20_seeds() {
    for seed in 0..20 {
        assert_eq!(
            train_normal_transformer(seed),
            [[5, 0], [4, 0]],
            "seed {seed}"
        );
    }
}

#[test]
fn the_normal_transformer_of_statquest_has_the_expected_parts() {
    let config = presets::statquest_normal(7);
    let layout = weights::layout(&config);
    let names: Vec<&str> = layout.iter().map(|(name, _)| name.as_str()).collect();
    assert!(names.contains(&"encoder.token_embedding.weight"));
    // Two embeddings, queries, keys and values of three attention layers, and the output layer.
    assert_eq!(
        config.parameter_counts().total(),
        2 * 7 * 2 + 3 * 3 * 4 + 2 * 7 + 7
    );
    assert!(
        !names
            .iter()
            .any(|name| name.contains("norm") || name.contains("feed_forward"))
    );
}
