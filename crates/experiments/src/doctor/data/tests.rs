#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use nextword_data::{Builtin, DataConfig, Packing, SplitBy, TokenizerConfig};
use nextword_train::read_config;

use super::*;

/// Documents of a seeded grammar without any problem.
fn stories(count: usize) -> Vec<String> {
    let data = DataConfig {
        builtin: Some(Builtin::Stories),
        documents: count,
        seed: 5,
        ..DataConfig::default()
    };
    let sources = Sources::from_config(&data).unwrap();
    // An empty line separates documents here, and not paragraphs.
    sources
        .texts()
        .map(|text| text.unwrap().replace("\n\n", "\n"))
        .collect()
}

/// A configuration that reads `text`, documents of which are separated by an empty line.
fn config(folder: &Path, text: impl AsRef<[u8]>) -> RunConfig {
    let file = folder.join("text.txt");
    fs::write(&file, text).unwrap();
    let mut config = RunConfig::default();
    config.data.path = Some(file);
    config.data.separator = Some("\n\n".to_string());
    config.data.tokenizer = TokenizerConfig::chars();
    config.model.context_length = 64;
    config
}

fn kinds(config: &RunConfig) -> Vec<FindingKind> {
    let report = check_data(config).unwrap();
    for finding in &report.findings {
        assert!(finding.count > 0 && !finding.fix.is_empty(), "{finding:?}");
    }
    report.findings.iter().map(|finding| finding.kind).collect()
}

/// The first words of `text`.
fn words(text: &str, count: usize) -> String {
    text.split_whitespace()
        .take(count)
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn clean_text_and_the_built_in_corpora_have_no_findings() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(kinds(&config(folder.path(), stories(300).join("\n\n"))), []);
    for name in ["quickstart", "statquest", "two-layers"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../configs/{name}.toml"));
        let config = read_config(&path, &[]).unwrap();
        assert_eq!(kinds(&config), [], "{name}");
    }
    let mut chats = RunConfig::default();
    chats.data.builtin = Some(Builtin::StoriesChat);
    chats.data.documents = 100;
    chats.data.chat_template = Some("plain".into());
    chats.data.tokenizer = TokenizerConfig::bytes();
    chats.model.context_length = 2048;
    assert_eq!(kinds(&chats), []);
}

type Plant = fn(&mut Vec<String>, &mut RunConfig);

/// Faults of documents: what is found, and how it is planted into stories.
const FAULTS: [(FindingKind, Plant); 10] = [
    (FindingKind::ReplacementCharacters, |texts, _| {
        texts[7].push('\u{fffd}');
    }),
    (FindingKind::Mojibake, |texts, _| {
        texts[7].push_str(" He didnâ€™t come.");
    }),
    (FindingKind::DuplicateDocuments, |texts, _| {
        texts[7] = texts[3].clone();
    }),
    (FindingKind::NearDuplicateDocuments, |texts, _| {
        texts[7] = format!("{} The end.", texts[3].repeat(3));
        texts[3] = texts[3].repeat(3);
    }),
    (FindingKind::MissingBoundaries, |texts, config| {
        *texts = vec![texts.join("\n<|endoftext|>\n")];
        config.data.separator = None;
    }),
    (FindingKind::LongDocuments, |_, config| {
        config.data.packing = Packing::Documents;
    }),
    (FindingKind::SmallValidation, |_, config| {
        config.data.split.validation = 0.002;
    }),
    (FindingKind::SmallTraining, |_, config| {
        config.model.context_length = 1 << 20;
    }),
    (FindingKind::DifferentSplits, |texts, _| {
        let other = "Ça été l'été où les élèves français étudièrent déjà près du château. ";
        let count = texts.len() / 8;
        texts.extend((0..count).map(|n| format!("{n}: {}", other.repeat(3 + n % 5))));
    }),
    (FindingKind::Leakage, |texts, _| {
        let passage = texts[..8].join(" ");
        texts.push(format!("Another beginning. {passage}"));
    }),
];

#[test]
fn faults_of_documents_are_found() {
    // A copy may also be in both splits; nothing else may be reported.
    let related = [
        FindingKind::Leakage,
        FindingKind::NearDuplicateDocuments,
        FindingKind::DuplicateDocuments,
    ];
    let mut problems = Vec::new();
    for (kind, plant) in FAULTS {
        let folder = tempfile::tempdir().unwrap();
        let mut texts = stories(300);
        let mut config = config(folder.path(), "");
        plant(&mut texts, &mut config);
        fs::write(folder.path().join("text.txt"), texts.join("\n\n")).unwrap();
        let found = kinds(&config);
        let is_expected = |other: &FindingKind| *other == kind || related.contains(other);
        if !found.contains(&kind) || !found.iter().all(is_expected) {
            problems.push((kind, found));
        }
    }
    assert!(problems.is_empty(), "planted and found: {problems:?}");
}

#[test]
fn faults_of_bytes_are_found() {
    let clean = stories(300).join("\n\n");
    let with = |prefix: &[u8], text: &str| [prefix, text.as_bytes()].concat();
    let faults: [(FindingKind, Vec<u8>); 5] = [
        (FindingKind::InvalidUtf8, with(b"caf\xe9 ", &clean)),
        (FindingKind::ByteOrderMark, with(b"\xef\xbb\xbf", &clean)),
        (
            FindingKind::CarriageReturns,
            clean.replace('\n', "\r\n").into_bytes(),
        ),
        (FindingKind::Nul, with(b"a\0b\0", &clean)),
        (
            FindingKind::JsonAsText,
            b"{\"text\": \"a story\"}\n".repeat(400),
        ),
    ];
    for (kind, text) in faults {
        let folder = tempfile::tempdir().unwrap();
        let found = kinds(&config(folder.path(), text));
        assert_eq!(found.first(), Some(&kind), "{found:?}");
    }
}

#[test]
fn a_tokenizer_that_does_not_fit_the_text_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = |config: TokenizerConfig, text: &str, name: &str| {
        let file = folder.path().join(name);
        fs::write(&file, config.build(text).unwrap().to_json().unwrap()).unwrap();
        TokenizerConfig::from_file(file)
    };
    let mut config = config(folder.path(), stories(300).join("\n\n"));
    config.data.tokenizer = tokenizer(
        TokenizerConfig::words().with_unk("<unk>"),
        "a few words only",
        "words.json",
    );
    let found = kinds(&config);
    assert!(found.contains(&FindingKind::UnknownText), "{found:?}");

    // A vocabulary of another kind of text.
    let numbers: Vec<String> = (0..40_000_u32)
        .map(|n| (n * 7919 % 99_991).to_string())
        .collect();
    let numbers = numbers.join(" ");
    config.data.tokenizer = tokenizer(TokenizerConfig::bpe(2000), &numbers, "numbers.json");
    let found = kinds(&config);
    for kind in [FindingKind::UnusedTokens, FindingKind::TokensPerByte] {
        assert!(found.contains(&kind), "{kind:?} is not in {found:?}");
    }
}

#[test]
fn the_split_by_documents_mends_what_the_tail_breaks() {
    let folder = tempfile::tempdir().unwrap();
    let mut texts = stories(300);
    let upper = texts[..60]
        .iter()
        .map(|text| text.to_uppercase())
        .collect::<Vec<_>>();
    texts.extend(upper);
    let mut config = config(folder.path(), texts.join("\n\n"));
    assert_eq!(kinds(&config), [FindingKind::DifferentSplits]);
    config.data.split.by = SplitBy::Documents;
    assert_eq!(kinds(&config), []);
}

#[test]
fn one_text_is_not_to_be_split_by_documents() {
    let folder = tempfile::tempdir().unwrap();
    let mut text = stories(300).join(" ");
    text.push_str(&text[..text.len() / 5].to_uppercase());
    let config = config(folder.path(), text);
    let findings = check_data(&config).unwrap().findings;
    assert_eq!(findings[0].kind, FindingKind::DifferentSplits);
    assert!(findings[0].fix.contains("data.separator"), "{findings:?}");
}

#[test]
fn a_single_mark_within_a_line_separates_no_documents() {
    let folder = tempfile::tempdir().unwrap();
    let text = stories(300).join("\n\n");
    for (mark, expected) in [
        (" The mark <|endoftext|> ends a text. ", &[][..]),
        ("\n<|endoftext|>\n", &[FindingKind::MissingBoundaries]),
    ] {
        let middle = text.len() / 2;
        let text = format!("{}{mark}{}", &text[..middle], &text[middle..]);
        let mut config = config(folder.path(), text);
        config.data.separator = None;
        assert_eq!(kinds(&config), expected, "{mark:?}");
    }
}

/// Conversations of one, and of many, letters.
fn chats(folder: &Path, lengths: &[usize]) -> RunConfig {
    let line = |length: &usize| {
        let answer = "a".repeat(*length);
        format!("{{\"prompt\": \"b{length}\", \"completion\": \"{answer}\"}}\n")
    };
    let file = folder.join("chats.jsonl");
    fs::write(&file, lengths.iter().map(line).collect::<String>()).unwrap();
    let text = format!(
        "data.conversations = {file:?}\ndata.tokenizer.kind = 'byte'\nmodel.context_length = 96\n\
         data.split.validation = 0.2"
    );
    nextword_train::parse_config(&text, "x.toml".as_ref(), &[]).unwrap()
}

#[test]
fn conversations_that_are_longer_than_a_sequence_are_found_with_the_length_that_they_need() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(kinds(&chats(folder.path(), &[3, 4, 5, 6, 7, 8])), []);
    let config = chats(folder.path(), &[3, 4, 5, 6, 7, 8, 200]);
    let report = check_data(&config).unwrap();
    let [finding] = &report.findings[..] else {
        panic!("{report:?}");
    };
    assert_eq!(
        (finding.kind, finding.count),
        (FindingKind::LongConversations, 1)
    );
    assert!(
        finding
            .problem
            .starts_with("of 7 samples do not fit into a sequence of 96 tokens")
    );
    assert!(
        report.is_chat && report.documents == 6 && report.train_tokens > 0,
        "{report:?}"
    );
    // With the length that it names, all of them fit; with one token less, they do not.
    let needed = finding.fix.split(|c: char| !c.is_ascii_digit());
    let mut needed = needed.filter_map(|number| number.parse::<usize>().ok());
    let needed = needed.next().unwrap();
    for (length, expected) in [
        (needed, vec![]),
        (needed - 1, vec![FindingKind::LongConversations]),
    ] {
        let mut config = chats(folder.path(), &[3, 4, 5, 6, 7, 8, 200]);
        config.model.context_length = length;
        assert_eq!(kinds(&config), expected, "{length} of {needed}");
    }
}

#[test]
fn a_problem_agrees_with_its_count() {
    let folder = tempfile::tempdir().unwrap();
    let clean = stories(300).join("\n\n");
    let mut config = config(folder.path(), format!("\u{feff}{clean}"));
    let problem = |config: &RunConfig| check_data(config).unwrap().findings[0].problem.clone();
    assert!(problem(&config).starts_with("file begins with"));
    let other = folder.path().join("other.txt");
    fs::write(
        &other,
        format!("\u{feff}{}", stories(310)[300..].join("\n\n")),
    )
    .unwrap();
    let first = config.data.path.take().unwrap();
    config.data.paths = vec![first, other];
    assert!(problem(&config).starts_with("files begin with"));
}

#[test]
fn a_reason_for_a_missing_check_is_named_once() {
    let mut config = RunConfig::default();
    config.data.path = Some("missing.txt".into());
    let mut reasons = check_data(&config).unwrap().not_checked;
    let all = reasons.len();
    assert!(all > 0);
    reasons.sort();
    reasons.dedup();
    assert_eq!(reasons.len(), all);
}

#[test]
fn pairs_are_not_called_unreadable() {
    let mut config = RunConfig::default();
    config.data.pairs = vec!["pairs.tsv".into()];
    let report = check_data(&config).unwrap();
    assert_eq!((report.findings, report.not_checked.len()), (vec![], 1));
}

#[test]
fn text_that_is_missing_is_a_finding_and_an_example_is_short() {
    let mut missing = RunConfig::default();
    missing.data.path = Some("no/such/file.txt".into());
    assert_eq!(kinds(&missing), [FindingKind::Unreadable]);
    let finding = Finding::new(
        FindingKind::Nul,
        1,
        "x",
        &words(&"word ".repeat(99), 90),
        "y",
    );
    assert!(finding.example.ends_with('…') && finding.example.len() < 70);
}
