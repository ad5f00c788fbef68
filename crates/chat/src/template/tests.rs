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

/// Templates with a part that is repeated, by name: a chain can be as deep as the file is long.
const DEEP: [(&str, &str, &str, &str); 8] = [
    ("sums", "{{ 1", " + a", " }}"),
    ("remainders", "{{ 1", " % a", " }}"),
    ("filters", "{{ a", "|e", " }}"),
    ("attributes", "{{ a", ".b", " }}"),
    ("calls", "{{ a", "()", " }}"),
    ("negations", "{{ ", "not ", "a }}"),
    ("alternatives", "{% if a %}", "{% elif b %}", "{% endif %}"),
    ("blocks", "", "{% if a %}", ""),
];

#[test]
fn chains_that_would_overflow_the_stack_are_rejected() {
    for (name, start, part, end) in DEEP {
        let source = [start, &part.repeat(100_000), end].concat();
        let error = ChatTemplate::from_source(&source, "", "").unwrap_err();
        assert!(error.to_string().len() < 500, "{name}: {error}");
    }
}

#[test]
fn chains_of_usual_length_are_rendered() {
    for (name, start, part, end) in DEEP {
        let count = match name {
            "sums" | "filters" | "alternatives" => 300,
            "remainders" => 30,
            _ => continue, // They have no value, or limits of their own.
        };
        let source = [start, &part.repeat(count), end].concat();
        let source = source.replace('a', "1");
        let template = ChatTemplate::from_source(&source, "", "").unwrap();
        assert!(template.render(&[]).is_ok(), "{name}");
    }
}

/// Templates that nest a value as deeply as the instructions last, by what they do with it then. The stack for
/// templates must suffice.
#[test]
fn deep_values_are_rendered_or_rejected() {
    let lists = |levels: usize| "[".repeat(levels) + "ns.a" + &"]".repeat(levels);
    let nest = |value: &str, rounds: usize| {
        format!(
            "{{% set ns = namespace(a=1, b=1) %}}{{% for i in range({rounds}) %}}{{% set ns.a = {value} %}}{{% endfor %}}"
        )
    };
    let twins = "{% set ns = namespace(a=1, b=1) %}{% for i in range(ROUNDS) %}{% set ns.a = NEST %}\
                 {% set ns.b = NEST %}{% endfor %}";
    let twins = twins.replace("ROUNDS", "4200");
    let twins = twins.replacen("NEST", &lists(70), 1);
    let twins = twins.replacen("NEST", &lists(70).replace("ns.a", "ns.b"), 1);
    let deepest = nest(&lists(70), 8500);
    for (name, nesting, ending) in [
        ("dropped, by one level", nest("[ns.a]", 90_000), ""),
        ("dropped", deepest.clone(), ""),
        ("dicts", nest("{'a': ns.a}", 80_000), ""),
        ("namespaces", nest("namespace(a=ns.a)", 80_000), ""),
        ("tuples", nest("(ns.a,)", 90_000), ""),
        ("shown", deepest.clone(), "{{ ns.a }}"),
        ("joined", deepest.clone(), "{{ ns.a | join }}"),
        ("a text", deepest.clone(), "{{ ns.a ~ 'x' }}"),
        (
            "replaced",
            deepest.clone(),
            "{{ ns.a | replace('x', 'y') }}",
        ),
        ("printed", deepest.clone(), "{{ ns.a | pprint }}"),
        ("as JSON", deepest.clone(), "{{ ns.a | tojson }}"),
        ("raised", deepest.clone(), "{{ raise_exception(ns.a) }}"),
        ("a key", deepest.clone(), "{{ {ns.a: 1} }}"),
        ("equal", twins.clone(), "{{ ns.a == ns.b }}"),
        ("ordered", twins.clone(), "{{ ns.a < ns.b }}"),
        (
            "sorted",
            twins.clone(),
            "{{ [ns.a, ns.b] | sort | length }}",
        ),
        (
            "unique",
            twins,
            "{{ [ns.a, ns.b] | unique | list | length }}",
        ),
    ] {
        let template = ChatTemplate::from_source(&(nesting + ending), "", "").unwrap();
        let result = template.render(&[Message::user("x")]);
        if ending.is_empty() {
            assert_eq!(result.unwrap(), "", "{name}");
        }
    }
}
