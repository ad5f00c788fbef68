//! Server-sent events, as OpenAI's clients read them.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Response, header};
use futures_util::stream;
use serde_json::Value;

use crate::answer::Piece;
use crate::api_error::ApiError;
use crate::engine::{Update, UpdateKind, Updates};
use crate::reply::{Form, Reply};

/// A comment is sent after so long without a token, so that nobody on the way gives up.
const PATIENCE: Duration = Duration::from_secs(15);

/// An answer on its way out.
struct State {
    reply: Reply,
    /// What stands around the text of each answer's chunks.
    around: Vec<Option<(String, String)>>,
    updates: Updates,
    ready: VecDeque<Bytes>,
    open: usize,
    done: bool,
}

/// `reply` as a stream of events.
pub(crate) fn response(reply: Reply, updates: Updates) -> Response<Body> {
    let mut state = State {
        open: reply.count,
        ready: VecDeque::new(),
        done: false,
        around: (0..reply.count).map(|i| reply.around_text(i)).collect(),
        reply,
        updates,
    };
    state.begin();
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

impl State {
    fn begin(&mut self) {
        for index in 0..self.reply.count {
            if self.reply.form == Form::Chat {
                let opening = self.reply.opening(index);
                self.send(&opening);
            } else if self.reply.echo(index).is_some() && !self.reply.scores_prompt() {
                let prompt = self.reply.prompt(index, &[]);
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
            match tokio::time::timeout(PATIENCE, self.updates.recv()).await {
                Ok(Some(update)) => self.take(update),
                Ok(None) => self.fail(&ApiError::given_up()),
                Err(_) => self.ready.push_back(Bytes::from_static(b": waiting\n\n")),
            }
        }
    }

    fn take(&mut self, update: Update) {
        let index = update.index;
        match update.kind {
            UpdateKind::Prompt(tokens) => {
                let prompt = self.reply.prompt(index, &tokens);
                self.send(&prompt);
            }
            UpdateKind::Piece(piece) => self.send_piece(index, piece),
            UpdateKind::End {
                rest,
                finish,
                tokens,
                reused,
            } => {
                if !rest.is_empty() {
                    self.send_piece(index, rest);
                }
                let end = self.reply.end(index, &finish);
                self.send(&end);
                self.reply.usage.completion += tokens;
                self.reply.usage.cached += reused;
                self.open -= 1;
                if self.open == 0 {
                    self.finish();
                }
            }
            UpdateKind::Failed(error) => self.fail(&error),
        }
    }

    fn finish(&mut self) {
        if self.reply.include_usage {
            let usage = self.reply.usage_chunk();
            self.send(&usage);
        }
        self.ready
            .push_back(Bytes::from_static(b"data: [DONE]\n\n"));
        self.done = true;
    }

    /// Tells a failure in the middle of a stream, and ends it.
    fn fail(&mut self, error: &ApiError) {
        self.send(&error.json());
        self.done = true;
        self.updates.close();
    }

    fn send_piece(&mut self, index: usize, piece: Piece) {
        let Some((before, behind)) = &self.around[index] else {
            let text = self.reply.text(index, piece);
            return self.send(&text);
        };
        let text = Value::String(piece.text);
        self.ready
            .push_back(event(&format!("{before}{text}{behind}")));
    }

    fn send(&mut self, value: &Value) {
        self.ready.push_back(event(&value.to_string()));
    }
}

/// One event. Characters that some clients take for line breaks are written as escapes.
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
    fn an_event_is_one_line_for_every_reader() {
        let text = "a\nb\u{2028}c\u{85}d\u{2029}e\r";
        let bytes = event(&serde_json::json!({ "text": text }).to_string());
        let line = String::from_utf8_lossy(&bytes).into_owned();
        let body = line.trim_end_matches('\n');
        assert!(
            !body.contains(['\n', '\r', '\u{2028}', '\u{85}', '\u{2029}']),
            "{line}"
        );
        let back: Option<Value> = body
            .strip_prefix("data: ")
            .and_then(|json| serde_json::from_str(json).ok());
        assert_eq!(back, Some(serde_json::json!({ "text": text })));
    }
}
