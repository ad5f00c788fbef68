//! `nextword plan CONFIG`.

use nextword_train::prepare_run;

use crate::args::PlanArgs;
use crate::commands::train;
use crate::format::{bytes, duration, grouped, short, unit};
use crate::output;
use crate::planning::{Measured, Plan};

/// Tells what a run will take.
pub(crate) fn run(args: &PlanArgs) -> anyhow::Result<()> {
    let config = train::config(&args.config, &args.set, args.device.as_deref())?;
    let ingredients = prepare_run(config)?;
    let plan = Plan::of(&ingredients);
    train::warn_of_memory(&ingredients, &plan)?;
    let plan = plan
        .with_baselines(&ingredients)?
        .with_speed(&ingredients, args.steps)?;
    show(&plan, args.json)
}

/// Writes a plan as text or JSON.
pub(crate) fn show(plan: &Plan, json: bool) -> anyhow::Result<()> {
    if json {
        return output::json(plan);
    }
    for line in lines(plan) {
        output::line(&line)?;
    }
    Ok(())
}

fn lines(plan: &Plan) -> Vec<String> {
    let mut lines = vec![format!("{} on {}", plan.name, plan.device)];
    size(plan, &mut lines);
    data(plan, &mut lines);
    match &plan.measured {
        Some(measured) => speed(measured, &mut lines),
        None => lines.push("  speed        not measured; `nextword plan CONFIG` does".to_string()),
    }
    lines
}

fn size(plan: &Plan, lines: &mut Vec<String>) {
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
        "  arithmetic   {} a token to train, {} to run",
        unit(plan.training_flops_per_token as f64, "FLOP"),
        unit(plan.forward_flops_per_token as f64, "FLOP")
    ));
    let memory = &plan.memory_bytes;
    lines.push(format!(
        "  memory       about {} while training",
        bytes(memory.total as u64)
    ));
    for (part, n) in [
        ("weights", memory.weights),
        ("gradients", memory.gradients),
        ("optimizer", memory.optimizer),
        ("activations", memory.activations),
    ] {
        lines.push(format!("    {part:<20}{:>14}", bytes(n as u64)));
    }
    lines.push(format!(
        "  disk         {} a checkpoint, {} at the end",
        bytes(plan.checkpoint_bytes),
        bytes(plan.disk_bytes)
    ));
}

fn data(plan: &Plan, lines: &mut Vec<String>) {
    let data = &plan.data;
    lines.push(format!(
        "  data         {} training and {} validation tokens, vocabulary {}",
        grouped(data.train_tokens as u64),
        grouped(data.validation_tokens as u64),
        grouped(data.vocab_size as u64)
    ));
    lines.push(format!(
        "  run          {} steps of {} tokens: {:.2} times over the data",
        grouped(data.steps),
        grouped(data.tokens_per_step as u64),
        data.epochs
    ));
    if let Some(losses) = &plan.baselines {
        lines.push("  to beat      validation loss of counting alone, nats a token".to_string());
        for (name, loss) in [
            ("uniform", losses.uniform),
            ("unigram", losses.unigram),
            ("bigram", losses.bigram),
        ] {
            lines.push(format!("    {name:<20}{loss:>14.3}"));
        }
    }
}

fn speed(measured: &Measured, lines: &mut Vec<String>) {
    lines.push(format!(
        "  speed        {} tokens/s, {} over {} steps (first loss {:.3})",
        short(measured.tokens_per_second),
        unit(measured.flops_per_second, "FLOP/s"),
        measured.steps,
        measured.first_loss
    ));
    lines.push(format!(
        "  time         about {}: {} training, {} validation",
        duration(measured.training_seconds + measured.validation_seconds),
        duration(measured.training_seconds),
        duration(measured.validation_seconds)
    ));
}
