//! Sentences of the bilingual grammar: both languages are built from the same choices.

use super::words::{
    ADJECTIVES, Adjective, BEING_ADJECTIVES, DETERMINERS, INTRANSITIVE, Kind, NOUNS, Noun, PLACES,
    PRONOUNS, STATES, SUBJECTS, THING_ADJECTIVES, TRANSITIVE, Verb,
};
use crate::rng::RandomSequence;

/// The index of "he, she, it" among the persons of a verb.
const THIRD_SINGULAR: usize = 2;
/// The index of "they".
const THIRD_PLURAL: usize = 4;
/// The determiner "a", "some".
const INDEFINITE: usize = 1;

/// Words of both languages.
#[derive(Debug, Default)]
pub(super) struct Both {
    pub(super) english: Vec<&'static str>,
    pub(super) spanish: Vec<&'static str>,
}

impl Both {
    fn push(&mut self, english: &'static str, spanish: &'static str) {
        let words = |text: &'static str| text.split(' ').filter(|word| !word.is_empty());
        self.english.extend(words(english));
        self.spanish.extend(words(spanish));
    }

    fn append(&mut self, mut other: Self) {
        self.english.append(&mut other.english);
        self.spanish.append(&mut other.spanish);
    }
}

/// A noun with determiner and perhaps an adjective.
struct Phrase {
    noun: &'static Noun,
    determiner: usize,
    adjective: Option<&'static Adjective>,
    is_plural: bool,
}

impl Phrase {
    fn sample(nouns: &'static [Noun], random: &mut RandomSequence) -> Self {
        let noun = &nouns[random.below(nouns.len())];
        let fitting = match noun.kind {
            Kind::Thing => THING_ADJECTIVES,
            Kind::Person | Kind::Animal => BEING_ADJECTIVES,
        };
        let index = random.below(ADJECTIVES.len() + fitting.len());
        let adjective = ADJECTIVES.iter().chain(fitting).nth(index);
        Self {
            noun,
            determiner: random.below(DETERMINERS.len()),
            adjective: adjective.filter(|_| random.below(2) == 0),
            is_plural: random.below(2) == 0,
        }
    }

    fn number(&self) -> usize {
        usize::from(self.is_plural)
    }

    fn person(&self) -> usize {
        if self.is_plural {
            THIRD_PLURAL
        } else {
            THIRD_SINGULAR
        }
    }

    /// In English determiner, adjective, noun; in Spanish determiner, noun, adjective.
    fn both(&self) -> Both {
        let (number, gender) = (self.number(), usize::from(self.noun.is_feminine));
        let (english, spanish) = DETERMINERS[self.determiner];
        let noun = self.noun.english[number];
        let next = self.adjective.map_or(noun, |adjective| adjective.english);
        let is_vowel = next.starts_with(['a', 'e', 'i', 'o', 'u']);
        let determiner = match english[number] {
            "a" if is_vowel => "an",
            other => other,
        };
        let mut both = Both::default();
        both.push(determiner, spanish[gender][number]);
        if let Some(adjective) = self.adjective {
            both.push(adjective.english, "");
        }
        both.push(noun, self.noun.spanish[number]);
        if let Some(adjective) = self.adjective {
            both.push("", adjective.spanish[gender][number]);
        }
        both
    }

    /// The phrase as the object of a verb: Spanish puts "a" before persons, which contracts with "el".
    fn object(&self) -> Both {
        let mut both = self.both();
        if self.noun.kind == Kind::Person {
            match both.spanish.first_mut() {
                Some(article) if *article == "el" => *article = "al",
                _ => both.spanish.insert(0, "a"),
            }
        }
        both
    }
}

/// Tense and negation of a sentence.
struct Mood {
    is_past: bool,
    is_negated: bool,
}

impl Mood {
    fn sample(random: &mut RandomSequence) -> Self {
        Self {
            is_past: random.below(2) == 0,
            is_negated: random.below(4) == 0,
        }
    }

    /// The verb in `person`: English negates with a form of "do", Spanish with "no".
    fn verb(&self, verb: &Verb, person: usize) -> Both {
        let spanish = verb.spanish[usize::from(self.is_past)][person];
        let is_third = person == THIRD_SINGULAR;
        let [base, third, past] = verb.english;
        let mut both = Both::default();
        match (self.is_negated, self.is_past) {
            (true, true) => both.push("did not", "no"),
            (true, false) if is_third => both.push("does not", "no"),
            (true, false) => both.push("do not", "no"),
            (false, _) => {}
        }
        let english = match (self.is_negated, self.is_past) {
            (false, true) => past,
            (false, false) if is_third => third,
            _ => base,
        };
        both.push(english, spanish);
        both.push(verb.particle, "");
        both
    }

    /// "to be": `spanish` has present and past, each singular and plural.
    fn be(&self, is_plural: bool, spanish: [[&'static str; 2]; 2]) -> Both {
        let (tense, number) = (usize::from(self.is_past), usize::from(is_plural));
        let mut both = Both::default();
        if self.is_negated {
            both.push("", "no");
        }
        let english = [["is", "are"], ["was", "were"]][tense][number];
        both.push(english, spanish[tense][number]);
        if self.is_negated {
            both.push("not", "");
        }
        both
    }
}

/// A sentence in both languages.
pub(super) fn sample(random: &mut RandomSequence) -> Both {
    let subjects = &NOUNS[..SUBJECTS];
    let mood = Mood::sample(random);
    let form = random.below(8);
    let mut sentence = Both::default();
    match form {
        // The boy sees the red car.
        0..=3 => {
            let (subject, person) = subject(random);
            sentence.append(subject);
            let verb = &TRANSITIVE[random.below(TRANSITIVE.len())];
            sentence.append(mood.verb(verb, person));
            sentence.append(Phrase::sample(NOUNS, random).object());
        }
        // The boy sleeps in the big house.
        4 => {
            let (subject, person) = subject(random);
            sentence.append(subject);
            let verb = &INTRANSITIVE[random.below(INTRANSITIVE.len())];
            sentence.append(mood.verb(verb, person));
            sentence.push("in", "en");
            sentence.append(Phrase::sample(PLACES, random).both());
        }
        // There is a red car in the house.
        5 => {
            let present = Mood {
                is_past: false,
                ..mood
            };
            let found = Phrase {
                determiner: INDEFINITE,
                ..Phrase::sample(NOUNS, random)
            };
            sentence.push("there", "");
            sentence.append(present.be(found.is_plural, [["hay"; 2]; 2]));
            sentence.append(found.both());
            sentence.push("in", "en");
            sentence.append(Phrase::sample(PLACES, random).both());
        }
        // The girl is tired.
        6 => {
            let subject = Phrase::sample(subjects, random);
            sentence.append(subject.both());
            let estar = [["está", "están"], ["estaba", "estaban"]];
            let state = &STATES[random.below(STATES.len())];
            describe(&mut sentence, &mood, &subject, estar, state);
        }
        // The book is expensive.
        _ => {
            let subject = Phrase {
                adjective: None,
                ..Phrase::sample(&NOUNS[SUBJECTS..], random)
            };
            sentence.append(subject.both());
            let ser = [["es", "son"], ["era", "eran"]];
            let adjective = &THING_ADJECTIVES[random.below(THING_ADJECTIVES.len())];
            describe(&mut sentence, &mood, &subject, ser, adjective);
        }
    }
    sentence
}

/// Who does something, and the person of the verb. Spanish leaves pronouns out.
fn subject(random: &mut RandomSequence) -> (Both, usize) {
    if random.below(4) > 0 {
        let phrase = Phrase::sample(&NOUNS[..SUBJECTS], random);
        return (phrase.both(), phrase.person());
    }
    let (pronoun, person) = PRONOUNS[random.below(PRONOUNS.len())];
    let mut both = Both::default();
    both.push(pronoun, "");
    (both, person)
}

/// Appends a form of "to be" and an adjective that agrees with `subject`.
fn describe(
    sentence: &mut Both,
    mood: &Mood,
    subject: &Phrase,
    be: [[&'static str; 2]; 2],
    adjective: &Adjective,
) {
    sentence.append(mood.be(subject.is_plural, be));
    let gender = usize::from(subject.noun.is_feminine);
    sentence.push(
        adjective.english,
        adjective.spanish[gender][subject.number()],
    );
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn phrase(determiner: usize, adjective: &str, noun: &str, number: usize) -> Phrase {
        let nouns = NOUNS.iter().chain(PLACES);
        let mut adjectives = ADJECTIVES
            .iter()
            .chain(THING_ADJECTIVES)
            .chain(BEING_ADJECTIVES);
        Phrase {
            noun: nouns.into_iter().find(|n| n.english[0] == noun).unwrap(),
            determiner,
            adjective: adjectives.find(|a| a.english == adjective),
            is_plural: number == 1,
        }
    }

    fn verb(english: &str, particle: &str) -> &'static Verb {
        let mut verbs = TRANSITIVE.iter().chain(INTRANSITIVE);
        let found = verbs.find(|verb| verb.english[0] == english && verb.particle == particle);
        found.unwrap()
    }

    fn mood(is_past: bool, is_negated: bool) -> Mood {
        Mood {
            is_past,
            is_negated,
        }
    }

    fn texts(parts: impl IntoIterator<Item = Both>) -> (String, String) {
        let mut sentence = Both::default();
        for part in parts {
            sentence.append(part);
        }
        (sentence.english.join(" "), sentence.spanish.join(" "))
    }

    fn is(parts: impl IntoIterator<Item = Both>, english: &str, spanish: &str) {
        assert_eq!(texts(parts), (english.to_string(), spanish.to_string()));
    }

    #[test]
    fn objects_and_verbs_are_translated_correctly() {
        let see = mood(false, false).verb(verb("see", ""), 0);
        is(
            [see, phrase(0, "red", "car", 1).object()],
            "see the red cars",
            "veo los coches rojos",
        );
        let girl = phrase(0, "", "girl", 0);
        let saw = mood(true, false).verb(verb("see", ""), girl.person());
        let king = phrase(0, "old", "king", 0).object();
        is(
            [girl.both(), saw, king],
            "the girl saw the old king",
            "la niña vio al rey viejo",
        );
        let dogs = phrase(2, "gray", "dog", 1);
        let look = mood(false, true).verb(verb("look", "for"), dogs.person());
        let women = phrase(3, "young", "woman", 1).object();
        is(
            [dogs.both(), look, women],
            "these gray dogs do not look for my young women",
            "estos perros grises no buscan a mis mujeres jóvenes",
        );
        let found = mood(true, true).verb(verb("find", ""), 1);
        let apple = phrase(1, "", "apple", 0).object();
        is(
            [found, apple],
            "did not find an apple",
            "no encontraste una manzana",
        );
    }

    #[test]
    fn adjectives_agree_with_the_subject() {
        let described = |subject: Phrase, mood: &Mood, state: &Adjective, be| {
            let mut sentence = subject.both();
            describe(&mut sentence, mood, &subject, be, state);
            texts([sentence])
        };
        let estar = [["está", "están"], ["estaba", "estaban"]];
        let (english, spanish) = described(
            phrase(3, "", "sister", 1),
            &mood(true, true),
            &STATES[0],
            estar,
        );
        assert_eq!(english, "my sisters were not tired");
        assert_eq!(spanish, "mis hermanas no estaban cansadas");
        let ser = [["es", "son"], ["era", "eran"]];
        let (english, spanish) = described(
            phrase(2, "", "key", 0),
            &mood(false, false),
            &THING_ADJECTIVES[3],
            ser,
        );
        assert_eq!(english, "this key is new");
        assert_eq!(spanish, "esta llave es nueva");
    }
}
