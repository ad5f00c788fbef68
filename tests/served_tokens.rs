//! Names of served models, and the number of tokens of their prompts.

use serde_json::{Value, json};

use crate::resume::train_uninterrupted;
use crate::serving::{Server, chat_model};
use crate::test_dir::TestDir;

fn post(server: &Server, path: &str, body: &Value) -> Value {
    let (status, _, text) = server.post(path, body);
    assert_eq!(status, 200, "{path} {body}: {text}");
    serde_json::from_str(&text).unwrap()
}

#[test]
fn tokenize_counts_the_prompt_tokens_of_completions_and_chats() {
    let dir = TestDir::new();
    let run = train_uninterrupted(dir.folder.path(), "flex");
    let plain = Server::start(&run, &[]);
    let bos = &post(&plain, "/tokenize", &json!({"content": "t"}))["tokens"][0];
    let model = chat_model(
        &dir,
        &run,
        "{{ bos_token }}{% for message in messages %}{{ message.content }} {% endfor %}",
        &json!({"bos_id": bos}),
    );
    let server = Server::start(&model, &[]);
    for text in ["One day", "a", "", "One day a fox met a crow."] {
        let body = json!({"prompt": text, "max_tokens": 1, "overflow": "slide"});
        let used = post(&server, "/v1/completions", &body);
        let used = &used["usage"]["prompt_tokens"];
        if text.len() < 16 {
            let body = json!({"content": text, "add_special_tokens": true});
            assert_eq!(
                &post(&server, "/tokenize", &body)["count"],
                used,
                "{text:?}"
            );
        }
        let own = post(&server, "/tokenize", &json!({"content": text}));
        assert_eq!(own["count"], text.len(), "{text:?}");
    }
    let pieces = json!({"content": "One", "add_special_tokens": true, "with_pieces": true});
    let pieces = post(&server, "/tokenize", &pieces);
    assert_eq!(&pieces["tokens"][0]["id"], bos);
    assert_eq!(pieces["tokens"][0]["start"], Value::Null);
    assert_eq!(pieces["tokens"][1]["start"], 0);
    assert_eq!(pieces["tokens"][3]["end"], 3);

    let user = |content: &str| json!({"role": "user", "content": content});
    for messages in [
        json!([user("One")]),
        json!([user("One"), {"role": "assistant", "content": "day"}, user("a")]),
    ] {
        let chat = json!({"messages": messages, "max_tokens": 1});
        let used = post(&server, "/v1/chat/completions", &chat);
        let counted = post(&server, "/tokenize", &json!({"messages": messages}));
        assert_eq!(
            counted["count"], used["usage"]["prompt_tokens"],
            "{messages}"
        );
    }
    // A model without a chat template.
    let body = json!({"messages": [user("One")]});
    assert_eq!(plain.post("/tokenize", &body).0, 400);
    assert_eq!(server.post("/tokenize", &json!({})).0, 400);
    assert_eq!(server.post("/tokenize", &json!({"messages": []})).0, 400);
}

#[test]
fn the_name_in_the_card_is_accepted_too() {
    let dir = TestDir::new();
    let run = train_uninterrupted(dir.folder.path(), "flex");
    let model = chat_model(&dir, &run, "x", &json!({"name": "hf-llama"}));
    let server = Server::start(&model, &[]); // as `m`
    let (status, _, text) = server.get("/v1/models", "");
    let listed: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &listed["data"][0]["id"]), (200, &json!("m")));
    assert_eq!(listed["data"].as_array().unwrap().len(), 1);
    for (name, expected) in [("m", 200), ("hf-llama", 200), ("llama", 404)] {
        let body = json!({"model": name, "prompt": "One", "max_tokens": 1});
        assert_eq!(
            server.post("/v1/completions", &body).0,
            expected,
            "{name:?}"
        );
    }
}
