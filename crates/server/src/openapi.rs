//! The `OpenAPI` description. It is written by hand; the tests below hold it equal to the routes and the parsers.

use axum::body::Body;
use axum::http::Response;

use crate::page::file_response;

const DOCUMENT: &str = include_str!("../page/openapi.json");

pub(crate) fn document() -> Response<Body> {
    file_response(DOCUMENT, "application/json")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use axum::http::{Method, Request, StatusCode};
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;
    use serde_json::{Value, json};

    use super::*;
    use crate::api_error::ApiError;
    use crate::loaded_model::Model;
    use crate::middleware::HostCheck;
    use crate::params::Params;
    use crate::routes::{AppState, handlers, router};
    use crate::{Config, embeddings, explain, parse, test_model, tokens};

    /// Routes of the web pages, which are not part of the API.
    const PAGE_ROUTES: [&str; 6] = [
        "/",
        "/style.css",
        "/app.js",
        "/icon.svg",
        "/explain.css",
        "/explain.js",
    ];

    type ParseFn = fn(Arc<Model>, &mut Params<'_>) -> Result<(), ApiError>;

    /// Each route with a request body, its parser, and a minimal body.
    fn parsers() -> [(&'static str, ParseFn, Value); 6] {
        let messages = json!([{"role": "user", "content": "x"}]);
        [
            (
                "/v1/completions",
                |model, params| parse::completion(model, params).map(drop),
                json!({"prompt": "x"}),
            ),
            (
                "/v1/chat/completions",
                |model, params| parse::chat(model, params).map(drop),
                json!({"messages": messages}),
            ),
            (
                "/v1/embeddings",
                |model, params| embeddings::parse(&model, params).map(drop),
                json!({"input": "x"}),
            ),
            (
                "/tokenize",
                |model, params| tokens::to_tokens(&model, params).map(drop),
                json!({"content": "x"}),
            ),
            (
                "/detokenize",
                |model, params| tokens::to_text(&model, params).map(drop),
                json!({"tokens": [1]}),
            ),
            (
                "/explain",
                |_, params| explain::parse(params).map(drop),
                json!({}),
            ),
        ]
    }

    /// The JSON text of a body.
    fn source(body: &Value) -> Vec<u8> {
        body.to_string().into_bytes()
    }

    fn description() -> Value {
        serde_json::from_str(DOCUMENT).unwrap()
    }

    /// The names of all properties of a schema of `document`, including those of `allOf`.
    fn properties(document: &Value, schema: &Value) -> BTreeSet<String> {
        let own = schema["properties"].as_object().into_iter();
        let mut names: BTreeSet<String> = own.flat_map(|own| own.keys().cloned()).collect();
        for part in schema["allOf"].as_array().into_iter().flatten() {
            let part = part["$ref"].as_str().unwrap().trim_start_matches('#');
            names.extend(properties(document, document.pointer(part).unwrap()));
        }
        names
    }

    fn body_pointer(route: &str) -> String {
        let route = route.replace('/', "~1");
        format!("/paths/{route}/post/requestBody/content/application~1json/schema")
    }

    #[test]
    fn every_route_and_method_is_described_and_no_other() {
        let document = description();
        let described: BTreeSet<&str> = document["paths"]
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        let routes = handlers().into_iter().map(|(path, _)| path);
        let routes: BTreeSet<&str> = routes.filter(|path| !PAGE_ROUTES.contains(path)).collect();
        assert_eq!(described, routes);

        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let app = Arc::new(AppState::new(Vec::new(), Config::default()));
        let router = TowerToHyperService::new(router(app, HostCheck::Loopback));
        for path in described {
            for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE] {
                let request = Request::builder().method(method.clone()).uri(path);
                let request = request.header("host", "localhost").body(Body::empty());
                let response = runtime.block_on(router.call(request.unwrap())).unwrap();
                let exists = response.status() != StatusCode::METHOD_NOT_ALLOWED;
                let name = method.as_str().to_lowercase();
                let is_described = document["paths"][path].get(&name).is_some();
                assert_eq!(is_described, exists, "{method} {path}");
            }
        }
    }

    #[test]
    fn described_fields_are_exactly_those_that_the_parsers_accept() {
        let document = description();
        let (model, _engine) = Model::start(test_model::loaded("m"), &Config::default()).unwrap();
        let model = Arc::new(model);
        for (route, parse, body) in parsers() {
            let mut params = Params::new(&body, source(&body)).unwrap();
            params.string("model").unwrap(); // Read for every route, to find the parser's model.
            parse(model.clone(), &mut params).unwrap();
            let accepted: BTreeSet<String> =
                params.accepted().iter().map(ToString::to_string).collect();
            let schema = document.pointer(&body_pointer(route)).unwrap();
            assert_eq!(properties(&document, schema), accepted, "{route}");
        }
    }

    /// Follows the `$ref` of a schema.
    fn resolve<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
        match schema["$ref"].as_str() {
            Some(pointer) => document.pointer(pointer.trim_start_matches('#')).unwrap(),
            None => schema,
        }
    }

    /// Values that `schema` accepts and rejects, at its limits.
    fn examples(document: &Value, schema: &Value) -> (Vec<Value>, Vec<Value>) {
        let schema = resolve(document, schema);
        let limit = |name: &str| schema.get(name).and_then(Value::as_u64);
        if let Some(constant) = schema.get("const") {
            return (vec![constant.clone()], vec![json!("other")]);
        }
        if let Some(names) = schema["enum"].as_array() {
            return (names.clone(), vec![json!("other"), json!(1)]);
        }
        if let Some(choices) = schema["oneOf"].as_array().or(schema["anyOf"].as_array()) {
            let valid = choices
                .iter()
                .flat_map(|choice| examples(document, choice).0);
            return (valid.collect(), vec![json!({}), json!(true)]);
        }
        let kind = schema["type"]
            .as_array()
            .map_or(&schema["type"], |kinds| &kinds[0]);
        match kind.as_str() {
            Some("boolean") => (
                vec![json!(true), json!(false)],
                vec![json!(1), json!("true")],
            ),
            Some("string") => {
                let (min, max) = (limit("minLength").unwrap_or(0), limit("maxLength"));
                let text = |len: u64| json!("x".repeat(len as usize));
                let mut valid = vec![text(min), text(min + 1)];
                let mut invalid = vec![json!(1), json!({})];
                valid.extend(max.map(text));
                invalid.extend(max.map(|max| text(max + 1)));
                invalid.extend(min.checked_sub(1).map(text));
                (valid, invalid)
            }
            Some(kind @ ("integer" | "number")) => {
                let number = |x: f64| match kind {
                    "integer" => json!(x as i64),
                    _ => json!(x),
                };
                let (mut valid, mut invalid) = (vec![], vec![json!("1"), json!([1])]);
                invalid.extend((kind == "integer").then(|| json!(1.5)));
                for (name, step) in [("minimum", -1.0), ("maximum", 1.0)] {
                    let limit = schema.get(name).and_then(Value::as_f64);
                    valid.extend(limit.map(number));
                    invalid.extend(limit.map(|limit| number(limit + step)));
                }
                valid.extend(valid.is_empty().then(|| number(-7.0)));
                (valid, invalid)
            }
            Some("array") => {
                let (valid, invalid) = examples(document, &schema["items"]);
                let list = |item: &Value, len: u64| json!(vec![item.clone(); len as usize]);
                let min = limit("minItems").unwrap_or(0);
                let lists = valid.iter().map(|item| list(item, min.max(1)));
                let mut lists: Vec<Value> = lists.collect();
                let mut others: Vec<Value> = invalid.iter().map(|item| list(item, 1)).collect();
                others.push(json!({}));
                let empty = if min == 0 { &mut lists } else { &mut others };
                empty.push(json!([]));
                if let Some(max) = limit("maxItems") {
                    lists.push(list(&valid[0], max));
                    others.push(list(&valid[0], max + 1));
                }
                (lists, others)
            }
            Some("object") => object_examples(document, schema),
            // Accepted without effect.
            _ => (vec![json!(1), json!("x"), json!({})], Vec::new()),
        }
    }

    fn object_examples(document: &Value, schema: &Value) -> (Vec<Value>, Vec<Value>) {
        let (mut valid, mut invalid) = (vec![json!({})], vec![json!("x"), json!([1])]);
        let with = |base: &Value, key: &str, value: &Value| {
            let mut object = base.clone();
            object[key] = value.clone();
            object
        };
        for key in schema["required"].as_array().into_iter().flatten() {
            let key = key.as_str().unwrap();
            let (values, _) = examples(document, &schema["properties"][key]);
            invalid.extend_from_slice(&valid); // Without the key.
            let base = valid[0].clone();
            valid = values.iter().map(|value| with(&base, key, value)).collect();
        }
        let base = valid[0].clone();
        for (key, property) in schema["properties"].as_object().into_iter().flatten() {
            let (values, others) = examples(document, property);
            valid.extend(values.iter().map(|value| with(&base, key, value)));
            invalid.extend(others.iter().map(|value| with(&base, key, value)));
        }
        let additional = &schema["additionalProperties"];
        if additional == &json!(false) {
            invalid.push(with(&base, "surplus", &json!(1)));
        } else if let Some(property) = Some(additional).filter(|schema| schema.is_object()) {
            let (values, others) = examples(document, property);
            valid.extend(values.iter().map(|value| json!({"0": value})));
            invalid.extend(others.iter().map(|value| json!({"0": value})));
            invalid.push(json!({"x": values[0]}));
        }
        (valid, invalid)
    }

    /// Other fields that a value of `field` needs.
    fn context(route: &str, field: &str, value: &Value) -> Value {
        match field {
            "top_logprobs" => json!({"logprobs": true}),
            "stream_options" => json!({"stream": true}),
            "best_of" => json!({"n": value}),
            "tools" => json!({"tool_choice": "none"}),
            // Without it, the model's context is the limit.
            "max_tokens" | "max_completion_tokens" if route.starts_with("/v1/") => {
                json!({"overflow": "slide"})
            }
            // Otherwise 128 prompts have too long a response.
            "prompt" if route == "/v1/completions" => json!({"max_tokens": 1}),
            _ => json!({}),
        }
    }

    #[test]
    fn parsers_accept_and_reject_what_the_schema_does() {
        let document = description();
        let base = test_model::loaded("m");
        let adapter = test_model::adapter("a", &base, 1);
        let (base, _engine) = Model::start(base, &Config::default()).unwrap();
        // Every field is for an adapter, too.
        let (engine, row_adapter) = (base.engine.clone(), Some(adapter.adapter));
        let model = Arc::new(Model::new(adapter.model, engine, row_adapter));
        for (route, parse, minimal) in parsers() {
            let accepts = |body: &Value| {
                let mut params = Params::new(body, source(body)).unwrap();
                let name = params.string("model").map(drop);
                let parsed = name.and_then(|()| parse(model.clone(), &mut params));
                parsed.and_then(|()| params.reject_unknown()).is_ok()
            };
            for field in minimal.as_object().unwrap().keys() {
                let mut body = minimal.clone();
                body.as_object_mut().unwrap().remove(field);
                assert!(!accepts(&body), "{route} requires {field}");
            }
            let schema = document.pointer(&body_pointer(route)).unwrap();
            let common = &document["components"]["schemas"]["CommonParams"]["properties"];
            for field in properties(&document, schema) {
                let property = schema["properties"].get(&field).unwrap_or(&common[&field]);
                let (valid, invalid) = examples(&document, property);
                assert!(!valid.is_empty());
                let valid = valid.into_iter().map(|value| (value, true));
                for (value, expected) in
                    valid.chain(invalid.into_iter().map(|value| (value, false)))
                {
                    let mut body = minimal.clone();
                    let context = context(route, &field, &value);
                    let fields = body.as_object_mut().unwrap();
                    fields.extend(context.as_object().unwrap().clone());
                    fields.insert(field.clone(), value);
                    assert_eq!(accepts(&body), expected, "{route} {field}: {body}");
                }
            }
        }
    }
}
