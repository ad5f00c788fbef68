//! `nextword import hf:OWNER/NAME`: models from a Hub on this machine, with the built program.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use nextword_convert::{GgufType, export_gguf};
use nextword_model::ModelDir;
use serde_json::Value;

use crate::hub_server::{COMMIT, Ending, TestFile, TestHub};
use crate::parity::fixtures;
use crate::test_dir::{BAD_FILE, RESOURCES, TestDir, USAGE, assert_one_error};
use crate::util::{nextword, root, stderr};

/// The exit code of failures of the network.
const FAILURE: i32 = 1;

/// The files of the fixture `kind`, as the Hub has them.
fn model(kind: &str) -> BTreeMap<String, TestFile> {
    let entries = fs::read_dir(fixtures().join(kind)).unwrap();
    let files = entries.map(|entry| {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_string();
        (name, TestFile::large(&fs::read(path).unwrap()))
    });
    files.collect()
}

/// The program with a cache in `dir`.
fn command(dir: &TestDir, endpoint: &str, args: &[&str]) -> Command {
    let mut command = nextword();
    for name in [
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
    ] {
        command.env_remove(name);
    }
    for name in ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "SSL_CERT_FILE"] {
        command.env_remove(name).env_remove(name.to_lowercase());
    }
    command
        .env("HF_HOME", dir.path("home"))
        .env("HF_ENDPOINT", endpoint);
    command
        .env("HF_TOKEN", "hf_secret")
        .args(args)
        .current_dir(dir.folder.path());
    command
}

fn import(dir: &TestDir, endpoint: &str, source: &str) -> Output {
    let output = command(dir, endpoint, &["import", source, "--out", "model"]).output();
    let output = output.unwrap();
    let text = stderr(&output) + &String::from_utf8_lossy(&output.stdout);
    assert!(!text.contains("hf_secret"), "{text}");
    output
}

fn repository(dir: &TestDir) -> PathBuf {
    dir.path("home/hub/models--owner--name")
}

fn weights(folder: &Path) -> Vec<u8> {
    fs::read(folder.join("model.safetensors")).unwrap()
}

#[test]
fn a_downloaded_model_is_that_of_the_folder_and_names_its_origin() {
    let dir = TestDir::new();
    let server = TestHub::start(model("llama"), |_, _, response| response);
    let output = import(&dir, &server.hub.url(), "hf:owner/name");
    let text = stderr(&output);
    assert!(
        output.status.success() && text.contains("owner/name at commit 0123456789ab: downloaded"),
        "{text}"
    );
    let local = dir.path("local");
    nextword_convert::import(&fixtures().join("llama"), &local).unwrap();
    assert_eq!(weights(&dir.path("model")), weights(&local));
    let card: Value =
        serde_json::from_slice(&fs::read(dir.path("model/card.json")).unwrap()).unwrap();
    assert_eq!(card["name"], "name");
    assert_eq!(card["origin"]["repository"], "owner/name");
    assert_eq!(card["origin"]["commit"], COMMIT);
    let inspect = command(&dir, "http://127.0.0.1:9", &["inspect", "model"])
        .output()
        .unwrap();
    let text = String::from_utf8(inspect.stdout).unwrap();
    assert!(text.contains(&format!("hf:owner/name@{COMMIT}")), "{text}");

    // Later, without a server.
    let endpoint = server.hub.url();
    drop(server);
    let output = import(&dir, &endpoint, "hf:owner/name");
    let text = stderr(&output);
    assert!(
        output.status.success() && text.contains("using the files in the cache"),
        "{text}"
    );
    let mut offline = command(
        &dir,
        &endpoint,
        &["import", "hf:owner/name", "-o", "model", "--json"],
    );
    let output = offline.env("HF_HUB_OFFLINE", "1").output().unwrap();
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["card"]["origin"]["commit"], COMMIT);
}

#[test]
fn one_gguf_file_is_downloaded_and_imported() {
    let dir = TestDir::new();
    let letters = ModelDir::open(&root().join("docs/models/letters")).unwrap();
    let path = dir.path("letters.gguf");
    export_gguf(&letters, GgufType::Q8_0, &path).unwrap();
    let file = TestFile::large(&fs::read(&path).unwrap());
    let mut files = model("llama");
    files.insert("q8/letters.gguf".to_string(), file);
    let server = TestHub::start(files, |_, _, response| response);
    let output = import(&dir, &server.hub.url(), "hf:owner/name:q8/letters.gguf");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(server.storage.lines().len(), 1);
    let local = dir.path("local");
    nextword_convert::import(&path, &local).unwrap();
    assert_eq!(weights(&dir.path("model")), weights(&local));
    let card = ModelDir::open(&dir.path("model")).unwrap().card;
    let expected = format!("hf:owner/name@{COMMIT}:q8/letters.gguf");
    assert_eq!(card.origin.unwrap().to_string(), expected);
}

#[test]
fn what_cannot_be_imported_is_rejected_before_its_weights_are_downloaded() {
    let mut files = model("llama");
    files.insert(
        "config.json".to_string(),
        TestFile::large(br#"{"model_type": "mamba"}"#),
    );
    let unsupported = TestHub::start(files, |_, _, response| response);
    let supported = TestHub::start(model("llama"), |_, _, response| response);
    let dir = TestDir::new();
    fs::create_dir(dir.path("model")).unwrap();
    dir.write("model/thesis.tex", "mine");
    let rejects = |server: &TestHub, expected: &str| {
        let output = import(&dir, &server.hub.url(), "hf:owner/name");
        let error = stderr(&output);
        assert_one_error(&error);
        assert_eq!(output.status.code(), Some(BAD_FILE), "{error}");
        assert!(error.contains(expected), "{error}");
        let lines = server.hub.lines();
        let is_of_weights = |line: &String| line.ends_with("model.safetensors");
        assert!(!lines.iter().any(is_of_weights), "{lines:?}");
    };
    rejects(&supported, "thesis.tex");
    fs::remove_dir_all(dir.path("model")).unwrap();
    rejects(&unsupported, "mamba");
}

#[test]
fn errors_have_one_line_and_an_exit_code() {
    let dir = TestDir::new();
    let files = model("llama");
    let server = TestHub::start(files.clone(), |_, _, response| response);
    let endpoint = server.hub.url();
    let gone = TestHub::start(files.clone(), |_, _, response| response)
        .hub
        .url();
    let too_large = TestHub::start(files.clone(), |_, request, mut response| {
        if request.path.ends_with("model.safetensors") {
            response.head = response
                .head
                .replace("X-Linked-Size: ", "X-Linked-Size: 9000000000");
        }
        response
    });
    let wrong = TestHub::start(files, |is_storage, _, mut response| {
        if is_storage {
            response.body.reverse();
        }
        response
    });
    for (endpoint, source, code, expected) in [
        (&endpoint, "hf:owner", BAD_FILE, "does not exist"),
        (&endpoint, "hf:owner/name@v2", BAD_FILE, "no revision `v2`"),
        (&endpoint, "hf:owner/name:x.gguf", BAD_FILE, "no `x.gguf`"),
        (&endpoint, "hf:owner/name/x", USAGE, "hf:OWNER/NAME"),
        (&endpoint, "hf:../..", USAGE, "hf:OWNER/NAME"),
        (
            &"ftp://x".to_string(),
            "hf:owner/name",
            USAGE,
            "HF_ENDPOINT",
        ),
        (
            &gone,
            "hf:owner/name",
            FAILURE,
            "hint: connect to the network",
        ),
        (
            &too_large.hub.url(),
            "hf:owner/name",
            RESOURCES,
            "HF_HUB_CACHE",
        ),
        (&wrong.hub.url(), "hf:owner/name", BAD_FILE, "SHA-256"),
        (&endpoint, "owner/name", BAD_FILE, "hf:OWNER/NAME"),
    ] {
        let output = import(&dir, endpoint, source);
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{source}: {error}");
        assert_one_error(&error);
        assert!(
            error.contains(expected) && error.contains("hint: "),
            "{source}: {error}"
        );
        assert!(!dir.path("model").exists());
    }
    let output = command(&dir, &endpoint, &["generate", "hf:owner/name", "x"])
        .output()
        .unwrap();
    let error = stderr(&output);
    assert_eq!(output.status.code(), Some(BAD_FILE), "{error}");
    assert!(
        error.contains("nextword import hf:owner/name --out MODEL"),
        "{error}"
    );
}

/// A killed download is continued by the next one.
#[test]
fn a_killed_download_is_continued() {
    let dir = TestDir::new();
    let files = model("llama");
    let file = files["model.safetensors"].clone();
    let half = file.content.len() / 2;
    let etag = file.etag.clone();
    let stalls = TestHub::start(files.clone(), move |is_storage, request, mut response| {
        if is_storage && request.path.contains(&etag) {
            response.body.truncate(half);
            response.ending = Ending::Silence(Duration::from_mins(1));
        }
        response
    });
    let part = repository(&dir)
        .join("blobs")
        .join(format!("{}.incomplete", file.etag));
    let mut child = command(
        &dir,
        &stalls.hub.url(),
        &["import", "hf:owner/name", "-o", "model"],
    )
    .spawn()
    .unwrap();
    let start = Instant::now();
    while fs::metadata(&part).map_or(0, |part| part.len()) < half as u64 {
        assert!(
            start.elapsed() < Duration::from_mins(1),
            "the download did not begin"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let server = TestHub::start(files, |_, _, response| response);
    let output = import(&dir, &server.hub.url(), "hf:owner/name");
    assert!(output.status.success(), "{}", stderr(&output));
    let requests = server.storage.requests();
    assert_eq!(requests.len(), 1, "{requests:?}");
    assert_eq!(requests[0].fields["range"], format!("bytes={half}-"));
    assert!(!part.exists());
}
