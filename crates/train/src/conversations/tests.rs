mod runs;

use std::collections::HashSet;
use std::path::PathBuf;

use nextword_data::{Builtin, IGNORE, SamplesBuilder, TooLong, TrainOn};
use nextword_model::ModelDir;
use serde_json::json;

use super::fit::{Misfit, fit};
use super::*;
use crate::{
    Hooks, InMemoryTrainer, NullReporter, StopFlag, parse_config, prepare_conversations,
    prepare_run,
};

/// Writes the conversations in `lines` to a file of its own.
fn support(lines: &[serde_json::Value]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("support.jsonl");
    let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
    std::fs::write(&path, lines.join("\n")).unwrap();
    (folder, path)
}

/// A configuration for the conversations in `lines`, in a file of its own.
fn config(lines: &[serde_json::Value], more: &str) -> (tempfile::TempDir, RunConfig) {
    let (folder, path) = support(lines);
    let text = format!(
        "data.conversations = {:?}\ndata.tokenizer.kind = 'byte'\nmodel.d_model = 8\nmodel.n_layers = 1\n\
         model.n_heads = 1\nmodel.context_length = 128\n{more}",
        path.display().to_string()
    );
    let config = parse_config(&text, "x.toml".as_ref(), &[]).unwrap();
    (folder, config)
}

fn exchange(user: &str, reply: &str) -> serde_json::Value {
    json!({"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": reply}]})
}

fn exchanges(count: usize) -> Vec<serde_json::Value> {
    (0..count)
        .map(|i| exchange(&format!("Who is {i}?"), &format!("Number {i}.")))
        .collect()
}

fn read(config: RunConfig) -> Conversations {
    prepare_conversations(config).unwrap().unwrap()
}

#[test]
fn replies_are_trained_after_the_prompts_that_the_server_sends() {
    let (_folder, config) = config(&exchanges(40), "");
    let read = read(config);
    let tokenizer = &read.tokenizer;
    assert_eq!(read.report.train + read.report.validation, 40);
    assert!(read.report.validation >= 1);
    for index in 0..read.train.len() {
        let sample = read.train.sample(index).unwrap();
        let span = sample.trained[0].clone();
        let trained = tokenizer.decode_with_special_tokens(&sample.ids[span.clone()]);
        let number = trained.strip_prefix("Number ").unwrap();
        let number = number.strip_suffix(".<EOS>").unwrap();
        let prompt = tokenizer.decode(&sample.ids[..span.start]);
        let expected = format!("### User:\nWho is {number}?\n\n### Assistant:\n");
        assert_eq!(prompt, expected);
        let check = read.check_prompts(index).unwrap().unwrap();
        assert_eq!((check.prompts, check.equal, check.ids), (1, 1, span.start));
    }
}

#[test]
fn prompts_are_those_of_messages_and_not_of_their_trained_parts() {
    let talk = json!({"messages": [
        {"role": "user", "content": "A"}, {"role": "assistant", "content": "B"},
        {"role": "user", "content": "C"}, {"role": "assistant", "content": "D"},
    ]});
    let folder = tempfile::tempdir().unwrap();
    let template = folder.path().join("template.jinja");
    let source = "{% for m in messages %}{% if m.role == 'assistant' %}> - {% generation %}{{ m.content }}\
                  {% endgeneration %} = {% generation %}{{ m.content }}<EOS>{% endgeneration %}{% else %}\
                  {{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}> {% endif %}";
    std::fs::write(&template, source).unwrap();
    let more = format!(
        "data.chat_template = {:?}\ndata.split.validation = 0.0",
        template.display().to_string()
    );
    let (_folder, config) = config(&[talk], &more);
    let read = read(config);
    let sample = read.train.sample(0).unwrap();
    let text = read.tokenizer.decode_with_special_tokens(&sample.ids);
    assert_eq!(text, "A> - B = B<EOS>C> - D = D<EOS>");
    assert_eq!(sample.trained.len(), 4);
    let check = read.check_prompts(0).unwrap().unwrap();
    let ids = "A> - B = B".len() + 1 + "C> ".len();
    assert_eq!((check.prompts, check.equal, check.ids), (2, 2, ids));
}

#[test]
fn conversations_are_not_read_for_an_encoder() {
    let (_folder, config) = config(&exchanges(2), "model.architecture = 'encoder'");
    let error = prepare_conversations(config).unwrap_err().to_string();
    assert!(error.contains("an encoder learns from texts"), "{error}");
}

#[test]
fn mismatched_completions_have_no_targets_of_a_step() {
    let pair = |i| json!({"prompt": format!("Say {i}"), "chosen": "yes", "rejected": "not"});
    let lines: Vec<_> = (0..8).map(pair).collect();
    for (loss, trained) in [("kto", 1), ("dpo", 2)] {
        let (_folder, config) = config(&lines, &format!("[preferences]\nloss = '{loss}'"));
        let run = prepare_run(config.clone()).unwrap();
        let read = read(config);
        assert_eq!(read.row_report().unwrap(), None);
        // All completions have the same length.
        let targets = trained * read.train.trained_in(0) * run.loader.sequences_per_step();
        assert!(
            (run.loader.targets_per_step() - targets as f64).abs() < 1e-9,
            "{loss}"
        );
    }
}

#[test]
fn the_split_depends_on_the_content_and_not_on_the_order() {
    let mut lines = exchanges(60);
    let (_folder, forward) = config(&lines, "data.split.validation = 0.2");
    lines.reverse();
    lines.push(lines[3].clone());
    let (_other, backward) = config(&lines, "data.split.validation = 0.2");
    let sides = |config| {
        let read = read(config);
        let ids = |samples: &Samples| {
            let samples = (0..samples.len()).map(|index| samples.sample(index).unwrap().ids);
            samples.collect::<HashSet<_>>()
        };
        (ids(&read.train), ids(&read.validation))
    };
    let (train, validation) = sides(forward);
    assert_eq!((train.clone(), validation.clone()), sides(backward));
    assert!(train.is_disjoint(&validation));
    assert!((4..=24).contains(&validation.len()), "{}", validation.len());
}

#[test]
fn conversations_that_are_too_long_keep_whole_messages() {
    let long = "x".repeat(90);
    let three = json!({"messages": [
        {"role": "user", "content": "A"}, {"role": "assistant", "content": "B"},
        {"role": "user", "content": "C"}, {"role": "assistant", "content": long},
    ]});
    let lines = [three, exchange(&long, &long), exchange("D", "E")];
    let with = |too_long: &str| {
        let more = format!("data.too_long = '{too_long}'\ndata.split.validation = 0.0");
        let (folder, config) = config(&lines, &more);
        (folder, prepare_conversations(config))
    };
    let (_folder, turns) = with("turns");
    let turns = turns.unwrap().unwrap();
    let tokenizer = &turns.tokenizer;
    assert_eq!(turns.train.len(), 2);
    let first = turns.train.sample(0).unwrap();
    let text = tokenizer.decode_with_special_tokens(&first.ids);
    assert_eq!(text, "### User:\nA\n\n### Assistant:\nB<EOS>");
    assert_eq!(turns.report.left_out.len(), 2, "{:?}", turns.report);
    let lines = turns.report.left_out_lines().join("\n");
    assert!(
        lines.contains("support.jsonl, line 1)") && lines.contains("support.jsonl, line 2)"),
        "{lines}"
    );

    let (_folder, error) = with("error");
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("line 1") && error.contains("hint"),
        "{error}"
    );

    let (_folder, truncated) = with("truncate");
    let truncated = truncated.unwrap().unwrap();
    assert_eq!(truncated.train.len(), 3);
    assert_eq!(truncated.train.sample(0).unwrap().ids.len(), 129);
    assert_eq!(truncated.longest_row(), 128);
}

#[test]
fn cuts_keep_trained_tokens_within_the_sequence() {
    let sample = |trained: Vec<std::ops::Range<usize>>, ends: Vec<usize>| {
        let mut builder = SamplesBuilder::default();
        builder.push(&[1; 20], &trained).unwrap();
        (trained, ends)
    };
    let (_folder, config) = config(&exchanges(1), "data.split.validation = 0.0");
    let read = read(config);
    let example = read.examples.train[0].as_ref();
    let encoded = read.encoder.encode(example).unwrap().remove(0);
    let (trained, ends) = sample(vec![5..8, 12..18], vec![8, 18]);
    let mut encoded = encoded;
    encoded.ids = (0..20).collect();
    encoded.trained = trained;
    encoded.turn_ends = ends;
    for max_length in 1..=25 {
        for too_long in [TooLong::Turns, TooLong::Truncate, TooLong::Error] {
            let fitted = fit(&encoded, max_length, too_long);
            let expected = match too_long {
                _ if max_length >= 17 => Ok((20, vec![5..8, 12..18])),
                TooLong::Error => Err(Misfit::Error),
                TooLong::Turns if max_length >= 7 => Ok((8, vec![5..8])),
                TooLong::Turns => Err(Misfit::TooLong),
                TooLong::Truncate if max_length < 5 => Err(Misfit::TooLong),
                TooLong::Truncate => {
                    let end = max_length + 1;
                    let mut spans = vec![5..end.min(8)];
                    if end > 12 {
                        spans.push(12..end);
                    }
                    Ok((end, spans))
                }
            };
            let found = fitted.map(|fitted| (fitted.ids.len(), fitted.trained));
            assert_eq!(found, expected, "{max_length} {too_long:?}");
        }
    }
}

#[test]
fn prompts_in_both_splits_are_counted() {
    let lines: Vec<_> = (0..50)
        .map(|i| exchange("Same?", &format!("Reply {i}")))
        .collect();
    let (_folder, config) = config(&lines, "data.split.validation = 0.3");
    let report = read(config).report;
    assert_eq!(report.shared_prompts, report.validation);
    let warnings = report.warnings().join("\n");
    assert!(
        warnings.contains("have a prompt that is in the training split too"),
        "{warnings}"
    );
}

#[test]
fn records_without_anything_to_train_are_an_error() {
    let user = json!({"messages": [{"role": "user", "content": "Hi"}]});
    let (_folder, config) = config(&[user.clone(), user], "");
    let error = prepare_conversations(config).unwrap_err().to_string();
    for part in ["no conversation is left", "2 records", "line 1", "hint:"] {
        assert!(error.contains(part), "{part:?} in {error}");
    }
}

#[test]
fn errors_name_the_line() {
    let preference = json!({"prompt": "a", "chosen": "b", "rejected": "c"});
    let (_folder, config) = config(&[exchange("a", "b"), preference], "");
    let error = prepare_conversations(config).unwrap_err().to_string();
    assert!(
        error.contains("line 2") && error.contains("compares"),
        "{error}"
    );
}

#[test]
fn other_trained_messages_are_other_data() {
    let talk = json!({"messages": [
        {"role": "user", "content": "A"}, {"role": "assistant", "content": "B"},
        {"role": "user", "content": "C"}, {"role": "assistant", "content": "D"},
    ]});
    let with = |more: &str| {
        let more = format!("data.split.validation = 0.0\n{more}");
        let (_folder, config) = config(std::slice::from_ref(&talk), &more);
        let read = read(config);
        (read.train.trained_count(), read.fingerprint())
    };
    let all_replies = with("");
    let last = with("data.train_on = 'last_assistant'");
    let everything = with("data.train_on = 'all'");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("own.jinja");
    let own = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}\
               {% if add_generation_prompt %}assistant: {% endif %}";
    std::fs::write(&file, own).unwrap();
    let own = with(&format!(
        "data.chat_template = {:?}",
        file.display().to_string()
    ));
    assert_eq!((all_replies.0, last.0), (4, 2));
    assert!(everything.0 > 40, "{everything:?}");
    let fingerprints = [all_replies.1, last.1, everything.1, own.1];
    let distinct: HashSet<_> = fingerprints.iter().collect();
    assert_eq!(distinct.len(), 4);
}

#[test]
fn the_template_of_the_configuration_comes_first() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("own.jinja");
    std::fs::write(&file, "own").unwrap();
    let of_model = BTreeMap::from([(DEFAULT_TEMPLATE.to_string(), "model's".to_string())]);
    let none = BTreeMap::new();
    let choose = |name: Option<PathBuf>, of_model, has_prompt_template| {
        let data = nextword_data::DataConfig {
            chat_template: name,
            ..nextword_data::DataConfig::default()
        };
        let choice = TemplateChoice {
            of_model,
            has_prompt_template,
            begins_with_bos: false,
        };
        choice
            .template(&data)
            .map(|found| found.map(|template| template.text))
    };
    assert_eq!(choose(Some(file), &of_model, true).unwrap().unwrap(), "own");
    let chatml = choose(Some("chatml".into()), &of_model, true)
        .unwrap()
        .unwrap();
    assert!(chatml.contains("<|im_end|>"));
    assert_eq!(choose(None, &of_model, true).unwrap().unwrap(), "model's");
    assert_eq!(choose(None, &none, true).unwrap(), None);
    assert!(
        choose(None, &none, false)
            .unwrap()
            .unwrap()
            .contains("### ")
    );
    assert!(choose(Some("no/such/file".into()), &none, false).is_err());
}

/// Hooks that complete each prompt in the same way.
struct Fixed {
    calls: usize,
}

impl Hooks for Fixed {
    fn complete(
        &mut self,
        _model: &nextword_model::Transformer,
        tokenizer: &Arc<dyn Tokenizer>,
        request: &crate::CompletionRequest<'_>,
    ) -> Result<Option<crate::Completion>, TrainError> {
        self.calls += 1;
        assert_eq!(request.special.eos_ids, [256]);
        let number = tokenizer.decode(request.prompt);
        let number = number.split(['?', ' ']).nth(3).unwrap().to_string();
        let ids = tokenizer.encode(&format!("Number {number}.")).ids;
        Ok(Some(crate::Completion {
            ids,
            ended: self.calls % 2 == 1,
        }))
    }
}
