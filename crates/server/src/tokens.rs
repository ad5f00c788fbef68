//! Text to tokens and back, without a model.

use std::ops::Range;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use nextword_data::{Encoding, Tokenizer};
use serde_json::{Value, json};

use crate::api_error::{ApiError, json_response};
use crate::params::Params;
use crate::prepare::read_ids;
use crate::routes::{Answer, App};

/// `{"content": TEXT, "with_pieces": BOOL}` to token ids, or to ids with their texts and places.
pub(crate) async fn tokenize(State(app): State<Arc<App>>, request: Request) -> Answer {
    let value = app.read(request, |model, body| {
        let mut params = Params::new(body)?;
        let text = params.string("content")?.or(params.string("prompt")?);
        let text = text.ok_or_else(|| ApiError::field("content", "`content` is missing"))?;
        let with_pieces = params.flag("with_pieces")?;
        let tokenizer = model.tokenizer();
        let encoding = tokenizer.encode(text);
        let tokens = if with_pieces {
            let places = places(&**tokenizer, text, &encoding);
            let all = encoding.ids.iter().zip(places);
            all.map(|(id, place)| {
                json!({
                    "id": id, "piece": tokenizer.token(*id),
                    "start": place.as_ref().map(|place| place.start),
                    "end": place.as_ref().map(|place| place.end),
                })
            })
            .collect()
        } else {
            json!(encoding.ids)
        };
        Ok(json!({
            "tokens": tokens, "count": encoding.ids.len(), "unknown": encoding.unknown,
            "max_model_len": model.config().context_length,
        }))
    });
    Ok(json_response(StatusCode::OK, value.await?.to_string()))
}

/// `{"tokens": [ID]}` to text.
pub(crate) async fn detokenize(State(app): State<Arc<App>>, request: Request) -> Answer {
    let value = app.read(request, |model, body| {
        let list = Params::new(body)?.get("tokens").and_then(Value::as_array);
        let list =
            list.ok_or_else(|| ApiError::field("tokens", "`tokens` must be a list of ids"))?;
        let ids = read_ids("tokens", &model, list)?;
        Ok(json!({"content": model.tokenizer().decode(&ids)}))
    });
    Ok(json_response(StatusCode::OK, value.await?.to_string()))
}

/// The bytes of `text` that each of its tokens stands for; `None` from where the tokenizer has changed
/// them (another case) on, and everywhere if it passed over what it does not know.
fn places(tokenizer: &dyn Tokenizer, text: &str, encoding: &Encoding) -> Vec<Option<Range<usize>>> {
    let mut at = 0;
    let mut is_lost = !encoding.unknown.is_empty();
    let place = |id: &u32| {
        if is_lost {
            return None;
        }
        let bytes = tokenizer.bytes(*id).filter(|bytes| !bytes.is_empty());
        let bytes = bytes.or_else(|| tokenizer.token(*id).map(String::into_bytes));
        let bytes = bytes.unwrap_or_default();
        let rest = &text.as_bytes()[at..];
        // Some tokenizers put a space before the text, some leave out those between words.
        let spaces = |bytes: &[u8]| bytes.len() - bytes.trim_ascii_start().len();
        let (skipped, token) = if rest.starts_with(&bytes) {
            (0, bytes.as_slice())
        } else {
            (spaces(rest), &bytes[spaces(&bytes)..])
        };
        is_lost = token.is_empty() || !rest[skipped..].starts_with(token);
        (!is_lost).then(|| {
            let start = at + skipped;
            at = start + token.len();
            start..at
        })
    };
    encoding.ids.iter().map(place).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use nextword_data::{TokenizerConfig, TokenizerKind, build_tokenizer};

    use super::*;

    #[test]
    fn tokens_have_places_in_bytes() {
        let text = "aé <EOS>b  a";
        for (kind, expected) in [
            (TokenizerKind::Byte, "a|?|?| |<EOS>|b| | |a"),
            (TokenizerKind::Char, "a|é| |<EOS>|b| | |a"),
            (TokenizerKind::Word, "aé|<EOS>|b|a"),
        ] {
            let config = TokenizerConfig {
                kind,
                ..TokenizerConfig::default()
            };
            let texts = std::iter::once(Ok("aé b  a".to_owned()));
            let tokenizer = build_tokenizer(&config, texts).unwrap();
            let places = places(&*tokenizer, text, &tokenizer.encode(text));
            let shown = places.into_iter().map(|place| text.get(place?));
            let shown: Vec<&str> = shown.map(|text| text.unwrap_or("?")).collect();
            assert_eq!(shown.join("|"), expected);
            let passed_over = "zz a"; // Begins with nothing that the vocabulary of words has.
            let encoding = tokenizer.encode(passed_over);
            if kind != TokenizerKind::Byte {
                let places = super::places(&*tokenizer, passed_over, &encoding);
                assert!(places.iter().all(Option::is_none), "{places:?}");
            }
        }
    }
}
