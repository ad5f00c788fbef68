//! Chat templates are programs from anywhere: each is read and put to use within a bound of memory and
//! time, or refused in a sentence.

use std::process::Command;
use std::time::{Duration, Instant};

use nextword_server::{ChatTemplate, Message};

use crate::hostile::{Dice, EACH, LONGEST, damage_bytes, each};

/// What a template may take, in kilobytes of address space, the test program included.
const MOST: &str = "1000000";

/// Set for the process that runs within the bound.
const WITHIN: &str = "NEXTWORD_WITHIN_BOUND";

const SOUND: &str = "{%- if messages[0]['role'] == 'system' %}{{ '<|im_start|>system\\n' + \
    messages[0]['content'] + '<|im_end|>\\n' }}{%- endif %}\n{%- for message in messages %}\n    \
    {%- if message.role == 'user' %}{{ '<|im_start|>' + message.role + '\\n' + message.content | \
    trim + '<|im_end|>\\n' }}{%- else %}{%- set ns = namespace(found=false) %}{{ \
    message['content'].split('</think>')[-1].strip() }}{%- endif %}\n{%- endfor %}\n\
    {%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}";

/// Templates that ask for much with few words. A list doubled 60 times is not among them: minijinja sets
/// no bound to it.
const GREEDY: [&str; 15] = [
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

/// Whether the template was used; an error has to be a sentence.
fn attempt(source: &[u8]) -> bool {
    let Ok(source) = std::str::from_utf8(source) else {
        return false; // Refused when the file is read.
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
        assert!(!text.is_empty() && text.len() < LONGEST, "{text}");
    }
    used.is_ok()
}

#[test]
fn templates_from_anywhere_stay_within_their_bounds() {
    if std::env::var_os(WITHIN).is_none() {
        let name = "hostile_templates::templates_from_anywhere_stay_within_their_bounds";
        let mut bounded = Command::new("sh");
        let limit = if cfg!(target_os = "linux") {
            MOST
        } else {
            "unlimited"
        };
        bounded.args(["-c", &format!("ulimit -v {limit}; exec \"$@\""), "sh"]);
        bounded.arg(std::env::current_exe().unwrap());
        bounded
            .args(["--exact", name, "--nocapture"])
            .env(WITHIN, "1");
        assert!(bounded.status().unwrap().success(), "see above");
        return;
    }
    assert!(attempt(SOUND.as_bytes()));
    for source in GREEDY {
        println!("{source}");
        attempt(source.as_bytes());
    }
    let mut dice = Dice::new("templates");
    let (mut used, tries) = (0, each(EACH));
    for number in 0..tries {
        let mut source = if number % 4 == 0 {
            GREEDY[dice.below(GREEDY.len())].as_bytes().to_vec()
        } else {
            SOUND.as_bytes().to_vec()
        };
        damage_bytes(&mut source, &mut dice);
        used += u64::from(attempt(&source));
    }
    println!("{tries} damaged templates: {used} were sound enough, the others refused");
    assert!(used > 0 && used < tries);
}
