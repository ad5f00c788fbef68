//! Chat templates: programs from untrusted files, run with limits on instructions and output.

use std::fs;
use std::io::{self, Write};
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, context};
use nextword_data::Tokenizer;
use nextword_model::ModelDir;
use serde_json::Value;

use crate::ServerError;
use crate::api_error::ApiError;
use crate::loaded_model::seconds;
use crate::strftime::strftime;

/// Maximum instructions per rendering.
const FUEL: u64 = 1_000_000;
/// Maximum size of a template file, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Maximum size of a rendered conversation, in bytes.
const MAX_OUTPUT_BYTES: usize = 4 << 20;
/// Maximum indentation of `tojson`, in spaces.
const MAX_INDENT: i64 = 16;
/// Maximum messages per conversation.
const MAX_MESSAGES: usize = 1024;

const TEMPLATE_NAME: &str = "chat";

/// Formats conversations for a model: a Jinja template in Hugging Face's `chat_template` dialect.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
}

impl ChatTemplate {
    /// Reads the `chat_template.jinja` of `model_dir`, if there is one.
    ///
    /// # Errors
    /// [`ServerError::Template`] if the file cannot be read or parsed.
    pub fn open(
        model_dir: &ModelDir,
        tokenizer: &dyn Tokenizer,
    ) -> Result<Option<Self>, ServerError> {
        let path = model_dir.chat_template_path();
        let template_error = |problem: String| ServerError::Template {
            path: path.clone(),
            problem,
        };
        match fs::metadata(&path) {
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
        let source = fs::read_to_string(&path).map_err(|e| template_error(e.to_string()))?;
        let token_text = |id: Option<u32>| tokenizer.id_to_token(id?);
        let card = &model_dir.card;
        let bos = card.bos_token.clone().or_else(|| token_text(card.bos_id));
        let eos = card.eos_token.clone();
        let eos = eos.or_else(|| token_text(tokenizer.special_tokens().eos));
        Self::parse(&source, bos, eos)
            .map(Some)
            .map_err(|e| template_error(e.to_string()))
    }

    /// Parses a template from a string, with the texts of the BOS and EOS tokens.
    ///
    /// # Errors
    /// [`ServerError::Template`] if the source cannot be parsed.
    pub fn from_source(source: &str, bos: &str, eos: &str) -> Result<Self, ServerError> {
        let owned = |text: &str| Some(text.to_owned());
        Self::parse(source, owned(bos), owned(eos)).map_err(|e| ServerError::Template {
            path: "the template".into(),
            problem: e.to_string(),
        })
    }

    fn parse(source: &str, bos: Option<String>, eos: Option<String>) -> Result<Self, Error> {
        let mut environment = Environment::new();
        environment.add_global("bos_token", bos.unwrap_or_default());
        environment.add_global("eos_token", eos.unwrap_or_default());
        environment.set_fuel(Some(FUEL));
        let mut syntax = SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true);
        environment.set_syntax(syntax.build()?);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function(
            "raise_exception",
            |message: String| -> Result<String, Error> {
                Err(Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        environment.add_function("strftime_now", |format: &str| {
            strftime(format, seconds(SystemTime::now()))
        });
        environment.add_filter("tojson", tojson);
        environment.add_template_owned(TEMPLATE_NAME, replace_generation_tags(source))?;
        Ok(Self { environment })
    }

    /// Formats `messages` as a prompt that ends where the assistant's reply starts.
    ///
    /// # Errors
    /// [`ServerError::Chat`] if the template raises an error or exceeds its limits.
    pub fn render(&self, messages: &[Message]) -> Result<String, ServerError> {
        let chat_error = |e: Error| {
            let problem = e.detail().map_or_else(|| e.to_string(), str::to_owned);
            let problem = problem.chars().take(300).collect();
            ServerError::Chat { problem }
        };
        let messages: Vec<minijinja::Value> = messages
            .iter()
            .map(|message| context! { role => &message.role, content => &message.content })
            .collect();
        let values = context! {
            messages => messages,
            add_generation_prompt => true,
        };
        let template = self
            .environment
            .get_template(TEMPLATE_NAME)
            .map_err(chat_error)?;
        let mut out = LimitedWriter(Vec::new());
        template
            .render_captured_to(values, &mut out)
            .map_err(chat_error)?;
        Ok(String::from_utf8_lossy(&out.0).into_owned())
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

/// `tojson` as in Hugging Face's templates: minijinja's own also escapes characters for HTML.
fn tojson(
    state: &State<'_, '_>,
    value: &minijinja::Value,
    indent: Option<minijinja::Value>,
    options: Kwargs,
) -> Result<String, Error> {
    for ignored in ["ensure_ascii", "separators", "sort_keys"] {
        options.get::<Option<minijinja::Value>>(ignored)?;
    }
    let indent = match indent {
        None => options.get::<Option<minijinja::Value>>("indent")?,
        given => given,
    };
    let is_valid = |indent: &minijinja::Value| {
        indent.is_none()
            || indent.kind() == ValueKind::Bool
            || indent
                .as_i64()
                .is_some_and(|spaces| (0..=MAX_INDENT).contains(&spaces))
    };
    if !indent.as_ref().is_none_or(is_valid) {
        let problem = format!("the indent of tojson must be from 0 to {MAX_INDENT} spaces");
        return Err(Error::new(ErrorKind::InvalidOperation, problem));
    }
    let json = minijinja::filters::tojson(value, indent, options)?;
    let json = json.as_str().unwrap_or_default();
    state.consume_fuel(json.len() as u64 / 64)?;
    let mut out = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        out.push_str(before);
        let plain = match escape.get(..6) {
            Some("\\u003c") => '<',
            Some("\\u003e") => '>',
            Some("\\u0026") => '&',
            Some("\\u0027") => '\'',
            _ => {
                // Copy the next character too: it may be another backslash.
                out.push_str(&escape[..2]);
                rest = &escape[2..];
                continue;
            }
        };
        out.push(plain);
        rest = &escape[6..];
    }
    Ok(out + rest)
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

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `developer`, `user` or `assistant`.
    pub role: String,
    /// The text of the message.
    pub content: String,
}

/// Parses the `messages` of a request.
pub(crate) fn parse_messages(value: Option<&Value>) -> Result<Vec<Message>, ApiError> {
    let messages_error = |message: String| ApiError::invalid_field("messages", message);
    let list = value
        .and_then(Value::as_array)
        .filter(|list| !list.is_empty());
    let list = list.ok_or_else(|| messages_error("`messages` must be a non-empty list".into()))?;
    if list.len() > MAX_MESSAGES {
        return Err(messages_error(format!(
            "`messages` may contain at most {MAX_MESSAGES} messages"
        )));
    }
    let parse = |(index, value): (usize, &Value)| {
        let role = value.get("role").and_then(Value::as_str);
        let role = role.filter(|role| ["system", "developer", "user", "assistant"].contains(role));
        let role = role.ok_or_else(|| {
            messages_error(format!(
                "`messages[{index}].role` must be system, developer, user or assistant"
            ))
        })?;
        let content = value.get("content").and_then(content_text).ok_or_else(|| {
            messages_error(format!(
                "`messages[{index}].content` must be a string or a list of text parts"
            ))
        })?;
        Ok(Message {
            role: role.to_owned(),
            content,
        })
    };
    list.iter().enumerate().map(parse).collect()
}

/// The text of a message's `content`: a string or a list of text parts.
fn content_text(value: &Value) -> Option<String> {
    if let Some(text) = value.as_str() {
        return Some(text.to_owned());
    }
    let part_text = |part: &Value| {
        let is_text = part.get("type")?.as_str()? == "text";
        part.get("text")?
            .as_str()
            .filter(|_| is_text)
            .map(str::to_owned)
    };
    value.as_array()?.iter().map(part_text).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(source: &str, content: &str) -> Result<String, ServerError> {
        let message = Message {
            role: "user".into(),
            content: content.into(),
        };
        let template = ChatTemplate::parse(source, Some("<s>".into()), Some("</s>".into()));
        template.unwrap().render(&[message])
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
    fn malformed_messages_are_rejected() {
        for bad in [
            json!([]),
            json!("hi"),
            json!([{"role": "robot", "content": "x"}]),
            json!([{"role": "user"}]),
            json!([{"role": "user", "content": [{"type": "image_url"}]}]),
        ] {
            assert!(parse_messages(Some(&bad)).is_err(), "{bad}");
        }
        let parts = json!([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]);
        assert_eq!(parse_messages(Some(&parts)).unwrap()[0].content, "ab");
    }
}
