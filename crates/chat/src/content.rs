//! Which messages of a conversation a template gets with a list of parts as their content, and which with the joined text.

use crate::message::set;
use crate::{ChatError, Json, Message, Role};

/// The fields of the messages, as templates get them.
pub(crate) type Fields = Vec<Vec<(String, Json)>>;

/// Around the number of a message, the text of its parts in a trial. Few texts have this letter, and it has no upper case.
const MARK: char = 'ꙮ';

/// Renders the template with these messages.
type Render<'a> = dyn Fn(Fields) -> Result<String, ChatError> + 'a;

/// For each message, whether a content that is a list of parts stays one. A template for texts prints a list as Python does,
/// leaves it out or raises an error, and then gets the joined text. Many templates do so only for some roles, or only in
/// some conversations: the answer is what `render` makes of this one, with a mark in place of the text of each part.
pub(crate) fn kept_lists(messages: &[Message], render: &Render<'_>) -> Vec<bool> {
    let all = vec![true; messages.len()];
    if !messages.iter().any(Message::has_parts) {
        return all;
    }
    let of_users = messages.iter().map(|m| m.role() == Role::User).collect();
    let found = [all, of_users]
        .into_iter()
        .find_map(|kept| without_lost_texts(messages, kept, render));
    found.unwrap_or_else(|| {
        // It may be the marks that the template rejects.
        let fields = messages.iter().map(|message| message.template_fields(true));
        let takes_lists =
            render(fields.collect()).is_ok_and(|prompt| !prints_list(&prompt.to_lowercase(), ""));
        vec![takes_lists; messages.len()]
    })
}

/// `kept` without the lists that the template prints as such, and those whose text is in the prompt only if it is joined.
/// `None` if the template rejects the conversation.
fn without_lost_texts(
    messages: &[Message],
    mut kept: Vec<bool>,
    render: &Render<'_>,
) -> Option<Vec<bool>> {
    let trial = |kept: &[bool]| {
        let messages = messages.iter().zip(kept).enumerate();
        let fields = messages.map(|(index, (message, kept))| trial_fields(message, index, *kept));
        Some(render(fields.collect()).ok()?.to_lowercase())
    };
    let prompt = trial(&kept)?;
    let lists: Vec<usize> = (0..messages.len())
        .filter(|index| kept[*index] && messages[*index].has_parts())
        .collect();
    let (shown, absent): (Vec<usize>, Vec<usize>) = lists
        .into_iter()
        .partition(|index| prompt.contains(&mark(*index)));
    let printed: Vec<usize> = shown
        .into_iter()
        .filter(|index| prints_list(&prompt, &mark(*index)))
        .collect();
    if printed.is_empty() && absent.is_empty() {
        return Some(kept);
    }
    for index in &printed {
        kept[*index] = false;
    }
    if !absent.is_empty() {
        let mut joined = kept.clone();
        for index in &absent {
            joined[*index] = false;
        }
        if let Some(prompt) = trial(&joined) {
            for index in absent {
                kept[index] = !prompt.contains(&mark(index));
            }
        }
    }
    trial(&kept).map(|_| kept)
}

fn mark(index: usize) -> String {
    format!("{MARK}{index}{MARK}")
}

/// The fields of a message whose content is a list, with the mark of `index` for its texts.
fn trial_fields(message: &Message, index: usize, kept: bool) -> Vec<(String, Json)> {
    let mut fields = message.template_fields(kept);
    if !message.has_parts() {
        return fields;
    }
    let content = fields.iter_mut().find(|(name, _)| name == "content");
    match content {
        Some((_, Json::String(text))) => *text = mark(index),
        Some((_, Json::List(parts))) => {
            for part in parts {
                if let Json::Object(part) = part
                    && part.iter().any(|(name, _)| name == "text")
                {
                    set(part, "text", Json::String(mark(index)));
                }
            }
        }
        _ => {}
    }
    fields
}

/// Whether the prompt has a list itself, as Python or JSON writes it, with a text that begins with `start`.
fn prints_list(prompt: &str, start: &str) -> bool {
    ['\'', '"'].into_iter().any(|q| {
        let text = format!("{q}text{q}: {q}{start}");
        let typed = format!("[{{{q}type{q}: {q}text{q}, {text}");
        prompt.contains(&typed) || prompt.contains(&format!("[{{{text}"))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{ChatTemplate, RenderOptions};

    const SHOWN: &str =
        "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}";

    fn messages(contents: &[(&str, &[&str])]) -> Vec<Message> {
        let message = |(role, texts): &(&str, &[&str])| {
            let parts: Vec<String> = texts
                .iter()
                .map(|text| format!("{{\"type\": \"text\", \"text\": \"{text}\"}}"))
                .collect();
            let json = format!(
                "{{\"role\": \"{role}\", \"content\": [{}]}}",
                parts.join(", ")
            );
            serde_json::from_str(&json).unwrap()
        };
        contents.iter().map(message).collect()
    }

    fn render(source: &str, messages: &[Message]) -> String {
        let template = ChatTemplate::from_source(source, "", "").unwrap();
        let mode = [("mode".to_owned(), Json::from("x"))];
        let options = RenderOptions {
            variables: if source.contains("mode") { &mode } else { &[] },
            ..RenderOptions::default()
        };
        template.render_with(messages, &options).unwrap()
    }

    /// The expected prompts are those of transformers' `apply_chat_template`.
    #[test]
    fn texts_of_parts_are_never_lost() {
        let system_and_user = messages(&[("system", &["Sys"]), ("user", &["hi", "you"])]);
        let each =
            |body: &str| format!("{{% for m in messages %}}<{{{{ m.role }}}}>{body}{{% endfor %}}");
        let shown = each(SHOWN);
        let with = |before: &str| format!("{before}{shown}");
        let of = |item: &str| each(&format!("{{% for p in m.content %}}{item}{{% endfor %}}"));
        let plain = "<system>Sys<user>hiyou";
        for (source, expected) in [
            (shown.clone(), plain),
            (with("{% if messages[0].role != 'system' %}{{ raise_exception('x') }}{% endif %}"), plain),
            (with("{% if messages|length < 2 %}{{ raise_exception('x') }}{% endif %}"), plain),
            (with("{{ mode.upper() }}"), "X<system>Sys<user>hiyou"),
            (with("{% if messages[0].content[0].text != 'Sys' %}{{ raise_exception('x') }}{% endif %}"), plain),
            (of("{{ p.text[:3] }}"), plain),
            (of("'{{ p.text }}'"), "<system>'Sys'<user>'hi''you'"),
            (of("{{ [p.text] }}"), "<system>['Sys']<user>['hi']['you']"),
            (of("{{ p.text | tojson }}"), "<system>\"Sys\"<user>\"hi\"\"you\""),
            (of("{{ p.text.replace(' ', '_') }}"), plain),
            ("{% set x = messages[-1].content|map(attribute='text')|list %}{{ x|length }}:{{ x[0][0] }}".to_owned(), "2:h"),
        ] {
            assert_eq!(render(&source, &system_and_user), expected, "{source}");
        }
    }

    #[test]
    fn a_template_for_texts_gets_the_joined_text() {
        let messages = messages(&[("system", &["Sys"]), ("user", &["hi", "you"])]);
        for body in [
            "{{ m.content }}",
            "{{ '' + m.content }}",
            "{{ m.content | trim }}",
            "{% if m.content is string %}{{ m.content }}{% endif %}",
        ] {
            let source = format!("{{% for m in messages %}}<{{{{ m.role }}}}>{body}{{% endfor %}}");
            assert_eq!(
                render(&source, &messages),
                "<system>Sys<user>hiyou",
                "{source}"
            );
        }
    }

    /// System messages as texts, others as parts, as some published templates have it.
    #[test]
    fn a_template_may_take_parts_of_some_roles_only() {
        for system in ["{{ m.content }}", "{{ '' + m.content }}"] {
            let messages = messages(&[("system", &["Sys"]), ("user", &["hi", "you"])]);
            let source = format!(
                "{{% for m in messages %}}<{{{{ m.role }}}}>{{% if m.role == 'system' %}}{system}{{% else %}}{SHOWN}{{% endif %}}{{% endfor %}}"
            );
            assert_eq!(
                render(&source, &messages),
                "<system>Sys<user>hiyou",
                "{source}"
            );
        }
    }
}
