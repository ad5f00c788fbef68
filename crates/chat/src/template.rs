//! Chat templates: programs from untrusted files, run with limits on instructions and output.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, Value, context};

use crate::{ChatError, Message, functions};

/// Maximum instructions per rendering.
const FUEL: u64 = 1_000_000;
/// Maximum size of a template file, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Maximum size of a rendered conversation, in bytes.
const MAX_OUTPUT_BYTES: usize = 4 << 20;
/// Maximum length of the message of a template's error, in characters.
const MAX_PROBLEM_CHARS: usize = 300;

const TEMPLATE_NAME: &str = "chat";

/// Formats conversations for a model: a Jinja template in [Hugging Face's `chat_template` dialect][dialect].
///
/// A rendering stops with an error after a million instructions or 4 MiB of output.
///
/// [dialect]: https://huggingface.co/docs/transformers/chat_templating_writing
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
}

impl ChatTemplate {
    /// Reads the template file at `path`, if there is one. `bos` and `eos` are the texts of the tokens that
    /// begin and end a text, for the template's variables `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// [`ChatError::Template`] if the file cannot be read or parsed, or is larger than 1 MiB.
    pub fn open(path: &Path, bos: &str, eos: &str) -> Result<Option<Self>, ChatError> {
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
        let parsed = Self::parse(&source, bos, eos);
        parsed.map(Some).map_err(|e| template_error(e.to_string()))
    }

    /// Parses a template from a string, with the texts of the BOS and EOS tokens.
    ///
    /// # Errors
    /// [`ChatError::Template`] if the source cannot be parsed.
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
        Self::parse(source, bos, eos).map_err(|e| ChatError::Template {
            path: "the template".into(),
            problem: e.to_string(),
        })
    }

    fn parse(source: &str, bos: &str, eos: &str) -> Result<Self, Error> {
        let mut environment = Environment::new();
        environment.add_global("bos_token", bos.to_owned());
        environment.add_global("eos_token", eos.to_owned());
        environment.set_fuel(Some(FUEL));
        let mut syntax = SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true);
        environment.set_syntax(syntax.build()?);
        functions::register(&mut environment);
        environment.add_template_owned(TEMPLATE_NAME, replace_generation_tags(source))?;
        Ok(Self { environment })
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
        let mut out = LimitedWriter(Vec::new());
        self.render_to(messages, &mut out).map_err(|e| {
            let problem = e.detail().map_or_else(|| e.to_string(), str::to_owned);
            let problem = problem.chars().take(MAX_PROBLEM_CHARS).collect();
            ChatError::Rejected { problem }
        })?;
        Ok(String::from_utf8_lossy(&out.0).into_owned())
    }

    fn render_to(&self, messages: &[Message], out: &mut LimitedWriter) -> Result<(), Error> {
        let messages: Vec<Value> = messages
            .iter()
            .map(|message| context! { role => message.role.as_str(), content => &message.content })
            .collect();
        let values = context! { messages => messages, add_generation_prompt => true };
        let template = self.environment.get_template(TEMPLATE_NAME)?;
        template.render_captured_to(values, out)?;
        Ok(())
    }
}

/// Replaces `{% generation %}`, which marks training targets and is unknown to minijinja, with a plain block.
fn replace_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        rest = tag;
        let Some(end) = tag.find("%}") else {
            break;
        };
        let word = tag[..end].trim_matches(|c: char| c.is_whitespace() || "+-".contains(c));
        let block = match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => continue,
        };
        out.push_str(&tag[..end].replace(word, block));
        rest = &tag[end..];
    }
    out + rest
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
mod tests {
    use super::*;

    fn render(source: &str, content: &str) -> Result<String, ChatError> {
        let template = ChatTemplate::from_source(source, "<s>", "</s>").unwrap();
        template.render(&[Message::user(content)])
    }

    #[test]
    fn constructs_of_published_templates_work() {
        for (source, expected) in [
            (
                "{{ bos_token }}{% if strftime_now is defined %}{{ strftime_now('%Y')[:2] }}{% endif %}",
                "<s>20",
            ),
            (
                "a\n{%- generation %}\n{{ messages[0].content }}{{ eos_token }}{% endgeneration -%}\n b",
                "a<&'\\u003c\">\n</s>b",
            ),
            (
                "{{ messages[0].content | tojson }}{{ {'b': [1]} | tojson(indent=2, ensure_ascii=False) }}",
                "\"<&'\\\\u003c\\\">\\n\"{\n  \"b\": [\n    1\n  ]\n}",
            ),
            (
                "{% set ns = namespace(n=0) %}{% for m in messages[::-1] %}{% set ns.n = ns.n + 1 %}\
                 {% if m.role == 'user' and m.content is string and not m.get('tool_calls') %}{{ ns.n }}\
                 {{ m.content.split('<')[-1].lstrip('&').rstrip('\n') }}{% endif %}{% endfor %}",
                "1'\\u003c\">",
            ),
        ] {
            let text = render(source, "<&'\\u003c\">\n");
            assert_eq!(text.unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn hugging_face_template_renders() {
        let source = "{{ bos_token }}{% for message in messages %}\n\
            {% if message['role'].startswith('u') %}\n<{{ message.role }}>{{ message['content'].strip() }}\n\
            {%- endif %}\n{% endfor %}\n{% if add_generation_prompt %}<assistant>{% endif %}";
        assert_eq!(render(source, " hi ").unwrap(), "<s><user>hi<assistant>");
    }

    #[test]
    fn endless_and_huge_templates_are_stopped() {
        let endless =
            "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
        assert!(render(endless, "").is_err());
        let huge = "{% for a in range(9999) %}{{ messages[0].content }}{% endfor %}";
        assert!(render(huge, &"x".repeat(9999)).is_err());
    }

    #[test]
    fn raised_exception_is_reported() {
        let error = render("{{ raise_exception('roles must alternate') }}", "").unwrap_err();
        assert!(
            error.to_string().contains("roles must alternate"),
            "{error}"
        );
    }

    #[test]
    fn template_files_are_optional_and_limited() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chat_template.jinja");
        assert!(ChatTemplate::open(&path, "", "").unwrap().is_none());
        fs::write(&path, "{{ bos_token }}{{ eos_token }}").unwrap();
        let template = ChatTemplate::open(&path, "a", "b").unwrap().unwrap();
        assert_eq!(template.render(&[]).unwrap(), "ab");
        for source in ["{% frobnicate %}", &"x".repeat((1 << 20) + 1)] {
            fs::write(&path, source).unwrap();
            let error = ChatTemplate::open(&path, "", "").unwrap_err();
            assert!(error.to_string().contains("chat_template.jinja"), "{error}");
        }
    }
}
