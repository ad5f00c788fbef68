//! A Hub on this machine, for tests. The integration tests use this file too.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// The commit of all repositories.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The only repository.
pub(crate) const REPOSITORY: &str = "owner/name";

/// A request as it was received.
#[derive(Clone, Debug)]
pub(crate) struct TestRequest {
    pub(crate) method: String,
    /// With the query.
    pub(crate) path: String,
    /// Header fields with lower-case names.
    pub(crate) fields: BTreeMap<String, String>,
}

/// What follows a response.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ending {
    /// The connection is closed.
    Closed,
    /// Nothing more is sent for this time.
    Silence(Duration),
    /// Zeros without end.
    Endless,
    /// A zero after each pause, without end.
    Trickle(Duration),
}

/// A response: the bytes of the head and of the body.
#[derive(Clone, Debug)]
pub(crate) struct TestResponse {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    pub(crate) ending: Ending,
}

impl TestResponse {
    /// A response with its length.
    pub(crate) fn new(status: u16, fields: &[(&str, &str)], body: &[u8]) -> Self {
        let length = body.len().to_string();
        let mut fields = fields.to_vec();
        if !fields
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        {
            fields.push(("Content-Length", &length));
        }
        let lines = fields
            .iter()
            .map(|(name, value)| format!("{name}: {value}"));
        let lines: Vec<String> = lines.collect();
        let lines = lines.join(
            "
",
        );
        Self {
            head: format!("HTTP/1.1 {status} x\r\n{lines}\r\nConnection: close\r\n\r\n"),
            body: body.to_vec(),
            ending: Ending::Closed,
        }
    }
}

/// An HTTP server that answers with a function.
pub(crate) struct TestServer {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<TestRequest>>>,
    is_stopped: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

impl TestServer {
    pub(crate) fn start(
        answer: impl Fn(&TestRequest) -> TestResponse + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut server = Self {
            address: listener.local_addr().unwrap(),
            requests: Arc::default(),
            is_stopped: Arc::default(),
            listener: None,
        };
        let (requests, is_stopped) = (server.requests.clone(), server.is_stopped.clone());
        let answer = Arc::new(answer);
        server.listener = Some(thread::spawn(move || {
            for stream in listener.incoming() {
                if is_stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (requests, answer) = (requests.clone(), answer.clone());
                thread::spawn(move || serve(stream.unwrap(), &requests, answer.as_ref()));
            }
        }));
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests so far, as `METHOD PATH`.
    pub(crate) fn lines(&self) -> Vec<String> {
        let requests = self.requests();
        requests
            .iter()
            .map(|r| format!("{} {}", r.method, r.path))
            .collect()
    }

    pub(crate) fn requests(&self) -> Vec<TestRequest> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address); // Wakes the thread that accepts connections.
        // Afterwards, connections are refused.
        let _ = self.listener.take().map(JoinHandle::join);
    }
}

fn serve(
    stream: TcpStream,
    requests: &Mutex<Vec<TestRequest>>,
    answer: &dyn Fn(&TestRequest) -> TestResponse,
) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        lines.push(line.to_string());
    }
    let mut words = lines[0].split(' ').map(str::to_string);
    let request = TestRequest {
        method: words.next().unwrap(),
        path: words.next().unwrap(),
        fields: lines[1..]
            .iter()
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_lowercase(), value.to_string()))
            .collect(),
    };
    requests.lock().unwrap().push(request.clone());
    let response = answer(&request);
    let mut stream = stream;
    let mut send = |bytes: &[u8]| stream.write_all(bytes).is_ok();
    // Without a head, the body is all that is sent.
    let has_body = request.method != "HEAD" || response.head.is_empty();
    let is_sent = send(response.head.as_bytes()) && (!has_body || send(&response.body));
    match response.ending {
        Ending::Closed => {}
        Ending::Silence(time) => thread::sleep(time),
        Ending::Trickle(pause) => {
            while is_sent && send(&[0]) {
                thread::sleep(pause);
            }
        }
        Ending::Endless => while is_sent && send(&[0; 1 << 13]) {},
    }
    // Unread bytes would reset the connection before the client has read the response.
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
    let _ = stream.read(&mut [0; 64]);
}

/// A file of the repository.
#[derive(Clone, Debug)]
pub(crate) struct TestFile {
    pub(crate) content: Vec<u8>,
    /// Its hash.
    pub(crate) etag: String,
    /// Whether it is in large file storage, so that requests are redirected to another server.
    pub(crate) is_large: bool,
}

impl TestFile {
    /// A file in large file storage.
    pub(crate) fn large(content: &[u8]) -> Self {
        Self {
            content: content.to_vec(),
            etag: nextword_base::hash::sha256_hex(content),
            is_large: true,
        }
    }
}

/// The Hub and the server to which it redirects for large files.
pub(crate) struct TestHub {
    pub(crate) hub: TestServer,
    pub(crate) storage: TestServer,
}

impl TestHub {
    /// Serves `files`. Each response of both servers passes through `change`, whose first argument tells whether it is
    /// the storage's.
    pub(crate) fn start(
        files: BTreeMap<String, TestFile>,
        change: impl Fn(bool, &TestRequest, TestResponse) -> TestResponse + Send + Sync + 'static,
    ) -> Self {
        let (files, change) = (Arc::new(files), Arc::new(change));
        let (stored, change_stored) = (files.clone(), change.clone());
        let storage = TestServer::start(move |request| {
            let hash = request
                .path
                .trim_start_matches("/blob/")
                .split('?')
                .next()
                .unwrap();
            let file = stored
                .values()
                .find(|file| file.is_large && file.etag == hash);
            let response = match file {
                Some(file) => content(&file.content, &[("ETag", "\"of-the-storage\"")], request),
                None => TestResponse::new(404, &[], b""),
            };
            change_stored(true, request, response)
        });
        let target = storage.url();
        let hub = TestServer::start(move |request| {
            change(false, request, answer(&files, &target, request))
        });
        Self { hub, storage }
    }
}

fn answer(
    files: &BTreeMap<String, TestFile>,
    storage: &str,
    request: &TestRequest,
) -> TestResponse {
    let path = request.path.split('?').next().unwrap();
    if let Some(rest) = path.strip_prefix("/api/models/") {
        let (repository, revision) = rest.split_once("/revision/").unwrap();
        if repository != REPOSITORY {
            return TestResponse::new(401, &[("X-Error-Code", "RepoNotFound")], b"");
        }
        if !["main", "refs%2Fpr%2F1", COMMIT].contains(&revision) {
            return TestResponse::new(404, &[("X-Error-Code", "RevisionNotFound")], b"");
        }
        let siblings: Vec<String> = files
            .iter()
            .map(|(name, file)| {
                format!(
                    r#"{{"rfilename": "{name}", "size": {}}}"#,
                    file.content.len()
                )
            })
            .collect();
        let json = format!(
            r#"{{"id": "{REPOSITORY}", "sha": "{COMMIT}", "siblings": [{}]}}"#,
            siblings.join(", ")
        );
        return TestResponse::new(
            200,
            &[("Content-Type", "application/json")],
            json.as_bytes(),
        );
    }
    let file = path.strip_prefix(&format!("/{REPOSITORY}/resolve/{COMMIT}/"));
    let Some(file) = file.and_then(|name| files.get(name)) else {
        return TestResponse::new(404, &[("X-Error-Code", "EntryNotFound")], b"");
    };
    let etag = format!("\"{}\"", file.etag);
    if !file.is_large {
        return content(
            &file.content,
            &[("ETag", &etag), ("X-Repo-Commit", COMMIT)],
            request,
        );
    }
    let (size, location) = (
        file.content.len().to_string(),
        format!("{storage}/blob/{}?signature=secret", file.etag),
    );
    let fields = [
        ("X-Repo-Commit", COMMIT),
        ("X-Linked-Etag", &etag),
        ("X-Linked-Size", &size),
        ("ETag", "\"of-the-redirect\""),
        ("Location", &location),
    ];
    TestResponse::new(302, &fields, b"")
}

/// The content, or the range of it that is requested.
fn content(content: &[u8], fields: &[(&str, &str)], request: &TestRequest) -> TestResponse {
    let start = request.fields.get("range").map(|range| {
        let start = range
            .strip_prefix("bytes=")
            .and_then(|range| range.strip_suffix('-'));
        start.unwrap().parse::<usize>().unwrap()
    });
    match start {
        None => TestResponse::new(200, fields, content),
        Some(start) if start >= content.len() => TestResponse::new(416, fields, b""),
        Some(start) => {
            let range = format!("bytes {start}-{}/{}", content.len() - 1, content.len());
            let mut fields = fields.to_vec();
            fields.push(("Content-Range", &range));
            TestResponse::new(206, &fields, &content[start..])
        }
    }
}
