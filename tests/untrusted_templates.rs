//! Chat templates are untrusted programs: each runs within limits of memory and time, or is rejected
//! with an error message.

use std::process::Command;
use std::time::{Duration, Instant};

use nextword_chat::{ChatTemplate, Message};

use crate::malformed_models::{
    MAX_MESSAGE_LEN, MUTATIONS_PER_FILE, corrupt_bytes, mutation_count, test_rng,
};

/// Memory limit in kilobytes of address space, including the test program and the 512 MiB of stack for templates.
const MEMORY_LIMIT: &str = "1550000";

/// Set in the child process that runs within the limit.
const CHILD_MARKER: &str = "NEXTWORD_WITHIN_BOUND";

const VALID: &str = "{%- if messages[0]['role'] == 'system' %}{{ '<|im_start|>system\\n' + \
    messages[0]['content'] + '<|im_end|>\\n' }}{%- endif %}\n{%- for message in messages %}\n    \
    {%- if message.role == 'user' %}{{ '<|im_start|>' + message.role + '\\n' + message.content | \
    trim + '<|im_end|>\\n' }}{%- else %}{%- set ns = namespace(found=false) %}{{ \
    message['content'].split('</think>')[-1].strip() }}{%- endif %}\n{%- endfor %}\n\
    {%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}";

/// Short templates that need much memory or time. A list doubled 60 times is not included: minijinja
/// does not limit it.
const RUNAWAY: &[&str] = &[
    "{{ [[1]] | tojson(indent=999999999) }}",
    "{% for i in range(999999999) %}x{% endfor %}",
    "{% for i in range(999) %}{% for j in range(999) %}{% for k in range(999) %}x{% endfor %}{% endfor %}{% endfor %}",
    "{{ 'x' * 999999999 }}",
    "{{ ('x' * 99999) * 99999 }}",
    "{{ [1] * 999999999 }}",
    "{{ range(999999999) | list }}",
    "{{ range(999999999) | join('x') }}",
    "{% set ns = namespace(a='xxxxxxxx') %}{% for i in range(60) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}{{ ns.a }}",
    "{{ 'x' | indent(999999999) }}",
    "{{ '%999999999s' | format('x') }}",
    "{{ 'x'.ljust(999999999) }}{{ 'x'.center(999999999) }}{{ 'x'.zfill(999999999) }}",
    "{{ 'x' | replace('', 'y' * 99999) | replace('', 'z' * 99999) }}",
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{{ '%999999999s' % 'x' }}{{ '%.999999999f' % 1.5 }}",
    "{{ 'x' | center(999999999) }}{{ 'x'.rjust(999999) }}",
    "{{ ('\\t' * 99999).expandtabs(99999) }}",
    "{{ ('x ' * 99999) | wordwrap(1, wrapstring='y' * 99999) }}",
    "{{ [1] | tojson(indent='x' * 99999) }}{{ [1] | tojson(separators=['y' * 99999, '']) }}",
    "{% set ns = namespace(a=[1]) %}{% for i in range(5000) %}{% set ns.a = [ns.a] %}{% endfor %}{{ ns.a | tojson }}",
    "{% set ns = namespace(a=[1]) %}{% for i in range(40) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a | tojson }}",
    "{{ ('<' * 99999) | striptags }}{{ ('&' * 99999) | striptags }}{{ ('<!--' * 99999) | striptags }}",
    "{{ ('x' * 99999).split('x') | join('y' * 99999) }}",
    "{% set ns = namespace(a=[1]) %}{% for i in range(90000) %}{% set ns.a = [ns.a] %}{% endfor %}{{ ns.a | pprint }}",
    "{% set ns = namespace(a=[1]) %}{% for i in range(90000) %}{% set ns.a = {1: ns.a} %}{% endfor %}{{ ns.a | join }}",
    "{{ 2 ** 999999999 }}{{ 'x'.replace('', 'y' * 100000).replace('', 'y' * 100000) }}",
];

/// Texts that are repeated up to the maximum size of a template, and what precedes them.
const REPEATED: &[(&str, &str)] = &[
    ("", "{%"),
    ("", "{%-"),
    ("", "{{"),
    ("", "{#\n"),
    ("", "{% ( %}"),
    ("{% raw %}", "{%\n"),
    ("{% raw %}", "{%- endraw \n"),
];

/// Renders the template and returns whether it succeeded. An error must have a message.
fn attempt(source: &[u8]) -> bool {
    let Ok(source) = std::str::from_utf8(source) else {
        return false; // Rejected when the file is read.
    };
    let messages = [
        Message::system("Be brief."),
        Message::user(" Who? "),
        Message::assistant("<think>…</think> She."),
    ];
    let start = Instant::now();
    let result = ChatTemplate::from_source(source, "<s>", "</s>")
        .and_then(|template| template.render(&messages));
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "rendering takes too long"
    );
    if let Err(error) = &result {
        let text = error.to_string();
        assert!(!text.is_empty() && text.len() < MAX_MESSAGE_LEN, "{text}");
    }
    result.is_ok()
}

#[test]
fn untrusted_templates_stay_within_limits() {
    if std::env::var_os(CHILD_MARKER).is_none() {
        let name = "untrusted_templates::untrusted_templates_stay_within_limits";
        let mut limited = Command::new("sh");
        let limit = if cfg!(target_os = "linux") {
            MEMORY_LIMIT
        } else {
            "unlimited"
        };
        limited.args(["-c", &format!("ulimit -v {limit}; exec \"$@\""), "sh"]);
        limited.arg(std::env::current_exe().unwrap());
        limited
            .args(["--exact", name, "--nocapture"])
            .env(CHILD_MARKER, "1");
        assert!(limited.status().unwrap().success(), "see above");
        return;
    }
    assert!(attempt(VALID.as_bytes()));
    for source in RUNAWAY {
        println!("{source}");
        attempt(source.as_bytes());
    }
    for (start, part) in REPEATED {
        println!("{start}, then {part}");
        let source = [start, &*part.repeat((1 << 20) / part.len())].concat();
        assert!(!attempt(source.as_bytes()));
    }
    let mut rng = test_rng("templates");
    let (mut rendered, attempts) = (0, mutation_count(MUTATIONS_PER_FILE));
    for number in 0..attempts {
        let mut source = if number % 4 == 0 {
            RUNAWAY[rng.below(RUNAWAY.len())].as_bytes().to_vec()
        } else {
            VALID.as_bytes().to_vec()
        };
        corrupt_bytes(&mut source, &mut rng);
        rendered += u64::from(attempt(&source));
    }
    println!(
        "{attempts} damaged templates: {rendered} could be rendered, the others were rejected"
    );
    assert!(rendered > 0 && rendered < attempts);
}
