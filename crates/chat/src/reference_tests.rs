//! Chat templates give the prompts of transformers, byte for byte.
//!
//! `scripts/make_chat_template_cases.py` wrote the cases, with what transformers makes of each.

use std::fs;

use crate::{ChatError, ChatTemplate, Json, Message, RenderOptions};

/// Templates that transformers renders and that are rejected here, with a word of the error.
const REJECTED: &[(&str, &str)] = &[
    ("{{ ' aXb-ab Éßx\\t'.encode() }}", "encode"),
    ("{{ 'http://a.b'|urlize }}", "urlize"),
];

/// The fields of a dict, or an empty list.
fn fields(json: Option<&Json>) -> Vec<(String, Json)> {
    match json {
        Some(Json::Object(fields)) => fields.clone(),
        _ => Vec::new(),
    }
}

fn render(case: &Json) -> Result<String, ChatError> {
    let source = case.get("template").and_then(Json::as_str).unwrap();
    let tokens = fields(case.get("tokens"));
    let token = |name: &str| {
        let found = tokens.iter().find(|(token, _)| token == name);
        found.and_then(|(_, text)| text.as_str()).unwrap_or("")
    };
    let template = ChatTemplate::from_source(source, token("bos_token"), token("eos_token"))?;
    let messages = case.get("messages").and_then(Json::as_list).unwrap();
    let messages: Vec<Message> = messages
        .iter()
        .map(|message| Message::from_json(message.clone()).unwrap())
        .collect();
    let flag = |name: &str, default: bool| match case.get(name) {
        Some(Json::Bool(flag)) => *flag,
        _ => default,
    };
    template.render_with(
        &messages,
        &RenderOptions {
            tools: case.get("tools").and_then(Json::as_list),
            documents: case.get("documents").and_then(Json::as_list),
            add_generation_prompt: flag("add_generation_prompt", true),
            continue_final_message: flag("continue_final_message", false),
            variables: &fields(case.get("variables")),
        },
    )
}

#[test]
fn chat_templates_match_transformers() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fixtures/chat_templates.json"
    );
    let file: Json = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let cases = file.get("cases").and_then(Json::as_list).unwrap();
    assert!(cases.len() > 600, "{}", cases.len());
    let mut problems = Vec::new();
    for case in cases {
        let template = case.get("template").and_then(Json::as_str).unwrap();
        let expected = case.get("expected").and_then(Json::as_str);
        let rejected = REJECTED.iter().find(|(source, _)| *source == template);
        let result = render(case);
        let is_right = match (&result, expected, rejected) {
            (Err(error), Some(_), Some((_, word))) => error.to_string().contains(word),
            (Ok(text), Some(expected), None) => text == expected,
            (result, None, None) => result.is_err(),
            _ => false,
        };
        if !is_right {
            problems.push(format!(
                "{template:?}\n  expected {expected:?}\n  but got  {result:?}"
            ));
        }
    }
    assert!(
        problems.is_empty(),
        "{} of {} cases differ:\n{}",
        problems.len(),
        cases.len(),
        problems.join("\n")
    );
}

#[test]
fn a_template_for_tools_is_used_with_tools() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chat_template.jinja");
    let more = dir.path().join("additional_chat_templates");
    fs::create_dir(&more).unwrap();
    fs::write(&path, "plain {{ messages[0].content }}").unwrap();
    fs::write(more.join("tool_use.jinja"), "tools {{ tools[0].name }}").unwrap();
    let template = ChatTemplate::open(&path, "", "").unwrap().unwrap();
    let messages = [Message::user("x")];
    assert_eq!(template.render(&messages).unwrap(), "plain x");
    let tools = [Json::Object(vec![("name".to_owned(), Json::from("f"))])];
    let options = |documents| RenderOptions {
        tools: Some(&tools),
        documents,
        ..RenderOptions::default()
    };
    let with_tools = template.render_with(&messages, &options(None));
    assert_eq!(with_tools.unwrap(), "tools f");
    let error = template
        .render_with(&messages, &options(Some(&tools)))
        .unwrap_err();
    assert!(error.to_string().contains("`documents`"), "{error}");

    // What counts is the template that is rendered.
    fs::write(
        more.join("tool_use.jinja"),
        "{{ documents }}{{ x.encode() }}",
    )
    .unwrap();
    fs::write(&path, "{{ tools }}{{ y.decode() }}").unwrap();
    let template = ChatTemplate::open(&path, "", "").unwrap().unwrap();
    assert_eq!(template.unknown_methods(), ["decode", "encode"]);
    let variables = |name: &str| [(name.to_owned(), Json::from("v"))];
    let (x, y, reserved) = (variables("x"), variables("y"), variables("tools"));
    let none = RenderOptions::default();
    let with_tools = options(None);
    let with_documents = RenderOptions {
        documents: Some(&tools),
        ..RenderOptions::default()
    };
    for (options, variables, at_fault) in [
        (&none, &x, Some("variables")),
        (&none, &reserved, Some("variables")),
        (&with_tools, &y, Some("tools")),
        (&with_documents, &y, Some("documents")),
        (&none, &y, None),
    ] {
        let options = RenderOptions {
            variables,
            ..options.clone()
        };
        let found = match template.render_with(&messages, &options) {
            Err(ChatError::Unsupported { option, .. }) => Some(option),
            _ => None,
        };
        assert_eq!(found, at_fault, "{options:?}");
    }
}

#[test]
fn what_a_template_needs_is_known_when_it_is_loaded() {
    for (source, name) in [
        ("{% if false %}{{ 1 | urlize }}{% endif %}", "urlize"),
        ("{% if false %}{{ lipsum() }}{% endif %}", "lipsum"),
        ("{{ 1 is nonsense }}", "nonsense"),
        ("{% set x | nonsense %}{% endset %}", "nonsense"),
    ] {
        let error = ChatTemplate::from_source(source, "", "").unwrap_err();
        assert!(error.to_string().contains(name), "{source}: {error}");
    }
    let template =
        ChatTemplate::from_source("{% if x %}{{ 'a'.encode() }}{% endif %}", "", "").unwrap();
    assert_eq!(template.unknown_methods(), ["encode"]);
    let unread = [("y".to_owned(), Json::Null)];
    let options = RenderOptions {
        variables: &unread,
        ..RenderOptions::default()
    };
    let error = template
        .render_with(&[Message::user("a")], &options)
        .unwrap_err();
    assert!(error.to_string().contains("`y`"), "{error}");
}
