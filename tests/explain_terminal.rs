//! A report in the terminal.

use nextword_explain::ReportOptions;
use nextword_explain::terminal::{self, View};
use nextword_generate::SamplingConfig;
use nextword_model::ModelConfig;

use crate::explain_report::{explainer, large_vocab_config, options};

#[test]
fn an_unlikely_sampled_token_is_shown() {
    let explainer = explainer(&large_vocab_config(), 3);
    let mut unlikely = 0;
    for seed in 0..20 {
        let mut options = options(1);
        options.sampling = SamplingConfig {
            seed,
            ..SamplingConfig::default()
        };
        let explanation = explainer.explain("w00 w02 w01", &options).unwrap();
        let top_one = ReportOptions {
            top: 1,
            ..ReportOptions::default()
        };
        let report = explanation.report(&top_one).unwrap();
        let chosen = &report.completion[0];
        assert_eq!(chosen.candidates.len() + chosen.omitted, 40);
        unlikely += usize::from(chosen.candidates.len() > 1);
        let text = terminal::render(
            &explanation,
            &report,
            &View {
                top: 1,
                ..View::default()
            },
        );
        assert!(text.contains("← sampled"), "{text}");
    }
    assert!(
        unlikely > 5,
        "only {unlikely} sampled tokens were not the most likely"
    );
}

#[test]
fn terminal_output_fits_the_given_width() {
    let config = ModelConfig {
        n_layers: 40,
        ..large_vocab_config()
    };
    let explainer = explainer(&config, 3);
    let words: Vec<String> = (0..30).map(|n| format!("w{n:02}")).collect();
    let explanation = explainer.explain(&words.join(" "), &options(2)).unwrap();
    let report = explanation.report(&ReportOptions::default()).unwrap();
    for width in [60, 80, 132] {
        let view = View {
            width,
            ..View::default()
        };
        let text = terminal::render(&explanation, &report, &view);
        for line in text.lines() {
            // A word longer than the line is not broken.
            let can_wrap =
                line.trim().contains(' ') && !line.contains("blocks.") && !line.contains('…');
            assert!(
                !can_wrap || line.chars().count() <= width,
                "{width}: {line}"
            );
        }
        assert!(text.contains("--position N") && text.contains("--layer N"));
        assert!(text.lines().count() < 700, "{} lines", text.lines().count());
    }
    let view_all = View {
        layers: Some((0..40).collect()),
        positions: Some((0..31).collect()),
        ..View::default()
    };
    let complete = terminal::render(&explanation, &report, &view_all);
    assert!(complete.contains("layer 40") && complete.lines().count() > 2_000);
}

#[test]
fn attended_words_are_shown_and_escapes_removed() {
    let explainer = explainer(&large_vocab_config(), 3);
    let words: Vec<String> = (0..30).map(|n| format!("w{n:02}")).collect();
    let explanation = explainer.explain(&words.join(" "), &options(1)).unwrap();
    let mut report = explanation.report(&ReportOptions::default()).unwrap();
    report.model.name = "\u{1b}]0;title\u{7}".to_string();
    report.unknown = vec!["\u{1b}[31m".to_string()];
    let view = View {
        positions: Some(vec![0]),
        ..View::default()
    };
    let text = terminal::render(&explanation, &report, &view);
    let first = text.split("attention weights").nth(1).unwrap();
    let row = first
        .lines()
        .find(|line| line.trim_start().starts_with("w00 ") && line.contains('%'))
        .unwrap();
    assert!(row.contains("100.0 %"), "{row}");
    let row: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(&row[..3], ["w00", "100.0", "%"]);
    assert!(!text.contains('\u{1b}') && !text.contains('\u{7}'));
}

/// Whether two columns of a table touch: a percentage or a number is followed by the next one at once.
fn touches(line: &str) -> bool {
    let ends_column = |pair: &[char]| pair[0] == '%' && pair[1].is_ascii_digit();
    let chars: Vec<char> = line.chars().collect();
    let is_number = |word: &str| {
        let word = word.trim_start_matches('-');
        let digits = word.chars().filter(char::is_ascii_digit).count();
        // Two decimals: `1.2034.50` has two points.
        digits > 0
            && word.matches('.').count() > 1
            && word.chars().all(|c| c.is_ascii_digit() || c == '.')
    };
    chars.windows(2).any(ends_column) || line.split_whitespace().any(is_number)
}

#[test]
fn columns_of_tables_do_not_touch() {
    for (vocab_size, prompt_len, seed) in [(3, 2, 1), (5, 3, 2), (8, 5, 3), (40, 9, 4), (40, 28, 5)]
    {
        let config = ModelConfig {
            vocab_size,
            ..large_vocab_config()
        };
        let explainer = explainer(&config, seed);
        let words: Vec<String> = (0..prompt_len)
            .map(|n| format!("w{:02}", n % vocab_size))
            .collect();
        let explanation = explainer.explain(&words.join(" "), &options(2)).unwrap();
        let report = explanation.report(&ReportOptions::default()).unwrap();
        for width in [40, 50, 60, 72, 80, 100, 132, 200] {
            for decimals in [0, 1, 2, 5, 9] {
                let view = View {
                    width,
                    decimals,
                    ..View::default()
                };
                let text = terminal::render(&explanation, &report, &view);
                for line in text.lines() {
                    assert!(
                        !touches(line),
                        "{width} columns, {decimals} decimals: {line}"
                    );
                }
            }
        }
    }
}

#[test]
fn names_of_columns_are_cut_only_without_room() {
    let model =
        nextword_model::ModelDir::open(&crate::util::root().join("docs/models/statquest")).unwrap();
    let generator = nextword_generate::TextGenerator::open(&model, &crate::util::flex()).unwrap();
    let explainer = nextword_explain::Explainer::new(generator);
    let explanation = explainer.explain("what is statquest", &options(2)).unwrap();
    let report = explanation.report(&ReportOptions::default()).unwrap();
    let render = |width| {
        let view = View {
            width,
            ..View::default()
        };
        terminal::render(&explanation, &report, &view)
    };
    let headers = |text: &str| -> Vec<String> {
        let lines = text
            .lines()
            .filter(|line| line.starts_with("     ") && line.contains("what"));
        lines.map(|line| line.trim().to_string()).collect()
    };
    for header in headers(&render(100)) {
        assert!(
            header.contains("statquest") && !header.contains('…'),
            "{header}"
        );
    }
    assert!(!headers(&render(100)).is_empty());
}
