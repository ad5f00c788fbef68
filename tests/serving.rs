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
    /// Lines of standard error before the server listens.
    startup_log: Vec<String>,
    /// Later lines of standard error.
    pub(crate) log: Lines<BufReader<ChildStderr>>,
}

/// A copy of a run's best model with a chat template and with `fields` set in its model card.
pub(crate) fn chat_model(dir: &TestDir, run: &Path, template: &str, fields: &Value) -> PathBuf {
    let copy = dir.path("chat_model");
    let _ = fs::remove_dir_all(&copy);
    fs::create_dir(&copy).unwrap();
    for file in fs::read_dir(run.join("best")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), copy.join(file.file_name())).unwrap();
    }
    let path = copy.join("card.json");
    let mut card: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    for (key, value) in fields.as_object().unwrap() {
        card[key] = value.clone();
    }
    fs::write(path, card.to_string()).unwrap();
    fs::write(copy.join("chat_template.jinja"), template).unwrap();
    copy
}

impl Server {
    pub(crate) fn start(model: &Path, options: &[&str]) -> Self {
        let mut process = nextword()
            .arg("serve")
            .arg(format!("m={}", model.display()))
            .args(["--port", "0"])
            .args(options)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
        let mut startup_log = Vec::new();
        let address = loop {
            let line = log.next().expect("the server starts").unwrap();
            if let Some((_, address)) = line.split_once("http://") {
                break address.split_whitespace().next().unwrap().to_owned();
            }
            startup_log.push(line);
        };
        Self {
            process,
            address,
            startup_log,
            log,
        }
    }

    /// Sends a raw request and returns status, headers (in lower case) and body.
    pub(crate) fn send(&self, request: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_lowercase(), body.to_owned())
    }

    pub(crate) fn get(&self, path: &str, headers: &str) -> (u16, String, String) {
        self.send(&format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Connection: close\r\n\r\n"
        ))
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> (u16, String, String) {
        let body = body.to_string();
        self.send(&format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        ))
    }
}

#[cfg(unix)]
impl Server {
    /// Asks the server to read its adapters again.
    pub(crate) fn reload(&self) {
        let pid = self.process.id().to_string();
        let status = std::process::Command::new("kill")
            .args(["-HUP", &pid])
            .status();
        assert!(status.unwrap().success());
    }

    /// The next line of standard error that contains `part`.
    pub(crate) fn log_line(&mut self, part: &str) -> String {
        let mut lines = self.log.by_ref().map(Result::unwrap);
        lines.find(|line| line.contains(part)).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The completion of "One day" by `generate`.
fn generated(dir: &TestDir, model: &Path, max_tokens: &str) -> Value {
    let model_arg = model.display().to_string();
    let args = [
        "--seed",
        "4",
        "--temperature",
        "1",
        "--max-tokens",
        max_tokens,
    ];
    json_lines(&dir.run(&[&["generate", &model_arg, "One day", "--json"], &args[..]].concat()))
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
    let response: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (status, &response["choices"][0]["text"]),
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
    let run_arg = run.display().to_string();
    let rejected = dir.run(&["serve", &run_arg, "--host", "0.0.0.0", "--port", "0"]);
    assert_eq!(rejected.status.code(), Some(USAGE));
    assert!(String::from_utf8_lossy(&rejected.stderr).contains("--api-key"));

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
        server.send("GET /v1/models HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
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
        assert!(!body.contains("One day"), "the prompt is not in the page");
    }
    let explain = |extra: &Value| {
        let mut body = json!({"prompt": "One day"});
        for (key, value) in extra.as_object().unwrap() {
            body[key] = value.clone();
        }
        let (status, _, text) = server.post("/explain", &body);
        (status, serde_json::from_str::<Value>(&text).unwrap())
    };
    let (status, report) = explain(&json!({}));
    assert_eq!((status, &report["format"]), (200, &json!("explain/1")));
    let (_, panel) = explain(&json!({"pane": true}));
    assert_eq!(panel["story"], report);
    assert_eq!(panel["weights"], Value::Null, "weights are not sent");
    let id = &report["tokens"][0]["id"];
    assert_eq!(
        panel["vocabulary"][id.as_u64().unwrap() as usize],
        report["tokens"][0]["text"]
    );

    let (_, what_if) =
        explain(&json!({"what_if": [{"change": "head_off", "layer": 0, "head": 1}]}));
    assert_ne!(what_if["before"], what_if["after"]);
    let (_, why) = explain(&json!({"why": "blocks.0.attn.hook_pattern[head=0,query=1,key=0]"}));
    let shape = &report["tensors"]["blocks.0.attn.hook_pattern"]["shape"];
    let index = shape[2].as_u64().unwrap() as usize;
    let shown = &report["tensors"]["blocks.0.attn.hook_pattern"]["data"][index];
    assert!((why["value"].as_f64().unwrap() - shown.as_f64().unwrap()).abs() < 1e-6);
    let (_, layer) = explain(&json!({"layer": 0}));
    let name = "blocks.0.attn.hook_q";
    assert_eq!(layer["tensors"][name], report["tensors"][name]);
    let (_, embedding) = explain(&json!({"embedding": id}));
    let first = embedding["numbers"][0].as_f64().unwrap();
    let shown = report["tensors"]["hook_embed"]["data"][0].as_f64().unwrap();
    assert!((first - shown).abs() < 1e-6);
    let (_, history) = explain(&json!({"learning": true}));
    assert_eq!(
        history["learning"],
        Value::Null,
        "this run has no probe snapshots"
    );

    let long = "One day ".repeat(2000);
    for invalid in [
        json!({"what_if": [{"change": "nothing"}]}),
        json!({"why": "nowhere[0]"}),
        json!({"layer": 99}),
        json!({"embedding": 1_000_000}),
        json!({"max_tokens": 33}),
        json!({"temperature": -1}),
    ] {
        assert_eq!(explain(&invalid).0, 400, "{invalid}");
    }
    // A prompt that exceeds the context is truncated, as in generate.
    assert_eq!(explain(&json!({"prompt": long})).0, 200);
}

#[test]
fn served_completions_use_the_model_card_bos_and_eos() {
    let dir = TestDir::new();
    let run = train_uninterrupted(dir.folder.path(), "flex");
    let plain = Server::start(&run, &[]);
    let (_, _, ids) = plain.post("/tokenize", &json!({"content": "theoa"}));
    let ids: Value = serde_json::from_str(&ids).unwrap();
    let card = json!({"bos_id": ids["tokens"][0], "eos_ids": ids["tokens"]});
    let model = chat_model(
        &dir,
        &run,
        "{{ bos_token }}{{ messages[0].content }}",
        &card,
    );

    let expected = generated(&dir, &model, "60");
    assert_eq!(expected["prompt_tokens"], 8);
    assert!(expected["tokens"].as_u64().unwrap() < 60, "{expected}");

    let server = Server::start(&model, &[]);
    let mut body = json!({"prompt": "One day", "seed": 4, "max_tokens": 60, "overflow": "slide"});
    let (_, _, text) = server.post("/v1/completions", &body);
    let served: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(served["choices"][0]["text"], expected["text"], "{text}");
    assert_eq!(served["choices"][0]["finish_reason"], "stop");
    assert_eq!(served["usage"]["prompt_tokens"], 8);

    body.as_object_mut().unwrap().remove("prompt");
    body["messages"] = json!([{"role": "user", "content": "One day"}]);
    let (_, _, text) = server.post("/v1/chat/completions", &body);
    let chat: Value = serde_json::from_str(&text).unwrap();
    let content = &chat["choices"][0]["message"]["content"];
    assert_eq!(content, &expected["text"], "{text}");
    assert_eq!(
        chat["usage"]["prompt_tokens"], 8,
        "the BOS token is not added twice"
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
        let model = chat_model(&dir, &run, &template, &json!({}));
        let server = Server::start(&model, &[]);
        let (status, _, text) = server.post("/v1/chat/completions", &chat);
        assert_eq!(status, if works { 200 } else { 400 }, "{text}");
        let warned = server
            .startup_log
            .iter()
            .any(|line| line.starts_with("warning: "));
        assert_eq!(warned, !works, "{:?}", server.startup_log);
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
    let response: Value = serde_json::from_str(&text).unwrap();
    let (text, logprobs) = (
        &response["choices"][0]["text"],
        &response["choices"][0]["logprobs"],
    );
    let text = text.as_str().unwrap();
    assert!(text.starts_with(&prompt[prompt.len() - 15..]), "{text}");
    let tokens = logprobs["tokens"].as_array().unwrap();
    let offsets = logprobs["text_offset"].as_array().unwrap();
    assert_eq!(tokens.len(), 18);
    for (token, offset) in tokens.iter().zip(offsets) {
        let start = offset.as_u64().unwrap() as usize;
        assert!(
            text[start..].starts_with(token.as_str().unwrap()),
            "{response}"
        );
    }
    let run_arg = run.display().to_string();
    let args = [
        "generate",
        &run_arg,
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
