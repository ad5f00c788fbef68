//! The conversation of a chat request.

use nextword_chat::{ChatError, Json, Message, RenderOptions};

use crate::api_error::ApiError;
use crate::params::Params;

/// Maximum messages per conversation.
const MAX_MESSAGES: usize = 1024;

/// Everything that a chat template formats.
#[derive(Debug)]
pub(crate) struct Conversation {
    pub(crate) messages: Vec<Message>,
    tools: Option<Vec<Json>>,
    documents: Option<Vec<Json>>,
    add_generation_prompt: bool,
    continue_final_message: bool,
    variables: Vec<(String, Json)>,
}

impl Conversation {
    /// The conversation of a request that may have a text instead of `messages`.
    pub(crate) fn parse_optional(params: &mut Params<'_>) -> Result<Option<Self>, ApiError> {
        // Without them, the fields are read, and so their types checked, as if there were one message.
        let is_given = params.get("messages").is_some();
        let parsed = Self::parse_with(params, |value| match value {
            None => Ok(Vec::new()),
            some => parse_messages(some),
        })?;
        Ok(is_given.then_some(parsed))
    }

    pub(crate) fn parse(params: &mut Params<'_>) -> Result<Self, ApiError> {
        Self::parse_with(params, parse_messages)
    }

    fn parse_with(
        params: &mut Params<'_>,
        parse_messages: impl FnOnce(Option<Json>) -> Result<Vec<Message>, ApiError>,
    ) -> Result<Self, ApiError> {
        let tools = tools(params)?;
        let continue_final_message = params.flag("continue_final_message")?;
        let add_generation_prompt = params.optional_flag("add_generation_prompt")?;
        if continue_final_message && add_generation_prompt == Some(true) {
            let message = "`continue_final_message` excludes `add_generation_prompt`: a reply is either continued or \
                           begun; hint: remove one of them";
            return Err(ApiError::invalid_field("add_generation_prompt", message));
        }
        let variables = match params.ordered("chat_template_kwargs")? {
            None => Vec::new(),
            Some(Json::Object(fields)) => fields,
            Some(_) => {
                let message = "`chat_template_kwargs` must be an object";
                return Err(ApiError::invalid_field("chat_template_kwargs", message));
            }
        };
        Ok(Self {
            messages: parse_messages(params.ordered("messages")?)?,
            tools,
            documents: params.objects("documents")?,
            add_generation_prompt: add_generation_prompt.unwrap_or(!continue_final_message),
            continue_final_message,
            variables,
        })
    }

    /// What a chat template gets besides the messages.
    pub(crate) fn options(&self) -> RenderOptions<'_> {
        RenderOptions {
            tools: self.tools.as_deref(),
            documents: self.documents.as_deref(),
            add_generation_prompt: self.add_generation_prompt,
            continue_final_message: self.continue_final_message,
            variables: &self.variables,
        }
    }
}

/// The tools that are shown to the model. It must not call them, since calls are not recognized in completions.
fn tools(params: &mut Params<'_>) -> Result<Option<Vec<Json>>, ApiError> {
    let choice = params.choice("tool_choice", &["none", "auto"])?;
    params.choice("function_call", &["none", "auto"])?;
    params.optional_flag("parallel_tool_calls")?;
    let tools = params.objects("tools")?;
    if tools.is_some() && choice != Some("none") {
        let message = "`tools` are not supported, since calls are not recognized in completions; hint: remove them, or \
                       send `tool_choice`: \"none\" to show them to the model only";
        return Err(ApiError::invalid_field("tools", message));
    }
    Ok(tools)
}

/// Parses the `messages` of a request.
fn parse_messages(value: Option<Json>) -> Result<Vec<Message>, ApiError> {
    let messages_error = |message: String| ApiError::invalid_field("messages", message);
    let list = match value {
        Some(Json::List(list)) if !list.is_empty() => list,
        _ => return Err(messages_error("`messages` must be a non-empty list".into())),
    };
    if list.len() > MAX_MESSAGES {
        return Err(messages_error(format!(
            "`messages` may contain at most {MAX_MESSAGES} messages"
        )));
    }
    let parse = |(index, json): (usize, Json)| {
        Message::from_json(json).map_err(|e| {
            messages_error(match e {
                ChatError::Message { problem } => format!("`messages[{index}]` {problem}"),
                other => format!("`messages[{index}]`: {other}"),
            })
        })
    };
    list.into_iter().enumerate().map(parse).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(body: &serde_json::Value) -> Result<Conversation, ApiError> {
        let text = body.to_string();
        Conversation::parse(&mut Params::new(body, text.as_bytes())?)
    }

    #[test]
    fn malformed_messages_are_rejected() {
        for bad in [
            json!([]),
            json!("hi"),
            json!([{"role": "robot", "content": "x"}]),
            json!([{"role": "user"}]),
            json!([{"role": "user", "content": [{"type": "image_url"}]}]),
        ] {
            let error = parse(&json!({"messages": bad})).unwrap_err();
            assert!(error.message.contains("`messages"), "{}", error.message);
        }
        let parts = json!([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]);
        let conversation = parse(&json!({"messages": parts})).unwrap();
        assert_eq!(conversation.messages[0].text(), "ab");
    }

    #[test]
    fn tools_and_generation_prompts_must_be_consistent() {
        let tools = json!([{"type": "function"}]);
        for (fields, is_valid) in [
            (json!({"tools": tools}), false),
            (json!({"tools": tools, "tool_choice": "auto"}), false),
            (json!({"tools": tools, "tool_choice": "none"}), true),
            (json!({"tools": [], "tool_choice": "auto"}), true),
            (
                json!({"tool_choice": "none", "parallel_tool_calls": false}),
                true,
            ),
            (json!({"tool_choice": "required"}), false),
            (json!({"tool_choice": {"type": "function"}}), false),
            (json!({"continue_final_message": true}), true),
            (
                json!({"continue_final_message": true, "add_generation_prompt": true}),
                false,
            ),
            (
                json!({"continue_final_message": true, "add_generation_prompt": false}),
                true,
            ),
            (json!({"chat_template_kwargs": []}), false),
        ] {
            let mut body = json!({"messages": [{"role": "user", "content": "x"}]});
            body.as_object_mut()
                .unwrap()
                .extend(fields.as_object().unwrap().clone());
            assert_eq!(parse(&body).is_ok(), is_valid, "{body}");
        }
    }
}
