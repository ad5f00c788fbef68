//! `nextword eval MODEL FILE... --ranks N`: several ranks share the windows of a text.

use std::path::Path;
use std::process::ExitCode;

use burn::tensor::Device;
use nextword_data::{DataError, TextChunk, Tokenizer};
use nextword_eval::{TextReport, TextSettings, TextWindows};
use nextword_model::{DeviceName, ModelTokens, Transformer};
use nextword_parallel::Group;
use nextword_train::{check_same_program, evaluate_on_ranks};

use super::{EvalArgs, run_text};
use crate::exit::usage;
use crate::{models, ranks};

/// Starts the ranks, or evaluates on this one of them.
pub(super) fn run(args: &EvalArgs) -> anyhow::Result<ExitCode> {
    if args.task.is_some() || !args.conversations.is_empty() {
        return Err(usage(
            "several ranks share the windows of a text; hint: evaluate tasks and conversations without --ranks",
        ));
    }
    if args.files.iter().any(|file| file == Path::new("-")) {
        return Err(usage(
            "each rank reads the text, which is not possible with standard input; hint: pass a file",
        ));
    }
    if let Some(code) = args.ranks.launch_any()? {
        return Ok(code);
    }
    let group = ranks::join()?;
    run_text(args, &group)?;
    group.finish()?;
    Ok(ExitCode::SUCCESS)
}

/// Opens the device of this rank, where the user named `device`, if all ranks have the same kind. Rank 0 prints its name.
pub(super) fn open_device(device: &str, group: &Group) -> anyhow::Result<Device> {
    let own = ranks::rank_device(device);
    let taken = own.parse::<DeviceName>()?.resolve()?;
    check_same_program(group, &taken.to_string())?;
    if group.is_first() {
        return models::open_and_name_device(&own);
    }
    Ok(taken.open()?)
}

/// Evaluates `model` on the text in `chunks`, of which each rank computes some batches.
pub(super) fn evaluate_text(
    group: &Group,
    model: &Transformer,
    tokenizer: &dyn Tokenizer,
    special: &ModelTokens,
    chunks: impl IntoIterator<Item = Result<TextChunk, DataError>>,
    settings: TextSettings,
) -> anyhow::Result<TextReport> {
    let packing = settings.packing;
    let text = TextWindows::read(model, tokenizer, special, chunks, packing, &mut |_| {})?;
    let loss = evaluate_on_ranks(group, model, text.windows(), settings.batch_size)?;
    Ok(text.report(loss))
}
