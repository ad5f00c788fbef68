//! Which parts are trained, and errors.

use super::models::models;
use super::tokenizers::byte_level;
use crate::{
    ChatError, ChatTemplate, Conversation, Example, Message, SampleEncoder, SampleTokens,
    SpanMethod, TrainOn,
};

const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

fn encoder(source: &str, eos: &str) -> SampleEncoder {
    let tokenizer = byte_level(&SPECIAL, true);
    let template = ChatTemplate::from_source(source, "", eos).unwrap();
    let tokens = SampleTokens {
        eos: tokenizer.encode(eos).ids,
        ..SampleTokens::default()
    };
    SampleEncoder::new(tokenizer, tokens).with_chat_template(template)
}

fn talk() -> Conversation {
    Conversation::new(vec![
        Message::user("a"),
        Message::assistant("b"),
        Message::user("c"),
        Message::assistant("d"),
    ])
}

/// The trained parts of a conversation as text.
fn trained(encoder: &SampleEncoder, conversation: Conversation) -> Vec<String> {
    let texts = encoder.texts(&Example::Conversation(conversation)).unwrap();
    let parts = texts.iter().flat_map(|sample| {
        let spans = sample.trained.iter();
        spans.map(|span| sample.text[span.clone()].to_owned())
    });
    parts.collect()
}

#[test]
fn answers_are_trained_with_the_token_that_closes_them() {
    for model in models() {
        let encoder = model.encoder(TrainOn::Assistant);
        let parts = trained(&encoder, talk());
        let expected = match model.name {
            "llama2" => [" b </s>", " d </s>"],
            "mistral" => [" b</s>", " d</s>"],
            "zephyr" | "plain with bos" => ["b</s>", "d</s>"],
            "gemma" => ["b<end_of_turn>", "d<end_of_turn>"],
            "phi3" => ["b<|end|>", "d<|end|>"],
            "deepseek" => ["b<｜end▁of▁sentence｜>", "d<｜end▁of▁sentence｜>"],
            "qwen3" => [
                "<think>\n\n</think>\n\nb<|im_end|>",
                "<think>\n\n</think>\n\nd<|im_end|>",
            ],
            "plain" | "open turns" => ["b<|endoftext|>", "d<|endoftext|>"],
            name if name.starts_with("llama3") => ["b<|eot_id|>", "d<|eot_id|>"],
            _ => ["b<|im_end|>", "d<|im_end|>"],
        };
        assert_eq!(parts, expected, "{}", model.name);
    }
}

#[test]
fn generation_marks_take_precedence_and_leave_out_what_they_leave_out() {
    let source = "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' %}{% generation %}{{ m.content[0] }}\
                  {% endgeneration %}-{% generation %}{{ m.content[1:] }}{% endgeneration %}!{{ eos_token }}{% else %}\
                  {{ m.content }}{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";
    let encoder = encoder(source, "<|endoftext|>");
    let messages = vec![Message::user("a"), Message::assistant("bcd")];
    let conversation = Conversation::new(messages);
    let parts = trained(&encoder, conversation.clone());
    assert_eq!(parts, ["b", "cd!<|endoftext|>"]);
    let samples = encoder
        .encode(&Example::Conversation(conversation))
        .unwrap();
    assert_eq!(samples[0].method, SpanMethod::Marks);
    assert_eq!(samples[0].trained.len(), 2);
    // Marks in the data itself would be mistaken for the template's.
    let messages = vec![Message::user("\u{10FFFC}"), Message::assistant("bcd")];
    let parts = trained(&encoder, Conversation::new(messages));
    assert_eq!(parts, ["b-cd!<|endoftext|>"]);
}

#[test]
fn messages_with_weight_zero_are_not_trained() {
    let source = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}";
    let mut conversation = talk();
    conversation.trained[1] = false;
    let encoder = encoder(source, "<|im_end|>");
    assert_eq!(trained(&encoder, conversation.clone()), ["d<|im_end|>"]);
    conversation.trained[3] = false;
    let samples = encoder
        .encode(&Example::Conversation(conversation))
        .unwrap();
    assert!(samples.is_empty());
}

#[test]
fn a_template_that_closes_with_another_token_is_an_error_that_names_it() {
    let source = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}";
    let error = encoder(source, "<|endoftext|>").encode(&Example::Conversation(talk()));
    let error = error.unwrap_err();
    assert!(
        matches!(error, ChatError::NotClosed { id: Some(_), .. }),
        "{error}"
    );
    assert!(error.to_string().contains("<|im_end|>"), "{error}");
    let source = "{% for m in messages %}{{ m.content }}[END]{% endfor %}";
    let error = encoder(source, "<|endoftext|>").encode(&Example::Conversation(talk()));
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("[END]") && error.contains("not a token"),
        "{error}"
    );
}

#[test]
fn a_reasoning_continues_the_prompt_that_begins_it() {
    let mut models = models();
    models.retain(|model| model.name == "deepseek" || model.name.starts_with("qwen3"));
    let conversation = || {
        let answer = Message::assistant("<think>\nWell.\n</think>\n\nb<｜User｜>");
        Conversation::new(vec![Message::user("a"), answer])
    };
    let parts = models.iter().map(|model| {
        let encoder = model.encoder(TrainOn::Assistant);
        let samples = encoder
            .encode(&Example::Conversation(conversation()))
            .unwrap();
        let sample = &samples[0];
        model
            .tokenizer
            .decode_with_special_tokens(&sample.ids[sample.trained[0].clone()])
    });
    let expected = [
        "<think>\nWell.\n</think>\n\nb<｜User｜><|im_end|>",
        "b<｜User｜><|im_end|>",
        "Well.\n</think>\n\nb<｜User｜><｜end▁of▁sentence｜>",
    ];
    assert_eq!(parts.collect::<Vec<_>>(), expected);
}

#[test]
fn a_template_that_hides_the_answer_is_an_error() {
    let source = "{% if add_generation_prompt %}prompt{% else %}other{{ eos_token }}{% endif %}";
    let error = encoder(source, "<|endoftext|>").encode(&Example::Conversation(talk()));
    let error = error.unwrap_err();
    assert!(matches!(error, ChatError::NotContinued { .. }), "{error}");
    assert!(error.to_string().contains("\"prompt\""), "{error}");
}

#[test]
fn completions_and_texts_need_no_template() {
    let tokenizer = byte_level(&SPECIAL, true);
    let ids = |text: &str| tokenizer.encode(text).ids;
    let tokens = SampleTokens {
        eos: ids("<|endoftext|>"),
        ..SampleTokens::default()
    };
    let encoder = SampleEncoder::new(tokenizer.clone(), tokens.clone());
    let example = Example::Completion {
        prompt: "2+2=".into(),
        completion: "4".into(),
    };
    let sample = encoder.encode(&example).unwrap().remove(0);
    assert_eq!(sample.ids, ids("2+2=4<|endoftext|>"));
    assert_eq!(
        (sample.trained, sample.method),
        (vec![4..6], SpanMethod::Completion)
    );
    let sample = encoder
        .encode(&Example::Text("abc".into()))
        .unwrap()
        .remove(0);
    assert_eq!(
        (sample.ids, sample.trained),
        (ids("abc<|endoftext|>"), vec![1..4])
    );

    // With the tokens before every text, and with a prompt template.
    let with_prefix = SampleTokens {
        prefix: ids("<|im_start|>"),
        ..tokens
    };
    let encoder =
        SampleEncoder::new(tokenizer.clone(), with_prefix).with_prompt_template("Q: {prompt}\nA:");
    let expected = ids("<|im_start|>Q: 2+2=\nA:4<|endoftext|>");
    assert_eq!(encoder.encode(&example).unwrap()[0].ids, expected);
    let conversation = Conversation::new(vec![Message::user("2+2="), Message::assistant("4")]);
    let sample = encoder
        .encode(&Example::Conversation(conversation))
        .unwrap()
        .remove(0);
    assert_eq!(sample.ids, expected);
    let error = encoder.encode(&Example::Conversation(talk())).unwrap_err();
    assert!(matches!(error, ChatError::NoTemplate), "{error}");

    let without_eos = SampleEncoder::new(tokenizer, SampleTokens::default());
    let error = without_eos.encode(&example).unwrap_err();
    assert!(matches!(error, ChatError::NoEos), "{error}");
}

#[test]
fn a_token_across_the_border_is_divided_and_reported() {
    // Llama 3's division takes all line breaks as one part, which have tokens of two and three.
    let source = "{% for m in messages %}{{ m.content }}{{ eos_token }}\n\n{% endfor %}";
    let encoder = encoder(source, "<|endoftext|>");
    let tokenizer = byte_level(&SPECIAL, true);
    let messages = vec![Message::user("a"), Message::assistant("\nb")];
    let sample = encoder.encode(&Example::Conversation(Conversation::new(messages)));
    let sample = sample.unwrap().remove(0);
    let expected = [
        tokenizer.encode("a<|endoftext|>\n\n").ids,
        tokenizer.encode("\nb<|endoftext|>").ids,
    ];
    assert_eq!(sample.ids, expected.concat());
    assert!(sample.is_split);
}
