use std::path::{Path, PathBuf};

use crate::tests::{random, random_text};
use crate::*;

/// Creates a source with one file `name` with these bytes, and its folder.
pub(super) fn file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, SourceConfig) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let config = SourceConfig {
        paths: vec![path],
        ..SourceConfig::default()
    };
    (folder, config)
}

/// Joins the chunks of a source into documents.
pub(super) fn documents(config: &SourceConfig) -> Result<Vec<String>, DataError> {
    let sources = Sources::open(config)?;
    let (mut documents, mut inside) = (Vec::new(), false);
    for chunk in sources.chunks() {
        let chunk = chunk?;
        assert_eq!(
            chunk.is_first, !inside,
            "each document starts and ends once"
        );
        assert!(!chunk.text.is_empty() || chunk.is_last);
        inside = !chunk.is_last;
        if chunk.is_first {
            documents.push(String::new());
        }
        documents.last_mut().unwrap().push_str(&chunk.text);
    }
    assert!(!inside, "the last document has an end");
    Ok(documents)
}

/// Returns the error message for a file with these bytes; it must name the file.
pub(super) fn failure(name: &str, bytes: &[u8]) -> String {
    let (_folder, config) = file(name, bytes);
    let error = documents(&config).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Data);
    let message = error.to_string();
    assert!(message.contains(name), "{message}");
    message
}

#[test]
fn text_file_is_one_document_with_unchanged_line_endings() {
    for text in [
        "one",
        "one\r\ntwo\r\n",
        "\n \n",
        " one\ttwo ",
        "é中🙂\u{FEFF}",
    ] {
        let (_folder, config) = file("a.txt", text.as_bytes());
        assert_eq!(documents(&config).unwrap(), [text]);
    }
    let (_folder, config) = file("a.txt", b"\xEF\xBB\xBFone");
    assert_eq!(
        documents(&config).unwrap(),
        ["one"],
        "without the byte-order mark"
    );
}

#[test]
fn separator_splits_text_and_skips_blank_documents() {
    let divided = |text: &str, separator: &str| {
        let (_folder, config) = file("a.txt", text.as_bytes());
        let separator = Some(separator.to_owned());
        documents(&SourceConfig {
            separator,
            ..config
        })
        .unwrap()
    };
    assert_eq!(divided("one\n\ntwo\n\n", "\n\n"), ["one", "two"]);
    assert_eq!(divided("--one----  --\n--two", "--"), ["one", "two"]);
    assert_eq!(divided("one\n\n\ntwo", "\n\n"), ["one", "\ntwo"]);
    assert_eq!(divided("one\r\n\r\ntwo", "\n\n"), ["one", "two"]);
    assert_eq!(divided("one\r\n\r\ntwo", "\r\n\r\n"), ["one", "two"]);
    assert_eq!(divided("one<EOS>", "<EOS>"), ["one"]);
    assert_eq!(divided("one", "longer than the text"), ["one"]);
    assert_eq!(divided("eins中中zwei", "中"), ["eins", "zwei"]);
}

#[test]
fn separators_are_found_across_read_boundaries() {
    const SEPARATOR: &str = "\n==sep 中==\n";
    let mut random = random(1);
    // Reads are 64 KiB and chunks 256 KiB: the separator lies at each offset around both.
    for boundary in [64 << 10, 256 << 10] {
        for back in 0..=SEPARATOR.len() + 1 {
            let filler = ["x", "word ", "é ", "\n"][random.below(4)];
            let mut first = format!("i{}", filler.repeat(boundary / filler.len()));
            let cut = first.floor_char_boundary(boundary - back);
            first.truncate(cut);
            first.push_str(&"y".repeat(boundary - back - cut));
            let second = format!("{}end", filler.repeat(100));
            let text = format!("{first}{SEPARATOR}{second}");
            let (_folder, config) = file("a.txt", text.as_bytes());
            let separator = Some(SEPARATOR.to_owned());
            let found = documents(&SourceConfig {
                separator,
                ..config
            })
            .unwrap();
            assert!(found == [first, second], "{boundary} {back} {filler:?}");
        }
    }
}

#[test]
fn random_documents_round_trip_at_any_length() {
    let mut random = random(2);
    for round in 0..12 {
        let mut expected: Vec<String> = (0..=random.below(30))
            .map(|_| random_text(&mut random).repeat(1 + random.below(2000)))
            .collect();
        expected.retain(|text| !text.trim().is_empty());
        expected.push(format!("last {round}"));
        let separator = ["<|end|>", "\u{1}", "\n%\r\n"][random.below(3)];
        let (_folder, config) = file("a.txt", expected.join(separator).as_bytes());
        let separator = Some(separator.to_owned());
        assert!(
            documents(&SourceConfig {
                separator,
                ..config
            })
            .unwrap()
                == expected
        );

        let lines: Vec<String> = expected
            .iter()
            .map(|text| serde_json::json!({"text": text}).to_string())
            .collect();
        let (_folder, config) = file("a.jsonl", lines.join("\r\n").as_bytes());
        assert!(documents(&config).unwrap() == expected);
    }
}

#[test]
fn long_documents_are_chunked_without_changing_tokens() {
    let text = Stories::new(1, 900).iter().collect::<String>();
    let (_folder, config) = file("a.txt", text.as_bytes());
    let sources = Sources::open(&config).unwrap();
    let chunks: Vec<String> = sources.texts().map(Result::unwrap).collect();
    assert!(chunks.len() > 1 && chunks.iter().all(|chunk| chunk.len() < 400 << 10));
    let bpe = TokenizerConfig {
        kind: TokenizerKind::Bpe,
        vocab_size: Some(400),
        ..TokenizerConfig::default()
    };
    let tokenizer = build_tokenizer(&bpe, std::iter::once(Ok(text.clone()))).unwrap();
    let ids = |text: &String| tokenizer.encode(text).ids;
    assert!(chunks.iter().flat_map(ids).eq(ids(&text)));
}

#[test]
fn folders_are_read_recursively_in_sorted_order() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    for name in [
        "d.txt",
        "b/2.TXT",
        "c.txt",
        "b/10.txt",
        ".hidden.txt",
        ".git/x.txt",
        "no.md",
    ] {
        write(name, name);
    }
    write("a.jsonl", "{\"text\": \"a.jsonl\"}");
    let with = |format, paths: &[&Path]| SourceConfig {
        paths: paths.iter().map(|path| path.to_path_buf()).collect(),
        format,
        ..SourceConfig::default()
    };
    let all = documents(&with(Format::Auto, &[folder.path()])).unwrap();
    assert_eq!(all, ["a.jsonl", "b/10.txt", "b/2.TXT", "c.txt", "d.txt"]);
    let text = documents(&with(Format::Text, &[folder.path()])).unwrap();
    assert_eq!(text, all[1..]);
    let jsonl = documents(&with(Format::Jsonl, &[folder.path()])).unwrap();
    assert_eq!(jsonl, all[..1]);
    let named = [
        folder.path().join("d.txt"),
        folder.path().join("no.md"),
        folder.path().join("b"),
    ];
    let named: Vec<&Path> = named.iter().map(PathBuf::as_path).collect();
    let found = documents(&with(Format::Auto, &named)).unwrap();
    assert_eq!(
        found,
        ["d.txt", "no.md", "b/10.txt", "b/2.TXT"],
        "paths in the given order"
    );
    let none = documents(&with(Format::Jsonl, &[&folder.path().join("b")])).unwrap_err();
    assert!(
        matches!(none, DataError::Empty { .. }) && none.to_string().contains("contains no text")
    );
}

#[test]
fn invalid_utf8_is_reported_with_its_byte_offset() {
    let mut text = "é".repeat(40_000).into_bytes(); // more than one read
    text[65_535] = b'(';
    assert!(failure("a.txt", &text).contains("byte 65534 is 0xC3"));
    text[65_535] = 0;
    assert!(failure("a.txt", &text).contains("looks binary: byte 65535 is 0"));
    assert!(failure("a.txt", b"ab\xFFc").contains("byte 2 is 0xFF"));
    assert!(failure("a.txt", b"ab\xE4\xB8").contains("byte 2 is 0xE4"));
    for mark in [b"\xFF\xFEa\0", b"\xFE\xFF\0a"] {
        assert!(failure("a.txt", mark).contains("looks like UTF-16"));
    }
}

#[test]
fn empty_and_missing_files_are_reported() {
    for name in ["a.txt", "a.jsonl"] {
        assert!(failure(name, b"").contains("contains no text"));
    }
    assert!(failure("a.txt", b"\xEF\xBB\xBF").contains("contains no text"));
    assert!(failure("a.jsonl", b"\n\n{\"text\": \"\"}\n").contains("contains no text"));
    let (_folder, config) = file("a.txt", b"one\n--\n");
    let mut second = config.clone();
    second.paths.push(config.paths[0].with_file_name("b.txt"));
    let missing = documents(&second).unwrap_err();
    assert!(matches!(&missing, DataError::Missing { path } if path.ends_with("b.txt")));
    assert!(missing.to_string().contains("does not exist; hint:"));
    let nothing = documents(&SourceConfig::default()).unwrap_err();
    assert_eq!(nothing.class(), ErrorClass::Usage);
    let blank = file("a.txt", b" \n--\n\n--");
    let separator = Some("--".to_owned());
    let blank = documents(&SourceConfig {
        separator,
        ..blank.1.clone()
    })
    .unwrap_err();
    assert!(blank.to_string().contains("contains no text"));
}
