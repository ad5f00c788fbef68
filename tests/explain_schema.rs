//! The JSON of a report matches the published schema.

use nextword_explain::{ReportOptions, SCHEMA};
use serde_json::Value;

use crate::explain_report::{explainer, options};
use crate::random_models::random_config;

/// The keywords that `validate` checks, and those that say nothing about a value. Another one is a gap in the
/// test: a crate that knows all would change features of `num-traits` and `serde_json`, and with them Burn would
/// be compiled once more for the tests.
const KEYWORDS: [&str; 13] = [
    "$defs",
    "$id",
    "$ref",
    "$schema",
    "additionalProperties",
    "anyOf",
    "const",
    "description",
    "items",
    "properties",
    "required",
    "title",
    "type",
];

/// Violations of `schema` in `value`.
pub(crate) fn validate(
    value: &Value,
    schema: &Value,
    root: &Value,
    path: &str,
) -> Result<(), String> {
    for keyword in schema.as_object().unwrap().keys() {
        let is_known = KEYWORDS.contains(&keyword.as_str());
        assert!(is_known, "{path}: the keyword `{keyword}` is not checked");
    }
    if let Some(name) = schema.get("$ref").and_then(Value::as_str) {
        let name = name.rsplit('/').next().unwrap();
        return validate(value, &root["$defs"][name], root, path);
    }
    if let Some(choices) = schema.get("anyOf").and_then(Value::as_array) {
        let results = choices
            .iter()
            .map(|choice| validate(value, choice, root, path));
        let problems: Vec<String> = results.filter_map(Result::err).collect();
        let fits = problems.len() < choices.len();
        return if fits {
            Ok(())
        } else {
            Err(problems.join("; or "))
        };
    }
    let has_type = |name: &str| match name {
        "null" => value.is_null(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{path}: the schema has an unknown type `{other}`"),
    };
    let types = match &schema["type"] {
        Value::Null => Vec::new(),
        Value::Array(names) => names.clone(),
        name => vec![name.clone()],
    };
    if !types.is_empty() && !types.iter().any(|name| has_type(name.as_str().unwrap())) {
        return Err(format!("{path} is {value}, expected {types:?}"));
    }
    let constant = schema.get("const");
    if constant.is_some_and(|constant| constant != value) {
        return Err(format!("{path} is {value}, which is not {constant:?}"));
    }
    for key in schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|_| value.is_object())
    {
        if value.get(key.as_str().unwrap()).is_none() {
            return Err(format!("{path}.{key} is missing"));
        }
    }
    let properties = schema["properties"].as_object();
    let additional = &schema["additionalProperties"];
    for (key, value) in value.as_object().into_iter().flatten() {
        let path = format!("{path}.{key}");
        match properties.and_then(|properties| properties.get(key)) {
            Some(inner) => validate(value, inner, root, &path)?,
            None if additional.is_object() => validate(value, additional, root, &path)?,
            None if *additional == Value::Bool(false) => {
                return Err(format!("{path} is not in the schema"));
            }
            None => {}
        }
    }
    if let Some(items) = schema.get("items") {
        for item in value.as_array().into_iter().flatten() {
            validate(item, items, root, &format!("{path}[]"))?;
        }
    }
    Ok(())
}

#[test]
fn reports_match_the_schema_and_the_schema_rejects_others() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    for case in 0..60 {
        let explainer = explainer(&random_config(case), case);
        let mut options = options(2);
        options.sampling.temperature = f64::from(u8::from(case % 2 == 0));
        let explanation = explainer.explain("w00 w02 w01", &options).unwrap();
        let report = explanation.report(&ReportOptions::default()).unwrap();
        let report = serde_json::to_value(&report).unwrap();
        validate(&report, &schema, &schema, "report").unwrap();
        let mut invalid = report.clone();
        invalid["tokens"][0]["position"] = Value::from("first");
        let problem = validate(&invalid, &schema, &schema, "report").unwrap_err();
        assert!(problem.contains("report.tokens[].position"), "{problem}");
        let mut invalid = report;
        invalid["surplus"] = Value::from(1);
        assert!(validate(&invalid, &schema, &schema, "report").is_err());
    }
}
