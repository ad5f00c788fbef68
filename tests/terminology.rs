//! Words and names that the glossary of ARCHITECTURE.md replaces do not come back.
//!
//! Its column "Instead of" marks two kinds. "Words in quotes" must not occur anywhere: in identifiers
//! (split into words), comments, strings, help texts, documents, JavaScript or Python. `Names in code
//! style` must not be the exact name of a type, function, module, constant, file or folder; as words in
//! prose they are fine. A name that ends in `*` stands for all names with that beginning.

use std::fs;
use std::path::{Path, PathBuf};

use crate::util::root;

/// Phrases in which a banned word is allowed, with the reason. At most ten.
const EXCEPTIONS: &[(&str, &str)] = &[
    ("is no longer", "ordinary English"),
    ("are no longer", "ordinary English"),
    ("there is no", "ordinary English, unlike \"x is no file\""),
    (
        "there are no",
        "ordinary English, unlike \"these are no files\"",
    ),
    (
        "rename = \" loudness",
        "key of the probe snapshots that version 0.1 wrote",
    ),
    (
        "\" hostile \"",
        "earlier name of a part of scripts/load_test.py, still accepted",
    ),
    (
        "` hostile `",
        "the warning about that earlier name, which it must contain",
    ),
];

const FOLDERS: &[&str] = &["crates", "tests", "scripts", "docs", "configs", ".ci"];
const EXTENSIONS: &[&str] = &[
    "rs", "md", "toml", "js", "html", "css", "json", "py", "sh", "svg",
];
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

impl Banned {
    /// Reads the column "Instead of" of the table under `## Glossary`.
    fn read(architecture: &str) -> Self {
        let section = architecture.split("\n## Glossary\n").nth(1).unwrap();
        let section = section.split("\n## ").next().unwrap();
        let rows = section.lines().filter(|line| line.starts_with('|')).skip(2);
        let mut banned = Self::default();
        for row in rows {
            let column = row.trim_matches('|').rsplit('|').next().unwrap();
            let quoted = |mark: char| column.split(mark).skip(1).step_by(2).map(str::to_string);
            banned.words.extend(quoted('"'));
            banned.names.extend(quoted('`'));
        }
        banned
    }

    fn has_name(&self, name: &str) -> bool {
        self.names
            .iter()
            .any(|banned| match banned.strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => name == banned,
            })
    }

    /// All violations in the files and folders under `root`.
    fn violations(&self, root: &Path) -> Vec<String> {
        let mut found = Vec::new();
        for path in paths(root) {
            let shown = path.strip_prefix(root).unwrap().display().to_string();
            let stem = path.file_stem().unwrap().to_str().unwrap();
            if self.has_name(stem) {
                found.push(format!("{shown}: a file or folder named `{stem}`"));
            }
            for word in &self.words {
                if occurrences(&words(stem), word) > 0 {
                    found.push(format!("{shown}: \"{word}\" in the name"));
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
            let normalized = words(&text);
            for word in &self.words {
                let count = occurrences(&normalized, word);
                if count > 0 {
                    let line = text.lines().position(|l| occurrences(&words(l), word) > 0);
                    let line = line.map_or(String::new(), |line| format!(":{}", line + 1));
                    found.push(format!("{shown}{line}: \"{word}\" ({count} times)"));
                }
            }
            for name in definitions(&path, &text) {
                if self.has_name(&name) {
                    found.push(format!("{shown}: defines `{name}`"));
                }
            }
        }
        found
    }
}

/// The files and folders to check.
fn paths(root: &Path) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    let mut folders: Vec<_> = FOLDERS.iter().map(|name| root.join(name)).collect();
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() && path.extension().is_some_and(|e| e == "md" || e == "toml") {
            paths.push(path);
        }
    }
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_string();
            if SKIPPED.iter().any(|skip| path.ends_with(skip)) || name.starts_with('.') {
                continue;
            }
            if path.is_dir() {
                folders.push(path.clone());
            }
            paths.push(path);
        }
    }
    paths.sort();
    paths
}

fn is_text(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    path.is_file()
        && (extension.is_some_and(|extension| EXTENSIONS.contains(&extension))
            || path.ends_with(".ci/run"))
}

/// The words of `text` in lower case, separated and surrounded by single spaces. Identifiers are split,
/// punctuation stands alone; line breaks, comment marks and the joints of wrapped strings are dropped.
fn words(text: &str) -> String {
    let mut out = String::from(" ");
    for line in text.replace("\" + \"", "").lines() {
        let line = line.trim_start().trim_start_matches(['/', '!', '#', '*']);
        let line: Vec<char> = line.trim_end().trim_end_matches('\\').chars().collect();
        for (i, &c) in line.iter().enumerate() {
            let previous = if i == 0 { ' ' } else { line[i - 1] };
            let is_next_lowercase = line.get(i + 1).is_some_and(|next| next.is_lowercase());
            let starts_word = c.is_uppercase()
                && (!previous.is_uppercase() || is_next_lowercase) // aB, ABc
                || c.is_alphanumeric() != previous.is_alphanumeric()
                || c.is_numeric() != previous.is_numeric();
            if starts_word || c == '_' {
                out.push(' ');
            }
            if c != '_' {
                out.extend(c.to_lowercase());
            }
        }
        out.push(' ');
    }
    let words: Vec<_> = out.split_whitespace().collect();
    format!(" {} ", words.join(" "))
}

/// How often `word`, or its plural, occurs in `words` outside the exceptions.
fn occurrences(words: &str, word: &str) -> usize {
    let word = word.trim().to_lowercase();
    let mut words = words.to_string();
    for (phrase, _) in EXCEPTIONS {
        words = words.replace(&format!(" {phrase} "), " . ");
    }
    let count = |phrase: &str| words.matches(&format!(" {phrase} ")).count();
    count(&word) + count(&format!("{word}s"))
}

/// Names of types, functions, modules and constants that `text` defines.
fn definitions(path: &Path, text: &str) -> Vec<String> {
    let extension = path.extension().and_then(|extension| extension.to_str());
    let keywords: &[&str] = match extension {
        Some("rs") => &[
            "struct", "enum", "trait", "type", "union", "fn", "mod", "const", "static",
        ],
        Some("js") => &["function", "function*", "class", "const", "let", "var"],
        Some("py") => &["def", "class"],
        _ => &[],
    };
    let name_of = |token: &str| -> String {
        let is_name = |c: &char| c.is_alphanumeric() || *c == '_';
        token.chars().take_while(is_name).collect()
    };
    let mut names = Vec::new();
    for line in text.lines() {
        let code = line.trim_start();
        if code.starts_with("//") || code.starts_with('#') && !code.starts_with("#[") {
            continue;
        }
        let code = code.split(" //").next().unwrap_or_default();
        let tokens: Vec<&str> = code.split_whitespace().collect();
        let tokens: Vec<&str> = tokens.into_iter().filter(|t| *t != "mut").collect();
        for pair in tokens.windows(2) {
            if keywords.contains(&pair[0].trim_start_matches(['(', '{', '<'])) {
                names.push(name_of(pair[1]));
            }
        }
        // A Python constant.
        if extension == Some("py")
            && line.starts_with(tokens.first().unwrap_or(&" "))
            && tokens.get(1) == Some(&"=")
        {
            names.push(name_of(tokens[0]));
        }
    }
    names
}

#[test]
fn replaced_words_and_names_are_absent() {
    let architecture = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let banned = Banned::read(&architecture);
    assert!(banned.words.len() >= 15, "{:?}", banned.words);
    assert!(banned.names.len() >= 150, "{}", banned.names.len());
    assert!(EXCEPTIONS.len() <= 10);
    let found = banned.violations(&root());
    assert!(
        found.is_empty(),
        "the glossary of ARCHITECTURE.md lists the word to use instead:\n{}",
        found.join("\n")
    );
}

#[test]
fn planted_words_and_names_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let banned = Banned {
        words: ["crew", "is no"].map(String::from).to_vec(),
        names: ["Told", "follow", "MOST_*", "desk"]
            .map(String::from)
            .to_vec(),
    };
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write(
        "README.md",
        "He told us to follow; the crewman is no longer here.",
    );
    write(
        "crates/a/src/fine.rs",
        "fn followed() {} // struct Told, there is no way",
    );
    assert_eq!(banned.violations(folder.path()), Vec::<String>::new());
    for (name, text) in [
        ("crates/a/src/lib.rs", "pub(crate) struct Told<'a> {"),
        ("crates/a/src/lib.rs", "pub const fn follow(x: u8) {}"),
        ("crates/a/src/lib.rs", "static mut MOST_WORDS: u8 = 3;"),
        ("crates/a/src/lib.rs", "let kv_crew2 = KVCrew::new();"),
        ("crates/a/src/lib.rs", "/// It is no\n    /// file."),
        ("crates/a/src/lib.rs", "\"this {x} is \\\n     no file\""),
        ("crates/a/src/desk.rs", ""),
        ("crates/desk/src/lib.rs", ""),
        ("crates/a/src/the_crews.rs", ""),
        ("crates/a/page.js", "let follow = 3;"),
        (
            "crates/a/page.js",
            "message = \"there is no longer one; x is \" + \"no file\";",
        ),
        ("scripts/a.py", "    def follow(self):"),
        ("scripts/a.py", "MOST_LINES = 3"),
        ("docs/a.md", "The crew works."),
    ] {
        write(name, text);
        let found = banned.violations(folder.path());
        assert!(!found.is_empty(), "{name}: {text}");
        fs::remove_file(folder.path().join(name)).unwrap();
        let _ = fs::remove_dir(folder.path().join("crates/desk/src"));
        let _ = fs::remove_dir(folder.path().join("crates/desk"));
    }
}

#[test]
fn the_glossary_column_is_read() {
    let table = "x\n## Glossary\n\n| a | b |\n|---|---|\n| mask | \"sight\", `Told` |\n\n## Next\n";
    let banned = Banned::read(table);
    assert_eq!(banned.words, ["sight"]);
    assert_eq!(banned.names, ["Told"]);
}
