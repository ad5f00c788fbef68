//! Conversations in the terminal.

use std::io::Write;
use std::process::Stdio;

use serde_json::json;

use crate::resume::train_uninterrupted;
use crate::serving::chat_model;
use crate::test_dir::TestDir;
use crate::util::nextword;

const TEMPLATE: &str = "{% for message in messages %}{% if message.content == 'bad' %}\
    {{ raise_exception('no bad words') }}{% endif %}{{ message.content }}{% endfor %}";

/// Standard output and standard error of `chat` for these input lines.
fn chat(template: &str, options: &[&str], lines: &str) -> (String, String) {
    let dir = TestDir::new();
    let run = train_uninterrupted(dir.folder.path(), "flex");
    let model_dir = chat_model(&dir, &run, template, &json!({}));
    let mut process = nextword()
        .arg("chat")
        .arg(model_dir)
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
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    (String::from_utf8(output.stdout).unwrap(), stderr)
}

#[test]
fn a_chat_template_error_is_shown_and_the_chat_continues() {
    let (stdout, stderr) = chat(TEMPLATE, &[], "bad\nOne day\n/undo\n/undo\n");
    assert!(
        stderr.contains("error: ") && stderr.contains("no bad words"),
        "{stderr}"
    );
    assert!(!stdout.is_empty());
    assert!(stderr.contains("removed: One day"), "{stderr}");
    assert!(stderr.ends_with("nothing to undo\n"), "{stderr}");
}

#[test]
fn retry_regenerates_and_probs_shows_probabilities() {
    let (stdout, stderr) = chat(
        TEMPLATE,
        &["--temperature", "0"],
        "/retry\n/probs\nOne day\n/retry\n/probs\n/nonsense\n",
    );
    assert_eq!(stderr.matches("no reply yet").count(), 2, "{stderr}");
    assert!(stderr.contains("unknown command /nonsense"), "{stderr}");
    let (texts, rows): (Vec<&str>, Vec<&str>) =
        stdout.lines().partition(|line| !line.contains(" %  \""));
    // Greedy, and the first reply is not part of the second one's prompt.
    let half = texts.len() / 2;
    assert_eq!(texts[..half], texts[half..], "{stdout}");
    assert!((1..=6).contains(&rows.len()), "{stdout}");
    for row in rows {
        let percent: f64 = row.split('%').next().unwrap().trim().parse().unwrap();
        assert!((0.0..=100.0).contains(&percent), "{row}");
    }
}
