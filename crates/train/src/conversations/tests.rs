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
fn epochs_become_steps() {
    let lines = exchanges(64);
    let (_folder, mut config) = config(&lines, "data.split.validation = 0.0");
    assert_eq!(
        (config.train.epochs, config.train.batch_size),
        (Some(3.0), 16)
    );
    config.device = "flex".to_string();
    let setup = prepare_run(config).unwrap();
    // 3 epochs of 64 samples, 16 per step; a warmup of 5 steps.
    assert_eq!(
        (setup.config.train.steps, setup.config.train.epochs),
        (12, None)
    );
    assert_eq!(setup.config.schedule.warmup_steps, 5);
    // "### User:\nWho is 10?\n\n### Assistant:\nNumber 10." has 47 bytes: rows of 64 tokens suffice.
    assert_eq!(setup.config.sequence_length(), 64);
    assert_eq!(setup.loader.batch(0, 0).unwrap().seq, 64);
    assert!(setup.chat_templates[DEFAULT_TEMPLATE].contains("### "));
    assert!(setup.data_fingerprint().contains("training samples"));
    assert!(
        setup
            .data_description()
            .contains("64 training and 0 validation conversations")
    );
}

#[test]
fn the_default_warmup_is_the_same_for_epochs_and_steps() {
    let base = PathBuf::from("../../docs/models/letters");
    for (count, steps, warmup) in [(32, 2, 0), (96, 6, 5), (160, 10, 5)] {
        for lora in [false, true] {
            let mut more = "data.split.validation = 0.0\ntrain.epochs = 1\n".to_string();
            let (_folder, path) = support(&exchanges(count));
            let text = if lora {
                format!(
                    "start_from = {base:?}\ndata.conversations = {path:?}\n{more}[lora]\nrank = 2"
                )
            } else {
                more.push_str("model.context_length = 128");
                format!("data.conversations = {path:?}\ndata.tokenizer.kind = 'byte'\n{more}")
            };
            let config = parse_config(&text, "x.toml".as_ref(), &[]).unwrap();
            let config = prepare_run(config).unwrap().config;
            assert_eq!(
                (config.train.steps, config.schedule.warmup_steps),
                (steps, warmup),
                "{text}"
            );
            if lora {
                let text = text.replace("train.epochs = 1", &format!("train.steps = {steps}"));
                let config = parse_config(&text, "x.toml".as_ref(), &[]).unwrap();
                assert_eq!(config.schedule.warmup_steps, warmup, "{text}");
            }
        }
    }
}

#[test]
fn steps_and_epochs_exclude_each_other() {
    let parse = |text: &str, set: &[&str]| {
        let set: Vec<String> = set.iter().map(ToString::to_string).collect();
        parse_config(text, "x.toml".as_ref(), &set)
    };
    let both = "data.builtin = 'stories'\n[train]\nsteps = 500\nepochs = 2";
    let error = parse(both, &[]).unwrap_err().to_string();
    assert!(
        error.contains("train.epochs") && error.contains("hint"),
        "{error}"
    );
    let steps = "data.builtin = 'stories'\ntrain.steps = 500";
    let config = parse(steps, &["train.epochs=2"]).unwrap();
    assert_eq!(config.train.epochs, Some(2.0));
    let epochs = "data.builtin = 'stories'\ntrain.epochs = 2";
    let config = parse(epochs, &["train.steps=700"]).unwrap();
    assert_eq!((config.train.epochs, config.train.steps), (None, 700));
    let config = parse(epochs, &["schedule.warmup_steps=3"]).unwrap();
    let text = crate::to_toml(&config).unwrap();
    assert_eq!(parse(&text, &[]).unwrap(), config);
    for bad in ["0", "-1", "nan", "inf"] {
        let error = parse(epochs, &[&format!("train.epochs={bad}")]).unwrap_err();
        assert!(error.to_string().contains("train.epochs"), "{bad}: {error}");
    }
}

#[test]
fn defaults_of_other_data_stay() {
    let config = parse_config("data.builtin = 'stories'", "x.toml".as_ref(), &[]).unwrap();
    let mut plain = RunConfig::default();
    plain.data.builtin = Some(Builtin::Stories);
    assert_eq!(config, plain);
    let text = "[data]\nbuiltin = 'stories_chat'\nsplit.validation = 0.1\n[train]\nbatch_size = 4\nsteps = 7\n\
                [schedule]\nwarmup_steps = 0";
    let config = parse_config(text, "x.toml".as_ref(), &[]).unwrap();
    assert!((config.data.split.validation - 0.1).abs() < 1e-12);
    assert_eq!(
        (
            config.train.batch_size,
            config.train.steps,
            config.train.epochs
        ),
        (4, 7, None)
    );
    assert_eq!(config.validation.every, 50);
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

#[test]
fn validations_measure_completions_of_held_out_conversations() {
    let more = "data.split.validation = 0.4\ntrain.steps = 2\nschedule.warmup_steps = 0\nvalidation.completions = 4";
    let (folder, mut config) = config(&exchanges(20), more);
    config.out = Some(folder.path().join("run"));
    config.validation.every = 1;
    config.samples.every = 2;
    let setup = prepare_run(config).unwrap();
    let run = crate::RunFolder::create(&folder.path().join("run"), &setup.config).unwrap();
    let trainer = crate::Trainer::begin(setup, run).unwrap();
    let mut hooks = Fixed { calls: 0 };
    trainer
        .run(&mut NullReporter, &mut hooks, &StopFlag::default())
        .unwrap();
    let metrics = std::fs::read_to_string(folder.path().join("run/metrics.jsonl")).unwrap();
    let validations: Vec<crate::MetricsLine> = metrics
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &crate::MetricsLine| line.val_loss.is_some())
        .collect();
    assert_eq!(validations.len(), 2);
    for line in validations {
        // Every second one ends by itself, and those are exact.
        assert_eq!((line.ended, line.exact), (Some(0.5), Some(0.5)));
    }
    assert_eq!(hooks.calls, 2 * 4 + 3); // Three are shown at the end.
    let shown =
        std::fs::read_to_string(folder.path().join("run/samples/step-00000002.txt")).unwrap();
    assert_eq!(
        shown.matches("--- in the data:\nNumber ").count(),
        3,
        "{shown}"
    );
    // The model is saved with the template that it was trained with.
    let saved = ModelDir::open(&folder.path().join("run/last")).unwrap();
    assert!(saved.card.chat_templates[DEFAULT_TEMPLATE].contains("### "));
}

#[test]
fn the_loss_is_that_of_trained_tokens_for_every_split_of_a_step() {
    let losses: Vec<f64> = [(8, 1), (4, 2), (1, 8)]
        .into_iter()
        .map(|(rows, accumulation)| {
            let more = format!(
                "data.split.validation = 0.25\ntrain.steps = 3\nmodel.dropout.residual = 0.2\ntrain.batch_size = {rows}\ntrain.accumulation = \
                 {accumulation}\nschedule.warmup_steps = 0\n"
            );
            let lines: Vec<_> = (0..40)
                .map(|i| exchange(&"q".repeat(1 + i), &"r".repeat(1 + i % 7)))
                .collect();
            let (_folder, config) = config(&lines, &more);
            let setup = prepare_run(config).unwrap();
            let counted: usize = (0..accumulation)
                .map(|micro| setup.loader.batch(0, micro).unwrap())
                .flat_map(|batch| batch.targets)
                .filter(|target| *target != IGNORE)
                .count();
            assert!((16..=64).contains(&counted), "{counted}");
            let trainer = InMemoryTrainer::new(setup).unwrap();
            let trained = trainer.run(&mut NullReporter, &StopFlag::default()).unwrap();
            trained.card.validation_loss.unwrap()
        })
        .collect();
    for loss in &losses[1..] {
        assert!((loss - losses[0]).abs() < 1e-4, "{losses:?}");
    }
}

#[test]
fn built_in_conversations_need_no_file() {
    let text = "[data]\nbuiltin = 'stories_chat'\ndocuments = 50\ntokenizer.kind = 'bpe'\ntokenizer.vocab_size = 400\n\
                train_on = 'assistant'\n[model]\ncontext_length = 512";
    let config = parse_config(text, "x.toml".as_ref(), &[]).unwrap();
    assert_eq!(config.data.train_on, TrainOn::Assistant);
    let read = read(config);
    assert_eq!(read.report.train + read.report.validation, 50);
    assert!(read.report.left_out.is_empty(), "{:?}", read.report);
    assert!(
        read.description().starts_with("builtin stories_chat"),
        "{}",
        read.description()
    );
}
