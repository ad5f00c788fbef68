use nextword_train::CompletionReport;

use super::*;

fn report() -> StepReport {
    StepReport {
        step: 1200,
        steps: 5000,
        loss: 2.1134,
        preferences: PreferenceMetrics::default(),
        learning_rate: 3e-4,
        grad_norm: 0.811,
        tokens_per_second: 41_234.0,
        waited_share: None,
        eta: 372.2,
    }
}

fn outcome(reason: StopReason) -> Outcome {
    Outcome {
        reason,
        step: 7,
        loss: Some(2.0),
        best: Some(1.5),
        validation: None,
        other_text: Vec::new(),
        elapsed: 61.0,
        folder: "runs/my run".into(),
    }
}

#[test]
fn step_line_shows_all_fields() {
    assert_eq!(
        step_line(&report(), Some(2.2009), usize::MAX),
        "step 1200/5000  24%  loss 2.113  val 2.201  lr 3.0e-4  gnorm 0.81  41.2k tok/s  eta 6m12s"
    );
    assert!(!step_line(&report(), None, usize::MAX).contains("val"));
    let of_ranks = StepReport {
        waited_share: Some(0.034),
        ..report()
    };
    assert!(step_line(&of_ranks, None, usize::MAX).ends_with("eta 6m12s  waited 3%"));
}

#[test]
fn a_narrow_step_line_keeps_what_matters_most() {
    let line = |columns| step_line(&report(), Some(2.2009), columns);
    assert_eq!(
        line(69),
        "step 1200/5000  24%  loss 2.113  val 2.201  41.2k tok/s  eta 6m12s"
    );
    assert_eq!(
        line(60),
        "step 1200/5000  loss 2.113  41.2k tok/s  eta 6m12s"
    );
    assert_eq!(line(40), "step 1200/5000  loss 2.113  eta 6m12s");
    assert_eq!(line(26), "step 1200/5000  loss 2.113");
    assert_eq!(line(20), "loss 2.113");
    assert_eq!(line(4), "loss");
    for columns in 0..120 {
        assert!(line(columns).chars().count() <= columns, "{columns}");
    }
}

#[test]
fn suggested_commands_can_be_pasted() {
    let next = |prompt| {
        let lines = end_lines(
            &outcome(StopReason::Finished),
            0,
            prompt,
            ModelUse::Generate,
        );
        lines[2..4]
            .iter()
            .map(|line| line.trim().to_string())
            .collect::<Vec<_>>()
    };
    for prompt in [None, Some(""), Some("\n"), Some("  ")] {
        let expected = ["generate", "explain"].map(|name| format!("nextword {name} 'runs/my run'"));
        assert_eq!(next(prompt), expected, "{prompt:?}");
    }
    assert_eq!(
        next(Some("it's"))[0],
        r"nextword generate 'runs/my run' 'it'\''s'"
    );
}

#[test]
fn samples_are_indented_and_sanitized() {
    let block = sample_block(10, "Once", " upon\x1b[2J\na time\n\n");
    assert_eq!(
        block,
        "sample at step 10:\n    Once upon\u{fffd}[2J\n    a time"
    );
}

#[test]
fn completions_are_shown_beside_the_message_in_the_data() {
    let block = completion_block(7, &"x".repeat(500), "It is\nred.", " It is blue.\n");
    let shown = format!("…{}", "x".repeat(400));
    assert_eq!(
        block,
        format!(
            "held-out data at step 7:\n    {shown}\n  completion   It is\n               red.\n  in the data  \
             It is blue."
        )
    );
    assert!(completion_block(7, "Hi\x1b", "a", "b").contains("    Hi\u{fffd}\n"));
}

#[test]
fn validations_say_how_completions_ended() {
    let part = |completions| {
        completions_part(&ValidationReport {
            step: 1,
            loss: 1.0,
            best: 1.0,
            tokens: 5,
            seconds: 1.0,
            preferences: PreferenceMetrics::default(),
            completions,
        })
    };
    assert_eq!(part(None), "");
    let report = CompletionReport {
        completions: 16,
        ended: 12,
        short: 10,
        exact: 4,
    };
    assert_eq!(part(Some(report)), "  ended by itself 12/16  exact 4/10");
    let long = CompletionReport { short: 0, ..report };
    assert_eq!(part(Some(long)), "  ended by itself 12/16");
}

#[test]
fn runs_on_preferences_show_accuracy_and_rewards() {
    let preferences = PreferenceMetrics {
        accuracy: Some(0.875),
        margin: Some(0.41),
        chosen_reward: Some(0.3),
        rejected_reward: Some(-0.11),
        chosen_change: Some(-0.02),
        ..PreferenceMetrics::default()
    };
    let step = StepReport {
        preferences,
        ..report()
    };
    let line = step_line(&step, None, usize::MAX);
    assert!(
        line.contains("loss 2.113  acc 0.88  margin 0.410  lr"),
        "{line}"
    );
    let validation = ValidationReport {
        step: 9,
        loss: 0.5,
        best: 0.5,
        tokens: 5,
        seconds: 1.0,
        preferences,
        completions: None,
    };
    assert_eq!(
        rewards_line(&validation).as_deref(),
        Some(
            "step 9  acc 0.88  margin 0.410  rewards chosen 0.300  rejected -0.110  chosen per token -0.020"
        )
    );
    let supervised = ValidationReport {
        preferences: PreferenceMetrics::default(),
        ..validation
    };
    assert_eq!(rewards_line(&supervised), None);
}

#[test]
fn the_end_of_a_run_says_what_it_forgot() {
    let other_text = vec![OtherTextLoss {
        name: "general".to_string(),
        loss: 2.963,
        start: 2.958,
    }];
    let outcome = Outcome {
        other_text,
        ..outcome(StopReason::Finished)
    };
    let lines = end_lines(&outcome, 0, None, ModelUse::Generate);
    assert_eq!(
        lines[1],
        "loss of other text: general 2.958 → 2.963 (+0.005)"
    );
}

#[test]
fn end_of_run_suggests_next_commands() {
    let lines = end_lines(
        &outcome(StopReason::Finished),
        0,
        Some("One day"),
        ModelUse::Generate,
    )
    .join("\n");
    assert!(
        lines.starts_with("done: step 7, loss 2.0000, best 1.5000 in 1m01s"),
        "{lines}"
    );
    assert!(
        lines.contains("nextword generate 'runs/my run' 'One day'"),
        "{lines}"
    );
    assert!(lines.contains("nextword plot 'runs/my run'"), "{lines}");
    let lines = end_lines(&outcome(StopReason::Finished), 0, None, ModelUse::Chat).join("\n");
    assert!(lines.contains("nextword chat 'runs/my run'"), "{lines}");
    let prompt = Some("a ___ c");
    let lines = end_lines(&outcome(StopReason::Finished), 0, prompt, ModelUse::Fill).join("\n");
    assert!(
        lines.contains("nextword fill 'runs/my run' 'a ___ c'"),
        "{lines}"
    );
    assert!(
        lines.contains("nextword explain 'runs/my run' 'a ___ c'"),
        "{lines}"
    );
}

#[test]
fn a_finished_run_that_is_resumed_says_so_and_suggests_the_same_commands() {
    let lines = |resumed_at| {
        end_lines(
            &outcome(StopReason::Finished),
            resumed_at,
            Some("a"),
            ModelUse::Generate,
        )
    };
    assert!(
        lines(7)[0].starts_with("nothing to train: step 7"),
        "{:?}",
        lines(7)
    );
    assert!(lines(6)[0].starts_with("done: step 7"));
    assert_eq!(lines(7)[1..], lines(0)[1..]);
}

#[test]
fn interrupted_runs_are_saved() {
    let lines = end_lines(
        &outcome(StopReason::Interrupted),
        0,
        None,
        ModelUse::Generate,
    );
    assert!(
        lines[0].starts_with("interrupted and saved: step 7"),
        "{lines:?}"
    );
}

#[test]
fn a_lora_run_says_how_much_it_trains() {
    let lora = LoraInfo {
        trained_parameters: 35,
        base: "models/base".into(),
    };
    assert_eq!(
        lora_line(&lora, 965),
        "trains 35 of 1,000 parameters (3.5 %); base models/base stays as it is"
    );
}

#[test]
fn completed_run_explains_how_to_train_further() {
    let info = RunInfo {
        name: "x".to_string(),
        folder: "runs/x".into(),
        device: "flex".to_string(),
        parameters: 1_234,
        lora: None,
        vocab_size: 5,
        train_tokens: 100,
        trained_tokens: None,
        validation_tokens: 10,
        steps: 20,
        tokens_per_step: 8,
        resumed_at: 20,
        prompt_template: None,
        prompt: None,
        is_chat: false,
        architecture: Architecture::Decoder,
        skipped: vec!["checkpoints/step-00000030: damaged".to_string()],
    };
    let lines = start_lines(&info).join("\n");
    assert!(
        lines.contains("warning: skipped a checkpoint: checkpoints/step-00000030"),
        "{lines}"
    );
    assert!(lines.contains("x: 1,234 parameters on flex"), "{lines}");
    assert!(lines.contains("--set train.steps=N"), "{lines}");
}
