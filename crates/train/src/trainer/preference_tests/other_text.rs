//! The loss of other text, which says what a run forgets.

use super::*;

const FORGETTING: &str = "[train]\nsteps = 6\nbatch_size = 4\nlog_every = 1\n[schedule]\nwarmup_steps = 0\n\
    kind = 'constant'\nlearning_rate = LR\nmin_learning_rate = 0.0\n[validation]\nevery = 2\ncompletions = 0\n[checkpoint]\nevery = 2\n";

#[test]
fn the_loss_of_other_text_is_measured_from_the_start() {
    let talk = |i: usize| {
        json!({"messages": [
            {"role": "user", "content": format!("x{} ", "y".repeat(i))}, {"role": "assistant", "content": "qqqqqqqq"},
        ]})
    };
    let talks: Vec<Value> = (0..12).map(talk).collect();
    let run = |learning_rate: &str, stop_after| {
        let folder = folder(&talks);
        let text = folder.path().join("text.txt");
        fs::write(&text, "The cat saw a bird. ".repeat(20)).unwrap();
        let also = format!("also = {{ name = 'general', path = {text:?} }}\n");
        let more = FORGETTING
            .replace("LR", learning_rate)
            .replace("[checkpoint]", &(also + "[checkpoint]"));
        let config = config(folder.path(), &more);
        let (reports, outcome) = train(config, stop_after);
        (folder, reports, outcome)
    };
    let (_folder, reports, outcome) = run("2e-2", 99);
    let steps: Vec<u64> = reports.other_text.iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, [0, 2, 4, 6]);
    let first = &reports.other_text[0].1[0];
    assert_eq!((first.name.as_str(), first.change()), ("general", 0.0));
    let last = &reports.other_text[3].1[0];
    assert_eq!(last.start.to_bits(), first.loss.to_bits());
    assert!(last.change() > 0.05, "{last:?}");
    assert_eq!(outcome.other_text, std::slice::from_ref(last));
    let warnings = reports
        .warnings
        .iter()
        .filter(|text| text.contains("general"));
    assert_eq!(warnings.count(), 1, "{:?}", reports.warnings);

    // With the loss from the start, also after a resume.
    let (folder, reports, _) = run("2e-2", 4);
    let (resumed, _) = resume(&folder.path().join("run")).unwrap();
    // It begins with what the stop left out.
    let steps: Vec<u64> = resumed.other_text.iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, [4, 6]);
    let resumed = &resumed.other_text[1].1[0];
    assert_eq!(resumed.loss.to_bits(), last.loss.to_bits());
    // JSON may change the last bit.
    assert!((resumed.start - reports.other_text[0].1[0].loss).abs() < 1e-12);

    let (folder, reports, _) = run("1e-9", 99);
    assert!(
        reports
            .warnings
            .iter()
            .all(|text| !text.contains("general"))
    );
    let metrics = fs::read_to_string(folder.path().join("run/metrics.jsonl")).unwrap();
    let first: MetricsLine = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
    assert_eq!(
        (first.step, first.other_text.len(), first.loss),
        (0, 1, None)
    );
}

#[test]
fn other_texts_have_names_of_their_own() {
    let parse = |also: &str| {
        let text = format!("data.builtin = 'stories'\nvalidation.also = {also}");
        parse_config(&text, Path::new("x.toml"), &[])
    };
    let two = parse("[{ name = 'a', path = 'x' }, { name = 'b', path = 'y' }]").unwrap();
    assert_eq!(two.validation.also.len(), 2);
    let stored = crate::to_toml(&two).unwrap();
    let read = parse_config(&stored, Path::new("x.toml"), &[]).unwrap();
    assert_eq!(read.validation, two.validation);
    let message = parse("[{ name = 'a', path = 'x' }, { name = 'a', path = 'y' }]").unwrap_err();
    assert!(message.to_string().contains("occurs twice"), "{message}");
    let message = parse("'text.txt'").unwrap_err().to_string();
    assert!(message.contains("name = \"general\""), "{message}");
}
