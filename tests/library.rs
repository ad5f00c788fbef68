//! The crate `nextword` as a library: the same results as the program, without a folder.

use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;

use nextword::generate::TextGenerator;
use nextword::model::{ModelCard, ModelTokens};
use nextword::prelude::*;
use nextword_train::read_config;

use crate::test_dir::TestDir;
use crate::util::{nextword, root, stderr};

const TEXT: &str =
    "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n";

/// A configuration with all that draws random numbers or depends on the order of batches.
const CONFIG: &str = r#"
[data]
path = "text.txt"
[data.tokenizer]
kind = "KIND"
[model]
context_length = 16
n_layers = 2
n_heads = 2
d_model = 16
position = "rotary"
dropout = { embedding = 0.1, attention = 0.1, residual = 0.1 }
[train]
steps = 12
batch_size = 3
accumulation = 2
log_every = 5
[schedule]
warmup_steps = 3
[validation]
every = 5
"#;

fn small() -> ModelConfig {
    ModelConfig {
        context_length: 16,
        n_layers: 2,
        n_heads: 2,
        d_model: 16,
        ..ModelConfig::default()
    }
}

fn statquest() -> PathBuf {
    root().join("docs/models/statquest")
}

fn dataset() -> Dataset {
    Dataset::from_text(&TEXT.repeat(6), &TokenizerConfig::chars()).unwrap()
}

#[test]
fn training_in_memory_gives_the_bits_of_a_run() {
    for (kind, tokenizer) in [
        ("char", TokenizerConfig::chars()),
        ("word", TokenizerConfig::words()),
    ] {
        let folder = TestDir::new();
        let text = TEXT.repeat(30);
        fs::write(folder.path("text.txt"), &text).unwrap();
        fs::write(folder.path("run.toml"), CONFIG.replace("KIND", kind)).unwrap();
        let run = nextword()
            .args(["train", "run.toml", "--quiet"])
            .current_dir(folder.path("."))
            .output()
            .unwrap();
        assert!(run.status.success(), "{}", stderr(&run));

        let dataset = Dataset::from_text(&text, &tokenizer).unwrap();
        let config = read_config(&folder.path("run.toml"), &[]).unwrap();
        let mut validations = Vec::new();
        let model = Training::from_config(&dataset, config)
            .on_validation(|report| validations.push(report.step))
            .run()
            .unwrap();
        model.save(folder.path("models/mine")).unwrap();
        for file in ["model.safetensors", "tokenizer.json", "config.json"] {
            let read = |folder_name: &str| fs::read(folder.path(folder_name).join(file)).unwrap();
            assert!(
                read("runs/run/last") == read("models/mine"),
                "{kind}: {file} differs"
            );
        }
        assert_eq!(validations, [5, 10, 12]);
        let run = LanguageModel::open(folder.path("runs/run/last")).unwrap();
        assert_eq!(run.card().validation_loss, model.card().validation_loss);
        assert_eq!(run.card().tokens, model.card().tokens);
    }
}

#[test]
fn a_callback_stops_the_training_after_its_step() {
    let dataset = dataset();
    let mut steps = Vec::new();
    let model = Training::new(&dataset)
        .model(small())
        .on_step(|step| {
            steps.push(step.step);
            match step.step {
                4.. => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        })
        .run()
        .unwrap();
    assert_eq!(steps, [1, 2, 3, 4]);
    assert_eq!(model.card().step, 4);
}

#[test]
fn training_continues_from_a_model_in_memory() {
    let dataset = dataset();
    let first_loss = |start: Option<&LanguageModel>| {
        let mut first = None;
        let mut training = Training::new(&dataset).model(small()).steps(40);
        if let Some(model) = start {
            training = training.start_from(model);
        }
        let training = training.learning_rate(1e-2);
        let model = training
            .on_step(|step| _ = first.get_or_insert(step.loss))
            .run();
        (first.unwrap(), model.unwrap())
    };
    let (fresh, model) = first_loss(None);
    let trained = model.card().train_loss.unwrap();
    let (continued, _) = first_loss(Some(&model));
    assert!(trained < 0.8 * fresh, "{fresh} {trained}");
    assert!((continued - trained).abs() < 0.3, "{trained} {continued}");
}

#[test]
fn continued_training_needs_the_tokenizer_of_the_model() {
    let model = Training::new(&dataset())
        .model(small())
        .steps(1)
        .run()
        .unwrap();
    let other = Dataset::from_text(&"other text ".repeat(20), &TokenizerConfig::chars()).unwrap();
    let error = Training::new(&other).start_from(&model).run().unwrap_err();
    assert!(error.to_string().contains("with_tokenizer"), "{error}");

    let texts = ["to be or not to be ".repeat(20)];
    let split = SplitConfig::default();
    let same = Dataset::with_tokenizer(texts, model.tokenizer().clone(), split).unwrap();
    Training::new(&same)
        .start_from(&model)
        .steps(1)
        .run()
        .unwrap();
}

#[test]
fn continued_training_keeps_the_template_and_the_special_tokens() {
    let model = LanguageModel::open(statquest()).unwrap();
    let special = ModelTokens {
        bos_id: Some(0),
        bos_token: Some("<s>".to_string()),
        eos_token: Some("</s>".to_string()),
        eos_ids: vec![1],
        ..ModelTokens::default()
    };
    let chat_templates = [("default".to_string(), "{{ bos_token }}".to_string())];
    let card = ModelCard {
        special,
        chat_templates: chat_templates.into_iter().collect(),
        ..model.card().clone()
    };
    let (transformer, tokenizer) = (model.transformer(), model.tokenizer());
    let other = TextGenerator::new(transformer.clone(), tokenizer.clone(), card).unwrap();
    let text =
        "what is statquest <EOS> awesome <EOS> statquest is what <EOS> awesome <EOS> ".repeat(9);
    let dataset =
        Dataset::with_tokenizer([text], tokenizer.clone(), SplitConfig::default()).unwrap();
    for initial in [model, other.into()] {
        let continued = Training::new(&dataset)
            .start_from(&initial)
            .device("not opened")
            .steps(2)
            .run()
            .unwrap();
        let (before, after) = (initial.card(), continued.card());
        assert_eq!(before.prompt_template.as_deref(), Some("{prompt} <EOS>"));
        assert_eq!(after.prompt_template, before.prompt_template);
        assert_eq!(after.special, before.special);
        assert_eq!(after.chat_templates, before.chat_templates);
        assert_eq!((after.step, after.name.as_str()), (2, "model"));
        if before.special.bos_id.is_none() {
            let completion = continued
                .stream("what is statquest", &TextOptions::greedy(), |_| ())
                .unwrap();
            assert_eq!(completion.text, "awesome");
            assert_eq!(completion.ids.len(), 2, "it ends with <EOS>");
        }
    }
}

#[test]
fn inspection_shows_what_generation_computes() {
    let model = Training::new(&dataset())
        .model(small())
        .steps(30)
        .run()
        .unwrap();
    let prompt = "or not";
    let activations = model.inspect(prompt).unwrap();
    assert_eq!(activations.tokens().concat(), prompt);
    let probabilities = activations.next_token_probabilities();
    let completion = model
        .stream(prompt, &TextOptions::greedy().with_max_tokens(1), |_| ())
        .unwrap();
    let (id, logprob) = (completion.ids[0] as usize, completion.logprobs[0]);
    assert!((probabilities[id].ln() - logprob).abs() < 1e-4);
    assert!(probabilities.iter().all(|p| *p <= probabilities[id]));

    let weights = activations.attention_weights(1).unwrap();
    assert_eq!(weights.shape, [2, 6, 6]);
    for (row, weights) in weights.rows().enumerate() {
        let query = row % 6;
        assert!(weights[query + 1..].iter().all(|weight| *weight == 0.0));
    }
}

#[test]
fn text_that_is_too_short_is_an_error_with_a_hint() {
    let short = Dataset::from_text("short", &TokenizerConfig::chars()).unwrap();
    let error = Training::new(&short).run().unwrap_err().to_string();
    assert!(error.contains("train.sequence_length"), "{error}");
    let error = Dataset::from_text("", &TokenizerConfig::chars()).unwrap_err();
    assert_eq!(error.to_string(), "the text is empty");
    let long = TEXT.repeat(2); // Longer than the context.
    let model = Training::new(&dataset())
        .model(small())
        .steps(1)
        .run()
        .unwrap();
    assert!(model.inspect(&long).is_err());
    let empty = model.inspect("").unwrap();
    assert_eq!(empty.tokens(), ["<EOS>"], "as in `generate`");
}
