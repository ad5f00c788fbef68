//! A model behind HTTP. `openai_client.py` tests with OpenAI's client.

use std::fs;
use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Stdio};

use serde_json::{Value, json};

use crate::resume::train_uninterrupted;
use crate::test_dir::{TestDir, USAGE, json_lines};
use crate::util::nextword;

pub(crate) struct Server {
    process: Child,
    pub(crate) address: String,
    /// Its standard error before it listened.
    said: Vec<String>,
    pub(crate) says: Lines<BufReader<ChildStderr>>,
}

/// A copy of a run's best model with a chat template and other fields in its card.
pub(crate) fn chat_model(dir: &TestDir, run: &Path, template: &str, card: &Value) -> PathBuf {
    let copy = dir.path("chat_model");
    let _ = fs::remove_dir_all(&copy);
    fs::create_dir(&copy).unwrap();
    for file in fs::read_dir(run.join("best")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), copy.join(file.file_name())).unwrap();
    }
    let path = copy.join("card.json");
    let mut whole: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    for (key, value) in card.as_object().unwrap() {
        whole[key] = value.clone();
    }
    fs::write(path, whole.to_string()).unwrap();
    fs::write(copy.join("chat_template.jinja"), template).unwrap();
    copy
}

impl Server {
    pub(crate) fn start(record: &Path, more: &[&str]) -> Self {
        let mut process = nextword()
            .arg("serve")
            .arg(format!("m={}", record.display()))
            .args(["--port", "0"])
            .args(more)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut says = BufReader::new(process.stderr.take().unwrap()).lines();
        let mut said = Vec::new();
        let address = loop {
            let line = says.next().expect("the server starts").unwrap();
            if let Some((_, address)) = line.split_once("http://") {
                break address.split_whitespace().next().unwrap().to_owned();
            }
            said.push(line);
        };
        Self {
            process,
            address,
            said,
            says,
        }
    }

    /// Status, headers and body.
    pub(crate) fn ask(&self, request: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_lowercase(), body.to_owned())
    }

    pub(crate) fn get(&self, path: &str, headers: &str) -> (u16, String, String) {
        self.ask(&format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Connection: close\r\n\r\n"
        ))
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> (u16, String, String) {
        let body = body.to_string();
        self.ask(&format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        ))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The completion of "One day" by `generate`.
fn generated(dir: &TestDir, record: &Path, max_tokens: &str) -> Value {
    let shown = record.display().to_string();
    let args = [
        "--seed",
        "4",
        "--temperature",
        "1",
        "--max-tokens",
        max_tokens,
    ];
    json_lines(&dir.run(&[&["generate", &shown, "One day", "--json"], &args[..]].concat()))
        .remove(0)
}

#[test]
fn serve_returns_the_text_of_generate() {
    let dir = TestDir::new();
    let run = train_uninterrupted(dir.folder.path(), "flex");
    let expected = generated(&dir, &run, "12");
    let server = Server::start(&run, &[]);
    let mut body = json!({"prompt": "One day", "seed": 4, "max_tokens": 12, "overflow": "slide"});
    let (status, _, text) = server.post("/v1/completions", &body);
    let whole: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (status, &whole["choices"][0]["text"]),
        (200, &expected["text"]),
        "{text}"
    );

    body["stream"] = json!(true);
    let (status, head, events) = server.post("/v1/completions", &body);
    assert!(
        status == 200 && head.contains("text/event-stream"),
        "{head}"
    );
    let events: Vec<&str> = events
        .lines()
        .filter_map(|line| line.split_once("data: "))
        .map(|e| e.1)
        .collect();
    assert_eq!(events.last(), Some(&"[DONE]"));
    let streamed: String = events[..events.len() - 1]
        .iter()
        .map(|event| serde_json::from_str::<Value>(event).unwrap())
        .map(|event| event["choices"][0]["text"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(json!(streamed), expected["text"]);

    let (status, _, error) =
        server.post("/v1/completions", &json!({"prompt": "x", "temperature": 9}));
    let error: Value = serde_json::from_str(&error).unwrap();
    assert_eq!(
        (status, &error["error"]["param"]),
        (400, &json!("temperature"))
    );
}

#[test]
fn the_server_enforces_access_rules() {
    let dir = TestDir::new();
    let run = train_uninterrupted(dir.folder.path(), "flex");
    let shown = run.display().to_string();
    let refused = dir.run(&["serve", &shown, "--host", "0.0.0.0", "--port", "0"]);
    assert_eq!(refused.status.code(), Some(USAGE));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--api-key"));

    let server = Server::start(&run, &["--api-key", "sesame"]);
    assert_eq!(server.get("/health", "").0, 200);
    assert_eq!(server.get("/v1/models", "").0, 401);
    assert_eq!(
        server
            .get("/v1/models", "Authorization: Bearer sesam\r\n")
            .0,
        401
    );
    let key = "Authorization: Bearer sesame\r\n";
    let (status, head, _) = server.get("/", key);
    assert!(
        status == 200 && head.contains("content-security-policy: default-src 'none'"),
        "{head}"
    );
    // printf ':sesame' | base64
    assert_eq!(
        server.get("/", "Authorization: Basic OnNlc2FtZQ==\r\n").0,
        200
    );
    assert_eq!(
        server
            .get(
                "/v1/models",
                &format!("{key}Origin: http://evil.example\r\n")
            )
            .0,
        403
    );
    let rebound =
        server.ask("GET /v1/models HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
    assert_eq!(rebound.0, 403);
}

#[test]
fn explain_is_served_as_page_and_json() {
    let dir = TestDir::new();
    let run = train_uninterrupted(dir.folder.path(), "flex");
    let server = Server::start(&run, &[]);
    for (path, kind) in [
        ("/explain?prompt=One%20day", "text/html"),
        ("/explain.js", "text/javascript"),
        ("/explain.css", "text/css"),
    ] {
        let (status, head, body) = server.get(path, "");
        assert!(status == 200 && head.contains(kind), "{path}: {head}");
        assert!(
            head.contains("script-src 'self'") && !head.contains("unsafe-inline"),
            "{head}"
        );
        assert!(!body.contains("One day"), "no script needs what was asked");
    }
    let ask = |more: &Value| {
        let mut body = json!({"prompt": "One day"});
        for (key, value) in more.as_object().unwrap() {
            body[key] = value.clone();
        }
        let (status, _, text) = server.post("/explain", &body);
        (status, serde_json::from_str::<Value>(&text).unwrap())
    };
    let (status, story) = ask(&json!({}));
    assert_eq!((status, &story["format"]), (200, &json!("explain/1")));
    let (_, pane) = ask(&json!({"pane": true}));
    assert_eq!(pane["story"], story);
    assert_eq!(pane["weights"], Value::Null, "the model stays here");
    let id = &story["tokens"][0]["id"];
    assert_eq!(
        pane["vocabulary"][id.as_u64().unwrap() as usize],
        story["tokens"][0]["text"]
    );

    let (_, what_if) = ask(&json!({"what_if": [{"change": "head_off", "layer": 0, "head": 1}]}));
    assert_ne!(what_if["before"], what_if["after"]);
    let (_, why) = ask(&json!({"why": "blocks.0.attn.hook_pattern[head=0,query=1,key=0]"}));
    let shape = &story["tensors"]["blocks.0.attn.hook_pattern"]["shape"];
    let at = shape[2].as_u64().unwrap() as usize;
    let shown = &story["tensors"]["blocks.0.attn.hook_pattern"]["data"][at];
    assert!((why["value"].as_f64().unwrap() - shown.as_f64().unwrap()).abs() < 1e-6);
    let (_, layer) = ask(&json!({"layer": 0}));
    let name = "blocks.0.attn.hook_q";
    assert_eq!(layer["tensors"][name], story["tensors"][name]);
    let (_, embedding) = ask(&json!({"embedding": id}));
    let first = embedding["numbers"][0].as_f64().unwrap();
    let shown = story["tensors"]["hook_embed"]["data"][0].as_f64().unwrap();
    assert!((first - shown).abs() < 1e-6);
    let (_, kept) = ask(&json!({"learning": true}));
    assert_eq!(kept["learning"], Value::Null, "this run kept no looks");

    let long = "One day ".repeat(2000);
    for wrong in [
        json!({"what_if": [{"change": "nothing"}]}),
        json!({"why": "nowhere[0]"}),
        json!({"layer": 99}),
        json!({"embedding": 1_000_000}),
        json!({"max_tokens": 33}),
        json!({"temperature": -1}),
    ] {
        assert_eq!(ask(&wrong).0, 400, "{wrong}");
    }
    // A prompt that exceeds the context is truncated, as in generate.
    assert_eq!(ask(&json!({"prompt": long})).0, 200);
}

#[test]
fn served_completions_use_the_model_card_bos_and_eos() {
    let dir = TestDir::new();
    let run = train_uninterrupted(dir.folder.path(), "flex");
    let plain = Server::start(&run, &[]);
    let (_, _, ids) = plain.post("/tokenize", &json!({"content": "theoa"}));
    let ids: Value = serde_json::from_str(&ids).unwrap();
    let card = json!({"bos_id": ids["tokens"][0], "eos_ids": ids["tokens"]});
    let record = chat_model(
        &dir,
        &run,
        "{{ bos_token }}{{ messages[0].content }}",
        &card,
    );

    let expected = generated(&dir, &record, "60");
    assert_eq!(expected["prompt_tokens"], 8);
    assert!(expected["tokens"].as_u64().unwrap() < 60, "{expected}");

    let server = Server::start(&record, &[]);
    let mut body = json!({"prompt": "One day", "seed": 4, "max_tokens": 60, "overflow": "slide"});
    let (_, _, text) = server.post("/v1/completions", &body);
    let served: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(served["choices"][0]["text"], expected["text"], "{text}");
    assert_eq!(served["choices"][0]["finish_reason"], "stop");
    assert_eq!(served["usage"]["prompt_tokens"], 8);

    body["messages"] = json!([{"role": "user", "content": "One day"}]);
    let (_, _, text) = server.post("/v1/chat/completions", &body);
    let chat: Value = serde_json::from_str(&text).unwrap();
    let content = &chat["choices"][0]["message"]["content"];
    assert_eq!(content, &expected["text"], "{text}");
    assert_eq!(
        chat["usage"]["prompt_tokens"], 8,
        "the template's own is enough"
    );
}

#[test]
fn an_invalid_chat_template_disables_only_chats() {
    let dir = TestDir::new();
    let run = train_uninterrupted(dir.folder.path(), "flex");
    let chat = json!({"messages": [{"role": "user", "content": "One day"}], "max_tokens": 2});
    for (template, works) in [
        (format!("{{# {} #}}One day", "x".repeat(300_000)), true),
        ("{% generation %}One day{% endgeneration %}".into(), true),
        ("One day {% frobnicate %}".into(), false),
        ("x".repeat((1 << 20) + 1), false),
    ] {
        let record = chat_model(&dir, &run, &template, &json!({}));
        let server = Server::start(&record, &[]);
        let (status, _, text) = server.post("/v1/chat/completions", &chat);
        assert_eq!(status, if works { 200 } else { 400 }, "{text}");
        let warned = server.said.iter().any(|line| line.starts_with("warning: "));
        assert_eq!(warned, !works, "{:?}", server.said);
        if !works {
            assert!(
                text.contains("template") && !text.contains("chat_model/"),
                "{text}"
            );
        }
        let (status, _, _) = server.post("/v1/completions", &json!({"prompt": "One"}));
        assert_eq!(status, 200);
    }
}

#[test]
fn echo_shows_the_truncated_prompt() {
    let dir = TestDir::new();
    let run = train_uninterrupted(dir.folder.path(), "flex");
    let server = Server::start(&run, &[]);
    let prompt = "One day a small fox went out to see";
    let body = json!({
        "prompt": prompt, "echo": true, "logprobs": 0, "max_tokens": 3, "overflow": "slide", "temperature": 0,
        "ignore_eos": true,
    });
    let (_, _, text) = server.post("/v1/completions", &body);
    let whole: Value = serde_json::from_str(&text).unwrap();
    let (text, logprobs) = (
        &whole["choices"][0]["text"],
        &whole["choices"][0]["logprobs"],
    );
    let text = text.as_str().unwrap();
    assert!(text.starts_with(&prompt[prompt.len() - 15..]), "{text}");
    let tokens = logprobs["tokens"].as_array().unwrap();
    let offsets = logprobs["text_offset"].as_array().unwrap();
    assert_eq!(tokens.len(), 18);
    for (token, offset) in tokens.iter().zip(offsets) {
        let at = offset.as_u64().unwrap() as usize;
        assert!(text[at..].starts_with(token.as_str().unwrap()), "{whole}");
    }
    let shown = run.display().to_string();
    let args = [
        "generate",
        &shown,
        prompt,
        "--json",
        "--temperature",
        "0",
        "--max-tokens",
        "3",
    ];
    let expected = json_lines(&dir.run(&args)).remove(0);
    assert_eq!(json!(text[15..]), expected["text"]);
}
