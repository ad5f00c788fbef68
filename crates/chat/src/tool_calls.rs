//! The arguments of tool calls: texts in `OpenAI`'s API, objects for most chat templates.

use std::borrow::Cow;

use crate::{ChatTemplate, Json, Message, RenderOptions};

/// What a chat template expects as the arguments of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arguments {
    /// Either, or the template shows no calls.
    AsGiven,
    /// An object: it would show a text in quotes, or fail.
    Object,
    /// JSON in a text: it would show an object as Python does, or fail.
    Text,
}

impl Arguments {
    /// Tries both with a template.
    pub(crate) fn of(template: &ChatTemplate) -> Self {
        let object = Json::Object(vec![("probe".to_owned(), Json::Integer(1))]);
        let text = Json::from("{\"probe\": 1}");
        let render = |arguments: Json| {
            let function = vec![
                ("name".to_owned(), Json::from("function")),
                ("arguments".to_owned(), arguments),
            ];
            let call = Json::Object(vec![
                ("id".to_owned(), Json::from("call12345")),
                ("type".to_owned(), Json::from("function")),
                ("function".to_owned(), Json::Object(function)),
            ]);
            let calls = Json::List(vec![call]);
            let result = Message::new(crate::Role::Tool, "1");
            let messages = [
                Message::user("text"),
                Message::assistant("").with_field("tool_calls", calls),
                result.with_field("tool_call_id", Json::from("call12345")),
            ];
            let options = RenderOptions {
                add_generation_prompt: false,
                ..RenderOptions::default()
            };
            let shown = template.render_with(&messages, &options).ok();
            shown.filter(|shown| shown.contains("probe"))
        };
        let (with_object, with_text) = (render(object), render(text));
        let is_python = |shown: &String| shown.contains("'probe'");
        let is_quoted = |shown: &String| shown.contains("\\\"probe");
        match (with_object, with_text) {
            (Some(object), None) if !is_python(&object) => Self::Object,
            (Some(object), Some(text)) if is_quoted(&text) && !is_python(&object) => Self::Object,
            (None, Some(text)) if !is_quoted(&text) => Self::Text,
            (Some(object), Some(text)) if is_python(&object) && !is_quoted(&text) => Self::Text,
            _ => Self::AsGiven,
        }
    }

    /// The messages with the arguments that the template expects, where they can be converted.
    pub(crate) fn convert(self, messages: &[Message]) -> Cow<'_, [Message]> {
        let has_calls = |message: &Message| message.field("tool_calls").is_some();
        if self == Self::AsGiven || !messages.iter().any(has_calls) {
            return Cow::Borrowed(messages);
        }
        let convert = |message: &Message| match message.field("tool_calls") {
            Some(Json::List(calls)) => {
                let calls = calls.iter().map(|call| self.convert_call(call)).collect();
                message.with_field("tool_calls", Json::List(calls))
            }
            _ => message.clone(),
        };
        Cow::Owned(messages.iter().map(convert).collect())
    }

    /// A call, in which `arguments` is in the call itself or in its `function`.
    fn convert_call(self, call: &Json) -> Json {
        let Json::Object(fields) = call else {
            return call.clone();
        };
        let fields = fields.iter().map(|(name, value)| {
            let value = match (name.as_str(), value) {
                ("function", Json::Object(_)) => self.convert_call(value),
                ("arguments", value) => self.convert_arguments(value),
                (_, value) => value.clone(),
            };
            (name.clone(), value)
        });
        Json::Object(fields.collect())
    }

    fn convert_arguments(self, arguments: &Json) -> Json {
        match (self, arguments) {
            (Self::Object, Json::String(text)) => match serde_json::from_str(text) {
                Ok(object @ Json::Object(_)) => object,
                _ => arguments.clone(),
            },
            (Self::Text, Json::Object(_)) => {
                let text = serde_json::to_string(arguments);
                text.map_or_else(|_| arguments.clone(), Json::String)
            }
            _ => arguments.clone(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn template(shown: &str) -> ChatTemplate {
        let source = "{% for m in messages %}{% for call in m.tool_calls or [] %}".to_owned();
        let source = source + shown + "{% endfor %}{% endfor %}";
        ChatTemplate::from_source(&source, "", "").unwrap()
    }

    #[test]
    fn arguments_become_what_the_template_expects() {
        let call = |arguments: &str| {
            let json = format!(
                r#"{{"role": "assistant", "tool_calls": [{{"function": {{"name": "f", "arguments": {arguments}}}}}]}}"#
            );
            [serde_json::from_str::<Message>(&json).unwrap()]
        };
        let (object, text) = (call(r#"{"a": [1]}"#), call(r#""{\"a\": [1]}""#));
        for (shown, expected, prompt) in [
            (
                "{{ call.function.arguments | tojson }}",
                Arguments::Object,
                r#"{"a": [1]}"#,
            ),
            (
                "{% for k, v in call.function.arguments.items() %}{{ k }}{{ v }}{% endfor %}",
                Arguments::Object,
                "a[1]",
            ),
            (
                "{{ 'call ' + call.function.arguments }}",
                Arguments::Text,
                r#"call {"a":[1]}"#,
            ),
        ] {
            let template = template(shown);
            let arguments = Arguments::of(&template);
            assert_eq!(arguments, expected, "{shown}");
            for messages in [&object, &text] {
                let messages = arguments.convert(messages);
                let found = template.render(&messages).unwrap().replace(": [", ":[");
                assert_eq!(found, prompt.replace(": [", ":["), "{shown}");
            }
        }
        let either = "{% if call.function.arguments is string %}{{ call.function.arguments }}{% else %}\
                      {{ call.function.arguments | tojson }}{% endif %}";
        for shown in [either, "{{ call.id }}"] {
            assert_eq!(
                Arguments::of(&template(shown)),
                Arguments::AsGiven,
                "{shown}"
            );
        }
        let invalid = call(r#""no JSON""#);
        assert_eq!(Arguments::Object.convert(&invalid).as_ref(), invalid);
    }
}
