//! Conversations about short stories, from a seeded grammar.

use super::grammar::{Cast, expand};
use super::plots::{OPENINGS, PLOTS};
use crate::permutation::Permutation;
use crate::rng::{CounterRng, RandomSequence, stream};

/// Maximum number of questions in a conversation.
const MAX_QUESTIONS: usize = 3;

/// Something that can be asked about a story.
struct Topic {
    /// The story must state one of these.
    stated: &'static [&'static str],
    question: &'static str,
    /// The only right completion.
    reply: &'static str,
}

const TOPICS: &[Topic] = &[
    Topic {
        stated: &["{A}"],
        question: "Who is this story about?",
        reply: "It is about {A}.",
    },
    Topic {
        stated: &["{being} named {A}", "{being} who"],
        question: "What is {A}?",
        reply: "{A} is {a_being}.",
    },
    Topic {
        stated: &["{place}"],
        question: "Where does it happen?",
        reply: "It happens {at}.",
    },
    Topic {
        stated: &["{B}"],
        question: "Who is the friend of {A}?",
        reply: "The friend of {A} is {B}.",
    },
    Topic {
        stated: &["{thing}"],
        question: "What thing is in the story?",
        reply: "There is {a_thing} in it.",
    },
    Topic {
        stated: &["little {creature}", "{a_creature}"],
        question: "What did they find?",
        reply: "They found {a_creature}.",
    },
];

/// `count` conversations about short stories, each a pure function of the seed and its index, independent of `count`.
/// The grammar knows the right reply to each of its questions, so that a model's replies can be checked.
///
/// # Example
///
/// ```
/// use nextword_data::StoryChats;
///
/// let chats = StoryChats::new(42, 1000);
/// let chat = chats.chat(7);
/// assert_eq!(chat, StoryChats::new(42, 8).chat(7)); // independent of the count
/// let (question, reply) = &chat.exchanges[0];
/// assert!(question.starts_with(&chat.story)); // The first message tells the story.
/// assert!(reply.ends_with('.'));
/// assert_eq!(chats.reply(7, "Where does it happen?").unwrap().split(' ').next(), Some("It"));
/// assert_eq!(chats.reply(7, "Is it long?"), None); // not a question of the grammar
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoryChats {
    seed: u64,
    count: usize,
}

/// A conversation about a story.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoryChat {
    /// The story, in a few sentences.
    pub story: String,
    /// Messages of the user, the first of which tells the story and asks about it, each with its reply: one
    /// sentence.
    pub exchanges: Vec<(String, String)>,
}

impl StoryChats {
    /// The first `count` conversations of `seed`.
    pub fn new(seed: u64, count: usize) -> Self {
        Self { seed, count }
    }

    /// Returns conversation `index`.
    pub fn chat(&self, index: usize) -> StoryChat {
        let (cast, story, mut random) = self.story(index);
        let topics: Vec<(String, String)> = exchanges(&cast, &story).collect();
        let count = 1 + random.below(MAX_QUESTIONS.min(topics.len()));
        let order = Permutation::new(random.below(1 << 30) as u64, topics.len() as u64);
        let mut exchanges: Vec<(String, String)> = (0..count as u64)
            .map(|position| topics[order.at(position) as usize].clone())
            .collect();
        if let Some((first, _)) = exchanges.first_mut() {
            *first = format!("{story}\n\n{first}");
        }
        StoryChat { story, exchanges }
    }

    /// Iterates over all conversations in order.
    pub fn iter(&self) -> impl Iterator<Item = StoryChat> + Send + use<> {
        let chats = *self;
        (0..chats.count).map(move |index| chats.chat(index))
    }

    /// Returns the right reply to `question` about the story of conversation `index`, whether the conversation has it
    /// or not; `None` if the grammar has no such question about that story.
    pub fn reply(&self, index: usize, question: &str) -> Option<String> {
        let (cast, story, _) = self.story(index);
        let mut known = exchanges(&cast, &story);
        let found = known.find(|(asked, _)| asked == question);
        found.map(|(_, reply)| reply)
    }

    /// Returns a wrong reply to `question` about the story of conversation `index`: the wording of
    /// [`reply`](Self::reply) with another character, place, thing or creature. It is a pure function of the seed, the
    /// index and the question; `None` if the grammar has no such question about that story.
    ///
    /// ```
    /// use nextword_data::StoryChats;
    ///
    /// let chats = StoryChats::new(42, 10);
    /// let question = "Where does it happen?";
    /// let [right, wrong] = [chats.reply(7, question), chats.wrong_reply(7, question)].map(Option::unwrap);
    /// assert_ne!(right, wrong);
    /// assert!(wrong.starts_with("It happens "));
    /// ```
    pub fn wrong_reply(&self, index: usize, question: &str) -> Option<String> {
        let (cast, story, _) = self.story(index);
        let mut topics = stated_topics(&cast, &story);
        let (number, topic) = topics.find(|(_, topic)| cast.fill(topic.question) == question)?;
        let rng = CounterRng::with_stream(self.seed, stream::WRONG_REPLIES + index as u64);
        let mut random = rng.stream(number as u64).sequence();
        let other = cast.with_other_facts(topic.question.contains("{A}"), &mut random);
        Some(other.fill(topic.reply))
    }

    /// Name of this corpus in the description of a run's data.
    pub fn name(&self) -> String {
        format!(
            "builtin stories_chat, seed {}, {} conversation{}",
            self.seed,
            self.count,
            if self.count == 1 { "" } else { "s" }
        )
    }

    /// The story of conversation `index`, and the random numbers that follow it.
    fn story(&self, index: usize) -> (Cast, String, RandomSequence) {
        let rng = CounterRng::with_stream(self.seed, stream::STORY_CHATS + index as u64);
        let mut random = rng.sequence();
        let cast = Cast::sample(&mut random);
        let opening = OPENINGS[random.below(OPENINGS.len())];
        let plot = PLOTS[random.below(PLOTS.len())];
        let mut story = String::with_capacity(512);
        // Without the weather, which nobody asks about, most stories fit into a short context.
        let opening = opening.replace(" {weather}", "");
        for pattern in [&opening, plot[0]] {
            expand(pattern, &cast, &mut random, &mut story);
        }
        (cast, story, random)
    }
}

/// The questions about what `story` states, with their replies.
fn exchanges<'a>(cast: &'a Cast, story: &'a str) -> impl Iterator<Item = (String, String)> + 'a {
    stated_topics(cast, story)
        .map(move |(_, topic)| (cast.fill(topic.question), cast.fill(topic.reply)))
}

/// What can be asked about `story`, with the numbers of the topics.
fn stated_topics<'a>(
    cast: &'a Cast,
    story: &'a str,
) -> impl Iterator<Item = (usize, &'static Topic)> + 'a {
    TOPICS.iter().enumerate().filter(move |(_, topic)| {
        let mut stated = topic.stated.iter();
        stated.any(|pattern| has_words(story, &cast.fill(pattern)))
    })
}

/// Whether `text` contains `words`, not as a part of longer words.
fn has_words(text: &str, words: &str) -> bool {
    text.match_indices(words).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + words.len()..].chars().next();
        let is_letter = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        !is_letter(before) && !is_letter(after)
    })
}
