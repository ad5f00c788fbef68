//! Chat templates are untrusted programs: each runs within limits of memory and time, or is rejected
//! with an error sentence.

use std::process::Command;
use std::time::{Duration, Instant};

use nextword_server::{ChatTemplate, Message};

use crate::malformed_models::{DAMAGES_PER_FILE, MAX_LEN, TestRng, corrupt_bytes, each};

/// Memory limit in kilobytes of address space, including the test program.
const MAX_FUEL: &str = "1000000";

/// Set for the child process that runs within the limit.
const CHILD_MARKER: &str = "NEXTWORD_WITHIN_BOUND";

const VALID: &str = "{%- if messages[0]['role'] == 'system' %}{{ '<|im_start|>system\\n' + \
    messages[0]['content'] + '<|im_end|>\\n' }}{%- endif %}\n{%- for message in messages %}\n    \
    {%- if message.role == 'user' %}{{ '<|im_start|>' + message.role + '\\n' + message.content | \
    trim + '<|im_end|>\\n' }}{%- else %}{%- set ns = namespace(found=false) %}{{ \
    message['content'].split('</think>')[-1].strip() }}{%- endif %}\n{%- endfor %}\n\
    {%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}";

/// Short templates that need much memory or time. A list doubled 60 times is not included: minijinja
/// does not limit it.
const RUNAWAY: [&str; 15] = [
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
    "{{ 2 ** 999999999 }}{{ 'x'.replace('', 'y' * 100000).replace('', 'y' * 100000) }}",
];

/// Whether the template rendered; an error must be a sentence.
fn attempt(source: &[u8]) -> bool {
    let Ok(source) = std::str::from_utf8(source) else {
        return false; // Rejected when the file is read.
    };
    let message = |role: &str, content: &str| Message {
        role: role.to_string(),
        content: content.to_string(),
    };
    let messages = [
        message("system", "Be brief."),
        message("user", " Who? "),
        message("assistant", "<think>…</think> She."),
    ];
    let begin = Instant::now();
    let used = ChatTemplate::from_source(source, "<s>", "</s>")
        .and_then(|template| template.render(&messages));
    assert!(begin.elapsed() < Duration::from_secs(20), "it takes long");
    if let Err(error) = &used {
        let text = error.to_string();
        assert!(!text.is_empty() && text.len() < MAX_LEN, "{text}");
    }
    used.is_ok()
}

#[test]
fn untrusted_templates_stay_within_limits() {
    if std::env::var_os(CHILD_MARKER).is_none() {
        let name = "untrusted_templates::untrusted_templates_stay_within_limits";
        let mut bounded = Command::new("sh");
        let limit = if cfg!(target_os = "linux") {
            MAX_FUEL
        } else {
            "unlimited"
        };
        bounded.args(["-c", &format!("ulimit -v {limit}; exec \"$@\""), "sh"]);
        bounded.arg(std::env::current_exe().unwrap());
        bounded
            .args(["--exact", name, "--nocapture"])
            .env(CHILD_MARKER, "1");
        assert!(bounded.status().unwrap().success(), "see above");
        return;
    }
    assert!(attempt(VALID.as_bytes()));
    for source in RUNAWAY {
        println!("{source}");
        attempt(source.as_bytes());
    }
    let mut rng = TestRng::new("templates");
    let (mut used, tries) = (0, each(DAMAGES_PER_FILE));
    for number in 0..tries {
        let mut source = if number % 4 == 0 {
            RUNAWAY[rng.below(RUNAWAY.len())].as_bytes().to_vec()
        } else {
            VALID.as_bytes().to_vec()
        };
        corrupt_bytes(&mut source, &mut rng);
        used += u64::from(attempt(&source));
    }
    println!("{tries} damaged templates: {used} were sound enough, the others refused");
    assert!(used > 0 && used < tries);
}
