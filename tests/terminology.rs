//! Words and names that the glossary of ARCHITECTURE.md replaces do not come back.
//!
//! Its column "Instead of" marks two kinds. "Words in quotes" must not occur anywhere: in identifiers
//! (split into words), comments, strings, help texts, documents, JavaScript or Python. `Names in code
//! style` must not be the exact name of a type, function, module, constant or file; as words in prose
//! they are fine.

use std::fs;
use std::path::{Path, PathBuf};

use crate::util::root;

/// Phrases in which a banned word is allowed, with the reason. At most ten.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("is no", "is no longer", "ordinary English"),
    ("are no", "are no longer", "ordinary English"),
    (
        "is no",
        "there is no",
        "ordinary English, unlike \"x is no file\"",
    ),
    (
        "are no",
        "there are no",
        "ordinary English, unlike \"these are no files\"",
    ),
    (
        "loudness",
        "rename = \" loudness \"",
        "key of the probe snapshots that version 0.1 wrote",
    ),
    (
        "hostile",
        "\" hostile \"",
        "earlier name of a part of scripts/load_test.py, still accepted",
    ),
    (
        "hostile",
        "` hostile `",
        "the warning that names its new name",
    ),
];

const FOLDERS: &[&str] = &["crates", "tests", "scripts", "docs", "configs", ".ci"];
const EXTENSIONS: &[&str] = &["rs", "md", "toml", "js", "html", "css", "json", "py", "sh"];
/// Recorded data, generated files, and this list itself.
const SKIPPED: &[&str] = &[
    "tests/fixtures",
    "docs/models",
    "fuzz/target",
    "fuzz/artifacts",
    "fuzz/corpus",
    "tests/terminology.rs",
];

/// What the glossary bans.
#[derive(Debug, Default)]
struct Banned {
    words: Vec<String>,
    names: Vec<String>,
}

/// Reads the column "Instead of" of the table under `## Glossary`.
fn read_glossary(architecture: &str) -> Banned {
    let section = architecture.split("\n## Glossary\n").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with('|')).skip(2);
    let mut banned = Banned::default();
    for row in rows {
        let column = row.trim_matches('|').rsplit('|').next().unwrap();
        let quoted = |mark: char| column.split(mark).skip(1).step_by(2).map(str::to_string);
        banned.words.extend(quoted('"'));
        banned.names.extend(quoted('`'));
    }
    banned
}

fn files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders: Vec<_> = FOLDERS.iter().map(|name| root().join(name)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_string();
            if SKIPPED.iter().any(|skip| path.ends_with(skip)) || name.starts_with('.') {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path);
            }
        }
    }
    for name in ["README.md", "CHANGELOG.md", "ARCHITECTURE.md", "Cargo.toml"] {
        files.push(root().join(name));
    }
    files.sort();
    files
}

fn is_text(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| EXTENSIONS.contains(&extension)) || path.ends_with(".ci/run")
}

/// The words of `text` in lower case with single spaces between them: identifiers are split, line breaks
/// and comment marks dropped, punctuation kept apart.
fn words(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 8);
    for line in text.lines() {
        let line = line.trim_start().trim_start_matches(['/', '!', '#', '*']);
        let mut previous = ' ';
        for c in line.chars() {
            let starts_word =
                c.is_uppercase() && (previous.is_lowercase() || previous.is_numeric());
            if starts_word || c == '_' || c.is_whitespace() {
                out.push(' ');
            } else if c.is_alphanumeric() != previous.is_alphanumeric() {
                out.push(' ');
            }
            if c != '_' && !c.is_whitespace() {
                out.extend(c.to_lowercase());
            }
            previous = c;
        }
        out.push(' ');
    }
    out.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// How often `word` occurs in `words` outside its exceptions.
fn occurrences(words: &str, word: &str) -> usize {
    let word = word.trim().to_lowercase();
    let count = |phrase: &str| {
        let phrase = format!(" {phrase} ");
        words.matches(phrase.as_str()).count()
    };
    let allowed: usize = EXCEPTIONS
        .iter()
        .filter(|(banned, ..)| *banned == word)
        .map(|(_, phrase, _)| count(phrase))
        .sum();
    count(&word) - allowed
}

/// Names that `text` defines.
fn definitions(path: &Path, text: &str) -> Vec<String> {
    let keywords: &[&str] = match path.extension().and_then(|ending| ending.to_str()) {
        Some("rs") => &[
            "struct", "enum", "trait", "type", "union", "fn", "mod", "const", "static",
        ],
        Some("js") => &["function", "class", "const"],
        Some("py") => &["def", "class"],
        _ => &[],
    };
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut names = Vec::new();
    for line in text.lines() {
        let code = line.trim_start();
        if code.starts_with("//") || code.starts_with('#') && !code.starts_with("#[") {
            continue;
        }
        let tokens: Vec<&str> = code.split_whitespace().collect();
        for pair in tokens.windows(2) {
            let keyword = pair[0].trim_start_matches(['(', '{', '<']);
            if keywords.contains(&keyword) {
                let name: String = pair[1].chars().take_while(|c| is_name(*c)).collect();
                names.push(name);
            }
        }
    }
    names
}

#[test]
fn replaced_words_and_names_do_not_come_back() {
    let architecture = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let banned = read_glossary(&architecture);
    assert!(banned.words.len() >= 15, "{:?}", banned.words);
    assert!(banned.names.len() >= 150, "{}", banned.names.len());
    assert!(EXCEPTIONS.len() <= 10);
    let mut found = Vec::new();
    for path in files() {
        let shown = path.strip_prefix(root()).unwrap().display().to_string();
        let stem = path.file_stem().unwrap().to_str().unwrap();
        if banned.names.iter().any(|name| name == stem) {
            found.push(format!("{shown}: a file named `{stem}`"));
        }
        for word in &banned.words {
            if occurrences(&format!(" {} ", words(stem)), word) > 0 {
                found.push(format!("{shown}: \"{word}\" in the file's name"));
            }
        }
        if !is_text(&path) {
            continue;
        }
        let mut text = fs::read_to_string(&path).unwrap();
        if shown == "ARCHITECTURE.md" {
            let (before, after) = text.split_once("\n## Glossary\n").unwrap();
            let after = after.split_once("\n## ").map_or("", |(_, after)| after);
            text = format!("{before}\n{after}");
        }
        let normalized = format!(" {} ", words(&text));
        for word in &banned.words {
            let count = occurrences(&normalized, word);
            if count > 0 {
                let at = line_of(&text, word).map_or(String::new(), |line| format!(":{line}"));
                found.push(format!("{shown}{at}: \"{word}\" ({count} times)"));
            }
        }
        for name in definitions(&path, &text) {
            if banned.names.contains(&name) {
                found.push(format!("{shown}: defines `{name}`"));
            }
        }
    }
    assert!(
        found.is_empty(),
        "the glossary of ARCHITECTURE.md names the word to use instead:\n{}",
        found.join("\n")
    );
}

/// The first line that contains `word`; `None` if each occurrence spans two lines.
fn line_of(text: &str, word: &str) -> Option<usize> {
    let contains = |line: &str| occurrences(&format!(" {} ", words(line)), word) > 0;
    text.lines().position(contains).map(|line| line + 1)
}

#[test]
fn the_glossary_check_finds_replaced_words() {
    let found = |text: &str, word: &str| occurrences(&format!(" {} ", words(text)), word);
    assert_eq!(found("let tile_sight = Sight::new();", "sight"), 2);
    assert_eq!(found("insight", "sight"), 0);
    assert_eq!(found("it is no\n    /// number", "is no"), 1);
    assert_eq!(found("it is no longer finite", "is no"), 0);
    assert_eq!(found("\"{path} is no folder\"", "is no"), 1);
    let names = |file: &str, text: &str| definitions(Path::new(file), text);
    assert_eq!(names("a.rs", "pub(crate) struct Told<'a> {"), ["Told"]);
    assert_eq!(
        names("a.rs", "pub const fn follow(x: u8) {}"),
        ["fn", "follow"]
    );
    assert!(names("a.rs", "// struct Told").is_empty());
    assert_eq!(names("a.js", "function tell(x) {"), ["tell"]);
    assert_eq!(names("a.py", "    def put(self):"), ["put"]);
    let table = "x\n## Glossary\n\n| a | b |\n|---|---|\n| mask | \"sight\", `Told` |\n\n## Next\n";
    let banned = read_glossary(table);
    assert_eq!(banned.words, ["sight"]);
    assert_eq!(banned.names, ["Told"]);
}
