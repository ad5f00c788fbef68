//! The JSON of a report matches the published schema.

use nextword_explain::{ReportOptions, SCHEMA};
use serde_json::Value;

use crate::explain_report::{explainer, options};
use crate::random_models::random_config;

/// Violations of `schema` in `value`: types, missing or unknown keys, constants.
pub(crate) fn against(
    value: &Value,
    schema: &Value,
    whole: &Value,
    path: &str,
) -> Result<(), String> {
    if let Some(name) = schema.get("$ref").and_then(Value::as_str) {
        let name = name.rsplit('/').next().unwrap();
        return against(value, &whole["$defs"][name], whole, path);
    }
    if let Some(choices) = schema.get("anyOf").and_then(Value::as_array) {
        let tries = choices
            .iter()
            .map(|choice| against(value, choice, whole, path));
        let problems: Vec<String> = tries.filter_map(Result::err).collect();
        let fits = problems.len() < choices.len();
        return if fits {
            Ok(())
        } else {
            Err(problems.join("; or "))
        };
    }
    let is = |name: &str| match name {
        "null" => value.is_null(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{path}: the schema knows a type `{other}`"),
    };
    let types = match &schema["type"] {
        Value::Null => Vec::new(),
        Value::Array(names) => names.clone(),
        name => vec![name.clone()],
    };
    if !types.is_empty() && !types.iter().any(|name| is(name.as_str().unwrap())) {
        return Err(format!("{path} is {value} and no {types:?}"));
    }
    let only = schema.get("const");
    if only.is_some_and(|only| only != value) {
        return Err(format!("{path} is {value}, which is not {only:?}"));
    }
    let allowed = schema.get("enum").and_then(Value::as_array);
    if allowed.is_some_and(|allowed| !allowed.contains(value)) {
        return Err(format!("{path} is {value}, which is not in the list"));
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
    let known = schema["properties"].as_object();
    let others = &schema["additionalProperties"];
    for (key, value) in value.as_object().into_iter().flatten() {
        let path = format!("{path}.{key}");
        match known.and_then(|known| known.get(key)) {
            Some(inner) => against(value, inner, whole, &path)?,
            None if others.is_object() => against(value, others, whole, &path)?,
            None if *others == Value::Bool(false) => {
                return Err(format!("{path} is not in the schema"));
            }
            None => {}
        }
    }
    for item in value.as_array().into_iter().flatten() {
        against(item, &schema["items"], whole, &format!("{path}[]"))?;
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
        let story = explanation.report(&ReportOptions::default()).unwrap();
        let story = serde_json::to_value(&story).unwrap();
        against(&story, &schema, &schema, "story").unwrap();
        let mut wrong = story.clone();
        wrong["tokens"][0]["position"] = Value::from("first");
        let problem = against(&wrong, &schema, &schema, "story").unwrap_err();
        assert!(problem.contains("story.tokens[].position"), "{problem}");
        let mut wrong = story;
        wrong["surplus"] = Value::from(1);
        assert!(against(&wrong, &schema, &schema, "story").is_err());
    }
}
