//! Limits, errors and files of chat templates.

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
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
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
