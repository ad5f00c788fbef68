//! Adapters that share the engine of their base.

use axum::body::{Body, to_bytes};
use axum::http::Request;
use futures_util::future::join_all;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};

use super::*;
use crate::{LoadedAdapter, test_model};

const ADAPTERS: [&str; 3] = ["poet", "support", "tutor"];

fn adapters() -> Vec<LoadedAdapter> {
    let base = test_model::loaded("base");
    let adapters = ADAPTERS.into_iter().zip(1..);
    adapters
        .map(|(name, seed)| test_model::adapter(name, &base, seed))
        .collect()
}

/// A server of the base and its adapters.
fn server() -> Server {
    let server = Server::new(vec![test_model::loaded("base")], Config::default()).unwrap();
    server.adapters().replace(adapters(), &[]).unwrap();
    server
}

/// Sends a request, and returns the status and the body.
pub(super) async fn send(
    server: &Server,
    method: &str,
    path: &str,
    body: Option<Value>,
) -> (u16, String) {
    let request = Request::builder().method(method).uri(path);
    let request = request.header("host", "localhost");
    let request = request.header("content-type", "application/json");
    let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
    let service = TowerToHyperService::new(server.router());
    let response = service.call(request.body(body).unwrap()).await.unwrap();
    let status = response.status().as_u16();
    let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

pub(super) async fn post(server: &Server, path: &str, body: Value) -> (u16, Value) {
    let (status, body) = send(server, "POST", path, Some(body)).await;
    (status, serde_json::from_str(&body).unwrap())
}

/// The choices of a seeded completion, with log-probabilities.
async fn complete(server: &Server, model: &str, seed: usize) -> Value {
    let prompt = &"A prompt that all of them begin with, and more."[..20 + seed % 20];
    let body = json!({
        "model": model, "prompt": prompt, "seed": seed, "max_tokens": 3 + seed % 17, "logprobs": 5,
    });
    let (status, body) = post(server, "/v1/completions", body).await;
    assert_eq!(status, 200, "{body}");
    body["choices"].clone()
}

pub(super) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.unwrap().block_on(test);
}

#[test]
fn adapters_and_base_under_load_answer_as_the_adapted_models_alone() {
    run(async {
        let base = test_model::loaded("base");
        let mut alone = vec![test_model::loaded("base")];
        for (name, seed) in ADAPTERS.into_iter().zip(1..) {
            let adapted = test_model::adapted(base.generator(), seed);
            alone.push(LoadedModel::new(name, adapted));
        }
        let alone = Server::new(alone, Config::default()).unwrap();
        let names = ["base", ADAPTERS[0], ADAPTERS[1], ADAPTERS[2]];
        let mut expected = Vec::new();
        for seed in 0..48 {
            expected.push(complete(&alone, names[seed % 4], seed).await);
        }
        assert_ne!(expected[0], expected[1]);
        let server = server();
        let requests = (0..48).map(|seed| complete(&server, names[seed % 4], seed));
        assert!(join_all(requests).await == expected);
    });
}

#[test]
fn adapters_are_listed_with_their_parent() {
    run(async {
        let server = server();
        let (_, body) = send(&server, "GET", "/v1/models", None).await;
        let body: Value = serde_json::from_str(&body).unwrap();
        let models = body["data"].as_array().unwrap();
        let listed: Vec<_> = models.iter().map(|m| (&m["id"], &m["parent"])).collect();
        let parent = json!("base");
        assert_eq!(*listed[0].0, json!("base"));
        assert!(listed[0].1.is_null());
        let names: Vec<_> = listed[1..].iter().map(|(id, _)| *id).collect();
        assert_eq!(names, ADAPTERS);
        assert!(listed[1..].iter().all(|(_, of)| **of == parent));

        let body = json!({"model": "pirate", "prompt": "x"});
        let (status, body) = post(&server, "/v1/completions", body).await;
        let message = body["error"]["message"].as_str().unwrap();
        assert!(status == 404 && message.contains("support"), "{message}");
        let of_default = json!({"prompt": "x", "max_tokens": 1});
        let (_, body) = post(&server, "/v1/completions", of_default).await;
        assert_eq!(body["model"], "base");
    });
}

#[test]
fn a_request_without_a_model_can_mean_an_adapter() {
    run(async {
        let config = Config {
            default_model: Some("poet".to_string()),
            ..Config::default()
        };
        let server = Server::new(vec![test_model::loaded("base")], config).unwrap();
        server.adapters().replace(adapters(), &[]).unwrap();
        let body = json!({"prompt": "x", "max_tokens": 1});
        let (_, body) = post(&server, "/v1/completions", body).await;
        assert_eq!(body["model"], "poet");
    });
}

#[test]
fn each_adapter_has_its_chat_template() {
    run(async {
        let server = server();
        let mut prompts = Vec::new();
        for model in ["base", "poet"] {
            let messages = json!([{"role": "user", "content": "Hi"}]);
            let body = json!({"model": model, "messages": messages, "max_tokens": 1});
            let (_, body) = post(&server, "/v1/chat/completions", body).await;
            prompts.push(body["usage"]["prompt_tokens"].as_u64().unwrap());
        }
        assert_eq!(prompts, [2, "poet: Hi".len() as u64]);
    });
}

#[test]
fn metrics_count_requests_by_adapter_and_pages_by_engine() {
    run(async {
        let server = server();
        let request = json!({"model": "poet", "prompt": "x", "max_tokens": 5, "ignore_eos": true});
        post(&server, "/v1/completions", request).await;
        let (_, metrics) = send(&server, "GET", "/metrics", None).await;
        for line in [
            "nextword_generated_tokens_total{model=\"poet\"} 5",
            "nextword_generated_tokens_total{model=\"base\"} 0",
            "nextword_slots{model=\"base\"} 64",
            "nextword_first_token_seconds_count{model=\"poet\"} 1",
        ] {
            assert!(metrics.lines().any(|other| other == line), "{line}");
        }
        assert!(!metrics.contains("nextword_slots{model=\"poet\"}"));
    });
}

#[test]
fn the_scale_of_an_adapter_leads_from_the_base_to_the_adapter() {
    run(async {
        let server = server();
        let complete = async |model: &str, scale: Option<f64>| {
            let body = json!({
                "model": model, "prompt": "Once", "seed": 3, "max_tokens": 12, "logprobs": 2,
                "adapter_scale": scale,
            });
            post(&server, "/v1/completions", body).await
        };
        let choices = async |model: &str, scale: Option<f64>| {
            let (_, body) = complete(model, scale).await;
            body["choices"].clone()
        };
        let (base, poet) = (choices("base", None).await, choices("poet", None).await);
        assert_eq!(choices("poet", Some(0.0)).await, base);
        assert_eq!(choices("poet", Some(1.0)).await, poet);
        let half = choices("poet", Some(0.5)).await;
        assert!(half != base && half != poet);
        for (model, scale) in [("base", 1.0), ("poet", 2.1), ("poet", -1.0)] {
            let (status, body) = complete(model, Some(scale)).await;
            assert_eq!(status, 400, "{body}");
            assert_eq!(body["error"]["param"], "adapter_scale");
        }
    });
}

#[test]
fn a_replaced_adapter_serves_new_requests_while_earlier_ones_finish_with_the_old() {
    run(async {
        let server = server();
        let long = |server: &Server| {
            let body = json!({
                "model": "poet", "prompt": "x", "seed": 1, "max_tokens": 4000, "overflow": "slide",
                "ignore_eos": true,
            });
            let server = server.router();
            async move {
                let request = Request::post("/v1/completions").header("host", "localhost");
                let request = request.header("content-type", "application/json");
                let request = request.body(Body::from(body.to_string())).unwrap();
                let response = TowerToHyperService::new(server)
                    .call(request)
                    .await
                    .unwrap();
                let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
                let body: Value = serde_json::from_slice(&body).unwrap();
                body["choices"].clone()
            }
        };
        let base = test_model::loaded("base");
        let new = vec![test_model::adapter("poet", &base, 9)];
        let expected = long(&server).await;
        let poet = server.app.models.find(Some("poet")).unwrap();
        // The engine notices a little later that the first one has ended.
        while poet.metrics().requests.running.get() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let running = tokio::spawn(long(&server));
        while poet.metrics().requests.running.get() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }

        let unchanged = ["tutor".to_string()];
        server.adapters().replace(new, &unchanged).unwrap();
        assert_eq!(server.adapters().names(), ["poet", "tutor"]);
        assert!(poet.metrics().requests.running.get() > 0, "it has ended");
        let after = complete(&server, "poet", 5).await;
        assert_eq!(running.await.unwrap(), expected);
        let metrics = server.app.models.find(Some("poet")).unwrap();
        let generated = metrics.metrics().requests.generated_tokens.get();
        assert!(generated >= 8000, "the count continues: {generated}");

        let fresh = Server::new(vec![base], Config::default()).unwrap();
        let before = complete(&self::server(), "poet", 5).await;
        let new = test_model::adapter("poet", &test_model::loaded("base"), 9);
        fresh.adapters().replace(vec![new], &[]).unwrap();
        assert_eq!(after, complete(&fresh, "poet", 5).await);
        assert_ne!(after, before);
        let gone = json!({"model": "support", "prompt": "x"});
        assert_eq!(post(&server, "/v1/completions", gone).await.0, 404);
    });
}

#[test]
fn adapters_without_a_base_or_a_free_name_are_rejected_and_nothing_is_replaced() {
    let server = server();
    let other = test_model::loaded("other");
    let replace = |adapters| server.adapters().replace(adapters, &[]);
    let unknown = replace(vec![test_model::adapter("new", &other, 1)]);
    assert!(matches!(unknown, Err(ServerError::UnknownBase { .. })));
    let base = test_model::loaded("base");
    for name in ["base", "new"] {
        let adapters = ["new", name].map(|name| test_model::adapter(name, &base, 1));
        let taken = replace(adapters.into());
        assert!(matches!(taken, Err(ServerError::DuplicateName { .. })));
    }
    let unadapted = LoadedAdapter::new(test_model::loaded("new"), "base");
    assert!(matches!(unadapted, Err(ServerError::Model(_))));
    assert_eq!(server.adapters().names(), ADAPTERS);
}
