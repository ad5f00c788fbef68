//! What is told about the numbers: who spoke for a word, guesses on the way, changes, the outputs.

use std::fs;
use std::sync::Arc;

use nextword_data::{TokenizerConfig, TokenizerKind, build_tokenizer};
use nextword_explain::{Edit, ExplainError, Explainer, SCHEMA, StoryOptions, page};
use nextword_generate::{SamplingConfig, TextGenerator, TextOptions};
use nextword_model::{Card, ModelConfig};
use serde_json::Value;

use crate::explain::{any_config, any_model};
use crate::place::{Place, json_lines};
use crate::util::{root, stderr};

/// A model of `config` that reads the words `w0 w1 …`.
fn explainer(config: &ModelConfig, seed: u64) -> Explainer {
    let words: Vec<String> = (0..config.vocab_size).map(|n| format!("w{n:02}")).collect();
    let tokenizer = TokenizerConfig {
        kind: TokenizerKind::Word,
        eos: String::new(),
        ..TokenizerConfig::default()
    };
    let tokenizer = build_tokenizer(&tokenizer, std::iter::once(Ok(words.join(" ")))).unwrap();
    let model = any_model(config, seed);
    Explainer::new(TextGenerator::new(model, Arc::clone(&tokenizer), Card::default()).unwrap())
}

fn options(max_tokens: usize) -> TextOptions {
    TextOptions {
        sampling: SamplingConfig::greedy(),
        max_tokens,
        ..TextOptions::default()
    }
}

#[test]
fn what_each_part_added_sums_to_the_logit_in_every_kind_of_model() {
    for case in 0..200 {
        let explainer = explainer(&any_config(case), case);
        let explanation = explainer.explain("w01 w00 w02 w01", &options(1)).unwrap();
        for token in 0..3 {
            let of = explanation.contribution(3, token);
            let size: f64 = of.parts.iter().map(|part| part.value.abs()).sum();
            assert!(
                (of.sum - of.logit).abs() <= 1e-9 * size.max(1.0),
                "case {case}, {:?}: parts {} of {}",
                explanation.trace.config,
                of.sum,
                of.logit
            );
        }
    }
}

#[test]
fn the_last_guess_on_the_way_is_the_models_own() {
    for case in 0..60 {
        let explainer = explainer(&any_config(case), case);
        let explanation = explainer.explain("w00 w02 w01", &options(1)).unwrap();
        let (lens, next) = (explanation.lens(3), explanation.next_words(3));
        let last = &lens.last().unwrap().top;
        for (lens, next) in last.iter().zip(&next) {
            let (a, b) = (lens[0].probability, next.top[0].probability);
            assert!((a - b).abs() < 1e-4, "case {case}: {a}, {b}");
        }
    }
}

#[test]
fn a_change_gives_what_the_changed_prompt_gives() {
    for case in 0..60 {
        let explainer = explainer(&any_config(case), case);
        let explanation = explainer.explain("w00 w02 w01", &options(1)).unwrap();
        let nothing = explanation.what_if(&[]).unwrap();
        assert_eq!(nothing.before, nothing.after);
        let edit = Edit::Token { position: 1, id: 0 };
        let changed = explanation.what_if(&[edit]).unwrap();
        let other = explainer.explain("w00 w00 w01", &options(1)).unwrap();
        for (a, b) in changed.after.iter().zip(&other.next_words(10)[2].top) {
            assert!((a.probability - b.probability).abs() < 1e-4, "case {case}");
        }
        let off: Vec<Edit> = (0..explanation.trace.config.n_heads)
            .map(|head| Edit::HeadOff { layer: 0, head })
            .collect();
        assert_ne!(explanation.what_if(&off).unwrap().after, nothing.before);
        let wrong = Edit::HeadOff { layer: 9, head: 0 };
        let wrong = explanation.what_if(&[wrong]);
        assert!(matches!(wrong, Err(ExplainError::WhatIf(problem)) if problem.contains("layer 9")));
    }
}

#[test]
fn the_cache_is_shown_as_reused_and_later_tokens_as_computed_alone() {
    let config = ModelConfig {
        vocab_size: 6,
        context_length: 12,
        n_layers: 2,
        n_heads: 2,
        d_model: 8,
        ..ModelConfig::default()
    };
    let explainer = explainer(&config, 1);
    let explanation = explainer.explain("w00 w01", &options(4)).unwrap();
    assert_eq!(explanation.trace.passes, [0, 0, 1, 2, 3]);
    let story = explanation.story(&StoryOptions::default()).unwrap();
    assert_eq!((story.tokens.len(), story.answer.len()), (5, 4));
}

/// 32 tokens, 4 layers, 4 heads, 64 numbers a token.
#[test]
fn a_small_model_is_explained_at_once() {
    let config = ModelConfig {
        vocab_size: 65,
        context_length: 64,
        d_model: 64,
        ..ModelConfig::default()
    };
    let explainer = explainer(&config, 1);
    let prompt: Vec<String> = (0..32).map(|n| format!("w{n:02}")).collect();
    let prompt = prompt.join(" ");
    explainer.explain(&prompt, &options(1)).unwrap();
    let begin = std::time::Instant::now();
    let explanation = explainer.explain(&prompt, &options(1)).unwrap();
    let story = explanation.story(&StoryOptions::default()).unwrap();
    let seconds = begin.elapsed().as_secs_f64();
    let bytes = serde_json::to_string(&story).unwrap().len();
    eprintln!(
        "explained in {:.1} ms, {bytes} bytes of JSON",
        1e3 * seconds
    );
    assert!(story.verdict.verified, "{}", story.verdict.sentence);
    // A tenth of this where nothing else runs.
    assert!(seconds < 1.0, "{seconds} s");
}

#[test]
fn what_is_too_large_opens_with_a_summary_or_says_what_to_ask() {
    let explainer = explainer(&any_config(12), 1);
    let explanation = explainer.explain("w00 w02 w01", &options(1)).unwrap();
    let whole = explanation.story(&StoryOptions::default()).unwrap();
    let numbers: usize = whole.tensors.values().map(|tensor| tensor.data.len()).sum();
    let few = |most, layers| StoryOptions {
        most,
        layers,
        ..StoryOptions::default()
    };
    if explanation.trace.config.n_layers > 1 {
        let summary = explanation.story(&few(numbers - 1, None)).unwrap();
        assert!(summary.tensors.len() < whole.tensors.len());
        assert!(summary.notes.iter().any(|note| note.contains("--layer")));
    }
    let refused = explanation.story(&few(3, Some(vec![0])));
    assert!(refused.is_err_and(|e| e.to_string().contains("--layer N")));
}

#[test]
fn a_page_holds_everything_and_no_prompt_can_break_out_of_it() {
    let explainer = explainer(&any_config(3), 1);
    let explanation = explainer
        .explain("</script><img src=x onerror=alert(1)>", &options(1))
        .unwrap();
    let pane = page::Pane::of(&explanation, &StoryOptions::default()).unwrap();
    let html = page::render(&page::Data {
        panes: vec![pane],
        learning: None,
    });
    assert_eq!(html.matches("</script>").count(), 2, "only the page's own");
    assert!(!html.contains("<img"));
    for outside in ["http://", "https://", "src=\"//"] {
        let inside = html.replace("http://www.w3.org/2000/svg", "");
        assert!(!inside.contains(outside), "{outside}");
    }
}

/// Every key that the schema requires is there, and none that it does not know.
fn check_schema(value: &Value, schema: &Value, whole: &Value, path: &str) {
    let schema = schema.get("anyOf").map_or(schema, |choices| &choices[0]);
    let schema = match schema.get("$ref").and_then(Value::as_str) {
        Some(name) => &whole["$defs"][name.rsplit('/').next().unwrap()],
        None => schema,
    };
    match value {
        Value::Object(map) => {
            for key in schema["required"].as_array().into_iter().flatten() {
                assert!(
                    map.contains_key(key.as_str().unwrap()),
                    "{path}.{key} is missing"
                );
            }
            let known = schema["properties"].as_object();
            for (key, value) in map {
                let inner = known.and_then(|known| known.get(key));
                let inner = inner.or_else(|| schema.get("additionalProperties"));
                let inner = inner.filter(|inner| !inner.is_boolean());
                let open = schema.get("additionalProperties") == Some(&Value::Bool(true));
                assert!(inner.is_some() || open, "{path}.{key} is not in the schema");
                if let Some(inner) = inner {
                    check_schema(value, inner, whole, &format!("{path}.{key}"));
                }
            }
        }
        Value::Array(items) => {
            if let Some(inner) = schema.get("items") {
                for item in items.iter().take(20) {
                    check_schema(item, inner, whole, &format!("{path}[]"));
                }
            }
        }
        _ => {}
    }
}

#[test]
fn the_program_explains_statquest_in_every_format() {
    let place = Place::new();
    let config = root().join("configs/statquest.toml").display().to_string();
    let trained = place.run(&["train", &config, "--quiet"]);
    assert!(trained.status.success(), "{}", stderr(&trained));
    let prompts = ["what is statquest", "statquest is what"];
    for (prompt, other) in [(prompts[0], prompts[1]), (prompts[1], prompts[0])] {
        let ask = |more: &[&str]| {
            let output = place.run(&[&["explain", "runs/statquest", prompt], more].concat());
            assert!(output.status.success(), "{}", stderr(&output));
            output
        };
        let text = String::from_utf8(ask(&[]).stdout).unwrap();
        for word in [
            "word embedding",
            "position encoding",
            "query",
            "key",
            "value",
            "similarity",
            "percentage",
            "masked self-attention values",
            "residual connection",
            "output layer",
            "softmax",
            "next word: awesome",
            "next word: <EOS>",
            "the prompt's next word",
            "from the cache",
            "verified",
        ] {
            assert!(text.contains(word), "{word} is not in\n{text}");
        }
        assert!(
            text.lines().all(|line| !line.contains('\u{1b}')),
            "no colours off a terminal"
        );

        let story = json_lines(&ask(&["--format", "json"])).remove(0);
        let schema: Value = serde_json::from_str(SCHEMA).unwrap();
        check_schema(&story, &schema, &schema, "story");
        assert_eq!(story["answer"][0]["token"]["text"], "awesome");
        for difference in story["verdict"]["differences"].as_array().unwrap() {
            let of = |key: &str| difference[key].as_f64().unwrap();
            assert!(of("largest") <= 1e-6 * of("scale").max(1.0), "{difference}");
        }

        let address = "blocks.0.attn.hook_pattern[head=0,query=3,key=1]";
        let why = json_lines(&ask(&["--why", address, "--format", "json"])).remove(0);
        assert_eq!(why["address"], address);
        assert_eq!(why["operands"].as_array().unwrap().len(), 4);
        ask(&["--format", "safetensors", "--out", "trace.safetensors"]);
        let tensors = nextword_model::weights::load_tensors(&place.path("trace.safetensors"));
        assert_eq!(tensors.unwrap()["blocks.0.attn.hook_pattern"].0, [1, 5, 5]);
        ask(&["--what-if", "token=0:is", "--what-if", "embedding=is.1:0.5"]);
        ask(&["--over-training", "--compare", other, "--out", "page.html"]);
        assert!(
            fs::read_to_string(place.path("page.html"))
                .unwrap()
                .contains("\"learning\":{")
        );
    }
    let plot = place.run(&["plot", "runs/statquest", "--attention"]);
    assert!(plot.status.success(), "{}", stderr(&plot));
    assert!(place.path("runs/statquest/attention-2.svg").is_file());
    let wrong = place.run(&["explain", "runs/statquest", "what", "--why", "nothing[a=1]"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(
        stderr(&wrong).contains("there is no tensor `nothing`"),
        "{}",
        stderr(&wrong)
    );
    // With a Python that has playwright, the page is used in Chromium.
    if let Some(python) = std::env::var_os("NEXTWORD_CHECK_PAGE") {
        let script = root().join("scripts/check_page.py");
        let check = std::process::Command::new(python)
            .arg(script)
            .arg(place.path("page.html"))
            .output()
            .unwrap();
        assert!(check.status.success(), "{}", stderr(&check));
    }
}
