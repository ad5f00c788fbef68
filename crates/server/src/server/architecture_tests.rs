//! Prefix models, encoders and encoder-decoder models behind the API.

use futures_util::future::join_all;
use nextword_generate::{SamplingConfig, TextGenerator, TextOptions};
use nextword_model::{Architecture, InitConfig, KvCache, ModelCard, ModelConfig};
use serde_json::{Value, json};

use super::adapter_tests::{post, run, send};
use super::*;
use crate::test_model::byte_tokenizer;

const NAMES: [(&str, Architecture); 3] = [
    ("prefix", Architecture::Prefix),
    ("translator", Architecture::EncoderDecoder),
    ("encoder", Architecture::Encoder),
];

/// A model with random weights whose prompt template ends a source with a period.
fn generator(architecture: Architecture) -> TextGenerator {
    let tokenizer = byte_tokenizer();
    let config = ModelConfig {
        architecture,
        vocab_size: tokenizer.vocab_size(),
        context_length: 64,
        n_layers: 1,
        n_heads: 2,
        d_model: 16,
        init: InitConfig {
            std: 0.5,
            scale_output: false,
        },
        ..ModelConfig::default()
    };
    let model = config.init(&burn::tensor::Device::flex(), 3).unwrap();
    let card = ModelCard {
        prompt_template: Some("{prompt}.".to_string()),
        ..ModelCard::default()
    };
    TextGenerator::new(model, tokenizer, card).unwrap()
}

fn server() -> Server {
    let models = NAMES.map(|(name, kind)| LoadedModel::new(name, generator(kind)));
    Server::new(models.into(), Config::default()).unwrap()
}

fn text(reply: &Value) -> &str {
    reply["choices"][0]["text"].as_str().unwrap()
}

#[test]
fn completions_of_sources_are_those_of_the_library() {
    run(async {
        let server = server();
        for (name, architecture) in &NAMES[..2] {
            let options = TextOptions {
                sampling: SamplingConfig::greedy(),
                ..TextOptions::default().with_max_tokens(12)
            };
            let sources = [
                "a",
                "let's go",
                "a sentence of forty-five characters, or more.",
            ];
            let requests = sources.map(|source| {
                let body =
                    json!({"model": name, "prompt": source, "temperature": 0, "max_tokens": 12});
                post(&server, "/v1/completions", body)
            });
            let replies = join_all(requests).await;
            for (source, (status, reply)) in sources.iter().zip(replies) {
                assert_eq!(status, 200, "{reply}");
                let expected = generator(*architecture).complete(source, &options).unwrap();
                assert_eq!(text(&reply), expected.text, "{name}: {source}");
                let tokens = expected.prompt_ids.len();
                assert_eq!(reply["usage"]["prompt_tokens"], tokens);
            }
            // A chat of one message is formatted in the same way.
            let messages = json!([{"role": "user", "content": "let's go"}]);
            let body =
                json!({"model": name, "messages": messages, "temperature": 0, "max_tokens": 12});
            let (status, reply) = post(&server, "/v1/chat/completions", body).await;
            assert_eq!(status, 200, "{reply}");
            let content = reply["choices"][0]["message"]["content"].as_str();
            let expected = generator(*architecture)
                .complete("let's go", &options)
                .unwrap();
            assert_eq!(content, Some(expected.text.as_str()));
        }
    });
}

#[test]
fn what_an_architecture_cannot_do_is_refused_with_a_hint() {
    run(async {
        let server = server();
        let error = |path: &'static str, body: Value| {
            let server = &server;
            async move {
                let (status, reply) = post(server, path, body).await;
                assert_eq!(status, 400, "{reply}");
                reply["error"]["message"].as_str().unwrap().to_string()
            }
        };
        let completions = "/v1/completions";
        let body = json!({"model": "encoder", "prompt": "a"});
        let message = error(completions, body).await;
        assert!(message.contains("use /v1/embeddings"), "{message}");
        for name in ["prefix", "translator"] {
            let body = json!({"model": name, "prompt": "a", "echo": true, "logprobs": 1});
            let message = error(completions, body).await;
            assert!(message.contains("does not predict its prompt"), "{message}");
        }
        let body = json!({"model": "translator", "prompt": "a".repeat(64)});
        let message = error(completions, body).await;
        assert!(
            message.contains("context is 64 tokens, but the prompt has 65"),
            "{message}"
        );
        let message = error(
            "/v1/embeddings",
            json!({"model": "translator", "input": "a"}),
        )
        .await;
        assert!(message.contains("encoder-decoder models"), "{message}");
    });
}

/// Each slot of an encoder-decoder model may keep the keys and values of a whole source.
#[test]
fn sources_share_the_memory_of_the_cache() {
    run(async {
        let models = NAMES.map(|(name, kind)| LoadedModel::new(name, generator(kind)));
        let translator = generator(Architecture::EncoderDecoder);
        let precision = translator.cache_precision();
        let token = KvCache::bytes_per_token(translator.model().config(), precision) as u64;
        let config = Config {
            cache_bytes: 2 * 3 * 64 * token, // Three contexts of sources, and as many of targets.
            ..Config::default()
        };
        let server = Server::new(models.into(), config).unwrap();
        let (_, metrics) = send(&server, "GET", "/metrics", None).await;
        for line in [
            "nextword_slots{model=\"translator\"} 3",
            "nextword_slots{model=\"prefix\"} 64",
        ] {
            assert!(metrics.lines().any(|other| other == line), "{metrics}");
        }
    });
}

#[test]
fn explanations_show_the_source() {
    run(async {
        let body = json!({"model": "translator", "prompt": "go", "max_tokens": 2});
        let (status, reply) = post(&server(), "/explain", body).await;
        assert_eq!(status, 200, "{reply}");
        assert_eq!(reply["source"].as_array().unwrap().len(), 3); // With the period.
        assert_eq!(reply["tokens"][0]["from"], "start");
        assert_eq!(reply["verdict"]["verified"], true);
    });
}
