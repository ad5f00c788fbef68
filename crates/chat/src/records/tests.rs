use std::fs;

use super::*;
use crate::{Conversation, Json, Message, Role};

/// Reads the lines of a file.
fn read(lines: &str) -> Result<(Vec<SourcedRecord>, RecordCounts), ChatError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("support.jsonl");
    fs::write(&path, lines).unwrap();
    read_records(&[path])
}

fn one(line: &str) -> Example {
    let (records, _) = read(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    assert_eq!(records.len(), 1, "{line}");
    records[0].example.clone()
}

fn talk(line: &str) -> Conversation {
    match one(line) {
        Example::Conversation(conversation) => conversation,
        other => panic!("{line}: {other:?}"),
    }
}

fn shown(conversation: &Conversation) -> String {
    let messages = conversation.messages.iter().zip(&conversation.trained);
    let messages = messages.map(|(message, trained)| {
        let mark = if *trained { "*" } else { "" };
        format!("{}{mark}={}", message.role(), message.text())
    });
    messages.collect::<Vec<_>>().join("|")
}

/// A record of each format.
const FORMATS: &[(RecordFormat, &str)] = &[
    (
        RecordFormat::OpenAi,
        r#"{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "u"}]}, {"role": "assistant", "content": "a", "weight": 1}], "tools": [{"type": "function"}]}"#,
    ),
    (
        RecordFormat::ShareGpt,
        r#"{"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}], "system": "s", "tools": "[]"}"#,
    ),
    (
        RecordFormat::Alpaca,
        r#"{"instruction": "u", "input": "i", "output": "a", "system": "s", "history": [["q", "r"]]}"#,
    ),
    (
        RecordFormat::Completion,
        r#"{"prompt": "u", "completion": "a"}"#,
    ),
    (RecordFormat::Text, r#"{"text": "t"}"#),
    (
        RecordFormat::Preference,
        r#"{"prompt": "u", "chosen": "a", "rejected": "b"}"#,
    ),
    (
        RecordFormat::Rated,
        r#"{"prompt": "u", "completion": "a", "label": true}"#,
    ),
];

#[test]
fn formats_are_told_apart_by_their_keys() {
    let lines: Vec<&str> = FORMATS.iter().map(|(_, line)| *line).collect();
    let (records, counts) = read(&lines.join("\n\n")).unwrap();
    let found: Vec<_> = records.iter().map(|record| record.format).collect();
    let expected: Vec<_> = FORMATS.iter().map(|(format, _)| *format).collect();
    assert_eq!(found, expected);
    assert_eq!(records[1].source.number, 3);
    assert_eq!((counts.total(), counts.dropped.len()), (FORMATS.len(), 0));
    let conversation = |at: usize| match &records[at].example {
        Example::Conversation(conversation) => shown(conversation),
        other => panic!("{other:?}"),
    };
    assert_eq!(conversation(0), "system=s|user=u|assistant*=a");
    assert_eq!(conversation(1), "system=s|user=u|assistant*=a");
    assert_eq!(
        conversation(2),
        "system=s|user=q|assistant*=r|user=u\n\ni|assistant*=a"
    );
}

#[test]
fn variants_of_the_formats_are_read() {
    for (line, expected) in [
        (
            r#"{"conversations": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}"#,
            "user=u|assistant*=a",
        ),
        (
            r#"{"messages": [{"from": "human", "value": "u"}, {"from": "chatgpt", "value": "a", "weight": 0}, {"from": "user", "value": "v"}, {"from": "model", "value": "b"}]}"#,
            "user=u|assistant=a|user=v|assistant*=b",
        ),
        (
            r#"{"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a", "train": false}, {"role": "assistant", "content": "b", "train": true}]}"#,
            "user=u|assistant=a|assistant*=b",
        ),
        (
            r#"{"prompt": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "v"}], "completion": [{"role": "assistant", "content": "b"}]}"#,
            "user=u|assistant=a|user=v|assistant*=b",
        ),
        (
            r#"{"instruction": "u", "input": "", "output": "a", "history": null}"#,
            "user=u|assistant*=a",
        ),
        (
            r#"{"messages": [{"role": "user", "content": "u"}, {"role": "function", "name": "f", "content": "1"}, {"role": "assistant", "content": "a"}], "text": "t"}"#,
            "user=u|tool=1|assistant*=a",
        ),
    ] {
        assert_eq!(shown(&talk(line)), expected, "{line}");
    }
    for (prompt, completion) in [
        ("prompt", "response"),
        ("question", "answer"),
        ("query", "response"),
        ("input", "output"),
    ] {
        let line = format!(r#"{{"{prompt}": "u", "{completion}": "a", "id": 5}}"#);
        let example = one(&line);
        assert!(
            matches!(&example, Example::Completion { prompt, completion } if prompt == "u" && completion == "a"),
            "{example:?}"
        );
    }
}

#[test]
fn fields_for_training_are_hidden_from_templates() {
    let line = r#"{"messages": [{"role": "user", "content": "u", "weight": 0}, {"role": "assistant", "content": "a", "train": true, "name": "n"}]}"#;
    let text = serde_json::to_string(&talk(line).messages).unwrap();
    assert!(
        text.contains("name") && !text.contains("weight") && !text.contains("train"),
        "{text}"
    );
}

#[test]
fn calls_and_results_of_tools_are_read() {
    let line = r#"{"conversations": [{"from": "human", "value": "u"}, {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"x\": 1}}"}, {"from": "observation", "value": "2"}, {"from": "gpt", "value": "a"}], "tools": "[{\"name\": \"f\"}]"}"#;
    let conversation = talk(line);
    assert_eq!(
        shown(&conversation),
        "user=u|assistant*=|tool=2|assistant*=a"
    );
    let calls = conversation.messages[1].field("tool_calls").unwrap();
    let function = calls.as_list().unwrap()[0].get("function").unwrap();
    assert_eq!(function.get("name").and_then(Json::as_str), Some("f"));
    assert_eq!(conversation.tools.map(|tools| tools.len()), Some(1));
}

#[test]
fn preferences_have_a_common_prompt() {
    let user = r#"{"role": "user", "content": "u"}"#;
    let assistant = |text: &str| format!(r#"{{"role": "assistant", "content": "{text}"}}"#);
    let (good, bad) = (assistant("a"), assistant("b"));
    for line in [
        r#"{"prompt": "u", "chosen": "a", "rejected": "b"}"#.to_owned(),
        format!(r#"{{"chosen": [{user}, {good}], "rejected": [{user}, {bad}]}}"#),
        format!(r#"{{"prompt": [{user}], "chosen": [{user}, {good}], "rejected": [{user}, {bad}]}}"#),
        format!(r#"{{"prompt": "u", "chosen": [{user}, {good}], "rejected": [{user}, {bad}]}}"#),
        r#"{"conversations": [{"from": "human", "value": "u"}], "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}}"#.to_owned(),
        format!(r#"{{"input": {{"messages": [{user}]}}, "preferred_output": [{good}], "non_preferred_output": [{bad}]}}"#),
    ] {
        let Example::Preference(preference) = one(&line) else {
            panic!("{line}");
        };
        let lists = [&preference.prompt, &preference.chosen, &preference.rejected];
        let texts = lists.map(|list| list.iter().map(Message::text).collect::<String>());
        assert_eq!(texts, ["u", "a", "b"], "{line}");
        assert_eq!(preference.chosen[0].role(), Role::Assistant);
    }
    let Example::Rated(rated) = one(r#"{"prompt": "u", "completion": "a", "label": false}"#) else {
        panic!("not rated");
    };
    assert!(!rated.is_good && rated.prompt[0].text() == "u");
}

#[test]
fn records_that_cannot_be_trained_are_counted_with_their_lines() {
    let lines = [
        r#"{"messages": [{"role": "user", "content": "u"}]}"#,
        r#"{"messages": []}"#,
        r#"{"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "v"}]}"#,
        r#"{"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": " "}]}"#,
        r#"{"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "a"}]}"#,
        r#"{"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a", "weight": 0}]}"#,
        r#"{"prompt": "u", "chosen": "a", "rejected": "a"}"#,
        r#"{"prompt": "u", "completion": ""}"#,
        r#"{"text": "\n"}"#,
    ];
    let (records, counts) = read(&lines.join("\n")).unwrap();
    assert_eq!((records.len(), counts.total()), (1, lines.len()));
    let Example::Conversation(kept) = &records[0].example else {
        panic!("{records:?}");
    };
    assert_eq!(shown(kept), "user=u|assistant*=a");
    let found = counts.dropped.iter().map(|(reason, dropped)| {
        let lines = dropped.first.iter().map(|source| source.number);
        (*reason, dropped.count, lines.collect::<Vec<_>>())
    });
    let expected = [
        (DropReason::NoAssistant, 2, vec![1, 2]),
        (DropReason::TrailingMessages, 1, vec![3]),
        (DropReason::EmptyAssistant, 2, vec![4, 8]),
        (DropReason::EmptyMessage, 2, vec![5, 9]),
        (DropReason::NothingTrained, 1, vec![6]),
        (DropReason::EqualCompletions, 1, vec![7]),
    ];
    assert_eq!(found.collect::<Vec<_>>(), expected);
}

#[test]
fn errors_name_file_line_key_and_fix() {
    for (line, expected) in [
        (
            r#"{"messages": [{"role": "robot", "content": "x"}]}"#,
            "messages[0].role is \"robot\"; hint",
        ),
        (
            r#"{"messages": [{"role": "user"}]}"#,
            "messages[0] needs a `content`",
        ),
        (r#"{"messages": 5}"#, "`messages` is a number; hint"),
        (r#"{"messages": ["x"]}"#, "messages[0] is a string; hint"),
        (
            r#"{"conversations": [{"from": "alien", "value": "x"}]}"#,
            "conversations[0].from is \"alien\"; hint",
        ),
        (
            r#"{"conversations": [{"from": "gpt"}]}"#,
            "conversations[0].value is missing; hint",
        ),
        (
            r#"{"messages": [{"role": "assistant", "content": "x", "weight": 0.5}]}"#,
            "messages[0].weight is not 0 or 1",
        ),
        (
            r#"{"messages": [{"role": "assistant", "content": "x", "train": 1}]}"#,
            "messages[0].train is not true or false",
        ),
        (r#"{"instruction": "x"}"#, "`output` is missing; hint"),
        (
            r#"{"instruction": "x", "output": "y", "history": [["a"]]}"#,
            "`history[0]` is not a pair",
        ),
        (
            r#"{"prompt": "x", "completion": 5}"#,
            "`completion` is a number; hint",
        ),
        (
            r#"{"prompt": "x", "chosen": "y"}"#,
            "`rejected` is missing; hint",
        ),
        (
            r#"{"prompt": "x", "completion": "y", "label": "good"}"#,
            "`label` is not true or false; hint",
        ),
        (
            r#"{"messages": [], "tools": [5]}"#,
            "`tools` is not a list of objects; hint",
        ),
        (
            r#"{"title": "x"}"#,
            "the keys (`title`) fit no known format; hint",
        ),
        ("[1]", "the record is not an object; hint"),
        ("nonsense", "not JSON (expected ident at column 2); hint"),
    ] {
        let error = read(&format!("{{\"text\": \"t\"}}\n\n{line}"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("support.jsonl, line 3: "), "{error}");
        assert!(error.contains(expected), "{error}");
        assert!(error.contains("hint"), "{error}");
    }
}

#[test]
fn lists_and_folders_are_read_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("b")).unwrap();
    fs::write(
        path("a.json"),
        "\u{FEFF}\n [{\"text\": \"1\"},\n {\"text\": \"2\"}]",
    )
    .unwrap();
    fs::write(path("b/c.JSONL"), "\u{FEFF}{\"text\": \"3\"}").unwrap();
    fs::write(path("d.json"), "{\"text\": \"4\"}\n{\"text\": \"5\"}\n").unwrap();
    fs::write(path(".hidden.jsonl"), "{\"text\": \"6\"}").unwrap();
    fs::write(path("notes.txt"), "no JSON").unwrap();
    let (records, _) = read_records(&[folder.path().to_path_buf()]).unwrap();
    let texts = records.iter().map(|record| match &record.example {
        Example::Text(text) => text.as_str(),
        other => panic!("{other:?}"),
    });
    assert_eq!(texts.collect::<String>(), "12345");
    assert!(records[1].source.to_string().ends_with("a.json, record 2"));

    fs::write(path("a.json"), "[{\"text\": \"1\"}, {}]").unwrap();
    let error = read_records(&[path("a.json")]).unwrap_err().to_string();
    assert!(
        error.contains("a.json, record 2: the keys (none)"),
        "{error}"
    );
    fs::write(path("a.json"), "[{\"text\": \"1\"},").unwrap();
    for (name, expected) in [("a.json", "not JSON"), ("missing.jsonl", "does not exist")] {
        let error = read_records(&[path(name)]).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(expected), "{error}");
    }
    let empty = tempfile::tempdir().unwrap();
    let error = read_records(&[empty.path().to_path_buf()]).unwrap_err();
    assert!(
        error.to_string().contains("no .jsonl or .json file"),
        "{error}"
    );
}

/// All variants of a value in which one part is replaced by `other`, or left out of its object.
fn variants(json: &Json, other: &Json) -> Vec<Json> {
    let mut found = vec![other.clone()];
    match json {
        Json::List(items) => {
            for (at, item) in items.iter().enumerate() {
                for variant in variants(item, other) {
                    let mut items = items.clone();
                    items[at] = variant;
                    found.push(Json::List(items));
                }
            }
        }
        Json::Object(fields) => {
            for (at, (name, value)) in fields.iter().enumerate() {
                for variant in variants(value, other) {
                    let mut fields = fields.clone();
                    fields[at] = (name.clone(), variant);
                    found.push(Json::Object(fields));
                }
                let mut fields = fields.clone();
                fields.remove(at);
                found.push(Json::Object(fields));
            }
        }
        _ => {}
    }
    found
}

#[test]
fn damaged_records_are_errors_with_their_place() {
    let mut errors = 0;
    for (_, line) in FORMATS {
        // No beginning of an object is JSON.
        for end in 1..line.len() {
            let error = read(&line[..end]).unwrap_err().to_string();
            assert!(error.contains(", line 1: not JSON"), "{error}");
            errors += 1;
        }
        let json: Json = serde_json::from_str(line).unwrap();
        let others = ["null", "5", "-0.5", "true", "[]", "{}", "[[]]", "\"robot\""];
        for other in others {
            let other = serde_json::from_str(other).unwrap();
            for variant in variants(&json, &other) {
                let text = serde_json::to_string(&variant).unwrap();
                match formats::parse(variant) {
                    Ok(_) => {}
                    Err(problem) => {
                        assert!(problem.contains("hint"), "{text}: {problem}");
                        errors += 1;
                    }
                }
            }
        }
    }
    assert!(errors > 700, "{errors}");
    for bytes in [&b"\xFF\xFE{}"[..], b"{\"text\": \"\xFF\"}", b"\0"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.jsonl");
        fs::write(&path, bytes).unwrap();
        let error = read_records(&[path]).unwrap_err().to_string();
        assert!(error.contains("line 1: not JSON"), "{error}");
    }
    let deep = "[".repeat(100_000);
    assert!(
        read(&deep)
            .unwrap_err()
            .to_string()
            .contains("recursion limit")
    );
}

#[test]
fn conversations_of_more_than_a_thousand_messages_are_an_error() {
    let pair = r#"{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}"#;
    let record = |pairs: usize| format!(r#"{{"messages": [{}]}}"#, vec![pair; pairs].join(", "));
    assert_eq!(talk(&record(500)).messages.len(), 1000);
    let alpaca = |pairs: usize| {
        let history = vec![r#"["u", "a"]"#; pairs].join(", ");
        format!(r#"{{"instruction": "u", "output": "a", "history": [{history}]}}"#)
    };
    assert_eq!(talk(&alpaca(500)).messages.len(), 1002);
    for (record, key) in [(record(501), "messages"), (alpaca(501), "history")] {
        let error = read(&record).unwrap_err().to_string();
        let expected = format!("line 1: `{key}` has 1002 messages, more than 1000; hint");
        assert!(error.contains(&expected), "{error}");
    }
}
