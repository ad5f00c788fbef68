//! `/v1/embeddings`: texts to vectors, as in OpenAI's API.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nextword_generate::{GenerateError, Pooling};
use serde_json::{Value, json};

use crate::api_error::ApiError;
use crate::loaded_model::Model;
use crate::params::Params;
use crate::parse::parse_token_ids;

/// Maximum number of texts in a request, as in OpenAI's API.
const MAX_INPUTS: usize = 2048;

/// Maximum number of tokens in a request, as in OpenAI's API.
const MAX_TOKENS: usize = 300_000;

/// A validated request.
#[derive(Debug)]
pub(crate) struct EmbeddingRequest {
    inputs: Vec<Vec<u32>>,
    /// Whether vectors are numbers in base64 in place of lists.
    is_base64: bool,
    pooling: Pooling,
}

/// Parses the body: `input` is a text, texts, token ids, or lists of token ids.
pub(crate) fn parse(model: &Model, params: &mut Params<'_>) -> Result<EmbeddingRequest, ApiError> {
    params.ignore(&["user"]);
    params.reject(&["dimensions"])?;
    let format = params.choice("encoding_format", &["float", "base64"])?;
    let pooling = match params.choice("pooling", &["mean", "first"])? {
        Some("first") => Pooling::First,
        _ => Pooling::Mean,
    };
    let inputs = inputs(model, params.get("input"))?;
    let context_length = model.config().context_length;
    if let Some(longest) = inputs
        .iter()
        .map(Vec::len)
        .max()
        .filter(|len| *len > context_length)
    {
        let message = format!(
            "an input has {longest} tokens, but the model's context has {context_length}; hint: shorten it"
        );
        return Err(ApiError::context_length_exceeded("input", message));
    }
    let tokens: usize = inputs.iter().map(Vec::len).sum();
    if tokens > MAX_TOKENS {
        let message = format!(
            "the inputs have {tokens} tokens, more than {MAX_TOKENS}; hint: send fewer of them at once"
        );
        return Err(ApiError::invalid_field("input", message));
    }
    Ok(EmbeddingRequest {
        inputs,
        is_base64: format == Some("base64"),
        pooling,
    })
}

fn inputs(model: &Model, value: Option<&Value>) -> Result<Vec<Vec<u32>>, ApiError> {
    let fail = || {
        let message = "`input` must be a string, a list of strings, a list of token ids, or a list of lists of token \
                       ids, none of them empty";
        ApiError::invalid_field("input", message)
    };
    let text = |text: &str| match text {
        "" => Err(fail()),
        _ => {
            let encoding = model.generator.encode_whole(text);
            let ids = encoding.map(|encoding| encoding.ids);
            ids.map_err(|error| ApiError::invalid_field("input", error.to_string()))
        }
    };
    let ids = |list: &[Value]| parse_token_ids("input", model, list);
    match value {
        Some(Value::String(one)) => Ok(vec![text(one)?]),
        Some(Value::Array(list)) if list.is_empty() => Err(fail()),
        Some(Value::Array(list)) if list.iter().all(Value::is_u64) => Ok(vec![ids(list)?]),
        Some(Value::Array(list)) if list.len() > MAX_INPUTS => {
            let message = format!("`input` may contain at most {MAX_INPUTS} inputs");
            Err(ApiError::invalid_field("input", message))
        }
        Some(Value::Array(list)) => list
            .iter()
            .map(|input| match input {
                Value::String(one) => text(one),
                Value::Array(list) if !list.is_empty() && list.iter().all(Value::is_u64) => {
                    ids(list)
                }
                _ => Err(fail()),
            })
            .collect(),
        _ => Err(fail()),
    }
}

/// Computes the embeddings, one text after the other. Returns the body of the response.
pub(crate) fn respond(model: &Model, request: &EmbeddingRequest) -> Result<String, ApiError> {
    let mut data = Vec::with_capacity(request.inputs.len());
    for (index, ids) in request.inputs.iter().enumerate() {
        let embedding = model.generator.embed(ids, request.pooling);
        let embedding = embedding.map_err(|error| match error {
            GenerateError::NotFinite { .. } => ApiError::panicked(),
            error => ApiError::invalid_field("input", error.to_string()),
        })?;
        let embedding = if request.is_base64 {
            let bytes: Vec<u8> = embedding.iter().flat_map(|x| x.to_le_bytes()).collect();
            json!(STANDARD.encode(&bytes))
        } else {
            json!(embedding)
        };
        data.push(json!({"object": "embedding", "index": index, "embedding": embedding}));
    }
    let tokens: usize = request.inputs.iter().map(Vec::len).sum();
    let body = json!({
        "object": "list", "data": data, "model": model.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    });
    Ok(body.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{Config, test_model};

    fn response(body: &Value) -> Result<Value, ApiError> {
        let (model, _engine) = Model::start(test_model::loaded("m"), &Config::default()).unwrap();
        let text = body.to_string();
        let mut params = Params::new(body, text.as_bytes()).unwrap();
        let request = parse(&model, &mut params)?;
        Ok(serde_json::from_str(&respond(&model, &request)?).unwrap())
    }

    #[test]
    fn an_embedding_does_not_depend_on_the_other_inputs_or_their_form() {
        let alone = response(&json!({"input": "ab"})).unwrap();
        let ids = response(&json!({"input": [97, 98]})).unwrap();
        let several = response(&json!({"input": ["x", "ab"]})).unwrap();
        let embedding = |value: &Value, index: usize| value["data"][index]["embedding"].clone();
        assert_eq!(embedding(&alone, 0), embedding(&ids, 0));
        assert_eq!(embedding(&alone, 0), embedding(&several, 1));
        assert_ne!(embedding(&several, 0), embedding(&several, 1));
        assert_eq!(
            several["usage"],
            json!({"prompt_tokens": 3, "total_tokens": 3})
        );
        assert_eq!(several["data"][1]["index"], 1);
        let length: f64 = embedding(&alone, 0)
            .as_array()
            .unwrap()
            .iter()
            .map(|x| x.as_f64().unwrap().powi(2))
            .sum();
        assert!((length - 1.0).abs() < 1e-5);
    }

    #[test]
    fn base64_has_the_bits_of_the_numbers() {
        let numbers = response(&json!({"input": "ab"})).unwrap();
        let encoded = response(&json!({"input": "ab", "encoding_format": "base64"})).unwrap();
        let numbers = numbers["data"][0]["embedding"].as_array().unwrap();
        let bytes: Vec<u8> = numbers
            .iter()
            .flat_map(|x| (x.as_f64().unwrap() as f32).to_le_bytes())
            .collect();
        let text = encoded["data"][0]["embedding"].as_str().unwrap();
        assert_eq!(STANDARD.decode(text).unwrap(), bytes);
    }

    #[test]
    fn inputs_that_cannot_be_embedded_are_errors() {
        let message = |body: Value| response(&body).unwrap_err().message;
        assert!(message(json!({"input": ""})).contains("none of them empty"));
        assert!(message(json!({"input": [1, "a"]})).contains("must be a string"));
        assert!(message(json!({"input": vec!["a"; 2049]})).contains("at most 2048"));
        assert!(message(json!({"input": "a".repeat(65)})).contains("65 tokens"));
        assert!(message(json!({"input": "a", "pooling": "first"})).contains("does not stand for"));
        let fewer = json!({"input": "a", "dimensions": 3});
        assert!(message(fewer).contains("`dimensions` is not supported"));
    }
}
