//! The vocabulary of the stories and the expansion of sentence patterns.
//!
//! A pattern has choices `[one|another]` and placeholders `{name}` that are filled from the cast.

use crate::rng::{CounterRng, RandomSequence};

const GIRLS: &[&str] = &[
    "Mia", "Lily", "Anna", "Ella", "Rosa", "Nora", "Clara", "Ruby", "Sara", "Emma", "Lucy", "Maya",
    "Ivy", "Zoe", "Hanna", "Tilda", "Greta", "Wendy", "Jane", "Alice",
];
const BOYS: &[&str] = &[
    "Tom", "Ben", "Max", "Leo", "Sam", "Finn", "Jack", "Otto", "Paul", "Noah", "Oscar", "Hugo",
    "Adam", "Felix", "Tim", "Carl", "Luke", "Peter", "Robin", "David",
];
const ANIMALS: &[&str] = &[
    "fox", "rabbit", "bear", "mouse", "hedgehog", "cat", "badger", "duck",
];
const KIN: &[(&str, Gender)] = &[
    ("mother", Gender::She),
    ("father", Gender::He),
    ("grandmother", Gender::She),
    ("grandfather", Gender::He),
    ("aunt", Gender::She),
    ("uncle", Gender::He),
];
const PLACES: &[(&str, &str)] = &[
    ("in", "garden"),
    ("by", "river"),
    ("at", "old mill"),
    ("in", "forest"),
    ("on", "hill"),
    ("by", "lake"),
    ("in", "meadow"),
    ("near", "bridge"),
    ("at", "market"),
    ("on", "beach"),
    ("in", "park"),
    ("in", "orchard"),
    ("by", "pond"),
    ("in", "wide field"),
    ("at", "harbor"),
    ("in", "village square"),
];
const LOOKS: &[&str] = &[
    "red", "blue", "green", "yellow", "little", "new", "old", "shiny", "wooden", "striped",
    "painted", "silver",
];
const THINGS: &[&str] = &[
    "kite",
    "ball",
    "drum",
    "lantern",
    "whistle",
    "toy boat",
    "basket",
    "bell",
    "doll",
    "box",
    "flute",
    "toy horse",
    "cup",
    "top",
];
const FOODS: &[&str] = &[
    "a warm loaf of bread",
    "some sweet berries",
    "a bowl of soup",
    "a honey cake",
    "two ripe pears",
    "a bag of nuts",
    "some fresh plums",
    "a plate of pancakes",
    "a big apple pie",
    "some bread and cheese",
];
const CREATURES: &[&str] = &[
    "bird", "squirrel", "kitten", "puppy", "duckling", "lamb", "turtle", "owl",
];
const WEATHER: &[(&str, &str)] = &[
    ("sunny", "The sun was warm and the sky was blue."),
    (
        "windy",
        "The wind blew hard and the leaves danced in the air.",
    ),
    ("cloudy", "Small gray clouds moved slowly across the sky."),
    (
        "cool",
        "It had rained in the night, and the grass was still wet.",
    ),
    (
        "quiet",
        "Fog lay over the fields, and there was no sound at all.",
    ),
    ("bright", "The birds were singing in every tree."),
    ("hot", "It was so hot that even the bees were tired."),
    (
        "pleasant",
        "A soft wind came from the south and smelled of flowers.",
    ),
];
const TIMES: &[&str] = &[
    "morning",
    "afternoon",
    "day",
    "spring day",
    "summer day",
    "Sunday",
];

/// Grammatical gender of a character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gender {
    She,
    He,
}

impl Gender {
    /// Subject, object and possessive form.
    fn pronouns(self) -> [&'static str; 3] {
        match self {
            Self::She => ["she", "her", "her"],
            Self::He => ["he", "him", "his"],
        }
    }
}

/// The characters, places and things of one story.
#[derive(Debug, Clone)]
pub(super) struct Cast {
    hero: (&'static str, Gender),
    friend: (&'static str, Gender),
    kin: (&'static str, Gender),
    being: &'static str,
    place: (&'static str, &'static str),
    look: &'static str,
    thing: &'static str,
    food: &'static str,
    creature: &'static str,
    weather: (&'static str, &'static str),
    time: &'static str,
}

impl Cast {
    pub(super) fn sample(random: &mut RandomSequence) -> Self {
        let hero = person(random);
        let friend = loop {
            let friend = person(random);
            if friend.0 != hero.0 {
                break friend;
            }
        };
        let being = match (random.below(2), hero.1) {
            (0, Gender::She) => "girl",
            (0, Gender::He) => "boy",
            _ => pick(random, ANIMALS),
        };
        Self {
            hero,
            friend,
            kin: pick(random, KIN),
            being,
            place: pick(random, PLACES),
            look: pick(random, LOOKS),
            thing: pick(random, THINGS),
            food: pick(random, FOODS),
            creature: pick(random, CREATURES),
            weather: pick(random, WEATHER),
            time: pick(random, TIMES),
        }
    }

    /// A cast that differs in everything that is asked about: other characters, another place, thing and creature. The
    /// hero stays the same if `keeps_hero`.
    pub(super) fn with_other_facts(&self, keeps_hero: bool, random: &mut RandomSequence) -> Self {
        let mut other = self.clone();
        if !keeps_hero {
            other.hero = pick_other(random, person, |hero| hero.0 != self.hero.0);
        }
        other.friend = pick_other(random, person, |friend| {
            friend.0 != self.friend.0 && friend.0 != other.hero.0
        });
        other.being = pick_other(
            random,
            |random| pick(random, ANIMALS),
            |being| *being != self.being,
        );
        other.place = pick_other(
            random,
            |random| pick(random, PLACES),
            |place| *place != self.place,
        );
        other.look = pick_other(
            random,
            |random| pick(random, LOOKS),
            |look| *look != self.look,
        );
        other.thing = pick_other(
            random,
            |random| pick(random, THINGS),
            |thing| *thing != self.thing,
        );
        other.creature = pick_other(
            random,
            |random| pick(random, CREATURES),
            |creature| *creature != self.creature,
        );
        other
    }

    /// Replaces the placeholders of a pattern without choices.
    pub(super) fn fill(&self, pattern: &str) -> String {
        let mut text = String::new();
        expand(pattern, self, &mut CounterRng::new(0).sequence(), &mut text);
        text
    }

    /// Returns the text for `{name}`, capitalized if the name is; `None` for unknown names.
    fn substitute(&self, name: &str) -> Option<String> {
        let lower = name.to_ascii_lowercase();
        let text = match lower.as_str() {
            "a" => self.hero.0.to_owned(),
            "b" => self.friend.0.to_owned(),
            "kin" => self.kin.0.to_owned(),
            "being" => self.being.to_owned(),
            "a_being" => with_article(self.being),
            "place" => format!("the {}", self.place.1),
            "at" => format!("{} the {}", self.place.0, self.place.1),
            "thing" => format!("{} {}", self.look, self.thing),
            "a_thing" => with_article(&format!("{} {}", self.look, self.thing)),
            "noun" => self.thing.to_owned(),
            "food" => self.food.to_owned(),
            "creature" => self.creature.to_owned(),
            "a_creature" => with_article(self.creature),
            "a_sky" => with_article(self.weather.0),
            "weather" => self.weather.1.to_owned(),
            "time" => self.time.to_owned(),
            "he" | "him" | "his" => pronoun(&lower, self.hero.1),
            "bhe" | "bhim" | "bhis" => pronoun(&lower[1..], self.friend.1),
            "khe" | "khim" | "khis" => pronoun(&lower[1..], self.kin.1),
            _ => return None,
        };
        let capital = name.starts_with(char::is_uppercase);
        Some(if capital { capitalize(&text) } else { text })
    }
}

/// Expands a pattern and appends it to `out`. Unknown placeholders are left unchanged.
pub(super) fn expand(pattern: &str, cast: &Cast, random: &mut RandomSequence, out: &mut String) {
    let mut rest = pattern;
    while let Some(start) = rest.find(['[', '{']) {
        out.push_str(&rest[..start]);
        let open = &rest[start..];
        let close = if open.starts_with('{') {
            open.find('}')
        } else {
            closing_bracket(open)
        };
        let Some(close) = close else { break };
        let inside = &open[1..close];
        if open.starts_with('{') {
            out.push_str(
                &cast
                    .substitute(inside)
                    .unwrap_or_else(|| open[..=close].to_owned()),
            );
        } else {
            let choices = alternatives(inside);
            expand(pick(random, &choices), cast, random, out);
        }
        rest = &open[close + 1..];
    }
    out.push_str(rest);
}

/// Returns the position of the bracket that closes the one at the start of `text`.
fn closing_bracket(text: &str) -> Option<usize> {
    let mut depth = 0;
    text.bytes().position(|byte| {
        depth += i32::from(byte == b'[') - i32::from(byte == b']');
        depth == 0
    })
}

/// Splits `text` at the bars that are not inside nested brackets.
fn alternatives(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (index, byte) in text.bytes().enumerate() {
        depth += i32::from(byte == b'[') - i32::from(byte == b']');
        if byte == b'|' && depth == 0 {
            found.push(&text[start..index]);
            start = index + 1;
        }
    }
    found.push(&text[start..]);
    found
}

/// Returns a random element of `choices`, which must not be empty.
fn pick<T: Copy>(random: &mut RandomSequence, choices: &[T]) -> T {
    choices[random.below(choices.len())]
}

/// Picks until `is_other` accepts, which all but one or two of the choices do.
fn pick_other<T>(
    random: &mut RandomSequence,
    mut pick: impl FnMut(&mut RandomSequence) -> T,
    is_other: impl Fn(&T) -> bool,
) -> T {
    loop {
        let picked = pick(random);
        if is_other(&picked) {
            return picked;
        }
    }
}

fn person(random: &mut RandomSequence) -> (&'static str, Gender) {
    if random.below(2) == 0 {
        (pick(random, GIRLS), Gender::She)
    } else {
        (pick(random, BOYS), Gender::He)
    }
}

fn pronoun(form: &str, gender: Gender) -> String {
    let index = match form {
        "he" => 0,
        "him" => 1,
        _ => 2,
    };
    gender.pronouns()[index].to_owned()
}

fn with_article(noun: &str) -> String {
    let article = if noun.starts_with(['a', 'e', 'i', 'o', 'u']) {
        "an"
    } else {
        "a"
    };
    format!("{article} {noun}")
}

fn capitalize(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(characters).collect()
    })
}
