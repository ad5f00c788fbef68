//! Fields of requests that change a completion are obeyed, or rejected by name.

use serde_json::{Value, json};

use crate::resume::train_uninterrupted;
use crate::serving::{Server, chat_model};
use crate::test_dir::{TestDir, json_lines};

/// Shows every field that a request can set. The model's context has 16 tokens, so all names are short.
const TEMPLATE: &str = "{{ x }}{% if tools %}{{ tools[0].n }}{% endif %}{% for d in documents or [] %}{{ d.t }}{% endfor %}\
    {% for m in messages %}{{ m.role[0] }}{{ m.content }}{{ m.name }}{{ m.tool_call_id }}{% for c in m.tool_calls %}\
    {{ c.id }}{% endfor %}{{ m.reasoning_content }}{% endfor %}{% if add_generation_prompt %}e{% endif %}";

/// A server with a character model whose template is `template`, and whose card has `fields`.
fn serve(dir: &TestDir, template: &str, fields: &Value) -> Server {
    let run = train_uninterrupted(dir.folder.path(), "flex");
    Server::start(&chat_model(dir, &run, template, fields), &[])
}

fn post(server: &Server, path: &str, body: &Value) -> (u16, Value) {
    let (status, _, text) = server.post(path, body);
    (status, serde_json::from_str(&text).unwrap())
}

/// `base` with the fields of `more`.
fn with(base: &Value, more: &Value) -> Value {
    let mut body = base.clone();
    let fields = body.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    body
}

/// Fields of other servers that would change the answer.
const FOREIGN: [&str; 24] = [
    "grammar",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "guided_decoding_backend",
    "structured_outputs",
    "json_schema",
    "use_beam_search",
    "length_penalty",
    "mirostat",
    "typical_p",
    "repeat_penalty",
    "n_predict",
    "skip_special_tokens",
    "bad_words",
    "allowed_token_ids",
    "prompt_logprobs",
    "truncate_prompt_tokens",
    "reasoning_effort",
    "chat_template",
    "verbosity",
    "xtc_probability",
    "nonsense",
];

#[test]
fn unknown_request_fields_are_rejected_by_name() {
    let dir = TestDir::new();
    let server = serve(&dir, TEMPLATE, &json!({}));
    let completion = json!({"prompt": "One", "max_tokens": 1});
    let chat = json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 1});
    for (path, base) in [
        ("/v1/completions", &completion),
        ("/v1/chat/completions", &chat),
    ] {
        for field in FOREIGN {
            let (status, error) = post(&server, path, &with(base, &json!({ field: "x" })));
            assert_eq!(status, 400, "{path} {field}: {error}");
            assert_eq!(error["error"]["param"], field);
            assert!(
                error["error"]["message"].as_str().unwrap().contains(field),
                "{error}"
            );
        }
        for (field, nearest) in [
            ("temprature", "temperature"),
            ("stop_token_id", "stop_token_ids"),
            ("min_token", "min_tokens"),
            ("top_K", "top_k"),
            ("ignore_EOS", "ignore_eos"),
        ] {
            let (status, error) = post(&server, path, &with(base, &json!({ field: 1 })));
            let message = error["error"]["message"].as_str().unwrap();
            let expected = format!("did you mean `{nearest}`?");
            assert!(status == 400 && message.contains(&expected), "{message}");
        }
        for harmless in [
            json!({"user": "me"}),
            json!({"metadata": {"a": "b"}}),
            json!({"store": false, "service_tier": "auto", "safety_identifier": "s"}),
            json!({"prompt_cache_key": "k", "prompt_cache_retention": "24h", "cache_prompt": true}),
            json!({"grammar": null, "nonsense": null}),
            json!({"top_k": -1}),
        ] {
            let (status, error) = post(&server, path, &with(base, &harmless));
            assert_eq!(status, 200, "{path} {harmless}: {error}");
        }
    }
    for (path, body, field) in [
        (
            "/tokenize",
            json!({"content": "One", "nonsense": 1}),
            "nonsense",
        ),
        (
            "/detokenize",
            json!({"tokens": [1], "nonsense": 1}),
            "nonsense",
        ),
        (
            "/explain",
            json!({"prompt": "One", "nonsense": 1}),
            "nonsense",
        ),
        (
            "/v1/chat/completions",
            with(&chat, &json!({"response_format": {"type": "json_object"}})),
            "response_format",
        ),
        (
            "/v1/chat/completions",
            with(&chat, &json!({"tools": [{"n": "d"}]})),
            "tools",
        ),
        (
            "/v1/chat/completions",
            with(&chat, &json!({"tool_choice": "required"})),
            "tool_choice",
        ),
        (
            "/v1/chat/completions",
            with(&chat, &json!({"chat_template_kwargs": {"y": 1}})),
            "chat_template_kwargs",
        ),
        // The field at fault, not the first one.
        (
            "/v1/chat/completions",
            with(
                &chat,
                &json!({"tools": [{"n": "d"}], "tool_choice": "none", "documents": [{"t": "d"}],
                        "chat_template_kwargs": {"tools": 1}}),
            ),
            "chat_template_kwargs",
        ),
    ] {
        let (status, error) = post(&server, path, &body);
        assert_eq!(
            (status, &error["error"]["param"]),
            (400, &json!(field)),
            "{error}"
        );
    }
}

#[test]
fn every_field_of_a_conversation_reaches_the_template() {
    let dir = TestDir::new();
    let server = serve(&dir, TEMPLATE, &json!({}));
    let user = json!({"role": "user", "content": "a"});
    for (messages, fields, prompt) in [
        (json!([user]), json!({}), "uae"),
        (
            json!([{"role": "user", "name": "n", "content": "a"}]),
            json!({}),
            "uane",
        ),
        (
            json!([user, {"role": "assistant", "content": null, "tool_calls": [{"id": "c"}]},
                   {"role": "tool", "tool_call_id": "c", "content": "d"}]),
            json!({}),
            "uaactdce",
        ),
        (
            json!([user, {"role": "assistant", "tool_calls": [{"id": "c"}]}]),
            json!({}),
            "uaace",
        ),
        (
            json!([user, {"role": "assistant", "content": "a", "reasoning_content": "r"}, user]),
            json!({}),
            "uaaaruae",
        ),
        (
            json!([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "d"}]}]),
            json!({}),
            "uade",
        ),
        (
            json!([user]),
            json!({"chat_template_kwargs": {"x": "t"}}),
            "tuae",
        ),
        (
            json!([user]),
            json!({"documents": [{"t": "d"}, {"t": "t"}]}),
            "dtuae",
        ),
        (
            json!([user]),
            json!({"tools": [{"n": "d"}], "tool_choice": "none"}),
            "duae",
        ),
        (json!([user]), json!({"tool_choice": "none"}), "uae"),
        (
            json!([user]),
            json!({"tool_choice": "auto", "tools": []}),
            "uae",
        ),
        (json!([user]), json!({"add_generation_prompt": false}), "ua"),
        (
            json!([user, {"role": "assistant", "content": "One d"}]),
            json!({"continue_final_message": true}),
            "uaaOne d",
        ),
    ] {
        let settings = json!({"max_tokens": 4, "temperature": 0, "ignore_eos": true});
        let body = with(&with(&settings, &fields), &json!({ "messages": messages }));
        let (status, chat) = post(&server, "/v1/chat/completions", &body);
        assert_eq!(status, 200, "{body}: {chat}");
        let body = with(&settings, &json!({ "prompt": prompt }));
        let (_, expected) = post(&server, "/v1/completions", &body);
        assert_eq!(chat["usage"], expected["usage"], "{prompt}");
        let content = &chat["choices"][0]["message"]["content"];
        assert_eq!(content, &expected["choices"][0]["text"], "{prompt}");
    }
}

#[test]
fn a_template_writes_its_own_first_token() {
    let dir = TestDir::new();
    let server = serve(&dir, "{{ messages[0].content }}", &json!({"bos_id": 3}));
    let body = json!({"messages": [{"role": "user", "content": "One"}], "max_tokens": 1});
    let (_, chat) = post(&server, "/v1/chat/completions", &body);
    assert_eq!(chat["usage"]["prompt_tokens"], 3, "{chat}");
    let (_, completion) = post(
        &server,
        "/v1/completions",
        &json!({"prompt": "One", "max_tokens": 1}),
    );
    assert_eq!(completion["usage"]["prompt_tokens"], 4, "{completion}");
}

#[test]
fn completions_end_where_requests_say() {
    let dir = TestDir::new();
    let server = serve(&dir, TEMPLATE, &json!({}));
    let base = json!({"prompt": "One", "max_tokens": 8, "temperature": 0, "ignore_eos": true});
    let complete = |fields: Value| {
        let (status, response) = post(&server, "/v1/completions", &with(&base, &fields));
        assert_eq!(status, 200, "{response}");
        let choice = &response["choices"][0];
        let tokens = response["usage"]["completion_tokens"].as_u64().unwrap();
        let text = choice["text"].as_str().unwrap().to_owned();
        (
            text,
            choice["finish_reason"].as_str().unwrap().to_owned(),
            tokens,
        )
    };
    let ids =
        |text: &str| post(&server, "/tokenize", &json!({ "content": text })).1["tokens"].clone();
    let (text, finish, _) = complete(json!({}));
    assert_eq!(
        (text.chars().count(), finish.as_str()),
        (8, "length"),
        "{text:?}"
    );

    let third = text.chars().nth(2).unwrap();
    let (before, _) = text.split_once(third).unwrap();
    let stopped = complete(json!({"stop_token_ids": ids(&third.to_string())}));
    let count = before.chars().count() as u64 + 1;
    assert_eq!(stopped, (before.to_owned(), "stop".to_owned(), count));

    // The text of a special token is a stop string although it is not part of any text.
    let eos = ids("<EOS>");
    assert_eq!(eos.as_array().unwrap().len(), 1);
    let bias = json!({ eos[0].to_string(): 100 });
    let forced = complete(json!({ "logit_bias": bias }));
    assert_eq!(forced, (String::new(), "length".to_owned(), 8));
    let stopped = complete(json!({"logit_bias": bias, "stop": ["<EOS>"]}));
    assert_eq!(stopped, (String::new(), "stop".to_owned(), 1));

    let first = text.chars().next().unwrap().to_string();
    let (kept, _, _) = complete(json!({"stop": first, "min_tokens": 5}));
    assert!(
        kept.starts_with(&text[..5]),
        "{kept:?} does not begin with five tokens of {text:?}"
    );
    for fields in [
        json!({"stop_token_ids": ids(&text), "min_tokens": 5}),
        json!({"logit_bias": bias, "ignore_eos": false, "min_tokens": 5}),
    ] {
        let (_, _, tokens) = complete(fields.clone());
        assert!(tokens >= 5, "{fields}: {tokens}");
    }
    let (status, error) = post(
        &server,
        "/v1/completions",
        &with(&base, &json!({"min_tokens": 9})),
    );
    assert_eq!(
        (status, &error["error"]["param"]),
        (400, &json!("min_tokens"))
    );
}

#[test]
fn paths_may_end_in_a_slash_and_unknown_ones_list_the_others() {
    let dir = TestDir::new();
    let server = serve(&dir, TEMPLATE, &json!({}));
    for path in [
        "/health",
        "/ready",
        "/metrics",
        "/openapi.json",
        "/v1/models",
        "/v1/models/m",
        "/explain",
        "/app.js",
    ] {
        assert_eq!(server.get(&format!("{path}/"), "").0, 200, "{path}/");
    }
    let body = json!({"prompt": "One", "max_tokens": 1});
    assert_eq!(server.post("/v1/completions/", &body).0, 200);
    assert_eq!(server.post("/tokenize/", &json!({"content": "One"})).0, 200);
    assert_eq!(server.get("/v1/completions/", "").0, 405);
    for path in ["/completion", "/v1/rerank", "/v1//models", "/props"] {
        let (status, _, text) = server.get(path, "");
        let is_named = [path, "/v1/chat/completions", "/tokenize"]
            .iter()
            .all(|path| text.contains(path));
        assert!(status == 404 && is_named, "{text}");
    }
}

#[test]
fn negative_seeds_are_the_same_in_program_and_server() {
    let dir = TestDir::new();
    let run = train_uninterrupted(dir.folder.path(), "flex");
    let model = run.display().to_string();
    let generate = |seed: &str| {
        let args = [
            "generate",
            &model,
            "One",
            "--json",
            "--temperature",
            "1",
            "--max-tokens",
            "8",
            "--seed",
            seed,
        ];
        json_lines(&dir.run(&args)).remove(0)
    };
    let negative = generate("-1");
    assert_eq!(negative["text"], generate("18446744073709551615")["text"]);
    assert_ne!(negative["text"], generate("1")["text"]);
    let server = Server::start(&run, &[]);
    let body = json!({"prompt": "One", "seed": -1, "max_tokens": 8});
    let (_, response) = post(&server, "/v1/completions", &body);
    assert_eq!(response["choices"][0]["text"], negative["text"]);
    dir.rejects(&["generate", &model, "--seed", "x"], 2, &["64-bit integer"]);
}
