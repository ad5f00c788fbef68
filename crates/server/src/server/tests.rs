use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use tokio::sync::oneshot;

use super::*;
use crate::panics::test_log;
use crate::test_model;

fn run(test: impl Future<Output = ()>) {
    test_log::init();
    // The test blocks on sockets while the server runs on another thread.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.unwrap().block_on(test);
}

fn server(config: Config) -> Server {
    Server::new(vec![test_model::loaded("m")], config).unwrap()
}

async fn bind() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn connect(address: SocketAddr, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

/// Waits for the first byte of the response.
fn wait_for_response(stream: &mut TcpStream) {
    stream.read_exact(&mut [0]).unwrap();
}

fn read_to_end(mut stream: TcpStream) -> String {
    let mut response = Vec::new();
    let _ = stream.read_to_end(&mut response); // Closed or reset.
    String::from_utf8_lossy(&response).into_owned()
}

const HEALTH: &str = "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// A streamed completion of `max_tokens` tokens.
fn stream_request(max_tokens: usize) -> String {
    let body = format!(
        r#"{{"prompt": "x", "max_tokens": {max_tokens}, "stream": true, "overflow": "slide", "ignore_eos": true}}"#
    );
    format!(
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[test]
fn server_runs_until_shutdown_completes() {
    run(async {
        let (listener, address) = bind().await;
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async { stopped.await.unwrap() };
        let serving = tokio::spawn(server(Config::default()).serve(listener, shutdown));
        let response = read_to_end(connect(address, HEALTH));
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
        assert!(!serving.is_finished());
        stop.send(()).unwrap();
        serving.await.unwrap().unwrap();
        assert!(TcpStream::connect(address).is_err());
    });
}

#[test]
fn requests_in_flight_finish_after_shutdown_or_fail_when_aborted() {
    for abort in [false, true] {
        run(async {
            let (listener, address) = bind().await;
            let server = server(Config::default());
            let handle = server.abort_handle();
            let (stop, stopped) = oneshot::channel::<()>();
            let shutdown = async { stopped.await.unwrap() };
            let serving = tokio::spawn(server.serve(listener, shutdown));
            let max_tokens = if abort { 65_000 } else { 200 };
            let mut stream = connect(address, &stream_request(max_tokens));
            wait_for_response(&mut stream);
            stop.send(()).unwrap();
            if abort {
                handle.abort();
            }
            let start = Instant::now();
            let response = read_to_end(stream);
            serving.await.unwrap().unwrap();
            assert!(start.elapsed() < Duration::from_secs(10));
            assert_eq!(response.contains("[DONE]"), !abort, "{response}");
            assert_eq!(response.contains("shutting down"), abort, "{response}");
        });
    }
}

#[test]
fn dropping_the_future_closes_connections_and_ends_the_engines() {
    run(async {
        let (listener, address) = bind().await;
        let server = server(Config::default());
        let model = server.app.models.all()[0].clone();
        let serving = tokio::spawn(server.serve(listener, std::future::pending()));
        let mut stream = connect(address, &stream_request(65_000));
        wait_for_response(&mut stream);
        serving.abort();
        assert!(serving.await.unwrap_err().is_cancelled());
        assert!(!read_to_end(stream).contains("[DONE]"));
        assert!(model.engine.check_alive().is_err());
    });
}

#[test]
fn other_machines_can_connect_only_with_an_api_key() {
    run(async {
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let served = server(Config::default()).serve(listener, std::future::pending());
        let error = served.await.unwrap_err();
        assert!(
            matches!(&error, ServerError::ApiKeyRequired { host } if host == "0.0.0.0"),
            "{error}"
        );
        let config = Config {
            api_key: Some("key".to_owned()),
            ..Config::default()
        };
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let served = server(config).serve(listener, std::future::ready(()));
        served.await.unwrap();
    });
}

#[test]
fn router_answers_503_after_its_server_is_dropped() {
    run(async {
        let server = server(Config::default());
        let router = TowerToHyperService::new(server.router());
        let complete = || {
            let request = Request::post("/v1/completions")
                .header("host", "localhost")
                .header("content-type", "application/json")
                .body(Body::from(r#"{"prompt": "x", "max_tokens": 2}"#));
            router.call(request.unwrap())
        };
        assert_eq!(complete().await.unwrap().status(), StatusCode::OK);
        drop(server);
        let response = complete().await.unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    });
}

#[test]
fn two_models_of_the_same_name_are_rejected() {
    let models = vec![test_model::loaded("m"), test_model::loaded("m")];
    let error = Server::new(models, Config::default()).unwrap_err();
    assert!(matches!(error, ServerError::DuplicateName { name } if name == "m"));
}

#[test]
fn each_request_is_logged_with_method_path_status_and_time() {
    run(async {
        let server = server(Config::default());
        let router = TowerToHyperService::new(server.router());
        let request = Request::get("/v1/models/logged").header("host", "localhost");
        let request = request.body(Body::empty()).unwrap();
        router.call(request).await.unwrap();
        let lines = test_log::lines_with("/v1/models/logged");
        assert!(
            matches!(&lines[..], [line] if line.contains("INFO request{method=GET path=/v1/models/logged}:")
                && line.contains("response status=404 ms=")),
            "{lines:?}"
        );
    });
}
