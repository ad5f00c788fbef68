//! `/tokenize` and `/detokenize`: text to token ids and back.

use std::ops::Range;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use nextword_data::{Encoding, Tokenizer};
use serde_json::{Value, json};

use crate::api_error::{ApiError, json_response};
use crate::loaded_model::Model;
use crate::messages::Conversation;
use crate::params::Params;
use crate::parse::{encode_conversation, parse_token_ids};
use crate::routes::{AppState, HandlerResult};

pub(crate) async fn tokenize(State(app): State<Arc<AppState>>, request: Request) -> HandlerResult {
    let value = app.parse_json(request, |model, params| to_tokens(&model, params));
    Ok(json_response(StatusCode::OK, value.await?.to_string()))
}

pub(crate) async fn detokenize(
    State(app): State<Arc<AppState>>,
    request: Request,
) -> HandlerResult {
    let value = app.parse_json(request, |model, params| to_text(&model, params));
    Ok(json_response(StatusCode::OK, value.await?.to_string()))
}

/// `{"content": TEXT, "with_pieces": BOOL, "add_special_tokens": BOOL}` to token ids, or to ids with their texts and
/// byte ranges; `{"messages": [MESSAGE]}` to those of the prompt that a chat would have.
pub(crate) fn to_tokens(model: &Model, params: &mut Params<'_>) -> Result<Value, ApiError> {
    let content = params.string("content")?.or(params.string("prompt")?);
    let with_pieces = params.flag("with_pieces")?;
    let add_special_tokens = params.flag("add_special_tokens")?;
    let conversation = Conversation::parse_optional(params)?;
    let tokenizer = model.tokenizer();
    let (text, encoding) = match (content, conversation) {
        (_, Some(conversation)) => encode_conversation(model, &conversation)?,
        (Some(text), None) => {
            let invalid = |problem: String| ApiError::invalid_field("content", problem);
            let encoding = if add_special_tokens {
                let encoding = model.generator.encode(text);
                encoding.map_err(|e| invalid(e.to_string()))?
            } else {
                let encoding = tokenizer.try_encode(text);
                encoding.map_err(|e| invalid(e.to_string()))?
            };
            (text.to_owned(), encoding)
        }
        (None, None) => {
            let message = "`content` is missing; hint: send a text, or the `messages` of a chat";
            return Err(ApiError::invalid_field("content", message));
        }
    };
    let text = text.as_str();
    let tokens = if with_pieces {
        // The tokens before a text have no range.
        let own = tokenizer.try_encode(text);
        let own = own.map_err(|e| ApiError::invalid_field("content", e.to_string()))?;
        // Of a chat, the text of a special token within a message has other ids.
        let ranges = if !encoding.ids.ends_with(&own.ids) {
            Vec::new()
        } else if own.unknown_count == 0 {
            byte_ranges(&**tokenizer, text, &own)
        } else {
            tokenizer.encode_with_ranges(text).1
        };
        let before = encoding.ids.len().saturating_sub(ranges.len());
        let ranges = std::iter::repeat_n(None, before).chain(ranges);
        let tokens = encoding.ids.iter().zip(ranges);
        tokens
            .map(|(id, range)| {
                json!({
                    "id": id, "piece": tokenizer.token_text(*id),
                    "start": range.as_ref().map(|range| range.start),
                    "end": range.as_ref().map(|range| range.end),
                })
            })
            .collect()
    } else {
        json!(encoding.ids)
    };
    Ok(json!({
        "tokens": tokens, "count": encoding.ids.len(), "unknown": encoding.unknown,
        "unknown_count": encoding.unknown_count, "max_model_len": model.config().context_length,
    }))
}

/// `{"tokens": [ID], "skip_special_tokens": BOOL}` to text. Special tokens are skipped by default.
pub(crate) fn to_text(model: &Model, params: &mut Params<'_>) -> Result<Value, ApiError> {
    let list = params.get("tokens").and_then(Value::as_array);
    let list = list
        .ok_or_else(|| ApiError::invalid_field("tokens", "`tokens` must be a list of token ids"))?;
    let ids = parse_token_ids("tokens", model, list)?;
    let tokenizer = model.tokenizer();
    let text = match params.optional_flag("skip_special_tokens")? {
        Some(false) => tokenizer.decode_with_special_tokens(&ids),
        _ => tokenizer.decode(&without_special(&**tokenizer, &ids)),
    };
    Ok(json!({"content": text}))
}

/// `ids` without special tokens that have a text in a completion: the unknown token of words and characters.
fn without_special(tokenizer: &dyn Tokenizer, ids: &[u32]) -> Vec<u32> {
    let special = tokenizer.special_texts();
    let is_special = |id: u32| {
        let text = tokenizer.id_to_token(id);
        text.is_some_and(|text| special.contains(&text))
    };
    ids.iter().copied().filter(|id| !is_special(*id)).collect()
}

/// The byte range of each token in `text`. `None` from the first token whose text differs from the input
/// (as after lowercasing).
fn byte_ranges(
    tokenizer: &dyn Tokenizer,
    text: &str,
    encoding: &Encoding,
) -> Vec<Option<Range<usize>>> {
    let mut at = 0;
    let mut is_lost = false;
    let range = |id: &u32| {
        if is_lost {
            return None;
        }
        let bytes = tokenizer.token_bytes(*id).filter(|bytes| !bytes.is_empty());
        let bytes = bytes.or_else(|| tokenizer.token_text(*id).map(String::into_bytes));
        let bytes = bytes.unwrap_or_default();
        let rest = &text.as_bytes()[at..];
        // Some tokenizers prepend a space to the text, some drop spaces between words.
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
    encoding.ids.iter().map(range).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use nextword_data::{TokenizerConfig, TokenizerKind, build_tokenizer};

    use super::*;
    use crate::{Config, test_model};

    #[test]
    fn special_tokens_in_messages_are_text_and_have_no_byte_ranges() {
        let (model, _engine) = Model::start(test_model::loaded("m"), &Config::default()).unwrap();
        let tokens = |body: &Value| {
            let text = body.to_string();
            let mut params = Params::new(body, text.as_bytes()).unwrap();
            to_tokens(&model, &mut params).unwrap()["tokens"].clone()
        };
        let messages = json!([{"role": "user", "content": "a<EOS>"}]);
        assert_eq!(tokens(&json!({"content": "a<EOS>"})), json!([97, 256]));
        let chat = json!({"messages": messages});
        assert_eq!(tokens(&chat), json!([97, 60, 69, 79, 83, 62]));
        let pieces = tokens(&json!({"messages": messages, "with_pieces": true}));
        assert_eq!(pieces.as_array().map(Vec::len), Some(6));
        assert_eq!(pieces[1]["start"], Value::Null);
    }

    #[test]
    fn tokens_have_byte_ranges() {
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
            let ranges = byte_ranges(&*tokenizer, text, &tokenizer.encode(text));
            let shown = ranges.into_iter().map(|range| text.get(range?));
            let shown: Vec<&str> = shown.map(|text| text.unwrap_or("?")).collect();
            assert_eq!(shown.join("|"), expected);
            let unknown = "zz a"; // Begins with a word that is not in the vocabulary.
            let (_, ranges) = tokenizer.encode_with_ranges(unknown);
            let last = ranges.last().and_then(Option::clone);
            assert_eq!(last, Some(3..4), "{kind:?}");
        }
    }
}
