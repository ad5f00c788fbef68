//! Prompts, and special tokens that are typed in messages.

use nextword_data::CounterRng;

use super::models::models;
use super::serving::{content, conversation};
use super::tokenizers::byte_level;
use crate::{ChatTemplate, Json, Message, PromptEncoder, RenderOptions, TrainOn};

#[test]
fn ordinary_prompts_have_the_ids_of_their_text() {
    for model in models() {
        let encoder = model.encoder(TrainOn::Assistant);
        let prompts = encoder.prompts().unwrap();
        let messages = [
            Message::user("Who are <you>?"),
            Message::assistant("A\n\nmodel [1]"),
            Message::user(" é 🙂 "),
        ];
        let options = RenderOptions {
            variables: &model.variables,
            ..RenderOptions::default()
        };
        let text = prompts.template().render_with(&messages, &options).unwrap();
        let prompt = prompts.encode(&messages, &options).unwrap();
        assert_eq!(prompt.text, text, "{}", model.name);
        assert_eq!(
            prompt.encoding,
            model.tokenizer.encode(&text),
            "{}",
            model.name
        );
    }
}

#[test]
fn special_tokens_in_messages_add_no_special_ids() {
    for model in models() {
        let encoder = model.encoder(TrainOn::Assistant);
        let prompts = encoder.prompts().unwrap();
        let specials = model.tokenizer.special_texts();
        let special_ids: Vec<u32> = specials
            .iter()
            .map(|text| model.tokenizer.encode(text).ids[0])
            .collect();
        let options = RenderOptions {
            variables: &model.variables,
            ..RenderOptions::default()
        };
        let count = |messages: &[Message]| {
            let prompt = prompts.encode(messages, &options).unwrap();
            let ids = prompt.encoding.ids.iter();
            ids.filter(|id| special_ids.contains(id)).count()
        };
        let rng = CounterRng::new(3).named(model.name);
        for trial in 0..40 {
            let mut messages = conversation(&model, rng.stream(trial));
            messages.push(Message::user(content(rng.stream(trial).stream(99))));
            let harmless: Vec<Message> = messages
                .iter()
                .map(|message| Message::new(message.role(), "x"))
                .collect();
            assert_eq!(
                count(&messages),
                count(&harmless),
                "{}: {messages:?}",
                model.name
            );
        }
    }
}

#[test]
fn typed_special_tokens_are_read_back_as_they_were_typed() {
    let tokenizer = byte_level(&["<|endoftext|>", "<|im_start|>", "<|im_end|>"], true);
    let source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{{ tools | tojson }}";
    let template = ChatTemplate::from_source(source, "", "").unwrap();
    let prompts = PromptEncoder::new(template, tokenizer.clone(), 0);
    let tools = [Json::from("a tool\u{100000}<|im_end|>")];
    let options = RenderOptions {
        tools: Some(&tools),
        ..RenderOptions::default()
    };
    let messages = [
        Message::system("<|im_end|>"),
        Message::user("a <|im_start|>b<|im_end|><|im_<|im_end|>end|> \u{100000}"),
        Message::user("c"),
    ];
    let prompt = prompts.encode(&messages, &options).unwrap();
    let text = prompts.template().render_with(&messages, &options).unwrap();
    assert_eq!(prompt.text, text);
    assert_eq!(
        tokenizer.decode_with_special_tokens(&prompt.encoding.ids),
        text
    );
    let ids = |text: &str| tokenizer.encode(text).ids;
    let count = |text: &str| {
        prompt
            .encoding
            .ids
            .iter()
            .filter(|id| ids(text) == [**id])
            .count()
    };
    assert_eq!((count("<|im_start|>"), count("<|im_end|>")), (3, 3));
    // A message without special tokens has its usual ids.
    let usual = ids("<|im_start|>user\nc<|im_end|>\n");
    assert!(
        prompt
            .encoding
            .ids
            .windows(usual.len())
            .any(|ids| ids == usual)
    );
}

/// A prompt of a template that shows the content and the arguments of calls, with the number of `<|im_end|>` tokens.
fn closed(messages: &[Message], tools: &[Json]) -> (String, usize) {
    let tokenizer = byte_level(&["<|endoftext|>", "<|im_start|>", "<|im_end|>"], true);
    let source = "{% for m in messages %}{{ m.content }}{% for call in m.tool_calls or [] %}\
                  {{ call.function.arguments | tojson }}{% endfor %}<|im_end|>{% endfor %}{{ tools | tojson }}";
    let template = ChatTemplate::from_source(source, "", "").unwrap();
    let prompts = PromptEncoder::new(template, tokenizer.clone(), 0);
    let options = RenderOptions {
        tools: Some(tools),
        ..RenderOptions::default()
    };
    let prompt = prompts.encode(messages, &options).unwrap();
    let end = tokenizer.encode("<|im_end|>").ids;
    let ids = prompt.encoding.ids.iter();
    (prompt.text, ids.filter(|id| end == [**id]).count())
}

#[test]
fn special_texts_stay_text_with_all_private_characters_in_use() {
    let all: String = ('\u{100000}'..='\u{10FFFF}').collect();
    let json =
        serde_json::json!({"role": "user", "content": "<|im_<|im_end|>end|>", "hidden": all});
    let message: Message = serde_json::from_value(json).unwrap();
    let (text, count) = closed(&[message], &[]);
    assert_eq!(text, "<|im_\u{FFFD}end|><|im_end|>[]");
    assert_eq!(count, 1);
}

#[test]
fn special_texts_in_keys_stay_text() {
    let arguments = r#"{"<|im_end|>": {"a<|im_end|>": 1}}"#;
    for arguments in [
        Json::from(arguments),
        serde_json::from_str(arguments).unwrap(),
    ] {
        let call = Json::Object(vec![("arguments".to_owned(), arguments)]);
        let call = Json::Object(vec![("function".to_owned(), call)]);
        let message = Message::assistant("").with_field("tool_calls", Json::List(vec![call]));
        let tool: Json = serde_json::from_str(r#"{"<|im_end|>": [{"<|im_end|>b": 2}]}"#).unwrap();
        let (text, count) = closed(&[message], &[tool]);
        let expected =
            r#"{"<|im_end|>": {"a<|im_end|>": 1}}<|im_end|>[{"<|im_end|>": [{"<|im_end|>b": 2}]}]"#;
        assert_eq!((text.as_str(), count), (expected, 1));
    }
}

#[test]
fn an_empty_prompt_begins_with_the_start_token() {
    let tokenizer = byte_level(&["<|endoftext|>"], true);
    let template = ChatTemplate::from_source("{% if false %}{% endif %}", "", "").unwrap();
    let prompts = PromptEncoder::new(template, tokenizer, 7);
    let prompt = prompts.encode(&[Message::user("a")], &RenderOptions::default());
    assert_eq!(prompt.unwrap().encoding.ids, [7]);
}
