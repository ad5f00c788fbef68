//! Chat templates: programs from untrusted files, run with limits on instructions and output.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::{fs, io};

use crate::compiled::Compiled;
use crate::content::{Fields, kept_lists};
use crate::message::set;
use crate::{ChatError, Json, Message};

/// Maximum size of a template file, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// The folder beside a template with further ones by name, as transformers writes it.
const MORE_TEMPLATES: &str = "additional_chat_templates";
/// The further template that is used for conversations with tools.
const TOOL_TEMPLATE: &str = "tool_use.jinja";
/// Variables that a conversation sets.
const RESERVED: [&str; 4] = ["messages", "tools", "documents", "add_generation_prompt"];

/// Formats conversations for a model: a Jinja template in [Hugging Face's `chat_template` dialect][dialect].
/// The result is what transformers' `apply_chat_template` returns, byte for byte. There is one deliberate
/// difference: a content that is a list of parts is joined for templates that expect a text, where transformers
/// would print the list.
///
/// A rendering stops with an error after a million instructions or 4 MiB of output. It runs on a thread of its
/// own, with a stack for the deepest value that a template can make within these limits.
///
/// [dialect]: https://huggingface.co/docs/transformers/chat_templating_writing
#[derive(Debug)]
pub struct ChatTemplate {
    template: Compiled,
    /// The template for conversations with tools, if it is another one.
    with_tools: Option<Compiled>,
    /// Texts of special tokens by the name of their variable.
    tokens: Vec<(String, Json)>,
}

/// What goes into a prompt besides the messages.
#[derive(Clone, Debug, PartialEq)]
pub struct RenderOptions<'a> {
    /// Descriptions of the tools that the model may call, as JSON schemas.
    pub tools: Option<&'a [Json]>,
    /// Documents that the model may use.
    pub documents: Option<&'a [Json]>,
    /// Whether the prompt ends where a new reply of the assistant starts. Default true.
    pub add_generation_prompt: bool,
    /// Whether the prompt ends within the last message, so that the model continues it. Default false.
    pub continue_final_message: bool,
    /// Further variables of the template. They take precedence over the special tokens.
    pub variables: &'a [(String, Json)],
}

impl Default for RenderOptions<'_> {
    fn default() -> Self {
        Self {
            tools: None,
            documents: None,
            add_generation_prompt: true,
            continue_final_message: false,
            variables: &[],
        }
    }
}

impl ChatTemplate {
    /// Reads the template file at `path`, if there is one, and the template for tools in the folder beside it.
    /// `bos` and `eos` are the texts of the tokens that begin and end a text, for the template's variables
    /// `bos_token` and `eos_token`, which are undefined if the text is empty.
    ///
    /// # Errors
    /// [`ChatError::Template`] if a file cannot be read or parsed, uses a filter that does not exist, or is
    /// larger than 1 MiB.
    pub fn open(path: &Path, bos: &str, eos: &str) -> Result<Option<Self>, ChatError> {
        let Some(template) = open_file(path)? else {
            return Ok(None);
        };
        let folder = path.with_file_name(MORE_TEMPLATES);
        let with_tools = open_file(&folder.join(TOOL_TEMPLATE))?;
        Ok(Some(Self::new(template, with_tools, bos, eos)))
    }

    /// Parses a template from a string, with the texts of the BOS and EOS tokens.
    ///
    /// # Errors
    /// [`ChatError::Template`] if the source cannot be parsed or uses a filter that does not exist.
    ///
    /// ```
    /// use nextword_chat::{ChatTemplate, Message};
    ///
    /// let template = ChatTemplate::from_source("{{ bos_token }}{{ messages[0].content | trim }}", "<s>", "</s>")?;
    /// assert_eq!(template.render(&[Message::user(" Hello ")])?, "<s>Hello");
    /// assert!(ChatTemplate::from_source("{% if %}", "", "").is_err());
    /// # Ok::<(), nextword_chat::ChatError>(())
    /// ```
    pub fn from_source(source: &str, bos: &str, eos: &str) -> Result<Self, ChatError> {
        let template = Compiled::new(source).map_err(|e| ChatError::Template {
            path: "the template".into(),
            problem: e.to_string(),
        })?;
        Ok(Self::new(template, None, bos, eos))
    }

    /// Parses the templates of a model by name: `default`, and `tool_use` for conversations with tools. `None` without
    /// a default one.
    ///
    /// # Errors
    /// As [`from_source`](Self::from_source).
    ///
    /// ```
    /// use nextword_chat::ChatTemplate;
    ///
    /// let templates = [("default", "a"), ("tool_use", "{{ tools }}")];
    /// let templates = templates.map(|(name, text)| (name.to_string(), text.to_string())).into();
    /// let template = ChatTemplate::from_named(&templates, "", "")?.unwrap();
    /// assert!(template.reads("tools"));
    /// assert_eq!(template.render(&[])?, "a");
    /// # Ok::<(), nextword_chat::ChatError>(())
    /// ```
    pub fn from_named(
        templates: &BTreeMap<String, String>,
        bos: &str,
        eos: &str,
    ) -> Result<Option<Self>, ChatError> {
        let Some(usual) = templates.get("default") else {
            return Ok(None);
        };
        let template = Self::from_source(usual, bos, eos)?;
        let Some(with_tools) = templates.get("tool_use") else {
            return Ok(Some(template));
        };
        let with_tools = Self::from_source(with_tools, bos, eos)?.template;
        Ok(Some(Self {
            with_tools: Some(with_tools),
            ..template
        }))
    }

    fn new(template: Compiled, with_tools: Option<Compiled>, bos: &str, eos: &str) -> Self {
        let tokens = [("bos_token", bos), ("eos_token", eos)].into_iter();
        let tokens = tokens.filter(|(_, text)| !text.is_empty());
        Self {
            template,
            with_tools,
            tokens: tokens
                .map(|(name, text)| (name.to_owned(), Json::from(text)))
                .collect(),
        }
    }

    /// Sets further special tokens, such as `unk_token`, to their texts, by the names of their variables.
    ///
    /// ```
    /// use nextword_chat::ChatTemplate;
    ///
    /// let template = ChatTemplate::from_source("{{ pad_token }}{{ sep_token is defined }}", "", "")?;
    /// let template = template.with_tokens([("pad_token", "<pad>")]);
    /// assert_eq!(template.render(&[])?, "<pad>False");
    /// # Ok::<(), nextword_chat::ChatError>(())
    /// ```
    #[must_use]
    pub fn with_tokens<T: AsRef<str>>(
        mut self,
        tokens: impl IntoIterator<Item = (&'static str, T)>,
    ) -> Self {
        for (name, text) in tokens {
            set(&mut self.tokens, name, Json::from(text.as_ref()));
        }
        self
    }

    /// Whether the template has a place for the variable `name`, such as `documents`. For `tools`, this is the
    /// template for conversations with tools.
    ///
    /// ```
    /// use nextword_chat::ChatTemplate;
    ///
    /// let template = ChatTemplate::from_source("{% if tools %}{{ tools | tojson }}{% endif %}", "", "")?;
    /// assert!(template.reads("tools") && !template.reads("documents"));
    /// # Ok::<(), nextword_chat::ChatError>(())
    /// ```
    pub fn reads(&self, name: &str) -> bool {
        self.choose(name == "tools").has_place_for(name)
    }

    /// The template for a conversation with or without tools.
    fn choose(&self, has_tools: bool) -> &Compiled {
        let tool_template = self.with_tools.as_ref().filter(|_| has_tools);
        tool_template.unwrap_or(&self.template)
    }

    /// Methods that the template, or the one for tools, calls although no value has them, in alphabetical
    /// order. Conversations that reach such a call are rejected.
    pub fn unknown_methods(&self) -> Vec<&str> {
        let templates = [Some(&self.template), self.with_tools.as_ref()];
        let methods = templates.into_iter().flatten();
        let methods = methods.flat_map(|template| &template.unknown_methods);
        let methods: BTreeSet<&str> = methods.map(String::as_str).collect();
        methods.into_iter().collect()
    }

    /// Formats `messages` as a prompt that ends where the assistant's reply starts.
    ///
    /// # Errors
    /// [`ChatError::Rejected`] if the template raises an error or exceeds its limits.
    ///
    /// ```
    /// use nextword_chat::{ChatError, ChatTemplate, Message};
    ///
    /// let source = "{% if messages | length > 1 %}{{ raise_exception('one message only') }}{% endif %}";
    /// let template = ChatTemplate::from_source(source, "", "")?;
    /// let error = template.render(&[Message::user("a"), Message::assistant("b")]);
    /// assert!(matches!(error, Err(ChatError::Rejected { problem }) if problem == "one message only"));
    /// # Ok::<(), ChatError>(())
    /// ```
    pub fn render(&self, messages: &[Message]) -> Result<String, ChatError> {
        self.render_with(messages, &RenderOptions::default())
    }

    /// Formats `messages` as a prompt.
    ///
    /// # Errors
    /// [`ChatError::Rejected`] if the template raises an error or exceeds its limits, or if the last message
    /// cannot be continued; [`ChatError::Unsupported`] if the template has no place for the tools, the documents
    /// or a variable.
    ///
    /// ```
    /// use nextword_chat::{ChatTemplate, Message, RenderOptions};
    ///
    /// let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}";
    /// let template = ChatTemplate::from_source(source, "", "")?;
    /// let options = RenderOptions {
    ///     add_generation_prompt: false,
    ///     continue_final_message: true,
    ///     ..RenderOptions::default()
    /// };
    /// let messages = [Message::user("Count."), Message::assistant("1, 2,")];
    /// assert_eq!(template.render_with(&messages, &options)?, "<user>Count.</s><assistant>1, 2,");
    /// # Ok::<(), nextword_chat::ChatError>(())
    /// ```
    pub fn render_with(
        &self,
        messages: &[Message],
        options: &RenderOptions<'_>,
    ) -> Result<String, ChatError> {
        self.render_by(self.choose(options.tools.is_some()), messages, options)
    }

    /// As [`render_with`](Self::render_with), with marks around the text of each `{% generation %}` block. `None` for
    /// a template without such blocks.
    pub(crate) fn render_marked(
        &self,
        messages: &[Message],
        options: &RenderOptions<'_>,
    ) -> Option<Result<String, ChatError>> {
        let template = self.choose(options.tools.is_some()).marked()?;
        Some(self.render_by(template, messages, options))
    }

    fn render_by(
        &self,
        template: &Compiled,
        messages: &[Message],
        options: &RenderOptions<'_>,
    ) -> Result<String, ChatError> {
        check(template, options)?;
        let mut variables = self.tokens.clone();
        for (name, value) in options.variables {
            set(&mut variables, name, value.clone());
        }
        let list = |list: Option<&[Json]>| match list {
            Some(items) => Json::List(items.to_vec()),
            None => Json::Null,
        };
        set(&mut variables, "tools", list(options.tools));
        set(&mut variables, "documents", list(options.documents));
        let flag = Json::Bool(options.add_generation_prompt);
        set(&mut variables, "add_generation_prompt", flag);
        let render = |messages: Fields| {
            let mut variables = variables.clone();
            let messages = messages.into_iter().map(Json::Object).collect();
            set(&mut variables, "messages", Json::List(messages));
            template.render(&variables)
        };
        let kept = kept_lists(messages, &render);
        let messages = messages.iter().zip(kept);
        let mut messages: Fields = messages
            .map(|(message, kept)| message.template_fields(kept))
            .collect();
        let unfinished = if options.continue_final_message {
            Some(mark_final_message(&mut messages, &template.source)?)
        } else {
            None
        };
        let prompt = render(messages)?;
        match unfinished {
            Some(text) => cut_at_mark(prompt, &text),
            None => Ok(prompt),
        }
    }
}

/// Checks that a template has a place for everything in `options`.
fn check(template: &Compiled, options: &RenderOptions<'_>) -> Result<(), ChatError> {
    let unsupported =
        |option: &'static str, problem: String| Err(ChatError::Unsupported { option, problem });
    for (name, is_given) in [
        ("tools", options.tools.is_some()),
        ("documents", options.documents.is_some()),
    ] {
        if is_given && !template.has_place_for(name) {
            return unsupported(name, format!("has no place for `{name}`"));
        }
    }
    for (name, _) in options.variables {
        let problem = if RESERVED.contains(&name.as_str()) {
            format!("gets `{name}` from the conversation, not as a variable")
        } else if template.has_place_for(name) {
            continue;
        } else {
            format!("does not read the variable `{name}`")
        };
        return unsupported("variables", problem);
    }
    Ok(())
}

/// Reads and parses a template file, if there is one.
fn open_file(path: &Path) -> Result<Option<Compiled>, ChatError> {
    let template_error = |problem: String| ChatError::Template {
        path: path.to_path_buf(),
        problem,
    };
    match fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(template_error(e.to_string())),
        Ok(meta) if meta.len() > MAX_FILE_BYTES => {
            let len = meta.len();
            return Err(template_error(format!(
                "the file has {len} bytes, but the maximum is {MAX_FILE_BYTES}"
            )));
        }
        Ok(_) => {}
    }
    let source = fs::read_to_string(path).map_err(|e| template_error(e.to_string()))?;
    let compiled = Compiled::new(&source);
    compiled
        .map(Some)
        .map_err(|e| template_error(e.to_string()))
}

/// What marks the end of the message that the model continues.
const MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// Appends the mark to the text of the last message, and returns that text.
fn mark_final_message(
    messages: &mut [Vec<(String, Json)>],
    source: &str,
) -> Result<String, ChatError> {
    let rejected = |problem: &str| ChatError::Rejected {
        problem: problem.to_owned(),
    };
    let fields = messages.last_mut();
    let content = fields.and_then(|fields| fields.iter_mut().find(|(name, _)| name == "content"));
    let (_, content) =
        content.ok_or_else(|| rejected("the last message has no content to continue"))?;
    if !source.contains("content") {
        return Err(rejected(
            "the template does not read the content of messages",
        ));
    }
    let text = match content {
        Json::String(text) => Some(text),
        Json::List(parts) => parts.last_mut().and_then(|part| match part {
            Json::Object(fields) => fields.iter_mut().find_map(|(name, value)| match value {
                Json::String(text) if name == "text" => Some(text),
                _ => None,
            }),
            _ => None,
        }),
        _ => None,
    };
    let text = text.ok_or_else(|| rejected("the last message has no text to continue"))?;
    let original = text.clone();
    text.push_str(MARK);
    Ok(original)
}

/// The prompt up to the mark. If the template has trimmed the message, white space at its end is dropped.
fn cut_at_mark(mut prompt: String, text: &str) -> Result<String, ChatError> {
    let at = prompt
        .rfind(MARK.trim_end())
        .filter(|_| prompt.contains(text.trim()));
    let Some(at) = at else {
        let problem = "the last message cannot be continued: it does not appear in the prompt";
        return Err(ChatError::Rejected {
            problem: problem.to_owned(),
        });
    };
    let keeps_spaces = prompt[at..].starts_with(MARK);
    prompt.truncate(at);
    if !keeps_spaces {
        prompt.truncate(prompt.trim_end().len());
    }
    Ok(prompt)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
