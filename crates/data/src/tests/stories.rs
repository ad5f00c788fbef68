use std::collections::HashSet;

use crate::*;

const STORY_COUNT: usize = 2000;

fn all(seed: u64) -> Vec<String> {
    Stories::new(seed, STORY_COUNT).iter().collect()
}

#[test]
fn story_is_a_function_of_seed_and_index() {
    let stories = Stories::new(7, 300);
    let forwards: Vec<String> = stories.iter().collect();
    assert_eq!(forwards.len(), 300);
    for index in (0..300).rev() {
        assert_eq!(stories.story(index), forwards[index]);
        assert_eq!(Stories::new(7, 1).story(index), forwards[index]);
    }
    let other: HashSet<String> = Stories::new(8, 300).iter().collect();
    assert!(forwards.iter().all(|story| !other.contains(story)));
}

#[test]
fn story_count_does_not_change_earlier_stories() {
    let few: Vec<String> = Stories::new(3, 50).iter().collect();
    let more: Vec<String> = Stories::new(3, 500).iter().collect();
    assert_eq!(few, more[..50]);
}

/// Story text must not change between versions: model folders record only the seed.
#[test]
fn story_text_is_stable_across_versions() {
    let text: String = Stories::new(0, 200).iter().collect();
    let hash = nextword_base::hash::sha256_hex(text.as_bytes());
    assert_eq!(
        hash,
        "d72f2cdc70f6d887f3314192b5ca5f8a4827ff73b7b31dc208c5f3df263bdf10"
    );
}

#[test]
fn two_thousand_stories_are_distinct() {
    for seed in [0, 1, u64::MAX] {
        let stories = all(seed);
        let distinct: HashSet<&String> = stories.iter().collect();
        assert_eq!(distinct.len(), STORY_COUNT);
        let beginnings: HashSet<&str> = stories.iter().map(|story| &story[..60]).collect();
        assert!(beginnings.len() > STORY_COUNT / 2, "{}", beginnings.len());
    }
}

#[test]
fn stories_are_short_plain_text_without_grammar_markup() {
    for story in all(0) {
        assert!(story.chars().all(|c| c == '\n' || (' '..='~').contains(&c)));
        assert!(
            !story.contains(['[', ']', '{', '}', '|', '<', '_']),
            "{story}"
        );
        assert!((300..2500).contains(&story.len()), "{}", story.len());
        assert!(!story.contains("  ") && !story.contains("\n\n") && !story.contains(" \n"));
        assert!(!story.contains(" ,") && !story.contains(" .") && !story.contains(".."));
        assert!(story.starts_with(char::is_uppercase));
        assert!(story.ends_with(['.', '!', '"']), "{story}");
        assert_eq!(story.matches('"').count() % 2, 0, "{story}");
    }
}

#[test]
fn sentences_are_capitalized_and_articles_match() {
    for story in all(1) {
        for pair in story.split_whitespace().collect::<Vec<_>>().windows(2) {
            let vowel = pair[1].starts_with(['a', 'e', 'i', 'o']) || pair[1].starts_with("hour");
            assert!(pair[0] != "a" || !vowel, "{pair:?} in {story}");
            assert!(pair[0] != "an" || vowel, "{pair:?} in {story}");
            let speech = pair[1].starts_with('"') && !pair[0].ends_with(','); // "but" continues the sentence
            let begins = pair[0].ends_with('.') || speech;
            let first = pair[1].trim_start_matches('"').chars().next().unwrap();
            let ends = pair[1].len() == 1; // a closing quotation mark
            assert!(
                !begins || ends || first.is_uppercase(),
                "{pair:?} in {story}"
            );
        }
    }
}

#[test]
fn story_vocabulary_stays_small() {
    let words = |stories: &[String]| -> usize {
        let lower: Vec<String> = stories.iter().map(|story| story.to_lowercase()).collect();
        let letters = |c: char| !c.is_ascii_alphabetic();
        let distinct: HashSet<&str> = lower.iter().flat_map(|s| s.split(letters)).collect();
        distinct.len()
    };
    let stories = all(2);
    let (half, all_words) = (words(&stories[..STORY_COUNT / 2]), words(&stories));
    assert!((500..1200).contains(&all_words), "{all_words}");
    assert!(
        all_words - half < 10,
        "{half} words in a half, {all_words} in all"
    );
    let config = DataConfig {
        builtin: Some(Builtin::Stories),
        documents: STORY_COUNT,
        ..DataConfig::default()
    };
    let data = Dataset::build(&config).unwrap();
    assert!((50..80).contains(&data.tokenizer.vocab_size()));
    let card = data.card.unwrap();
    assert_eq!(card.documents, STORY_COUNT as u64);
    assert_eq!(card.sources, ["builtin stories, seed 0, 2000 documents"]);
    assert_eq!(
        card.bytes,
        all(0).iter().map(|s| s.len() as u64).sum::<u64>()
    );
}

#[test]
fn statquest_corpus_is_twelve_ids_of_five_words() {
    let mut config = DataConfig {
        builtin: Some(Builtin::Statquest),
        ..DataConfig::default()
    };
    config.tokenizer.kind = TokenizerKind::Word;
    config.tokenizer.unk.clear();
    config.split.validation = 0.0;
    let data = Dataset::build(&config).unwrap();
    let tokens: Vec<String> = (0..5)
        .filter_map(|id| data.tokenizer.id_to_token(id))
        .collect();
    assert_eq!(tokens, ["what", "is", "statquest", "awesome", "<EOS>"]);
    assert_eq!((data.tokenizer.vocab_size(), data.validation.len()), (5, 0));
    let mut ids = Vec::new();
    data.train.read(0..data.train.len(), &mut ids).unwrap();
    assert_eq!(
        ids,
        [0, 1, 2, 4, 3, 4, 2, 1, 0, 4, 3, 4],
        "no second <EOS> at the end"
    );
    assert_eq!(data.train.document_starts().collect::<Vec<_>>(), [0, 6]);
    assert_eq!(
        data.tokenizer.decode(&ids[6..]),
        "statquest is what awesome"
    );
}
