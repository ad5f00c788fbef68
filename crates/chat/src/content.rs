//! Which messages of a conversation a template gets with a list of parts as their content, and which with the joined text.

use crate::message::set;
use crate::{ChatError, Json, Message, Role};

/// The fields of the messages, as templates get them.
pub(crate) type Fields = Vec<Vec<(String, Json)>>;

/// Around the number of a message, the text of its parts in a trial. Few texts have this letter, and it has no upper case.
const MARK: char = 'ꙮ';

/// For each message, whether its content stays a list of parts where it is one. A template for texts prints a list as
/// Python does, leaves it out or raises an error, and then gets the joined text. Many templates do so only for some roles, or
/// only in some conversations: the answer is what `render` makes of this one, with a mark for the text of each part.
pub(crate) fn kept_lists(
    messages: &[Message],
    render: &dyn Fn(Fields) -> Result<String, ChatError>,
) -> Vec<bool> {
    if !messages.iter().any(Message::has_parts) {
        return vec![true; messages.len()];
    }
    let trial = |kept: &[bool]| {
        let messages = messages.iter().zip(kept).enumerate();
        let fields = messages.map(|(index, (message, kept))| trial_fields(message, index, *kept));
        render(fields.collect())
    };
    let all = vec![true; messages.len()];
    let of_users = messages.iter().map(|m| m.role() == Role::User).collect();
    for mut kept in [all, of_users] {
        let Ok(prompt) = trial(&kept) else {
            continue;
        };
        let prompt = prompt.to_lowercase();
        let mut absent = Vec::new();
        for (index, message) in messages.iter().enumerate() {
            if !(kept[index] && message.has_parts()) {
                continue;
            }
            if !prompt.contains(&mark(index)) {
                absent.push(index);
            }
            kept[index] = !prints_list(&prompt, &mark(index));
        }
        // Texts that are in the prompt only if they are joined.
        let mut joined = kept.clone();
        for index in &absent {
            joined[*index] = false;
        }
        if !absent.is_empty()
            && let Ok(prompt) = trial(&joined)
        {
            for index in absent {
                kept[index] = !prompt.to_lowercase().contains(&mark(index));
            }
        }
        if trial(&kept).is_ok() {
            return kept;
        }
    }
    // It may be the marks that the template rejects.
    let fields = messages.iter().map(|message| message.template_fields(true));
    let takes_lists = render(fields.collect()).is_ok_and(|prompt| !prints_list(&prompt, ""));
    vec![takes_lists; messages.len()]
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
