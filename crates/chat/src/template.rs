//! Chat templates: programs from untrusted files, run with limits on instructions and output.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value};

use crate::message::set;
use crate::repr::repr;
use crate::{ChatError, Json, Message, functions, source};

/// Maximum instructions per rendering.
const FUEL: u64 = 1_000_000;
/// Maximum size of a template file, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Maximum size of a rendered conversation, in bytes.
const MAX_OUTPUT_BYTES: usize = 4 << 20;
/// Maximum length of the message of a template's error, in characters.
const MAX_PROBLEM_CHARS: usize = 300;

const TEMPLATE_NAME: &str = "chat";
/// The folder beside a template with further ones by name, as transformers writes it.
const MORE_TEMPLATES: &str = "additional_chat_templates";
/// The further template that is used for conversations with tools.
const TOOL_TEMPLATE: &str = "tool_use.jinja";
/// Functions of Jinja that are not available.
const MISSING_FUNCTIONS: [&str; 1] = ["lipsum"];
/// Variables that a conversation sets.
const RESERVED: [&str; 4] = ["messages", "tools", "documents", "add_generation_prompt"];

/// Formats conversations for a model: a Jinja template in [Hugging Face's `chat_template` dialect][dialect].
/// The result is what transformers' `apply_chat_template` returns, byte for byte. There is one deliberate
/// difference: a content that is a list of parts is joined for templates that expect a text, where transformers
/// would print the list.
///
/// A rendering stops with an error after a million instructions or 4 MiB of output.
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

/// A template and what it does with its input.
#[derive(Debug)]
struct Compiled {
    environment: Environment<'static>,
    source: String,
    /// Variables that the template reads.
    reads: Vec<String>,
    /// Methods that no value has here: conversations that call them are rejected.
    unknown_methods: Vec<String>,
    /// Whether it goes through the parts of a content that is a list.
    takes_parts: bool,
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

    /// Whether the template has a place for the variable `name`, such as `documents` or `tools`.
    ///
    /// ```
    /// use nextword_chat::ChatTemplate;
    ///
    /// let template = ChatTemplate::from_source("{% if tools %}{{ tools | tojson }}{% endif %}", "", "")?;
    /// assert!(template.reads("tools") && !template.reads("documents"));
    /// # Ok::<(), nextword_chat::ChatError>(())
    /// ```
    pub fn reads(&self, name: &str) -> bool {
        let tool_template = self.with_tools.as_ref().filter(|_| name == "tools");
        let template = tool_template.unwrap_or(&self.template);
        template.reads.iter().any(|read| read == name)
    }

    /// Methods that the template calls although no value has them. Conversations that reach such a call are
    /// rejected.
    pub fn unknown_methods(&self) -> &[String] {
        &self.template.unknown_methods
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
        self.check(options)?;
        let tool_template = self.with_tools.as_ref().filter(|_| options.tools.is_some());
        let template = tool_template.unwrap_or(&self.template);
        let prepare = |message: &Message| message.template_fields(template.takes_parts);
        let mut messages: Vec<_> = messages.iter().map(prepare).collect();
        let unfinished = if options.continue_final_message {
            Some(mark_final_message(&mut messages, &template.source)?)
        } else {
            None
        };
        let mut variables = self.tokens.clone();
        for (name, value) in options.variables {
            set(&mut variables, name, value.clone());
        }
        let list = |list: Option<&[Json]>| match list {
            Some(items) => Json::List(items.to_vec()),
            None => Json::Null,
        };
        let messages = messages.into_iter().map(Json::Object).collect();
        set(&mut variables, "messages", Json::List(messages));
        set(&mut variables, "tools", list(options.tools));
        set(&mut variables, "documents", list(options.documents));
        let flag = Json::Bool(options.add_generation_prompt);
        set(&mut variables, "add_generation_prompt", flag);
        let prompt = template.render(&variables)?;
        match unfinished {
            Some(text) => cut_at_mark(prompt, &text),
            None => Ok(prompt),
        }
    }

    /// Checks that the template has a place for everything in `options`.
    fn check(&self, options: &RenderOptions<'_>) -> Result<(), ChatError> {
        let unsupported = |problem: String| Err(ChatError::Unsupported { problem });
        for (name, is_given) in [
            ("tools", options.tools.is_some()),
            ("documents", options.documents.is_some()),
        ] {
            if is_given && !self.reads(name) {
                return unsupported(format!("has no place for `{name}`"));
            }
        }
        for (name, _) in options.variables {
            if RESERVED.contains(&name.as_str()) {
                return unsupported(format!(
                    "gets `{name}` from the conversation, not as a variable"
                ));
            }
            if !self.reads(name) {
                return unsupported(format!("does not read the variable `{name}`"));
            }
        }
        Ok(())
    }
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

impl Compiled {
    fn new(source: &str) -> Result<Self, Error> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        let mut syntax = SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true);
        environment.set_syntax(syntax.build()?);
        environment.set_formatter(|out, state, value| match repr(value)? {
            Some(text) => out.write_str(&text).map_err(Error::from),
            None => minijinja::escape_formatter(out, state, value),
        });
        functions::register(&mut environment);
        let (prepared, uses) = source::prepare(source, environment.syntax())?;
        check_names(&environment, &uses)?;
        environment.add_template_owned(TEMPLATE_NAME, prepared)?;
        let reads = environment
            .get_template(TEMPLATE_NAME)?
            .undeclared_variables(false);
        let mut unknown_methods = uses.unknown_methods;
        unknown_methods.sort_unstable();
        unknown_methods.dedup();
        let mut compiled = Self {
            environment,
            source: source.to_owned(),
            reads: reads.into_iter().collect(),
            unknown_methods,
            takes_parts: false,
        };
        compiled.takes_parts = compiled.shows_parts();
        Ok(compiled)
    }

    /// Whether the text of a content that is a list of parts appears in the prompt by itself. A template for
    /// texts shows the list as Python would print it, or raises an error.
    fn shows_parts(&self) -> bool {
        const MARK: &str = "a part of a content";
        let text = |text: &str| Json::from(text);
        let part = Json::Object(vec![
            ("type".to_owned(), text("text")),
            ("text".to_owned(), text(MARK)),
        ]);
        let message = Json::Object(vec![
            ("role".to_owned(), text("user")),
            ("content".to_owned(), Json::List(vec![part])),
        ]);
        let variables = [
            ("messages".to_owned(), Json::List(vec![message])),
            ("tools".to_owned(), Json::Null),
            ("documents".to_owned(), Json::Null),
            ("add_generation_prompt".to_owned(), Json::Bool(true)),
        ];
        let shown = |prompt: String| {
            let prompt = prompt.to_lowercase();
            let quoted = [format!("'{MARK}'"), format!("\"{MARK}\"")];
            prompt.contains(MARK) && !quoted.iter().any(|quoted| prompt.contains(quoted))
        };
        self.render(&variables).is_ok_and(shown)
    }

    fn render(&self, variables: &[(String, Json)]) -> Result<String, ChatError> {
        let mut out = LimitedWriter(Vec::new());
        self.render_to(variables, &mut out).map_err(|e| {
            let problem = e.detail().map_or_else(|| e.to_string(), str::to_owned);
            let problem = problem.chars().take(MAX_PROBLEM_CHARS).collect();
            ChatError::Rejected { problem }
        })?;
        Ok(String::from_utf8_lossy(&out.0).into_owned())
    }

    fn render_to(
        &self,
        variables: &[(String, Json)],
        out: &mut LimitedWriter,
    ) -> Result<(), Error> {
        let pairs = variables
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_value()));
        let template = self.environment.get_template(TEMPLATE_NAME)?;
        template.render_captured_to(Value::from_pairs(pairs), out)?;
        Ok(())
    }
}

/// Checks that the filters, tests and functions of a template exist.
fn check_names(environment: &Environment<'_>, uses: &source::Uses) -> Result<(), Error> {
    let mut state = environment.empty_state();
    for (test, names) in [("filter", &uses.filters), ("test", &uses.tests)] {
        for name in names {
            if !state.perform_test(test, &[Value::from(name.as_str())])? {
                let problem = format!("the {test} `{name}` is not available");
                return Err(Error::new(ErrorKind::SyntaxError, problem));
            }
        }
    }
    let missing = uses
        .functions
        .iter()
        .find(|name| MISSING_FUNCTIONS.contains(&name.as_str()));
    match missing {
        Some(name) => {
            let problem = format!("the function `{name}` is not available");
            Err(Error::new(ErrorKind::SyntaxError, problem))
        }
        None => Ok(()),
    }
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

/// A buffer limited to `MAX_OUTPUT_BYTES`.
struct LimitedWriter(Vec<u8>);

impl Write for LimitedWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT_BYTES {
            return Err(io::Error::other("the template's output is too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
