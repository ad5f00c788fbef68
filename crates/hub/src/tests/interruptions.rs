//! Downloads that break off are continued.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::test_server::Ending;

const NAMES: [&str; 3] = ["config.json", "model.safetensors", "tokenizer.json"];

/// The start of each range that the storage was asked for, of the weights.
fn starts(server: &TestHub, weights: &TestFile) -> Vec<u64> {
    let requests = server.storage.requests().into_iter();
    let of_weights = requests.filter(|request| request.path.contains(&weights.etag));
    of_weights
        .map(|request| {
            let range = request
                .fields
                .get("range")
                .map_or("bytes=0-", String::as_str);
            range["bytes=".len()..range.len() - 1].parse().unwrap()
        })
        .collect()
}

#[test]
fn a_part_of_an_earlier_process_is_continued() {
    let files = model(100_000);
    let weights = &files["model.safetensors"];
    for count in [1, 999, 50_000, 99_999, 100_000] {
        let server = TestHub::start(files.clone(), as_it_is);
        let client = TestClient::new(&server.hub.url());
        let part = client.incomplete(weights);
        fs::create_dir_all(part.parent().unwrap()).unwrap();
        fs::write(&part, &weights.content[..count]).unwrap();
        client.download("hf:owner/name").unwrap();
        client.assert_has(&files, &NAMES);
        let expected: &[u64] = if count == 100_000 {
            &[]
        } else {
            &[count as u64]
        };
        assert_eq!(starts(&server, weights), expected);
    }
}

#[test]
fn a_damaged_part_is_downloaded_from_the_beginning() {
    let files = model(100_000);
    let weights = &files["model.safetensors"];
    let mut changed = weights.content[..60_000].to_vec();
    changed[7] ^= 1;
    for (part, expected) in [
        (changed, vec![60_000, 0]),
        (bytes(200_000), vec![0]),
        (bytes(100_000 - 1), vec![99_999, 0]),
    ] {
        let server = TestHub::start(files.clone(), as_it_is);
        let client = TestClient::new(&server.hub.url());
        let path = client.incomplete(weights);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &part).unwrap();
        client.download("hf:owner/name").unwrap();
        client.assert_has(&files, &NAMES);
        assert_eq!(starts(&server, weights), expected);
    }
}

/// Each answer ends after some bytes, at 20 different lengths.
#[test]
fn broken_connections_are_continued_where_they_ended() {
    let files = model(5_000_000);
    for step in 1..=20_usize {
        let limit = 1_100_000 + 77_777 * step;
        let server = TestHub::start(files.clone(), move |is_storage, _, mut response| {
            if is_storage {
                response.body.truncate(limit);
            }
            response
        });
        let client = TestClient::new(&server.hub.url());
        let (_, events) = client.download("hf:owner/name").unwrap();
        client.assert_has(&files, &NAMES);
        let found = starts(&server, &files["model.safetensors"]);
        let expected: Vec<u64> = (0..5_000_000).step_by(limit).collect();
        assert_eq!(found, expected);
        assert_eq!(events.len(), expected.len() - 1, "{events:?}");
    }
}

#[test]
fn a_server_without_ranges_sends_everything_again() {
    let files = model(5_000_000);
    let weights = files["model.safetensors"].clone();
    let count = AtomicUsize::new(0);
    let whole = weights.content.clone();
    let server = TestHub::start(files.clone(), move |is_storage, request, response| {
        if !is_storage || !request.path.contains(&weights.etag) {
            return response;
        }
        let mut response = TestResponse::new(200, &[], &whole);
        if count.fetch_add(1, Ordering::SeqCst) < 2 {
            response.body.truncate(2_000_000);
        }
        response
    });
    let client = TestClient::new(&server.hub.url());
    client.download("hf:owner/name").unwrap();
    client.assert_has(&files, &NAMES);
}

#[test]
fn passing_errors_are_repeated_and_lasting_ones_reported() {
    for status in [408, 429, 500, 502, 503, 504] {
        for (failures, is_success) in [(1, true), (4, true), (5, false)] {
            let files = model(1000);
            let count = AtomicUsize::new(0);
            let server = TestHub::start(files.clone(), move |is_storage, _, response| {
                if is_storage && count.fetch_add(1, Ordering::SeqCst) < failures {
                    return TestResponse::new(status, &[("Retry-After", "0")], b"");
                }
                response
            });
            let client = TestClient::new(&server.hub.url());
            let found = client.download("hf:owner/name");
            assert_eq!(found.is_ok(), is_success, "{status}: {found:?}");
            if let Ok((_, events)) = found {
                assert_eq!(events.len(), failures);
                client.assert_has(&files, &NAMES);
            }
        }
    }
}

#[test]
fn a_silent_connection_is_given_up_and_continued() {
    let files = model(3_000_000);
    let weights = files["model.safetensors"].etag.clone();
    let count = AtomicUsize::new(0);
    let server = TestHub::start(files.clone(), move |is_storage, request, mut response| {
        if is_storage
            && request.path.contains(&weights)
            && count.fetch_add(1, Ordering::SeqCst) == 0
        {
            response.body.truncate(1_500_000);
            response.ending = Ending::Silence(Duration::from_secs(3));
        }
        response
    });
    let mut client = TestClient::new(&server.hub.url());
    client.settings.stall_timeout = Duration::from_millis(300);
    let (_, events) = client.download("hf:owner/name").unwrap();
    client.assert_has(&files, &NAMES);
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(starts(&server, &files["model.safetensors"]), [0, 1_500_000]);
}

/// A connection that always breaks without progress ends with an error, and the part stays.
#[test]
fn what_was_downloaded_before_an_error_stays() {
    let files = model(2_000_000);
    let weights = files["model.safetensors"].clone();
    let etag = weights.etag.clone();
    let server = TestHub::start(files.clone(), move |is_storage, request, mut response| {
        if is_storage && request.path.contains(&etag) {
            response.body.truncate(1000);
        }
        response
    });
    let client = TestClient::new(&server.hub.url());
    let error = client.error("hf:owner/name").to_string();
    assert!(error.contains("continues"), "{error}");
    assert_eq!(
        fs::read(client.incomplete(&weights)).unwrap(),
        weights.content[..5000]
    );
    drop(server);
    let server = TestHub::start(files.clone(), as_it_is);
    let next = TestClient {
        settings: HubSettings {
            endpoint: server.hub.url(),
            ..client.settings.clone()
        },
        folder: client.folder,
    };
    next.download("hf:owner/name").unwrap();
    next.assert_has(&files, &NAMES);
    assert_eq!(starts(&server, &weights), [5000]);
}
