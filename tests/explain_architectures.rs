//! Explanations of encoders, prefix models and encoder-decoder models: every value recomputed, derivations and
//! gradients across both stacks, `StatQuest`'s normal Transformer.

use std::collections::BTreeSet;

use burn::module::Module;
use nextword_data::{SourceBatch, TokenBatch, TokenizerConfig};
use nextword_explain::evaluate::{Arrays, Inputs, evaluate, weights_of};
use nextword_explain::gradient::gradients;
use nextword_explain::graph::graph;
use nextword_explain::{
    Address, Array, AttentionKind, Edit, Explainer, Explanation, Input, Lengths, Op, ReportOptions,
    SCHEMA, Trace, TraceOptions, terminal,
};
use nextword_generate::{SamplingConfig, TextGenerator};
use nextword_model::{Architecture, Bits, CounterRng, ModelConfig, NormKind, Transformer, presets};
use nextword_train::{OptimizerConfig, Stepper};

use crate::explain::{follow_to_leaves, weights_in};
use crate::explain_report::options;
use crate::explain_schema::validate;
use crate::random_models::{random_config, random_model};
use crate::util::flex;

const OTHERS: [Architecture; 3] = [
    Architecture::Prefix,
    Architecture::Encoder,
    Architecture::EncoderDecoder,
];

/// A random configuration of `architecture`, with the settings that only some architectures have.
fn config(architecture: Architecture, case: u64) -> ModelConfig {
    let base = random_config(case);
    let has_encoder = architecture == Architecture::EncoderDecoder;
    ModelConfig {
        architecture,
        parallel: base.parallel && !has_encoder,
        n_encoder_layers: (has_encoder && case.is_multiple_of(2)).then_some(1 + case as usize % 3),
        share_embeddings: !has_encoder || case.is_multiple_of(3),
        embedding_norm: case % 4 == 1,
        head_transform: architecture == Architecture::Encoder && case % 2 == 1,
        ..base
    }
}

pub(crate) fn model(architecture: Architecture, case: u64) -> Transformer {
    let model = random_model(&config(architecture, case), case);
    match case % 10 {
        3 => model.quantize(Bits::Int8),
        9 => model.quantize(Bits::Int4),
        _ => model,
    }
}

/// A trace of random tokens, the first of which is masked for an encoder.
fn trace(model: &Transformer, case: u64) -> (Trace, Arrays) {
    let rng = CounterRng::new(8).stream(case);
    let vocab_size = model.config().vocab_size as u64;
    let length = 1 + rng.at(0) % 6;
    let prompt: Vec<u32> = (1..=length)
        .map(|i| (rng.at(i) % vocab_size) as u32)
        .collect();
    let options = TraceOptions {
        sampling: SamplingConfig {
            temperature: 0.9,
            seed: case,
            ..SamplingConfig::default()
        },
        max_tokens: 1 + (rng.at(20) % 3) as usize,
        start_id: Some(1),
        mask_id: Some(prompt[0]),
        ..TraceOptions::default()
    };
    let weights = weights_of(model);
    let trace = Trace::record(model, &weights, &prompt, &options).unwrap();
    (trace, weights)
}

/// Whether the mask of the attention with `name` shows `key` to `query`, by the definition of the architecture.
fn is_visible(trace: &Trace, name: &str, layer: usize, query: usize, key: usize) -> bool {
    let config = &trace.config;
    if name.contains("cross_attn") {
        return true;
    }
    let window = config.window(layer).unwrap_or(usize::MAX);
    let is_known = match config.architecture {
        Architecture::Encoder => true,
        Architecture::Prefix => key <= query || key < trace.prompt_len && query < trace.prompt_len,
        _ => name.starts_with("encoder.") || key <= query,
    };
    is_known && query.abs_diff(key) < window
}

#[test]
fn traces_of_every_architecture_match_the_recomputation() {
    for (architecture, case) in OTHERS
        .into_iter()
        .flat_map(|a| (0..250).map(move |n| (a, n)))
    {
        let label = format!("{architecture}, case {case}");
        let (trace, weights) = trace(&model(architecture, case), case);
        let verification = &trace.verification;
        let summary = verification.summary();
        assert!(
            verification.is_verified(),
            "{label}: {summary}, {:?}",
            trace.config
        );
        assert_eq!(verification.differences.len(), trace.graph.len(), "{label}");
        let used: BTreeSet<&str> = trace.graph.iter().flat_map(weights_in).collect();
        let stored: BTreeSet<&str> = weights.keys().map(String::as_str).collect();
        assert_eq!(
            used, stored,
            "{label}: exactly the model's weights are used"
        );
        for node in trace.graph.iter().filter(|node| node.is_square()) {
            let (queries, keys) = (node.shape[1], node.shape[2]);
            let (name, layer) = (&node.name, node.layer.unwrap());
            for (at, shown) in trace.visible_values(node).iter().enumerate() {
                let (query, key) = (at / keys % queries, at % keys);
                let expected = is_visible(&trace, name, layer, query, key);
                assert_eq!(shown.is_some(), expected, "{label}: {name}, {query} {key}");
            }
        }
        let has_source = !trace.source.is_empty();
        assert_eq!(has_source, architecture == Architecture::EncoderDecoder);
        assert!(
            trace.finish.is_some() == architecture.generates(),
            "{label}"
        );
    }
}

#[test]
fn derivations_cross_from_the_target_to_the_source() {
    let mut crossed = 0;
    for (architecture, case) in OTHERS
        .into_iter()
        .flat_map(|a| (0..25).map(move |n| (a, n)))
    {
        let model = model(architecture, case);
        let (trace, weights) = trace(&model, case);
        let address = format!("probabilities[position={},token=1]", trace.focus());
        let address = Address::parse(&address, &trace, &weights).unwrap();
        let tolerance = model.bits().map_or(2e-5, |_| 1e-3);
        crossed += follow_to_leaves(&trace, &weights, &address, tolerance);
    }
    assert!(crossed > 5_000, "only {crossed} derivations were followed");
}

/// The largest difference between gradients by backpropagation and by finite differences.
fn check_gradients(architecture: Architecture, case: u64) -> usize {
    const DISTANCE: f64 = 1e-5;
    let config = config(architecture, case);
    if config.parameter_counts().total() > 2500 {
        return 0;
    }
    let mut weights = weights_of(&random_model(&config, case));
    let lengths = Lengths {
        target: 3,
        source: 4,
        prompt: 2,
    };
    let nodes = graph(&config, lengths);
    let ids = Inputs {
        target: &[1, 0, 2],
        source: &[2, 1, 0, 2],
    };
    let values = evaluate(&nodes, &weights, ids, &[]);
    let found = gradients(&nodes, &values, &weights, ids, 1, 2);
    let mut count = 0;
    for name in weights.keys().cloned().collect::<Vec<_>>() {
        let size = weights[&name].data.len();
        for at in (0..size).step_by(1 + size / 8) {
            let original = weights[&name].data[at];
            let mut loss = |x: f64| {
                weights.get_mut(&name).unwrap().data[at] = x;
                -evaluate(&nodes, &weights, ids, &[])["probabilities"]
                    .at(&[1, 2])
                    .ln()
            };
            let exact = (loss(original + DISTANCE) - loss(original - DISTANCE)) / (2.0 * DISTANCE);
            loss(original);
            let ours = found
                .get(&name)
                .map_or(0.0, |gradient: &Array| gradient.data[at]);
            assert!(
                (ours - exact).abs() < 1e-5 * exact.abs().max(1.0),
                "{architecture}, case {case}, {name} {at}: {ours} instead of {exact} in {config:?}"
            );
            count += 1;
        }
    }
    count
}

#[test]
fn gradients_of_both_stacks_agree_with_finite_differences() {
    let cases = OTHERS
        .into_iter()
        .flat_map(|a| (0..30).map(move |n| (a, n)));
    let count: usize = cases
        .map(|(architecture, case)| check_gradients(architecture, case))
        .sum();
    assert!(count > 5_000, "only {count} gradients were compared");
}

/// `StatQuest`'s normal Transformer, trained on "let's go" -> "vamos" and "to go" -> "ir".
fn normal_transformer() -> Explainer {
    let tokenizer = TokenizerConfig::words().with_unk("");
    let tokenizer = tokenizer.build("let's to go vamos ir").unwrap();
    let ids = |text: &str| tokenizer.encode(text).ids;
    let eos = tokenizer.special_tokens().eos.unwrap();
    let (vamos, ir) = (ids("vamos")[0], ids("ir")[0]);
    let batch = TokenBatch {
        batch: 2,
        seq: 2,
        inputs: vec![eos, vamos, eos, ir],
        targets: vec![vamos, eos, ir, eos],
        source: Some(SourceBatch {
            seq: 2,
            inputs: [ids("let's go"), ids("to go")].concat(),
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
    let config = presets::statquest_normal(tokenizer.vocab_size());
    let mut stepper = Stepper::new(
        config.init(&flex(), 1).unwrap().train(),
        optimizer,
        1,
        false,
    );
    for step in 0..500 {
        stepper.step(std::slice::from_ref(&batch), step, 0.03, 0.03);
    }
    let model = stepper.inference_model();
    Explainer::new(TextGenerator::without_card(model, tokenizer).unwrap())
}

#[test]
fn the_normal_transformer_of_statquest_is_explained() {
    let explainer = normal_transformer();
    let explanation = explainer.explain("let's go", &options(3)).unwrap();
    let trace = &explanation.trace;
    let worst = trace.verification.worst().unwrap();
    assert!(trace.verification.is_verified() && worst.largest < 1e-5);
    let report = explanation.report(&ReportOptions::default()).unwrap();
    let answer: Vec<&str> = report
        .completion
        .iter()
        .map(|s| s.token.text.as_str())
        .collect();
    assert_eq!(answer, ["vamos", "<EOS>"]);
    let source: Vec<&str> = report
        .source
        .iter()
        .map(|token| token.text.as_str())
        .collect();
    assert_eq!(source, ["let's", "go"]);
    check_report(&explanation);
    let text = terminal::render(&explanation, &report, &terminal::View::default());
    for part in [
        "── encoder",
        "── decoder",
        "cross-attention weights",
        "2 tokens read by the encoder",
    ] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    for contribution in &report.contributions {
        assert!(
            (contribution.sum - contribution.logit).abs() < 1e-4,
            "{contribution:?}"
        );
    }
    // Another input gives another output.
    let to = explainer.token_id("to").unwrap();
    let other = explanation
        .what_if(&[Edit::Token {
            position: 0,
            id: to,
        }])
        .unwrap();
    assert_eq!(
        (other.before[0].text.as_str(), other.after[0].text.as_str()),
        ("vamos", "ir")
    );
    // The embeddings of the prompt are those of the encoder.
    let edit = Edit::Embedding {
        id: trace.source[0],
        dim: 0,
        value: 40.0,
    };
    let edited = explanation.what_if(&[edit]).unwrap();
    assert_ne!(edited.after, edited.before);
    let head = |attention| Edit::HeadOff {
        layer: 0,
        head: 0,
        attention,
    };
    let after = |attention| explanation.what_if(&[head(attention)]).unwrap().after;
    // Without cross-attention, nothing of the input reaches the output.
    let blind = explainer.explain("to go", &options(1)).unwrap();
    let blind = blind.what_if(&[head(AttentionKind::Cross)]).unwrap().after;
    assert_eq!(after(AttentionKind::Cross), blind);
    assert_ne!(
        after(AttentionKind::Encoder),
        after(AttentionKind::SelfAttention)
    );
}

/// The report matches the schema, names the right tokens, and the steps of training lower the loss.
fn check_report(explanation: &Explanation<'_>) {
    let report = explanation.report(&ReportOptions::default()).unwrap();
    let schema = serde_json::from_str(SCHEMA).unwrap();
    let json = serde_json::to_value(&report).unwrap();
    validate(&json, &schema, &schema, "report").unwrap();
    for step in &report.training {
        assert_eq!(step.position, explanation.trace.focus());
        assert!(step.new_loss < step.loss);
    }
    let last = report.lens.last().unwrap();
    let focus = explanation.trace.focus();
    let (lens, probability) = (&last.top[focus][0], &report.predictions[focus].top[0]);
    assert_eq!(
        lens.id, probability.id,
        "the last stage of the lens is the prediction"
    );
    assert!((lens.probability - probability.probability).abs() < 1e-4);
}

/// An encoder with random weights whose tokens are words.
fn encoder(head_transform: bool) -> Explainer {
    let tokenizer = TokenizerConfig {
        mask: "[MASK]".to_string(),
        ..TokenizerConfig::words()
    };
    let tokenizer = tokenizer.build("the cat sat on mat").unwrap();
    let config = ModelConfig {
        architecture: Architecture::Encoder,
        vocab_size: tokenizer.vocab_size(),
        norm: NormKind::Layer,
        head_transform,
        windows: Vec::new(),
        ..config(Architecture::Encoder, 4)
    };
    let model = random_model(&config, 4);
    Explainer::new(TextGenerator::without_card(model, tokenizer).unwrap())
}

#[test]
fn the_blanks_of_an_encoder_are_predicted_as_fill_does() {
    for head_transform in [false, true] {
        let explainer = encoder(head_transform);
        let text = "the ___ sat on [MASK]";
        let explanation = explainer.explain(text, &options(1)).unwrap();
        assert_eq!(explanation.trace.sampled_at, [1, 4]);
        check_report(&explanation);
        let filled = explainer.generator().fill(text, 1).unwrap();
        let report = explanation.report(&ReportOptions::default()).unwrap();
        for (sampled, blank) in report.completion.iter().zip(&filled.blanks) {
            let best = &blank.candidates[0];
            assert_eq!((sampled.after, sampled.token.id), (blank.position, best.id));
            assert!((sampled.token.probability - best.probability).abs() < 1e-5);
        }
        // A logit after the head transform is not a sum of contributions.
        assert_eq!(
            report.contributions.len(),
            if head_transform { 0 } else { 2 }
        );
        for contribution in &report.contributions {
            assert!((contribution.sum - contribution.logit).abs() < 1e-3);
        }
        let out = terminal::render(&explanation, &report, &terminal::View::default());
        assert!(
            out.contains("token probabilities") && out.contains("4 other tokens on both sides")
        );
        assert!(!out.contains("next token"), "{out}");
        let error = explainer
            .explain("the cat sat", &options(1))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("no blank") && error.contains("___"),
            "{error}"
        );
        let error = explanation
            .what_if(&[Edit::NoMask])
            .unwrap_err()
            .to_string();
        assert!(error.contains("no attention mask"), "{error}");
    }
}

#[test]
fn tensors_belong_to_the_tokens_of_their_stack() {
    let explainer = normal_transformer();
    let trace = explainer.explain("to go", &options(2)).unwrap().trace;
    let node = |name: &str| trace.node(name).unwrap();
    let key = node("blocks.0.cross_attn.hook_k");
    assert_eq!((key.rows, key.shape[1]), (Input::Source, 2));
    let scores = node("blocks.0.cross_attn.hook_attn_scores");
    assert_eq!((scores.rows, scores.keys), (Input::Target, Input::Source));
    assert!(matches!(scores.op, Op::Scores { causal: false, .. }));
    assert_eq!(
        node("encoder.blocks.0.attn.hook_pattern").keys,
        Input::Source
    );
    assert_eq!(node("logits").rows, Input::Target);
}
