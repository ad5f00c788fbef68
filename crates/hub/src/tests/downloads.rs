//! What is downloaded, where it is stored, and when nothing is.

use super::*;
use crate::test_server::{Ending, REPOSITORY};

const MODEL: [&str; 3] = ["config.json", "model.safetensors", "tokenizer.json"];

#[test]
fn the_cache_is_laid_out_as_huggingface_hub_does() {
    let files = model(3_000_000);
    let server = TestHub::start(files.clone(), as_it_is);
    let client = TestClient::new(&server.hub.url());
    let (path, events) = client.download("hf:owner/name").unwrap();
    let repository = client.repository();
    assert_eq!(path, repository.join("snapshots").join(COMMIT));
    assert_eq!(events, [""; 0]);
    client.assert_has(&files, &MODEL);
    assert_eq!(
        fs::read_to_string(repository.join("refs/main")).unwrap(),
        COMMIT
    );
    #[cfg(unix)]
    for name in MODEL {
        let target = format!("../../blobs/{}", files[name].etag);
        assert_eq!(fs::read_link(path.join(name)).unwrap(), Path::new(&target));
    }
    let locks = paths(&client.settings.cache.join(".locks/models--owner--name"));
    let mut expected: Vec<_> = MODEL
        .iter()
        .map(|name| format!("{}.lock", files[*name].etag))
        .collect();
    expected.sort();
    assert_eq!(locks, expected);
    assert!(client.settings.cache.join("CACHEDIR.TAG").is_file());
    #[cfg(unix)]
    for name in locks {
        use std::os::unix::fs::PermissionsExt;
        let lock = client
            .settings
            .cache
            .join(".locks/models--owner--name")
            .join(name);
        assert_eq!(
            fs::metadata(lock).unwrap().permissions().mode() & 0o777,
            0o664
        );
    }
}

#[test]
fn a_second_download_asks_only_for_the_commit() {
    let server = TestHub::start(model(1000), as_it_is);
    let client = TestClient::new(&server.hub.url());
    client.download("hf:owner/name").unwrap();
    let before = server.hub.lines();
    assert_eq!(before.len(), 1 + 2 * MODEL.len(), "{before:?}");
    assert_eq!(server.storage.lines().len(), 2);
    client.download("hf:owner/name").unwrap();
    let list = "GET /api/models/owner/name/revision/main?blobs=true";
    assert_eq!(server.hub.lines()[before.len()..], [list]);
}

#[test]
fn the_token_is_sent_to_the_endpoint_only() {
    let server = TestHub::start(model(1000), as_it_is);
    let client = TestClient::new(&server.hub.url());
    client.download("hf:owner/name").unwrap();
    for request in server.hub.requests() {
        assert_eq!(request.fields["authorization"], "Bearer hf_secret");
        assert!(request.fields["user-agent"].starts_with("nextword/"));
        assert_eq!(request.fields["accept-encoding"], "identity");
    }
    let requests = server.storage.requests();
    assert_eq!(requests.len(), 2);
    for request in requests {
        assert!(!request.fields.contains_key("authorization"), "{request:?}");
    }
}

#[test]
fn without_a_token_none_is_sent() {
    let server = TestHub::start(model(1000), as_it_is);
    let mut client = TestClient::new(&server.hub.url());
    client.settings.token = None;
    client.download("hf:owner/name").unwrap();
    let mut requests = server.hub.requests();
    assert!(
        requests
            .iter_mut()
            .all(|request| request.fields.remove("authorization").is_none())
    );
}

#[test]
fn branches_and_commits_are_found_again() {
    let server = TestHub::start(model(1000), as_it_is);
    let client = TestClient::new(&server.hub.url());
    client.download("hf:owner/name@refs/pr/1").unwrap();
    client.download(&format!("hf:owner/name@{COMMIT}")).unwrap();
    assert_eq!(paths(&client.repository().join("refs")), ["refs/pr/1"]);
    drop(server);
    for reference in [
        "hf:owner/name@refs/pr/1",
        &format!("hf:owner/name@{COMMIT}"),
    ] {
        let (_, events) = client.download(reference).unwrap();
        assert!(
            matches!(&events[..], [event] if event.starts_with("UsingCache")),
            "{events:?}"
        );
    }
    let error = client.error("hf:owner/name");
    assert!(matches!(error, HubError::Network { .. }), "{error}");
}

#[test]
fn shards_and_templates_are_downloaded() {
    let index = r#"{"weight_map": {"a": "m-2.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors"}}"#;
    let files = files(&[
        ("config.json", small(b"{}")),
        ("tokenizer.json", small(b"{ }")),
        (
            "additional_chat_templates/tool_use.jinja",
            small(b"{{ messages }}"),
        ),
        ("model.safetensors.index.json", small(index.as_bytes())),
        ("m-1.safetensors", TestFile::large(&bytes(5000))),
        ("m-2.safetensors", TestFile::large(b"")),
        ("m-3.safetensors", TestFile::large(b"of another model")),
    ]);
    let server = TestHub::start(files.clone(), as_it_is);
    let client = TestClient::new(&server.hub.url());
    let (path, _) = client.download("hf:owner/name").unwrap();
    client.assert_has(
        &files,
        &[
            "additional_chat_templates/tool_use.jinja",
            "config.json",
            "m-1.safetensors",
            "m-2.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
        ],
    );
    #[cfg(unix)]
    {
        let template = path.join("additional_chat_templates/tool_use.jinja");
        let target = fs::read_link(template).unwrap();
        assert!(target.starts_with("../../../blobs"), "{target:?}");
    }
    let _ = path;
}

#[test]
fn of_gguf_files_only_the_named_one_is_downloaded() {
    let files = files(&[
        ("config.json", small(b"{}")),
        ("x-q8_0.gguf", TestFile::large(&bytes(1000))),
        ("q4 0/x.gguf", TestFile::large(&bytes(500))),
    ]);
    let server = TestHub::start(files.clone(), |_, request, response| {
        // The server finds files by their decoded names.
        assert!(!request.path.contains(' '));
        response
    });
    let client = TestClient::new(&server.hub.url());
    let (path, _) = client.download("hf:owner/name:x-q8_0.gguf").unwrap();
    assert!(
        path.ends_with(format!("snapshots/{COMMIT}/x-q8_0.gguf")),
        "{path:?}"
    );
    client.assert_has(&files, &["x-q8_0.gguf"]);
    let error = client.error("hf:owner/name:y.gguf").to_string();
    assert!(
        error.contains("hf:owner/name:q4 0/x.gguf (1 more"),
        "{error}"
    );
    let error = client.error("hf:owner/name").to_string();
    assert!(error.contains("name a GGUF file"), "{error}");
}

#[test]
fn offline_the_cache_is_used_without_a_request() {
    let files = model(1000);
    let server = TestHub::start(files.clone(), as_it_is);
    let mut client = TestClient::new(&server.hub.url());
    client.download("hf:owner/name").unwrap();
    let before = server.hub.lines().len();
    client.settings.offline = true;
    let (path, events) = client.download("hf:owner/name").unwrap();
    assert_eq!((server.hub.lines().len(), events.len()), (before, 0));
    for other in ["hf:owner/other", "hf:owner/name@v2"] {
        let error = client.error(other);
        assert!(matches!(error, HubError::Network { .. }), "{error}");
        assert!(error.to_string().contains("HF_HUB_OFFLINE"), "{error}");
    }
    fs::remove_file(path.join("tokenizer.json")).unwrap();
    let error = client.error("hf:owner/name").to_string();
    assert!(error.contains("`tokenizer.json`"), "{error}");
}

#[test]
fn without_a_connection_the_cache_is_used_with_a_note() {
    let server = TestHub::start(model(1000), as_it_is);
    let client = TestClient::new(&server.hub.url());
    client.download("hf:owner/name").unwrap();
    drop(server);
    let (_, events) = client.download("hf:owner/name").unwrap();
    assert!(
        matches!(&events[..], [event] if event.starts_with("UsingCache")),
        "{events:?}"
    );
}

/// Two processes at once: the second waits for the first, and downloads nothing.
#[test]
fn one_content_is_downloaded_once_by_two_at_the_same_time() {
    let files = model(2_000_000);
    let server = TestHub::start(files.clone(), |is_storage, _, response| {
        if is_storage {
            std::thread::sleep(Duration::from_millis(200));
        }
        response
    });
    let client = TestClient::new(&server.hub.url());
    std::thread::scope(|scope| {
        let downloads = [(); 4].map(|()| scope.spawn(|| client.download("hf:owner/name").unwrap()));
        for download in downloads {
            download.join().unwrap();
        }
    });
    client.assert_has(&files, &MODEL);
    assert_eq!(
        server.storage.lines().len(),
        2,
        "{:?}",
        server.storage.lines()
    );
}

/// A file of the cache that is cut off is downloaded again.
#[test]
fn a_blob_of_the_wrong_size_is_replaced() {
    let files = model(1000);
    let server = TestHub::start(files.clone(), as_it_is);
    let client = TestClient::new(&server.hub.url());
    let (path, _) = client.download("hf:owner/name").unwrap();
    let blob = fs::canonicalize(path.join("model.safetensors")).unwrap();
    fs::write(blob, "cut off").unwrap();
    client.download("hf:owner/name").unwrap();
    client.assert_has(&files, &MODEL);
}

#[test]
fn a_renamed_repository_is_followed() {
    let files = model(1000);
    let server = TestHub::start(files.clone(), |_, request, response| {
        match request.path.strip_prefix("/api/models/old") {
            Some(rest) => {
                let location = format!("/api/models/{REPOSITORY}{rest}");
                TestResponse::new(307, &[("Location", &location)], b"")
            }
            None => match request.path.strip_prefix("/old/") {
                Some(rest) => {
                    TestResponse::new(307, &[("Location", &format!("/{REPOSITORY}/{rest}"))], b"")
                }
                None => response,
            },
        }
    });
    let client = TestClient::new(&server.hub.url());
    let (path, _) = client.download("hf:old").unwrap();
    assert!(
        path.starts_with(client.settings.cache.join("models--old")),
        "{path:?}"
    );
    assert_eq!(paths(&path), MODEL);
    // The redirects of the renamed repository are on the same server.
    assert!(
        server
            .hub
            .requests()
            .iter()
            .all(|r| r.fields.contains_key("authorization"))
    );
}

#[test]
fn errors_state_the_fact_and_the_fix() {
    let status = |path: &'static str, status: u16, fields: &'static [(&str, &str)]| {
        move |_: bool, request: &TestRequest, response: TestResponse| {
            if request.path.contains(path) {
                TestResponse::new(status, fields, b"")
            } else {
                response
            }
        }
    };
    let gated: &[(&str, &str)] = &[("X-Error-Code", "GatedRepo")];
    for (path, code, fields, has_token, expected) in [
        ("config", 401, gated, false, "set HF_TOKEN"),
        ("config", 403, gated, true, "accept them at http://"),
        ("/api/", 401, &[], false, "does not exist or is private"),
        ("/api/", 401, &[], true, "the token may not read it"),
        (
            "/api/",
            403,
            &[("X-Error-Message", "go away")],
            true,
            "refuses access to `owner/name` (go away)",
        ),
        ("/api/", 404, &[], true, "does not exist"),
        (
            "config",
            404,
            &[("X-Error-Code", "EntryNotFound")],
            true,
            "no `config.json`",
        ),
        ("config", 404, &[], true, "no `config.json`"),
        ("/api/", 400, &[], true, "status 400"),
        ("/api/", 503, &[], true, "status 503"),
        (
            "/api/",
            429,
            &[("Retry-After", "0")],
            false,
            "or set HF_TOKEN",
        ),
        (
            "config",
            500,
            &[("X-Error-Message", "busy")],
            true,
            "status 500",
        ),
    ] {
        let server = TestHub::start(model(10), status(path, code, fields));
        let mut client = TestClient::new(&server.hub.url());
        if !has_token {
            client.settings.token = None;
        }
        let error = client.error("hf:owner/name").to_string();
        assert!(
            error.contains(expected) && error.contains("; hint: "),
            "{code}: {error}"
        );
    }
    let server = TestHub::start(model(10), as_it_is);
    let client = TestClient::new(&server.hub.url());
    let error = client.error("hf:owner/name@v9").to_string();
    assert!(error.contains("no revision `v9`"), "{error}");
    let error = client.error("hf:owner/other").to_string();
    assert!(error.contains("`owner/other`"), "{error}");
    assert!(!client.settings.cache.join("models--owner--other").exists());
}

#[test]
fn a_file_that_does_not_fit_on_the_disk_is_not_begun() {
    let server = TestHub::start(model(10), |_, request, mut response| {
        if request.path.ends_with("model.safetensors") {
            response.head = response
                .head
                .replace("X-Linked-Size: 10", "X-Linked-Size: 4000000000000000");
        }
        response
    });
    let client = TestClient::new(&server.hub.url());
    let error = client.error("hf:owner/name");
    assert!(
        matches!(
            error,
            HubError::DiskFull {
                needed: 4_000_000_000_000_000,
                ..
            }
        ),
        "{error}"
    );
    let blobs = paths(&client.repository().join("blobs"));
    assert_eq!(blobs.len(), 2, "{blobs:?}");
}

#[test]
fn an_unreachable_hub_is_reported_at_once() {
    let server = TestHub::start(model(10), as_it_is);
    let mut client = TestClient::new(&server.hub.url());
    drop(server);
    client.settings.retry_delay = Duration::from_mins(1);
    let error = client.error("hf:owner/name").to_string();
    assert!(error.contains("is not in the cache"), "{error}");
    client.settings.endpoint = "http://nextword.invalid".to_string(); // Never the name of a host.
    let error = client.error("hf:owner/name").to_string();
    assert!(error.contains("and nextword.invalid: "), "{error}");
    let silent = crate::test_server::TestServer::start(|_| TestResponse {
        head: String::new(),
        body: Vec::new(),
        ending: Ending::Silence(Duration::from_millis(500)),
    });
    let mut client = TestClient::new(&silent.url());
    client.settings.stall_timeout = Duration::from_millis(50);
    let error = client.error("hf:owner/name").to_string();
    assert!(error.contains("sent nothing for too long"), "{error}");
}
