//! Streams completions as server-sent events in OpenAI's format.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Response, header};
use futures_util::stream;
use serde_json::Value;

use crate::api_error::ApiError;
use crate::engine::{Update, UpdateKind, Updates};
use crate::output::TextDelta;
use crate::response::{Endpoint, ResponseBuilder};

/// Interval of keep-alive comments while no token arrives, so that clients and proxies do not time out.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// State of a response stream.
struct EventStream {
    response: ResponseBuilder,
    /// The constant JSON around the text of each choice's chunks.
    templates: Vec<Option<(String, String)>>,
    updates: Updates,
    ready: VecDeque<Bytes>,
    unfinished: usize,
    done: bool,
}

/// Streams `response` as server-sent events.
pub(crate) fn stream_response(response: ResponseBuilder, updates: Updates) -> Response<Body> {
    let mut state = EventStream {
        unfinished: response.choice_count,
        ready: VecDeque::new(),
        done: false,
        templates: (0..response.choice_count)
            .map(|index| response.text_chunk_template(index))
            .collect(),
        response,
        updates,
    };
    state.send_opening();
    let events = stream::unfold(state, |mut state| async move {
        let event = state.next().await?;
        Some((Ok::<Bytes, Infallible>(event), state))
    });
    let mut response = Response::new(Body::from_stream(events));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

impl EventStream {
    fn send_opening(&mut self) {
        for index in 0..self.response.choice_count {
            if self.response.endpoint == Endpoint::Chat {
                let chunk = self.response.role_chunk(index);
                self.send(&chunk);
            } else if self.response.echo(index).is_some() && !self.response.scores_prompt() {
                let prompt = self.response.prompt_chunk(index, Vec::new());
                self.send(&prompt);
            }
        }
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.done {
                return None;
            }
            match tokio::time::timeout(KEEP_ALIVE_INTERVAL, self.updates.recv()).await {
                Ok(Some(update)) => self.handle_update(update),
                Ok(None) => self.fail(&ApiError::aborted()),
                Err(_) => self.ready.push_back(Bytes::from_static(b": waiting\n\n")),
            }
        }
    }

    fn handle_update(&mut self, update: Update) {
        let index = update.index;
        match update.kind {
            UpdateKind::Prompt(tokens) => {
                let prompt = self.response.prompt_chunk(index, tokens);
                self.send(&prompt);
            }
            UpdateKind::Delta(delta) => self.send_delta(index, delta),
            UpdateKind::End {
                last_delta,
                finish,
                tokens,
                cached_tokens,
            } => {
                if !last_delta.is_empty() {
                    self.send_delta(index, last_delta);
                }
                let end = self.response.finish_chunk(index, &finish);
                self.send(&end);
                self.response.usage.completion += tokens;
                self.response.usage.cached += cached_tokens;
                self.unfinished -= 1;
                if self.unfinished == 0 {
                    self.finish();
                }
            }
            UpdateKind::Failed(error) => self.fail(&error),
        }
    }

    fn finish(&mut self) {
        if self.response.include_usage {
            let usage = self.response.usage_chunk();
            self.send(&usage);
        }
        self.ready
            .push_back(Bytes::from_static(b"data: [DONE]\n\n"));
        self.done = true;
    }

    /// Sends an error event and ends the stream.
    fn fail(&mut self, error: &ApiError) {
        self.send(&error.to_json());
        self.done = true;
        self.updates.close();
    }

    fn send_delta(&mut self, index: usize, delta: TextDelta) {
        let Some((prefix, suffix)) = &self.templates[index] else {
            let chunk = self.response.text_chunk(index, delta);
            return self.send(&chunk);
        };
        let text = Value::String(delta.text);
        self.ready
            .push_back(event(&format!("{prefix}{text}{suffix}")));
    }

    fn send(&mut self, value: &Value) {
        self.ready.push_back(event(&value.to_string()));
    }
}

/// Formats one event. Characters that some clients treat as line breaks are escaped.
fn event(json: &str) -> Bytes {
    if json.is_ascii() {
        return Bytes::from(format!("data: {json}\n\n"));
    }
    let mut json = json.to_owned();
    for (character, escape) in [
        ('\u{85}', "\\u0085"),
        ('\u{2028}', "\\u2028"),
        ('\u{2029}', "\\u2029"),
    ] {
        if json.contains(character) {
            json = json.replace(character, escape);
        }
    }
    Bytes::from(format!("data: {json}\n\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_is_a_single_line_for_all_clients() {
        let text = "a\nb\u{2028}c\u{85}d\u{2029}e\r";
        let bytes = event(&serde_json::json!({ "text": text }).to_string());
        let line = String::from_utf8_lossy(&bytes).into_owned();
        let body = line.trim_end_matches('\n');
        assert!(
            !body.contains(['\n', '\r', '\u{2028}', '\u{85}', '\u{2029}']),
            "{line}"
        );
        let decoded: Option<Value> = body
            .strip_prefix("data: ")
            .and_then(|json| serde_json::from_str(json).ok());
        assert_eq!(decoded, Some(serde_json::json!({ "text": text })));
    }
}
