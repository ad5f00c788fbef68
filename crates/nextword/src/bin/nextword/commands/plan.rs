//! `nextword plan CONFIG`.

use clap::Args;
use nextword_train::plan::{MeasuredSpeed, Plan};
use nextword_train::prepare_run;

use crate::args::ConfigArgs;
use crate::format::{bytes, count, duration, grouped, short, with_unit};
use crate::{output, run_config};

/// `plan CONFIG`.
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    run: ConfigArgs,
    /// Device to measure on [default: the configuration's]
    #[arg(long, short)]
    device: Option<String>,
    /// Number of training steps to time; 0 skips the measurement
    #[arg(long, default_value_t = 5, value_name = "N")]
    steps: u64,
    /// Print the plan as JSON
    #[arg(long)]
    json: bool,
}

/// Estimates the cost of a run and prints it.
pub(crate) fn run(args: &PlanArgs) -> anyhow::Result<()> {
    let config = args.run.load(args.device.as_deref())?;
    let setup = prepare_run(config)?;
    run_config::print_warnings(&setup);
    let plan = Plan::estimate(&setup);
    run_config::check_memory(&plan)?;
    let plan = plan
        .with_baselines(&setup)?
        .with_speed(&setup, args.steps)?;
    print_plan(&plan, args.json)
}

/// Prints a plan as text or JSON.
pub(crate) fn print_plan(plan: &Plan, json: bool) -> anyhow::Result<()> {
    if json {
        return output::print_json(plan);
    }
    for line in lines(plan) {
        output::print_line(&line)?;
    }
    Ok(())
}

fn lines(plan: &Plan) -> Vec<String> {
    let mut lines = vec![format!("{} on {}", plan.name, plan.device)];
    size_lines(plan, &mut lines);
    data_lines(plan, &mut lines);
    match &plan.measured {
        Some(measured) => speed_lines(measured, &mut lines),
        None => lines
            .push("  speed        not measured; `nextword plan CONFIG` measures it".to_string()),
    }
    lines
}

fn size_lines(plan: &Plan, lines: &mut Vec<String>) {
    let total = plan.parameters.total;
    lines.push(format!("  parameters   {}", grouped(total as u64)));
    for (part, n) in plan.parameters.parts() {
        let share = 100.0 * n as f64 / total.max(1) as f64;
        lines.push(format!(
            "    {part:<20}{:>14}  {share:>5.1}%",
            grouped(n as u64)
        ));
    }
    lines.push(format!(
        "  compute      {} per token to train, {} to run",
        with_unit(plan.training_flops_per_token as f64, "FLOP"),
        with_unit(plan.forward_flops_per_token as f64, "FLOP")
    ));
    let memory = &plan.memory_bytes;
    lines.push(format!(
        "  memory       about {} while training",
        bytes(memory.total as u64)
    ));
    for (part, n) in [
        ("program and data", memory.program),
        ("weights", memory.by_part.weights),
        ("gradients", memory.by_part.gradients),
        ("optimizer", memory.by_part.optimizer),
        ("activations", memory.by_part.activations),
    ] {
        lines.push(format!("    {part:<20}{:>14}", bytes(n as u64)));
    }
    lines.push(format!(
        "  disk         {} per checkpoint, {} at the end",
        bytes(plan.checkpoint_bytes),
        bytes(plan.disk_bytes)
    ));
}

fn data_lines(plan: &Plan, lines: &mut Vec<String>) {
    let data = &plan.data;
    lines.push(format!(
        "  data         {} training and {}, vocabulary {}",
        grouped(data.train_tokens as u64),
        count(data.validation_tokens as u64, "validation token"),
        grouped(data.vocab_size as u64)
    ));
    lines.push(format!(
        "  run          {} of {}: {:.2} epochs",
        count(data.steps, "step"),
        count(data.tokens_per_step as u64, "token"),
        data.epochs
    ));
    if let Some(losses) = &plan.baselines {
        lines
            .push("  to beat      validation loss of n-gram baselines, nats per token".to_string());
        for (name, loss) in [
            ("uniform", losses.uniform),
            ("unigram", losses.unigram),
            ("bigram", losses.bigram),
        ] {
            lines.push(format!("    {name:<20}{loss:>14.3}"));
        }
    }
}

fn speed_lines(measured: &MeasuredSpeed, lines: &mut Vec<String>) {
    lines.push(format!(
        "  speed        {} tokens/s, {} over {} (first loss {:.3})",
        short(measured.tokens_per_second),
        with_unit(measured.flops_per_second, "FLOP/s"),
        count(measured.steps, "step"),
        measured.first_loss
    ));
    lines.push(format!(
        "  time         about {}: {} training, {} validation",
        duration(measured.training_seconds + measured.validation_seconds),
        duration(measured.training_seconds),
        duration(measured.validation_seconds)
    ));
}
