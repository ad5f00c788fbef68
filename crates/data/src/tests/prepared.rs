use crate::tests::{ids, names, open, random, random_text};
use crate::*;

/// Creates a folder with a text of random documents, and a config for it.
fn text(seed: u64, kind: TokenizerKind, by: SplitBy) -> (tempfile::TempDir, DataConfig) {
    let mut random = random(seed);
    let folder = tempfile::tempdir().unwrap();
    let documents: Vec<String> = (0..40)
        .map(|i| format!("{i} {}", random_text(&mut random).repeat(random.below(30))))
        .collect();
    let path = folder.path().join("text.txt");
    std::fs::write(&path, documents.join("\n%%\n")).unwrap();
    let mut config = DataConfig {
        path: Some(path),
        separator: Some("\n%%\n".to_owned()),
        ..DataConfig::default()
    };
    config.tokenizer.kind = kind;
    config.split.by = by;
    (folder, config)
}

fn assert_same(one: &Dataset, other: &Dataset) {
    for (a, b) in [
        (&one.train, &other.train),
        (&one.validation, &other.validation),
    ] {
        assert_eq!(ids(a), ids(b));
        assert!(a.document_starts().eq(b.document_starts()));
        assert_eq!(a.document_count(), b.document_count());
    }
    assert_eq!(one.card, other.card);
    assert_eq!(one.tokenizer.hash(), other.tokenizer.hash());
    assert_eq!(
        one.tokenizer.special_tokens(),
        other.tokenizer.special_tokens()
    );
}

#[test]
fn prepared_folder_equals_in_memory_build() {
    use TokenizerKind::{Bpe, Byte, Char, Word};
    let mut seed = 0;
    for kind in [Char, Byte, Word, Bpe] {
        for by in [SplitBy::Tail, SplitBy::Documents] {
            for validation in [0.0, 0.1, 0.55] {
                seed += 1;
                let (folder, mut config) = text(seed, kind, by);
                config.split.validation = validation;
                config.split.seed = seed;
                let built = Dataset::build(&config).unwrap();
                let output = folder.path().join("deep/er");
                let prepared = prepare(&config, &output, |_| {}).unwrap();
                let opened = open(&output).unwrap();
                assert_same(&opened, &built);
                assert_eq!(Some(prepared.card), opened.card);
                assert_eq!(
                    names(&output),
                    [
                        "dataset.json",
                        "tokenizer.json",
                        "train.bin",
                        "validation.bin"
                    ]
                );
                let through_config = DataConfig {
                    prepared: Some(output),
                    ..DataConfig::default()
                };
                assert_same(&Dataset::build(&through_config).unwrap(), &built);
            }
        }
    }
}

#[test]
fn splits_preserve_token_order_and_whole_documents() {
    let (_folder, config) = text(50, TokenizerKind::Byte, SplitBy::Tail);
    let no_split = SplitConfig {
        validation: 0.0,
        ..config.split
    };
    let unsplit = Dataset::build(&DataConfig {
        split: no_split,
        ..config.clone()
    })
    .unwrap();
    let tail = Dataset::build(&config).unwrap();
    let all = ids(&unsplit.train);
    assert_eq!(tail.train.len(), (0.9 * all.len() as f64) as usize);
    assert_eq!([ids(&tail.train), ids(&tail.validation)].concat(), all);
    assert_eq!(tail.validation.document_starts().next(), Some(0));

    let split = SplitConfig {
        by: SplitBy::Documents,
        validation: 0.3,
        ..config.split
    };
    let by_documents = Dataset::build(&DataConfig { split, ..config }).unwrap();
    let documents = |tokens: &Tokens| -> Vec<Vec<u32>> {
        let all = ids(tokens);
        (0..tokens.document_count())
            .map(|i| all[tokens.document(i)].to_vec())
            .collect()
    };
    let (mut documents_of_both, mut expected) = (
        [
            documents(&by_documents.train),
            documents(&by_documents.validation),
        ]
        .concat(),
        documents(&unsplit.train),
    );
    documents_of_both.sort_unstable();
    expected.sort_unstable();
    assert!(
        expected
            .iter()
            .all(|document| document.last() == Some(&256))
    );
    assert_eq!(documents_of_both, expected);
}

#[test]
fn failed_prepare_leaves_existing_folder_unchanged() {
    for kind in [TokenizerKind::Byte, TokenizerKind::Char] {
        let (folder, config) = text(60, kind, SplitBy::Tail);
        let (output, before) = (folder.path().join("out"), Dataset::build(&config).unwrap());
        prepare(&config, &output, |_| {}).unwrap();
        let all = names(&output);
        let with = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let path = Some(path);
            let separator = None;
            DataConfig {
                path,
                separator,
                ..config.clone()
            }
        };
        let lines = "{\"text\": \"new\"}\n".repeat(500) + "{\"text\"";
        let words = [&b"new ".repeat(200_000)[..], b"\xFF"].concat();
        for (broken, problem) in [
            (with("broken.jsonl", lines.as_bytes()), "line 501"),
            (with("latin.txt", &words), "is not UTF-8"),
            (with("short.txt", b""), "contains no text"),
            (with("one.txt", b"n"), "split.validation"),
        ] {
            let mut broken = broken;
            broken.tokenizer.eos = String::new();
            let error = prepare(&broken, &output, |_| {}).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
            assert_eq!(names(&output), all);
            assert_same(&open(&output).unwrap(), &before);
            let fresh = folder.path().join("fresh");
            assert!(prepare(&broken, &fresh, |_| {}).is_err() && open(&fresh).is_err());
            assert!(!fresh.exists(), "created by this call only");
            let deep = fresh.join("deep/er");
            assert!(prepare(&broken, &deep, |_| {}).is_err() && !fresh.exists());
            let empty = folder.path().join("empty");
            std::fs::create_dir_all(&empty).unwrap();
            assert!(prepare(&broken, &empty, |_| {}).is_err());
            assert!(names(&empty).is_empty(), "temporary files remain");
        }
    }
}

#[test]
fn prepare_interrupted_between_renames_does_not_open() {
    let (folder, config) = text(66, TokenizerKind::Char, SplitBy::Tail);
    let (_other, other) = text(67, TokenizerKind::Char, SplitBy::Tail);
    let output = folder.path().join("out");
    for blocked in ["tokenizer.json", "train.bin", "validation.bin"] {
        prepare(&config, &output, |_| {}).unwrap();
        // A rename cannot replace a folder with this name by a file.
        std::fs::remove_file(output.join(blocked)).unwrap();
        std::fs::create_dir(output.join(blocked)).unwrap();
        let error = prepare(&other, &output, |_| {}).unwrap_err();
        assert_eq!(error.class(), ErrorClass::Storage);
        std::fs::remove_dir(output.join(blocked)).unwrap();
        let message = open(&output).unwrap_err().to_string();
        assert!(!message.contains("cannot read"), "{message}");
        assert!(
            names(&output)
                .iter()
                .all(|name| !name.starts_with(".writing"))
        );
        let remaining = names(&output);
        assert!(
            !remaining.contains(&"dataset.json".to_owned()),
            "{remaining:?}"
        );
        // Without its card the folder is no longer recognized.
        let error = prepare(&other, &output, |_| {}).unwrap_err().to_string();
        assert!(error.contains("hint: use a new folder"), "{error}");
        std::fs::remove_dir_all(&output).unwrap();
    }
}

#[test]
fn folder_with_unrelated_files_is_rejected_and_unchanged() {
    let (folder, config) = text(68, TokenizerKind::Char, SplitBy::Tail);
    let output = folder.path().join("out");
    let files: [(&str, &[u8]); 6] = [
        ("train.bin", b"mine"),
        ("tokenizer.json", b"{}"),
        ("notes.txt", b""),
        ("dataset.json", b"{\"name\": \"somebody's\"}"),
        ("dataset.json", b"{\"version\": 1"),
        (".hidden", b"x"),
    ];
    for (name, bytes) in files {
        std::fs::create_dir(&output).unwrap();
        std::fs::write(output.join(name), bytes).unwrap();
        let error = prepare(&config, &output, |_| {}).unwrap_err();
        assert_eq!(error.class(), ErrorClass::Usage);
        let error = error.to_string();
        assert!(
            error.contains(name) && error.contains("hint: use a new folder"),
            "{error}"
        );
        assert_eq!(names(&output), [name]);
        assert_eq!(std::fs::read(output.join(name)).unwrap(), bytes);
        std::fs::remove_dir_all(&output).unwrap();
    }
    // An empty folder is accepted, and so is one with leftovers of a killed run.
    std::fs::create_dir(&output).unwrap();
    std::fs::write(output.join(".writing-a1b2c3.tmp"), "half").unwrap();
    prepare(&config, &output, |_| {}).unwrap();
    // So is one of another version of this program.
    let card = std::fs::read_to_string(output.join("dataset.json")).unwrap();
    let old = card.replace("\"version\": 1", "\"version\": 7, \"more\": []");
    assert_ne!(old, card);
    std::fs::write(output.join("dataset.json"), old).unwrap();
    prepare(&config, &output, |_| {}).unwrap();
    assert_same(&open(&output).unwrap(), &Dataset::build(&config).unwrap());
}

#[test]
fn preparing_again_replaces_files_under_open_readers() {
    let (folder, config) = text(61, TokenizerKind::Char, SplitBy::Tail);
    let output = folder.path().join("out");
    prepare(&config, &output, |_| {}).unwrap();
    let before = open(&output).unwrap();
    let (train, hash) = (ids(&before.train), before.tokenizer.hash());
    std::fs::write(output.join("notes.txt"), "kept").unwrap();
    let (_other, other) = text(62, TokenizerKind::Word, SplitBy::Documents);
    prepare(&other, &output, |_| {}).unwrap();
    let after = open(&output).unwrap();
    assert_same(&after, &Dataset::build(&other).unwrap());
    assert_ne!(after.tokenizer.hash(), hash);
    assert_eq!(ids(&before.train), train, "an open file is unchanged");
    assert_eq!(names(&output).len(), 5);
}

#[test]
fn files_of_another_vocabulary_or_run_are_errors() {
    let (folder, config) = text(63, TokenizerKind::Char, SplitBy::Tail);
    let (one, two, short) = (
        folder.path().join("one"),
        folder.path().join("two"),
        folder.path().join("short"),
    );
    prepare(&config, &one, |_| {}).unwrap();
    let (_other, other) = text(64, TokenizerKind::Word, SplitBy::Tail);
    prepare(&other, &two, |_| {}).unwrap();
    let mut less = config;
    less.split.validation = 0.5;
    prepare(&less, &short, |_| {}).unwrap();
    for (from, name, problem) in [
        (
            &two,
            "train.bin",
            "train.bin`: was made with a different tokenizer",
        ),
        (
            &two,
            "tokenizer.json",
            "train.bin`: was made with a different tokenizer",
        ),
        (
            &two,
            "validation.bin",
            "validation.bin`: was made with a different tokenizer",
        ),
        (&short, "train.bin", "tokens, but dataset.json says"),
    ] {
        let original = std::fs::read(one.join(name)).unwrap();
        std::fs::copy(from.join(name), one.join(name)).unwrap();
        let error = open(&one).unwrap_err();
        assert_eq!(error.class(), ErrorClass::Data);
        assert!(
            error.to_string().contains(problem) && error.to_string().contains("hint:"),
            "{error}"
        );
        std::fs::write(one.join(name), original).unwrap();
        open(&one).unwrap();
    }
}

#[test]
fn progress_reaches_all_bytes_and_tokens() {
    let (folder, config) = text(65, TokenizerKind::Char, SplitBy::Tail);
    let mut seen = Vec::new();
    let prepared = prepare(&config, folder.path().join("out"), |p| seen.push(p)).unwrap();
    for phase in [Phase::Vocabulary, Phase::Tokens] {
        let in_phase: Vec<&Progress> = seen.iter().filter(|p| p.phase == phase).collect();
        assert!(
            in_phase
                .windows(2)
                .all(|p| p[0].bytes <= p[1].bytes && p[0].tokens <= p[1].tokens)
        );
        assert_eq!(in_phase.last().unwrap().bytes, prepared.card.bytes);
        assert!(in_phase[0].total_bytes.unwrap() >= prepared.card.bytes);
    }
    let tokens = prepared.card.train_tokens + prepared.card.validation_tokens;
    assert_eq!(seen.last().unwrap().tokens, tokens);
}
