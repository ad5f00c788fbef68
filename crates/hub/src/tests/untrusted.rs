//! Servers that send invalid, false or endless answers.

use super::*;
use crate::test_server::{Ending, TestServer};

const NAMES: [&str; 3] = ["config.json", "model.safetensors", "tokenizer.json"];

/// The error of a download whose responses pass through `change`. Nothing may be written beside the cache, and no
/// content may be in it that is not right.
fn error_with(
    change: impl Fn(bool, &TestRequest, TestResponse) -> TestResponse + Send + Sync + 'static,
) -> HubError {
    let files = model(50_000);
    let server = TestHub::start(files.clone(), change);
    let client = TestClient::new(&server.hub.url());
    let error = client.error("hf:owner/name");
    assert_is_sound(&client, &files);
    error
}

/// The cache contains only right contents, and is all that was written.
fn assert_is_sound(client: &TestClient, files: &Files) {
    for entry in fs::read_dir(client.folder.path()).unwrap() {
        assert_eq!(entry.unwrap().file_name(), "hub");
    }
    let blobs = client.repository().join("blobs");
    for name in paths(&blobs)
        .iter()
        .filter(|name| !name.ends_with(".incomplete"))
    {
        let content = fs::read(blobs.join(name)).unwrap();
        let is_right = |file: &TestFile| file.etag == *name && file.content == content;
        assert!(files.values().any(is_right), "{name}");
    }
    let snapshots = client.repository().join("snapshots");
    for name in paths(&snapshots) {
        let file = name.strip_prefix(&format!("{COMMIT}/")).unwrap();
        assert_eq!(
            fs::read(snapshots.join(&name)).unwrap(),
            files[file].content
        );
    }
}

/// Replaces a part of the heads of those responses whose request contains `path`.
fn replace(
    path: &'static str,
    from: &'static str,
    to: &'static str,
) -> impl Fn(bool, &TestRequest, TestResponse) -> TestResponse + Send + Sync + 'static {
    move |_, request, mut response| {
        if request.path.contains(path) {
            assert!(
                response.head.contains(from) || request.method != "HEAD",
                "{}",
                response.head
            );
            response.head = response.head.replace(from, to);
        }
        response
    }
}

#[test]
fn a_wrong_content_is_rejected_and_removed() {
    for (name, kind) in [("model.safetensors", "SHA-256"), ("config.json", "SHA-1")] {
        let files = model(50_000);
        let file = files[name].clone();
        let right = file.content.clone();
        let server = TestHub::start(files.clone(), move |_, _, mut response| {
            if response.body == right {
                response.body[3] ^= 1;
            }
            response
        });
        let client = TestClient::new(&server.hub.url());
        let error = client.error("hf:owner/name");
        assert!(
            matches!(&error, HubError::WrongContent { what, .. } if *what == kind),
            "{error}"
        );
        assert!(!client.incomplete(&file).exists());
        assert_is_sound(&client, &files);
    }
}

#[test]
fn false_descriptions_are_rejected() {
    for (from, to) in [
        ("ETag: \"", "ETag: \"../../"),
        ("ETag: ", "X-Other: "),
        ("Content-Length: 23", "Content-Length: -1"),
        (
            "Content-Length: 23",
            "Content-Length: 99999999999999999999999",
        ),
        ("Content-Length: 23", "Content-Length: 300000000"),
        ("Content-Length: 23\r\n", ""),
    ] {
        let error = error_with(replace("config.json", from, to)).to_string();
        assert!(error.contains("hint: "), "{to}: {error}");
    }
    for (from, to) in [
        ("X-Linked-Size: 50000", "X-Linked-Size: 49999"),
        ("X-Linked-Size: 50000", "X-Linked-Size: 50001"),
        (
            "X-Linked-Size: 50000",
            "X-Linked-Size: 18446744073709551615",
        ),
        ("X-Linked-Size: 50000\r\n", ""),
        ("X-Linked-Etag: \"", "X-Linked-Etag: \"0"),
        ("X-Linked-Etag: \"", "X-Linked-Etag: \"/"),
    ] {
        let error = error_with(replace("model.safetensors", from, to)).to_string();
        assert!(error.contains("hint: "), "{to}: {error}");
    }
}

#[test]
fn false_lengths_and_ranges_are_rejected() {
    for (from, to) in [
        ("Content-Length: 50000", "Content-Length: 50001"),
        ("Content-Length: 50000", "Content-Length: 4"),
        (
            "Content-Length: 50000",
            "Content-Length: 50000\r\nContent-Encoding: gzip",
        ),
        ("200 x", "206 x"),
        ("200 x", "204 x"),
        ("200 x", "206 x\r\nContent-Range: bytes 5-49999/50000"),
    ] {
        let error = error_with(replace("/blob/", from, to)).to_string();
        assert!(error.contains("hint: "), "{to}: {error}");
    }
}

#[test]
fn lists_that_name_other_paths_are_harmless() {
    for name in [
        "../../../evil",
        "/tmp/evil",
        "a/../../evil",
        "C:\\\\evil",
        "additional_chat_templates/../../x.jinja",
    ] {
        let files = model(1000);
        let listed = format!(r#""siblings": [{{"rfilename": "{name}"}}, "#);
        let server = TestHub::start(files.clone(), move |_, request, response| {
            if !request.path.starts_with("/api/") {
                assert!(!request.path.contains("evil"), "{request:?}");
                return response;
            }
            let body = String::from_utf8(response.body).unwrap();
            let body = body.replace(r#""siblings": ["#, &listed);
            TestResponse::new(200, &[], body.as_bytes())
        });
        let client = TestClient::new(&server.hub.url());
        client.download("hf:owner/name").unwrap();
        client.assert_has(&files, &NAMES);
        assert_is_sound(&client, &files);
    }
}

#[test]
fn an_index_that_names_other_paths_is_rejected() {
    for shard in [
        "../../evil.safetensors",
        "/tmp/x.safetensors",
        "pytorch_model.bin",
        "missing.safetensors",
        "a\\\\b.safetensors",
    ] {
        let index = format!(r#"{{"weight_map": {{"w": "{shard}"}}}}"#);
        let mut files = model(1000);
        files.remove("model.safetensors");
        files.insert(
            "model.safetensors.index.json".to_string(),
            small(index.as_bytes()),
        );
        let server = TestHub::start(files.clone(), as_it_is);
        let client = TestClient::new(&server.hub.url());
        let error = client.error("hf:owner/name");
        assert!(matches!(error, HubError::NotFound { .. }), "{error}");
        assert_is_sound(&client, &files);
    }
}

#[test]
fn false_commits_are_rejected() {
    for commit in ["../../../evil", "main", "", "0123"] {
        let error = error_with(move |_, request, response| {
            if !request.path.starts_with("/api/") {
                return response;
            }
            let body = String::from_utf8(response.body)
                .unwrap()
                .replace(COMMIT, commit);
            TestResponse::new(200, &[], body.as_bytes())
        });
        assert!(error.to_string().contains("names no commit"), "{error}");
    }
}

#[test]
fn endless_answers_end() {
    for path in ["/api/", "config.json", "/blob/"] {
        for with_length in [true, false] {
            let error = error_with(move |_, request, mut response| {
                if request.path.contains(path) && request.method == "GET" {
                    response.ending = Ending::Endless;
                    response.body.clear();
                    if !with_length {
                        response.head = response.head.replace("Content-Length", "X-Length");
                    }
                }
                response
            });
            assert!(error.to_string().contains("hint: "), "{path}: {error}");
        }
    }
    let server = TestServer::start(|_| {
        let mut response = TestResponse::new(200, &[("Content-Length", "1000000")], b"");
        response.ending = Ending::Trickle(Duration::from_millis(10));
        response
    });
    let mut client = TestClient::new(&server.url());
    client.settings.stall_timeout = Duration::from_millis(50);
    let error = client.error("hf:owner/name").to_string();
    assert!(error.contains("too slowly"), "{error}");
    // A head without end.
    let server = TestServer::start(|_| TestResponse {
        head: format!("HTTP/1.1 200 x\r\nX: {}", "y".repeat(1 << 20)),
        body: Vec::new(),
        ending: Ending::Endless,
    });
    let error = TestClient::new(&server.url()).error("hf:owner/name");
    assert!(error.to_string().contains("hint: "), "{error}");
}

#[test]
fn redirects_are_bounded_and_stay_on_http() {
    for location in [
        "/api/models/owner/name/revision/main",
        "file:///etc/passwd",
        "gopher://x",
        "http://u:p@127.0.0.1/",
        "http://",
        "::",
    ] {
        let error = error_with(move |_, request, response| {
            if request.path.starts_with("/api/") {
                return TestResponse::new(302, &[("Location", location)], b"");
            }
            response
        });
        assert!(
            error.to_string().contains("redirects"),
            "{location}: {error}"
        );
    }
    let error = error_with(|_, _, _| TestResponse::new(301, &[], b""));
    assert!(error.to_string().contains("redirects without"), "{error}");
    let error = error_with(|_, _, _| TestResponse::new(304, &[], b""));
    assert!(error.to_string().contains("redirects without"), "{error}");
}

/// The server to which everything is redirected never sees the token.
#[test]
fn another_server_does_not_get_the_token() {
    let other = TestServer::start(|_| TestResponse::new(200, &[], b"{}"));
    let url = other.url();
    let error = error_with(move |_, request, _| {
        let location = format!("{url}{}", request.path);
        TestResponse::new(307, &[("Location", &location)], b"")
    });
    assert!(error.to_string().contains("names no commit"), "{error}");
    let requests = other.requests();
    assert_eq!(requests.len(), 1);
    assert!(
        !requests[0].fields.contains_key("authorization"),
        "{requests:?}"
    );
}

/// Random damage to any response: an error or the right files, never a panic.
#[test]
fn damaged_answers_never_lead_to_wrong_files() {
    let cases: u64 =
        std::env::var("NEXTWORD_MALFORMED").map_or(200, |count| count.parse().unwrap());
    let mut successes = 0;
    for case in 0..cases {
        let files = model(3000);
        let rng = CounterRng::new(case);
        let target = rng.at(0) % 8;
        let count = std::sync::atomic::AtomicU64::new(0);
        let server = TestHub::start(files.clone(), move |_, _, mut response| {
            let number = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            if number % 8 == target {
                damage(
                    &mut response,
                    rng.named("damage").named(&number.to_string()),
                );
            }
            response
        });
        let mut client = TestClient::new(&server.hub.url());
        client.settings.stall_timeout = Duration::from_millis(100);
        let found = client.download("hf:owner/name");
        assert_is_sound(&client, &files);
        match found {
            Ok(_) => {
                client.assert_has(&files, &NAMES);
                successes += 1;
            }
            Err(error) => assert!(!error.to_string().contains("hf_secret"), "{error}"),
        }
    }
    assert!(successes > 0 && successes < cases, "{successes} of {cases}");
}

/// Changes, removes, inserts or repeats some bytes of a response.
fn damage(response: &mut TestResponse, rng: CounterRng) {
    let mut all = response.head.clone().into_bytes();
    let head = all.len();
    all.extend(&response.body);
    for edit in 0..=rng.at(100) % 3 {
        let at =
            |salt: u64, limit: usize| (rng.at(10 * edit + salt) % limit.max(1) as u64) as usize;
        // Mostly in the head.
        let limit = if at(0, 4) == 0 {
            all.len()
        } else {
            head.min(all.len())
        };
        let position = at(1, limit);
        match at(2, 6) {
            0 if position < all.len() => all[position] = at(3, 256) as u8,
            1 if position < all.len() => all[position] ^= 1 << at(3, 8),
            2 => all.truncate(position),
            3 => {
                let end = (position + at(3, 40)).min(all.len());
                all.drain(position.min(end)..end);
            }
            4 => {
                let end = (position + at(3, 40)).min(all.len());
                let copy: Vec<u8> = all[position.min(end)..end].to_vec();
                all.splice(position..position, copy);
            }
            _ => {
                let texts: [&[u8]; 6] = [
                    b"\r\n",
                    b"\r\n\r\n",
                    b"99999999999",
                    b"-1",
                    b"../..",
                    b"\0\xff",
                ];
                all.splice(
                    position..position,
                    texts[at(3, texts.len())].iter().copied(),
                );
            }
        }
    }
    // No other server is asked.
    let location = response.head.split("Location: ").nth(1);
    let host = location
        .and_then(|url| url.split("/blob/").next())
        .unwrap_or_default();
    if String::from_utf8_lossy(&all).contains(host) {
        response.head = String::new();
        response.body = all;
    }
}
