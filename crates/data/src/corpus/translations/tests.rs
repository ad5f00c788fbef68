use std::collections::{HashMap, HashSet};

use super::*;

fn pairs() -> Vec<(String, String)> {
    Translations::new(7, 20_000).iter().collect()
}

#[test]
fn sentences_are_distinct_and_each_has_one_translation() {
    let pairs = pairs();
    let sources: HashSet<_> = pairs.iter().map(|(source, _)| source).collect();
    assert_eq!((pairs.len(), sources.len()), (20_000, 20_000));
    let other: Vec<_> = Translations::new(8, 100).iter().collect();
    assert_ne!(pairs[..100], other);
}

#[test]
fn articles_adjectives_and_verbs_agree() {
    let feminine = ["niña", "mesa", "casa", "flor", "llave", "ciudad", "reina"];
    let masculine = ["niño", "coche", "libro", "árbol", "tren", "jardín", "rey"];
    for (_, spanish) in pairs() {
        let words: Vec<_> = spanish.split(' ').collect();
        for pair in words.windows(2) {
            let [article, noun] = [pair[0], pair[1]];
            assert_ne!([article, noun], ["a", "el"], "{spanish}");
            if feminine.contains(&noun) {
                assert!(["la", "una", "esta", "mi"].contains(&article), "{spanish}");
            }
            if masculine.contains(&noun) {
                let fitting = ["el", "al", "un", "este", "mi"];
                assert!(fitting.contains(&article), "{spanish}");
            }
        }
    }
}

#[test]
fn copying_word_by_word_fails() {
    // The best that a dictionary without context can do: the most frequent word at the same position.
    let pairs = pairs();
    let mut counts: HashMap<&str, HashMap<&str, usize>> = HashMap::new();
    for (english, spanish) in &pairs {
        for (a, b) in english.split(' ').zip(spanish.split(' ')) {
            *counts.entry(a).or_default().entry(b).or_default() += 1;
        }
    }
    let best = |word: &str| {
        let found = counts[word].iter().max_by_key(|(_, count)| **count);
        found.map_or("", |(word, _)| *word)
    };
    let is_right = |pair: &&(String, String)| {
        let words: Vec<_> = pair.0.split(' ').map(best).collect();
        words.join(" ") == pair.1
    };
    let right = pairs.iter().filter(is_right).count();
    assert!(right * 20 < pairs.len(), "{right} of {}", pairs.len());
}
