//! Limits and access rules of the server: sizes, concurrency, timeouts, origins.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::resume::train_uninterrupted;
use crate::serving::Server;
use crate::test_dir::{TestDir, USAGE};

#[test]
fn oversized_responses_are_rejected() {
    let dir = TestDir::new();
    let run = train_uninterrupted(dir.folder.path(), "flex");
    let server = Server::start(&run, &[]);
    let body = json!({
        "prompt": "One", "n": 16, "max_tokens": 65_536, "overflow": "slide", "ignore_eos": true, "logprobs": 5,
    });
    let (status, _, text) = server.post("/v1/completions", &body);
    assert_eq!(status, 400, "{text}");
    assert!(
        text.contains("262144") && text.contains("\"max_tokens\""),
        "{text}"
    );
    // This response has the maximum size.
    let body = json!({"prompt": ["One", "Two"], "max_tokens": 65_536 / 8, "overflow": "slide",
        "ignore_eos": true, "logprobs": 5});
    let (status, _, text) = server.post("/v1/completions", &body);
    assert_eq!(status, 200, "{text}");
    let response: Value = serde_json::from_str(&text).unwrap();
    let logprobs = &response["choices"][1]["logprobs"];
    for column in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(logprobs[column].as_array().unwrap().len(), 8192, "{column}");
    }
}

#[test]
fn explanations_queue_without_blocking_others() {
    let dir = TestDir::new();
    let run = train_uninterrupted(dir.folder.path(), "flex");
    let server = Server::start(&run, &[]);
    let explain = json!({"prompt": "One day", "max_tokens": 8});
    let (idle, loaded, codes) = std::thread::scope(|scope| {
        let tokenize = || {
            let start = Instant::now();
            let (status, _, _) = server.post("/tokenize", &json!({"content": "One"}));
            assert_eq!(status, 200);
            start.elapsed()
        };
        let idle = tokenize();
        let requests: Vec<_> = (0..24)
            .map(|_| scope.spawn(|| (server.post("/explain", &explain).0, Instant::now())))
            .collect();
        std::thread::sleep(Duration::from_millis(20));
        let loaded = (0..5).map(|_| tokenize()).max();
        let done = Instant::now();
        let codes: Vec<(u16, bool)> = requests
            .into_iter()
            .map(|request| request.join().unwrap())
            .map(|(code, end)| (code, end > done))
            .collect();
        (idle, loaded.unwrap(), codes)
    });
    assert!(
        codes.iter().any(|(_, later)| *later),
        "{codes:?}: all explanations ended too early"
    );
    let count = |wanted| codes.iter().filter(|(code, _)| *code == wanted).count();
    assert!(count(200) >= 1 && count(429) >= 1, "{codes:?}");
    assert_eq!(count(200) + count(429), 24);
    assert!(
        loaded < idle + Duration::from_millis(500),
        "{loaded:?} for {idle:?}"
    );
}

#[test]
fn only_allowed_origins_are_served() {
    let dir = TestDir::new();
    let run = train_uninterrupted(dir.folder.path(), "flex");
    let options = [
        "--allow-host",
        "models.example",
        "--cors-origin",
        "https://app.example",
    ];
    let mut server = Server::start(&run, &[&options[..], &["--verbose"]].concat());
    let image =
        "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\nSec-Fetch-Dest: image\r\n";
    assert_eq!(server.get("/explain?prompt=x", image).0, 403);
    let mut log = server.log.by_ref().map(Result::unwrap);
    let line = log.find(|line| line.contains("request{")).unwrap();
    assert!(
        line.contains("INFO request{method=GET path=/explain}: ")
            && line.contains(" response status=403 ms="),
        "{line}"
    );
    let (status, head, _) = server.get("/v1/models", "Origin: https://app.example\r\n");
    assert!(
        status == 200 && head.contains("access-control-allow-origin: https://app.example"),
        "{head}"
    );
    assert_eq!(
        server
            .get("/v1/models", "Origin: https://evil.example\r\n")
            .0,
        403
    );
    let proxied =
        server.send("GET /v1/models HTTP/1.1\r\nHost: models.example\r\nConnection: close\r\n\r\n");
    assert_eq!(proxied.0, 200);
    dir.rejects(
        &["serve", &run.display().to_string(), "--cors-origin", "*"],
        USAGE,
        &["must be a scheme and a host"],
    );
}

/// Reads one response with a Content-Length.
fn read_response(stream: &mut TcpStream) -> String {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).unwrap() > 0, "closed: {head}");
    }
    let lower = head.to_lowercase();
    let (_, len) = lower.split_once("content-length: ").unwrap();
    let len = len.split_whitespace().next().unwrap().parse().unwrap();
    let mut body = vec![0; len];
    reader.read_exact(&mut body).unwrap();
    head
}

#[test]
fn slow_headers_time_out_but_idle_connections_may_wait() {
    let dir = TestDir::new();
    let run = train_uninterrupted(dir.folder.path(), "flex");
    let server = Server::start(&run, &[]);
    let request = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let connect = || TcpStream::connect(&server.address).unwrap();
    let until_closed = |mut stream: TcpStream| {
        let start = Instant::now();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest); // Closed or reset.
        start.elapsed().as_secs_f64()
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = connect();
            for _ in 0..2 {
                stream.write_all(request.as_bytes()).unwrap();
                assert!(read_response(&mut stream).starts_with("HTTP/1.1 200"));
                std::thread::sleep(Duration::from_secs(7));
            }
            stream.write_all(&request.as_bytes()[..20]).unwrap();
            let seconds = until_closed(stream);
            assert!(
                (4.0..7.0).contains(&seconds),
                "header of a later request: {seconds}"
            );
        });
        scope.spawn(|| {
            let mut stream = connect();
            stream.write_all(&request.as_bytes()[..20]).unwrap();
            let seconds = until_closed(stream);
            assert!(
                (4.0..7.0).contains(&seconds),
                "header of the first request: {seconds}"
            );
        });
        scope.spawn(|| {
            let seconds = until_closed(connect());
            assert!((4.0..7.0).contains(&seconds), "no data: {seconds}");
        });
    });
}
