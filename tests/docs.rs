//! The course in docs/ shows what its commands write.

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

/// Numbers may differ in their last shown digit from processor to processor, words may not.
fn alike(a: &str, b: &str) -> bool {
    let number = |word: &str| {
        let bare = word.trim_matches(|c: char| "(),;".contains(c));
        bare.trim_start_matches("e^(")
            .trim_start_matches("e^")
            .parse::<f64>()
            .ok()
    };
    a == b
        || match (number(a), number(b)) {
            (Some(a), Some(b)) => (a - b).abs() <= 0.011 + 1e-3 * a.abs(),
            _ => false,
        }
}

#[test]
fn the_course_shows_what_its_commands_write() {
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
            for (found, shown) in found.iter().zip(&shown) {
                assert!(
                    alike(found, shown),
                    "{line:?}: {found} instead of {shown}; run scripts/make_docs.py"
                );
            }
            ran += 1;
        }
    }
    assert!(ran >= 6, "only {ran} commands ran");
}
