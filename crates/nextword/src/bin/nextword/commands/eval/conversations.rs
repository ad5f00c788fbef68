//! `nextword eval MODEL|RUN --conversations FILE`.

use std::time::Instant;

use nextword_data::DataConfig;
use nextword_eval::{LossReport, evaluate};
use nextword_generate::TextGenerator;
use nextword_model::Architecture;
use nextword_train::{CompletionReport, ConversationSet, StopFlag, check_completions};
use serde_json::json;

use super::EvalArgs;
use crate::exit::bad_file;
use crate::format::{count, duration, sanitize};
use crate::hooks::complete;
use crate::{models, output};

/// Evaluates a model on conversations: the loss of the assistant's messages, and whether the most likely completions are
/// those messages.
pub(super) fn run(args: &EvalArgs) -> anyhow::Result<()> {
    let dir = args.mapping.apply(args.base.open(&args.model, args.last)?);
    dir.config
        .require(&[Architecture::Decoder], "complete conversations")?;
    let data = DataConfig {
        conversations: args.conversations.clone(),
        chat_template: args.chat_template.clone(),
        ..DataConfig::default()
    };
    let generator = TextGenerator::open(&dir, &models::open_and_name_device(&args.device)?)?;
    let start = Instant::now();
    let (model, tokenizer) = (generator.model(), generator.tokenizer().clone());
    let length = dir.config.context_length;
    let set = ConversationSet::read(&data, &dir.card, tokenizer, length)?;
    let loss = evaluate(model, &set.windows, args.batch_size)?;
    if !loss.nats_per_token.is_finite() {
        return Err(bad_file(format!(
            "`{}` has a loss of {}: the model produced NaN or infinity; hint: use an earlier model",
            dir.path.display(),
            loss.nats_per_token
        )));
    }
    let samples = &set.conversations.train;
    let completions = check_completions(samples, args.completions, &set.eos, |prompt, max| {
        complete(
            model,
            prompt,
            max,
            set.eos.clone(),
            None,
            &StopFlag::default(),
        )
    })?;
    let report = &set.conversations.report;
    if args.json {
        return output::print_json(&json!({
            "conversations": report.train, "loss": loss, "completions": completions.completions,
            "ended": completions.ended, "short": completions.short, "exact": completions.exact,
            "left_out": report.left_out_lines(),
        }));
    }
    print(&loss, &completions)?;
    output::eprint_line(&format!(
        "[{} of {} in {}]",
        count(loss.tokens, "token"),
        count(report.train as u64, "conversation"),
        duration(start.elapsed().as_secs_f64())
    ));
    for line in report.left_out_lines() {
        output::eprint_line(&sanitize(&format!("note: left out: {line}")));
    }
    Ok(())
}

fn print(loss: &LossReport, completions: &CompletionReport) -> anyhow::Result<()> {
    output::print_line(&format!(
        "loss           {:.4} nats per token of the assistant's messages",
        loss.nats_per_token
    ))?;
    output::print_line(&format!("perplexity     {:.3}", loss.perplexity))?;
    let share = |name: &str, share: Option<f64>, part: usize, all: usize| match share {
        Some(share) => output::print_line(&format!(
            "{name}{:.1} % ({part} of {all} completions)",
            100.0 * share
        )),
        None => Ok(()),
    };
    let CompletionReport {
        completions: all,
        ended,
        short,
        exact,
    } = *completions;
    share("ended          ", completions.ended_share(), ended, all)?;
    share("exact          ", completions.exact_share(), exact, short)
}
