//! What is trained follows what the server sends.

use nextword_data::CounterRng;

use super::models::{ChatModel, models};
use crate::{Conversation, Example, Message, RenderOptions, SpanMethod, TokenSample, TrainOn};

/// Parts of random contents: words, white space, other scripts, and texts of special tokens.
const FRAGMENTS: &[&str] = &[
    "Hello",
    " the",
    " a",
    "a",
    "\n",
    "\n\n",
    "  ",
    "\t",
    ".",
    "é",
    "日本",
    "🙂",
    "{{ x }}",
    "{% if %}",
    "<|im_end|>",
    "<|im_start|>",
    "<s>",
    "</s>",
    "[INST]",
    "<end_of_turn>",
    "<eos>",
    "<|eot_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<｜end▁of▁sentence｜>",
    "<|",
    "|>",
    "<|im_<|im_end|>end|>",
    "<think>",
    "</think>",
    "\u{100000}",
    "'",
    "\"",
    "\\",
    "### User:\n",
    "▁",
];

pub(super) fn content(rng: CounterRng) -> String {
    let count = 1 + rng.below(0, 6);
    let parts = (1..=count).map(|at| FRAGMENTS[rng.below(at, FRAGMENTS.len() as u64) as usize]);
    // A content of white space only is not trained.
    parts.collect::<String>() + "x"
}

pub(super) fn conversation(model: &ChatModel, rng: CounterRng) -> Vec<Message> {
    let mut messages = Vec::new();
    if model.takes_system && rng.below(0, 2) == 0 {
        messages.push(Message::system(content(rng.stream(1))));
    }
    for pair in 0..=rng.below(1, 3) {
        messages.push(Message::user(content(rng.stream(10 + 2 * pair))));
        messages.push(Message::assistant(content(rng.stream(11 + 2 * pair))));
    }
    messages
}

/// Checks the samples of a conversation in which all of the assistant's messages are trained.
fn check(model: &ChatModel, messages: &[Message]) -> Vec<TokenSample> {
    let name = model.name;
    let encoder = model.encoder(TrainOn::Assistant);
    let conversation = Conversation::new(messages.to_vec());
    let positions: Vec<usize> = conversation.trained_messages().collect();
    let samples = encoder.encode(&Example::Conversation(conversation));
    let samples = samples.unwrap_or_else(|error| panic!("{name}: {error}\n{messages:?}"));
    let spans = samples.iter().flat_map(|sample| {
        let spans = sample.trained.iter();
        spans.map(move |span| (sample, span))
    });
    let spans: Vec<_> = spans.collect();
    assert_eq!(spans.len(), positions.len(), "{name}: {messages:?}");
    let prompt_ends: Vec<usize> = samples
        .iter()
        .flat_map(|sample| sample.prompt_ends.iter().copied())
        .collect();
    let starts: Vec<usize> = spans.iter().map(|(_, span)| span.start).collect();
    assert_eq!(prompt_ends, starts, "{name}: {messages:?}");
    let options = RenderOptions {
        variables: &model.variables,
        ..RenderOptions::default()
    };
    let eos = encoder.eos_ids();
    for ((sample, span), at) in spans.into_iter().zip(positions) {
        let prompt = encoder.prompt_ids(&messages[..at], &options).unwrap();
        assert_eq!(
            sample.ids[..span.start],
            prompt,
            "{name}, message {at} of {messages:?}"
        );
        let (last, before) = sample.ids[span.clone()].split_last().unwrap();
        assert!(eos.contains(last), "{name}: {messages:?}");
        // No special token of a content, which would end the message, is trained.
        assert!(
            !before.iter().any(|id| eos.contains(id)),
            "{name}: {messages:?}"
        );
        let text = model
            .tokenizer
            .decode_with_special_tokens(&sample.ids[span.clone()]);
        let content = messages[at].text();
        let content = content.rsplit("</think>").next().unwrap();
        // What the prompt has begun already is not trained again.
        let prompt = model.tokenizer.decode_with_special_tokens(&prompt);
        let rest = content.trim_start().strip_prefix("<think>");
        let content = rest
            .filter(|_| prompt.trim_end().ends_with("<think>"))
            .unwrap_or(content);
        // Some tokenizers have a space for this character, and drop one at the beginning.
        let (text, content) = (text.replace('▁', " "), content.replace('▁', " "));
        assert!(
            text.contains(content.trim()),
            "{name}: {text:?} is not {content:?}"
        );
        assert_eq!(
            sample.ids.len(),
            *sample.turn_ends.last().unwrap(),
            "{name}"
        );
    }
    samples
}

#[test]
fn ids_before_each_answer_are_those_that_the_server_sends() {
    let models = models();
    assert!(models.len() >= 12);
    for model in &models {
        let system = model.takes_system.then(|| Message::system("Be brief."));
        let talk = [
            Message::user("Who are you?"),
            Message::assistant("A model."),
            Message::user("  Really? "),
            Message::assistant("Yes.\nReally."),
            Message::user("Thanks"),
            Message::assistant(" Hello "),
        ];
        let messages: Vec<Message> = system.into_iter().chain(talk).collect();
        let samples = check(model, &messages);
        let method = samples[0].method;
        let expected = match model.name {
            "marked" => SpanMethod::Marks,
            "llama3 with another division"
            | "qwen3"
            | "qwen3 without thinking"
            | "deepseek"
            | "open turns" => SpanMethod::PerTurn,
            _ => SpanMethod::Prefixes,
        };
        let count = if expected == SpanMethod::PerTurn {
            3
        } else {
            1
        };
        assert_eq!((method, samples.len()), (expected, count), "{}", model.name);
    }
}

#[test]
fn random_conversations_are_trained_as_they_are_served() {
    for model in &models() {
        let rng = CounterRng::new(16).named(model.name);
        for trial in 0..60 {
            check(model, &conversation(model, rng.stream(trial)));
        }
    }
}

#[test]
fn only_the_last_answer_or_everything_is_trained_on_request() {
    for model in &models() {
        let messages = vec![
            Message::user("a"),
            Message::assistant("b"),
            Message::user("c"),
            Message::assistant("d"),
        ];
        let prompt = model.encoder(TrainOn::All);
        let options = RenderOptions {
            variables: &model.variables,
            ..RenderOptions::default()
        };
        let prompt = prompt.prompt_ids(&messages[..3], &options).unwrap();
        let example = Example::Conversation(Conversation::new(messages));
        let last = model
            .encoder(TrainOn::LastAssistant)
            .encode(&example)
            .unwrap();
        assert_eq!(last.len(), 1, "{}", model.name);
        assert_eq!(last[0].trained.len(), 1, "{}", model.name);
        assert_eq!(last[0].trained[0].start, prompt.len(), "{}", model.name);
        let all = model.encoder(TrainOn::All).encode(&example).unwrap();
        assert_eq!(all.len(), 1, "{}", model.name);
        assert_eq!(all[0].trained, [1..all[0].ids.len()], "{}", model.name);
    }
}
