//! Conversations at the terminal.

use std::io::Write;
use std::process::Stdio;

use serde_json::json;

use crate::place::Place;
use crate::resume::straight;
use crate::serving::talker;
use crate::util::nextword;

const TEMPLATE: &str = "{% for message in messages %}{% if message.content == 'bad' %}\
    {{ raise_exception('no bad words') }}{% endif %}{{ message.content }}{% endfor %}";

/// What `chat` writes to standard output and standard error when these lines are typed.
fn chat(template: &str, options: &[&str], lines: &str) -> (String, String) {
    let place = Place::new();
    let run = straight(place.folder.path(), "flex");
    let record = talker(&place, &run, template, &json!({}));
    let mut process = nextword()
        .arg("chat")
        .arg(record)
        .args(["--max-tokens", "6", "--seed", "3"])
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = process.stdin.take().unwrap();
    input.write_all(lines.as_bytes()).unwrap();
    drop(input);
    let output = process.wait_with_output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{error}");
    (String::from_utf8(output.stdout).unwrap(), error)
}

#[test]
fn what_a_template_refuses_is_told_and_the_conversation_goes_on() {
    let (answers, notes) = chat(TEMPLATE, &[], "bad\nOne day\n/undo\n/undo\n");
    assert!(
        notes.contains("error: ") && notes.contains("no bad words"),
        "{notes}"
    );
    assert!(!answers.is_empty());
    assert!(notes.contains("forgotten: One day"), "{notes}");
    assert!(notes.ends_with("there is nothing to forget\n"), "{notes}");
}

#[test]
fn an_answer_can_be_made_anew_and_its_probabilities_seen() {
    let (answers, notes) = chat(
        TEMPLATE,
        &["--temperature", "0"],
        "/retry\n/probs\nOne day\n/retry\n/probs\n/nonsense\n",
    );
    assert_eq!(
        notes.matches("there is no answer yet").count(),
        2,
        "{notes}"
    );
    assert!(notes.contains("there is no /nonsense"), "{notes}");
    let (texts, rows): (Vec<&str>, Vec<&str>) =
        answers.lines().partition(|line| !line.contains(" %  \""));
    // Greedy, and the first answer is no part of the second one's prompt.
    let half = texts.len() / 2;
    assert_eq!(texts[..half], texts[half..], "{answers}");
    assert!((1..=6).contains(&rows.len()), "{answers}");
    for row in rows {
        let percent: f64 = row.split('%').next().unwrap().trim().parse().unwrap();
        assert!((0.0..=100.0).contains(&percent), "{row}");
    }
}
