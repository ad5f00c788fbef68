//! A record behind HTTP. What OpenAI's own client sees is in `openai_client.py`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use crate::place::{Place, USAGE, json_lines};
use crate::resume::straight;
use crate::util::nextword;

struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn start(record: &Path, more: &[&str]) -> Self {
        let mut process = nextword()
            .arg("serve")
            .arg(format!("m={}", record.display()))
            .args(["--port", "0"])
            .args(more)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let line = lines
            .map_while(Result::ok)
            .find(|line| line.contains("http://"));
        let line = line.expect("the server starts");
        let address = line.split("http://").nth(1).unwrap();
        let address = address.split_whitespace().next().unwrap().to_owned();
        Self { process, address }
    }

    /// Status, head and body.
    fn ask(&self, request: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_lowercase(), body.to_owned())
    }

    fn get(&self, path: &str, headers: &str) -> (u16, String, String) {
        self.ask(&format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Connection: close\r\n\r\n"
        ))
    }

    fn post(&self, path: &str, body: &Value) -> (u16, String, String) {
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

#[test]
fn a_served_record_answers_as_generate_does() {
    let place = Place::new();
    let run = straight(place.folder.path(), "flex");
    let shown = run.display().to_string();
    let args = [
        "generate",
        &shown,
        "One day",
        "--json",
        "--seed",
        "4",
        "--temperature",
        "1",
        "--max-tokens",
        "12",
    ];
    let expected = json_lines(&place.run(&args)).remove(0);
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
fn a_server_lets_in_whom_it_should() {
    let place = Place::new();
    let run = straight(place.folder.path(), "flex");
    let shown = run.display().to_string();
    let refused = place.run(&["serve", &shown, "--host", "0.0.0.0", "--port", "0"]);
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
fn a_served_model_is_explained_as_a_page_and_as_json() {
    let place = Place::new();
    let run = straight(place.folder.path(), "flex");
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
    // What does not fit the context is cut off, as in generate.
    assert_eq!(ask(&json!({"prompt": long})).0, 200);
}
