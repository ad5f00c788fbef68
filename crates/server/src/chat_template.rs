//! Chat templates: programs from untrusted files, run with a limit on steps and on output.

use std::fs;
use std::io::{self, Write};
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, context};
use nextword_data::Tokenizer;
use nextword_model::Record;
use serde_json::Value;

use crate::ServerError;
use crate::api_error::ApiError;
use crate::served::seconds;
use crate::strftime::strftime;

/// Instructions of one rendering.
const FUEL: u64 = 1_000_000;
/// Bytes of a template's file and of what it writes.
const MAX_FILE: u64 = 1 << 20;
const MAX_OUTPUT: usize = 4 << 20;
/// Spaces of indented JSON.
const MAX_INDENT: i64 = 16;
/// Messages of a conversation.
const MAX_MESSAGES: usize = 1024;

const NAME: &str = "chat";

/// How a conversation is put to a model: a `chat_template.jinja` in Hugging Face's form.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
}

impl ChatTemplate {
    /// Reads the template of `record`, if it has one.
    ///
    /// # Errors
    /// [`ServerError::Template`] if it cannot be read or is no template.
    pub fn open(record: &Record, tokenizer: &dyn Tokenizer) -> Result<Option<Self>, ServerError> {
        let path = record.chat_template_path();
        let fail = |problem: String| ServerError::Template {
            path: path.clone(),
            problem,
        };
        match fs::metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(fail(e.to_string())),
            Ok(meta) if meta.len() > MAX_FILE => {
                let len = meta.len();
                return Err(fail(format!("{len} bytes are more than {MAX_FILE}")));
            }
            Ok(_) => {}
        }
        let source = fs::read_to_string(&path).map_err(|e| fail(e.to_string()))?;
        let piece = |id: Option<u32>| tokenizer.piece(id?);
        let card = &record.card;
        let bos = card.bos_token.clone().or_else(|| piece(card.bos_id));
        let eos = card.eos_token.clone();
        let eos = eos.or_else(|| piece(tokenizer.specials().eos));
        Self::parse(&source, bos, eos)
            .map(Some)
            .map_err(|e| fail(e.to_string()))
    }

    /// Reads a template that stands in no record.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_source(source: &str, bos: &str, eos: &str) -> Result<Self, ServerError> {
        let token = |text: &str| Some(text.to_owned());
        Self::parse(source, token(bos), token(eos)).map_err(|e| ServerError::Template {
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
        environment.add_template_owned(NAME, without_marks(source))?;
        Ok(Self { environment })
    }

    /// The text that puts `messages` to the model, up to where its answer begins.
    ///
    /// # Errors
    /// [`ServerError::Chat`] if the template refuses them, or does not come to an end.
    pub fn render(&self, messages: &[Message]) -> Result<String, ServerError> {
        let fail = |e: Error| {
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
        let template = self.environment.get_template(NAME).map_err(fail)?;
        let mut out = Limited(Vec::new());
        template
            .render_captured_to(values, &mut out)
            .map_err(fail)?;
        Ok(String::from_utf8_lossy(&out.0).into_owned())
    }
}

/// `{% generation %}` marks what a model is trained on; to a reader it is a block like others.
fn without_marks(source: &str) -> String {
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

/// As Hugging Face has it: minijinja's own escapes what must not stand in HTML.
fn tojson(
    state: &State<'_, '_>,
    value: &minijinja::Value,
    indent: Option<minijinja::Value>,
    options: Kwargs,
) -> Result<String, Error> {
    for passed_over in ["ensure_ascii", "separators", "sort_keys"] {
        options.get::<Option<minijinja::Value>>(passed_over)?;
    }
    let indent = match indent {
        None => options.get::<Option<minijinja::Value>>("indent")?,
        given => given,
    };
    let is_little = |indent: &minijinja::Value| {
        indent.is_none()
            || indent.kind() == ValueKind::Bool
            || indent
                .as_i64()
                .is_some_and(|spaces| (0..=MAX_INDENT).contains(&spaces))
    };
    if !indent.as_ref().is_none_or(is_little) {
        let problem = format!("tojson indents by 0 to {MAX_INDENT} spaces");
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
                // With what it stands before, which may be another backslash.
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

/// Takes `MAX_OUTPUT` bytes and no more.
struct Limited(Vec<u8>);

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT {
            return Err(io::Error::other("the template writes too much"));
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
    /// What was said.
    pub content: String,
}

/// The messages of a request.
pub(crate) fn read_messages(value: Option<&Value>) -> Result<Vec<Message>, ApiError> {
    let fail = |message: String| ApiError::field("messages", message);
    let list = value
        .and_then(Value::as_array)
        .filter(|list| !list.is_empty());
    let list =
        list.ok_or_else(|| fail("`messages` must be a list of at least one message".into()))?;
    if list.len() > MAX_MESSAGES {
        return Err(fail(format!(
            "`messages` may hold {MAX_MESSAGES} messages at most"
        )));
    }
    let read = |(at, value): (usize, &Value)| {
        let role = value.get("role").and_then(Value::as_str);
        let role = role.filter(|role| ["system", "developer", "user", "assistant"].contains(role));
        let role = role.ok_or_else(|| {
            fail(format!(
                "`messages[{at}].role` must be system, developer, user or assistant"
            ))
        })?;
        let content = value.get("content").and_then(text_of).ok_or_else(|| {
            fail(format!(
                "`messages[{at}].content` must be a string or a list of text parts"
            ))
        })?;
        Ok(Message {
            role: role.to_owned(),
            content,
        })
    };
    list.iter().enumerate().map(read).collect()
}

/// A message's content: a string, or parts of text.
fn text_of(value: &Value) -> Option<String> {
    if let Some(text) = value.as_str() {
        return Some(text.to_owned());
    }
    let part = |part: &Value| {
        let is_text = part.get("type")?.as_str()? == "text";
        part.get("text")?
            .as_str()
            .filter(|_| is_text)
            .map(str::to_owned)
    };
    value.as_array()?.iter().map(part).collect()
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
    fn what_templates_of_known_models_use_is_there() {
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
    fn a_template_in_hugging_faces_form_is_understood() {
        let source = "{{ bos_token }}{% for message in messages %}\n\
            {% if message['role'].startswith('u') %}\n<{{ message.role }}>{{ message['content'].strip() }}\n\
            {%- endif %}\n{% endfor %}\n{% if add_generation_prompt %}<assistant>{% endif %}";
        assert_eq!(render(source, " hi ").unwrap(), "<s><user>hi<assistant>");
    }

    #[test]
    fn a_template_without_end_and_one_without_measure_are_stopped() {
        let endless =
            "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
        assert!(render(endless, "").is_err());
        let huge = "{% for a in range(9999) %}{{ messages[0].content }}{% endfor %}";
        assert!(render(huge, &"x".repeat(9999)).is_err());
    }

    #[test]
    fn an_exception_of_the_template_is_told() {
        let error = render("{{ raise_exception('roles must alternate') }}", "").unwrap_err();
        assert!(
            error.to_string().contains("roles must alternate"),
            "{error}"
        );
    }

    #[test]
    fn messages_of_other_shapes_are_refused() {
        for bad in [
            json!([]),
            json!("hi"),
            json!([{"role": "robot", "content": "x"}]),
            json!([{"role": "user"}]),
            json!([{"role": "user", "content": [{"type": "image_url"}]}]),
        ] {
            assert!(read_messages(Some(&bad)).is_err(), "{bad}");
        }
        let parts = json!([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]);
        assert_eq!(read_messages(Some(&parts)).unwrap()[0].content, "ab");
    }
}
