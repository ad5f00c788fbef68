//! docs/course.md shows the real output of its commands, and documents name files that exist.

use std::fs;

use crate::util::{nextword, root, stderr};

/// The words of a command line; single and double quotes hold spaces.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for c in line.chars() {
        match (quote, c) {
            (None, ' ') => words.push(String::new()),
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            (_, c) => words.last_mut().unwrap().push(c),
        }
    }
    words
}

/// The number in a word, with the unit of its last digit: `73.00` is (73.0, 0.01).
fn number(word: &str) -> Option<(f64, f64)> {
    let bare = word.trim_matches(|c: char| "(),;[]".contains(c));
    let bare = bare.trim_start_matches("e^(").trim_start_matches("e^");
    let mantissa = bare.split('e').next().unwrap_or(bare);
    let decimals = mantissa.split_once('.').map_or(0, |(_, after)| after.len()) as i32;
    let exponent: i32 = match bare.split_once('e') {
        Some((_, exponent)) => exponent.parse().ok()?,
        None => 0,
    };
    Some((bare.parse().ok()?, 10f64.powi(exponent - decimals)))
}

/// Whether two words of output agree. Decimals may differ in their last digit between processors, words
/// and integers may not. The reported rounding error may differ, within its bound.
fn is_close(found: &str, shown: &str) -> bool {
    if found == shown {
        return true;
    }
    let (Some((a, unit)), Some((b, other_unit))) = (number(found), number(shown)) else {
        return false;
    };
    let is_rounding_error = |word: &str| word.contains("e-");
    if is_rounding_error(found) && is_rounding_error(shown) {
        return a.max(b) < 1e-5;
    }
    unit.to_bits() == other_unit.to_bits() && unit < 1.0 && (a - b).abs() < 1.5 * unit
}

#[test]
fn only_last_digits_may_differ() {
    for (a, b) in [
        ("0.12", "0.13"),
        ("e^(-3.45)", "e^(-3.44)"),
        ("3.7e-6,", "4.1e-6,"),
    ] {
        assert!(is_close(a, b), "{a} {b}");
    }
    for (a, b) in [
        ("0.12", "0.14"),
        ("37", "38"),
        ("3.7e-6", "3.7e-3"),
        ("0.0001", "0.0110"),
        ("r", "l"),
    ] {
        assert!(!is_close(a, b), "{a} {b}");
    }
}

#[test]
fn the_course_shows_real_output() {
    let mut ran = 0;
    let text = fs::read_to_string(root().join("docs/course.md")).unwrap();
    for block in text.split("```console\n").skip(1) {
        let block = block.split("```").next().unwrap();
        let shown = format!("\n{block}");
        for part in shown.split("\n$ ").skip(1) {
            let (line, expected) = part.split_once('\n').unwrap();
            let line = words(line);
            let output = nextword()
                .args(&line[1..])
                .current_dir(root().join("docs"))
                .output()
                .unwrap();
            assert!(output.status.success(), "{line:?}: {}", stderr(&output));
            let output = String::from_utf8(output.stdout).unwrap();
            let (found, shown): (Vec<&str>, Vec<&str>) = (
                output.split_whitespace().collect(),
                expected.split_whitespace().collect(),
            );
            assert_eq!(
                found.len(),
                shown.len(),
                "{line:?}: run scripts/make_docs.py"
            );
            for (at, (found, expected)) in found.iter().zip(&shown).enumerate() {
                // Which tensor has the largest rounding error depends on the instruction set.
                let follows_error =
                    at >= 2 && shown[at - 1] == "in" && shown[at - 2].contains("e-");
                assert!(
                    follows_error || is_close(found, expected),
                    "{line:?}: {found} instead of {expected}; run scripts/make_docs.py"
                );
            }
            ran += 1;
        }
    }
    assert!(ran >= 6, "found only {ran} commands");
}

/// The targets of a Markdown text's links and images that are in the repository.
fn relative_links(text: &str) -> Vec<&str> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split([')', '#', ' ']).next())
        .filter(|target| !target.is_empty() && !target.contains(':'))
        .collect()
}

#[test]
fn links_within_the_repository_are_recognized() {
    let text = "[a](https://a.b/c) ![d](e/f.png) [g](#h) [i](j.md#k)";
    assert_eq!(relative_links(text), ["e/f.png", "j.md"]);
}

#[test]
fn links_and_images_of_the_documents_exist() {
    for name in [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "docs/course.md",
    ] {
        let path = root().join(name);
        let text = fs::read_to_string(&path).unwrap();
        for target in relative_links(&text) {
            let exists = path.parent().unwrap().join(target).exists();
            assert!(exists, "{name} refers to {target}");
        }
    }
}

#[test]
fn files_of_the_change_map_exist() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let (_, map) = text.split_once("\nWhere to make a change:\n").unwrap();
    let (map, _) = map.split_once("\n## ").unwrap();
    let quoted = map.split('`').skip(1).step_by(2);
    // `/explain` is a route.
    let paths = quoted.filter(|path| path.contains('/') && !path.starts_with('/'));
    let paths: Vec<&str> = paths.collect();
    assert!(paths.len() > 50, "{paths:?}");
    for path in paths {
        let exists = root().join("crates").join(path).exists();
        assert!(exists, "ARCHITECTURE.md names {path}");
    }
}
