//! `nextword plan CONFIG`.

mod timed;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueHint};
use nextword_train::plan::{LinkSpeed, LoraAlternatives, LoraPlan, Plan};
use nextword_train::prepare_run;

use crate::args::ConfigArgs;
use crate::format::{
    bytes, count, duration, grouped, learned_tokens, sanitize, short, trained_part, trained_share,
    with_unit,
};
use crate::{output, run_config};

/// `plan CONFIG`.
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    run: ConfigArgs,
    /// Device to measure on [default: the configuration's]
    #[arg(long, short)]
    device: Option<String>,
    /// Number of complete training steps to time; 0 skips the measurement [default: as much of one
    /// micro-batch as takes a few seconds]
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Choose layers, width and number of steps so that the run takes about N minutes here
    #[arg(long, value_name = "N", conflicts_with_all = ["steps", "ranks"])]
    minutes: Option<f64>,
    /// Write the configuration that --minutes chose to this file
    #[arg(long, short, value_name = "FILE", requires = "minutes", value_hint = ValueHint::FilePath)]
    out: Option<PathBuf>,
    /// Estimate the run on N ranks, each on a machine or GPU like this one
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    ranks: Option<usize>,
    /// The network between the ranks, in bits per second
    #[arg(long, value_name = "SPEED", default_value = "10Gb", requires = "ranks")]
    link: LinkSpeed,
    /// Print the plan as JSON
    #[arg(long)]
    json: bool,
}

/// Time of the whole command, and the least of it for the measurement.
const TIME_LIMIT: Duration = Duration::from_secs(8);
const MIN_MEASUREMENT: Duration = Duration::from_secs(3);

/// Estimates the cost of a run and prints it.
pub(crate) fn run(args: &PlanArgs) -> anyhow::Result<()> {
    let start = Instant::now();
    let config = args.run.load(args.device.as_deref())?;
    if let Some(minutes) = args.minutes {
        return timed::run(args, &config, minutes);
    }
    let setup = prepare_run(config)?;
    run_config::print_warnings(&setup);
    let plan = Plan::estimate(&setup);
    run_config::check_memory(&plan)?;
    // What is known is printed before anything is computed.
    if !args.json {
        print_lines(&size_lines(&plan))?;
    }
    let plan = plan.with_baselines(&setup)?;
    if !args.json {
        print_lines(&baseline_lines(&plan))?;
    }
    let plan = match args.steps {
        None => {
            let limit = TIME_LIMIT
                .saturating_sub(start.elapsed())
                .max(MIN_MEASUREMENT);
            output::eprint_line(&format!(
                "measuring the speed of one micro-batch on {}, for at most about {}",
                plan.device,
                duration(limit.as_secs_f64())
            ));
            plan.with_speed_within(&setup, limit)?
        }
        Some(steps) => plan.with_speed(&setup, steps)?,
    };
    let plan = match args.ranks {
        Some(ranks) => plan.with_ranks(&setup, ranks, args.link)?,
        None => plan,
    };
    if args.json {
        output::print_json(&plan)
    } else {
        print_lines(&speed_lines(&plan))?;
        print_lines(&rank_lines(&plan))
    }
}

/// Prints a plan as text or JSON.
pub(crate) fn print_plan(plan: &Plan, json: bool) -> anyhow::Result<()> {
    if json {
        return output::print_json(plan);
    }
    print_lines(&size_lines(plan))?;
    print_lines(&baseline_lines(plan))?;
    print_lines(&speed_lines(plan))
}

fn print_lines(lines: &[String]) -> anyhow::Result<()> {
    lines.iter().try_for_each(|line| output::print_line(line))
}

/// The lines about sizes, memory, disk and data.
fn size_lines(plan: &Plan) -> Vec<String> {
    let mut lines = vec![format!("{} on {}", plan.name, plan.device)];
    let total = plan.parameters.total;
    lines.push(format!("  parameters   {}", grouped(total as u64)));
    for (part, n) in plan.parameters.parts() {
        let share = 100.0 * n as f64 / total.max(1) as f64;
        lines.push(format!(
            "    {part:<20}{:>14}  {share:>5.1}%",
            grouped(n as u64)
        ));
    }
    lines.extend(plan.lora.iter().flat_map(|lora| lora_lines(lora, total)));
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
    if memory.program > 0 {
        let shown = bytes(memory.program as u64);
        lines.push(format!("    {:<20}{shown:>14}", "program and data"));
    }
    for (part, n) in [
        ("weights", memory.by_part.weights),
        ("gradients", memory.by_part.gradients),
        ("optimizer", memory.by_part.optimizer),
        ("activations", memory.by_part.activations),
    ] {
        lines.push(format!("    {part:<20}{:>14}", bytes(n as u64)));
    }
    if let Some(lora) = &plan.lora {
        lines.extend(alternative_lines(&lora.alternatives));
    }
    lines.push(format!(
        "  disk         {} per checkpoint, {} at the end",
        bytes(plan.checkpoint_bytes),
        bytes(plan.disk_bytes)
    ));
    lines.extend(data_lines(plan));
    lines
}

/// What a run with `[lora]` trains.
fn lora_lines(lora: &LoraPlan, parameters: usize) -> Vec<String> {
    let bits = lora
        .base_bits
        .map(|bits| format!(" ({bits} bits per weight)"));
    let (trained, base) = (lora.trained_parameters, sanitize(&lora.base));
    vec![
        format!(
            "  trains       {} ({}); base {base}{} stays as it is",
            grouped(trained as u64),
            trained_share(trained, parameters),
            bits.unwrap_or_default()
        ),
        format!(
            "  schedule     learning rate up to {:.1e} after {} of warmup",
            lora.learning_rate,
            count(lora.warmup_steps, "step")
        ),
    ]
}

/// The memory of other ways to finetune the same model.
fn alternative_lines(alternatives: &LoraAlternatives) -> Vec<String> {
    let rows = [
        ("all weights", alternatives.full),
        ("adapter, f32 base", alternatives.f32),
        ("adapter, 8-bit base", alternatives.int8),
        ("adapter, 4-bit base", alternatives.int4),
    ];
    let rows = rows.map(|(name, n)| format!("    {name:<20}{:>14}", bytes(n as u64)));
    let title = "  to compare   the memory of a step, without the program".to_string();
    std::iter::once(title).chain(rows).collect()
}

fn data_lines(plan: &Plan) -> Vec<String> {
    let mut lines = Vec::new();
    let data = &plan.data;
    lines.push(format!(
        "  data         {} training{} and {}, vocabulary {}",
        grouped(data.train_tokens as u64),
        trained_part(data.trained_tokens),
        count(data.validation_tokens as u64, "validation token"),
        grouped(data.vocab_size as u64)
    ));
    lines.push(format!(
        "  run          {} of {}: {:.2} epochs",
        count(data.steps, "step"),
        learned_tokens(data.tokens_per_step, data.trained_tokens.is_some()),
        data.epochs
    ));
    lines
}

fn baseline_lines(plan: &Plan) -> Vec<String> {
    let mut lines = Vec::new();
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
    lines
}

/// The lines about several ranks.
fn rank_lines(plan: &Plan) -> Vec<String> {
    let Some(ranks) = &plan.ranks else {
        return Vec::new();
    };
    let mut lines = vec![format!(
        "  ranks        {}: each sends {} per step, in {:.3} s",
        ranks.ranks,
        bytes(ranks.sent_bytes),
        ranks.exchange_seconds
    )];
    if let Some(exposed) = ranks.exposed_seconds {
        lines.push(format!(
            "    {:<20}{exposed:>12.3} s  of it after the backward pass",
            "exposed"
        ));
    }
    lines.push(format!(
        "    {:<20}{:>14}  per rank",
        "moments",
        bytes(ranks.optimizer_bytes)
    ));
    if let (Some(step), Some(efficiency)) = (ranks.step_seconds, ranks.efficiency) {
        lines.push(format!(
            "    {:<20}{step:>12.3} s  {:.0}% of {} times the speed",
            "step",
            100.0 * efficiency,
            ranks.ranks
        ));
    }
    if let Some(accumulation) = ranks.efficient_accumulation {
        lines.push(format!(
            "    {:<20}{accumulation:>14}  train.accumulation and above",
            "90% from"
        ));
    }
    lines
}

fn speed_lines(plan: &Plan) -> Vec<String> {
    let Some(measured) = &plan.measured else {
        return vec!["  speed        not measured; `nextword plan CONFIG` measures it".to_string()];
    };
    let of = match measured.steps {
        0 => format!("measured on {}", count(measured.tokens as u64, "token")),
        1 => format!(
            "measured on a micro-batch of {}",
            count(measured.tokens as u64, "token")
        ),
        steps => format!("over {}", count(steps, "step")),
    };
    vec![
        format!(
            "  speed        {} tokens/s, {}, {of} (first loss {:.3})",
            short(measured.tokens_per_second),
            with_unit(measured.flops_per_second, "FLOP/s"),
            measured.first_loss
        ),
        format!(
            "  time         about {}: {} training, {} validation",
            duration(measured.training_seconds + measured.validation_seconds),
            duration(measured.training_seconds),
            duration(measured.validation_seconds)
        ),
    ]
}
