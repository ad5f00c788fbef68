use crate::tests::sources::{documents, failure, file};
use crate::*;

#[test]
fn json_lines_return_the_configured_field() {
    let lines = "\u{FEFF}{\"text\": \"one\", \"body\": \"1\"}\r\n\n  \n{\"body\": \"2\\n\\u00e9\", \"text\": \"\"}\n{\"text\":\"three\",\"body\":\"3\"}";
    let (_folder, config) = file("a.jsonl", lines.as_bytes());
    let without_empty = documents(&config).unwrap();
    assert_eq!(without_empty, ["one", "three"]);
    let field = "body".to_owned();
    let other = documents(&SourceConfig { field, ..config }).unwrap();
    assert_eq!(other, ["1", "2\né", "3"]);
}

#[test]
fn invalid_json_line_is_reported_and_ends_reading() {
    let bad = [
        ("{\"text\": 5}", "field `text` is not a string"),
        (
            "{\"body\": \"x\", \"id\": 1}",
            "has no field `text`; its fields are: `body`, `id`; hint:",
        ),
        ("{}", "has no field `text`; its fields are: none"),
        ("[\"text\"]", "is not a JSON object"),
        ("{\"text\": \"x\"", "is not JSON"),
        ("{\"text\": \"x\"} {}", "is not JSON"),
        ("{\"text\": \"\\ud800\"}", "is not JSON"),
        ("\u{FEFF}{\"text\": \"x\"}", "is not JSON"),
    ];
    let cut = failure("a.jsonl", b"\n\n{\"text\": \"x\"\n");
    assert!(
        cut.contains("line 3: is not JSON") && cut.contains(" at column 12)"),
        "{cut}"
    );
    for (line, problem) in bad {
        let good = "{\"text\": \"good\"}\n";
        let text = format!("{good}\n{good}{line}\n{good}");
        let message = failure("a.jsonl", text.as_bytes());
        assert!(
            message.contains("line 4") && message.contains(problem),
            "{message}"
        );
        let (_folder, config) = file("a.jsonl", text.as_bytes());
        let sources = Sources::open(&config).unwrap();
        assert_eq!(sources.chunks().count(), 3, "two documents and the error");
    }
    let not_utf8 = failure("a.jsonl", b"{\"text\": \"\xFF\"}\n");
    assert!(not_utf8.contains("line 1: is not JSON"), "{not_utf8}");
    let deep = failure("a.jsonl", "[".repeat(100_000).as_bytes());
    assert!(deep.contains("line 1: is not JSON"), "{deep}");
}
