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
    let (status, head, page) = server.get("/explain?prompt=One%20day&max_tokens=2", "");
    assert_eq!(status, 200, "{page}");
    assert!(
        head.contains("content-security-policy: default-src 'none'; script-src 'unsafe-inline'")
    );
    assert!(page.contains("One day") && page.contains("<script"));
    let (status, _, story) = server.post("/explain", &json!({"prompt": "One day"}));
    assert_eq!(status, 200, "{story}");
    let story: Value = serde_json::from_str(&story).unwrap();
    assert_eq!(story["format"], "explain/1");
    let edits = json!([{"change": "head_off", "layer": 0, "head": 1}]);
    let (status, _, what_if) =
        server.post("/explain", &json!({"prompt": "One day", "what_if": edits}));
    assert_eq!(status, 200, "{what_if}");
    let what_if: Value = serde_json::from_str(&what_if).unwrap();
    assert_ne!(what_if["before"], what_if["after"]);
    for wrong in [
        json!({"what_if": [{"change": "nothing"}]}),
        json!({"why": "nowhere[0]"}),
    ] {
        assert_eq!(server.post("/explain", &wrong).0, 400, "{wrong}");
    }
}
