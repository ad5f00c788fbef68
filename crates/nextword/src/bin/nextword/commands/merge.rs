//! `nextword merge ADAPTER --out FOLDER`.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Int, Tensor, TensorData};
use clap::{Args, ValueHint};
use nextword_convert::{describe_base, find_base};
use nextword_generate::open_tokenizer;
use nextword_model::weights::{FloatType, layout, to_f32_vec, write_tensors};
use nextword_model::{
    Adapter, AdapterDir, BaseModel, ForwardContext, ModelCard, ModelDir, ModelError, WeightChange,
};
use serde_json::json;

use crate::args::BaseArgs;
use crate::format::bytes;
use crate::{exit, models, output, output_file};

/// The text whose logits are compared, as far as it fits the context.
const SAMPLE: &str = "One day, a user asked: what is the difference between these two models? They should be the same.";

/// Maximum number of tokens of it.
const MAX_SAMPLE_TOKENS: usize = 64;

/// `merge ADAPTER|RUN --out FOLDER`.
#[derive(Debug, Args)]
#[allow(clippy::doc_markdown)] // Doc comments are help texts, shown verbatim.
pub(crate) struct MergeArgs {
    /// Adapter folder, or run folder (the run's best adapter is used)
    #[arg(value_hint = ValueHint::DirPath)]
    adapter: PathBuf,
    /// Output folder
    #[arg(long, short, value_hint = ValueHint::DirPath)]
    out: PathBuf,
    #[command(flatten)]
    base: BaseArgs,
    /// Factor on the adapter's update: 1 is what was trained, 0 the base. Only for adapters that consist of
    /// low-rank updates, without DoRA and full copies
    #[arg(
        long,
        default_value_t = 1.0,
        value_name = "X",
        allow_hyphen_values = true
    )]
    scale: f32,
    /// Merge into the rounded weights of a quantized base, as f32. With --base FULL, the adapter is merged into
    /// the unquantized model instead, which it was not trained on
    #[arg(long)]
    dequantize: bool,
    /// Use a run's last adapter instead of its best
    #[arg(long)]
    last: bool,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

/// Refuses to round the sum of a quantized base and an adapter again, which would lose most of the adapter.
pub(crate) fn refuse_quantized_base(dir: &ModelDir) -> anyhow::Result<()> {
    let is_quantized = match dir.base() {
        Some(base) => base.bits()?.0.is_some(),
        None => false,
    };
    if !is_quantized {
        return Ok(());
    }
    Err(exit::usage(format!(
        "`{}` is an adapter of a quantized model; hint: merge it first with `nextword merge {0} --out FOLDER`, and \
         --dequantize or --base with the unquantized model",
        dir.path.display()
    )))
}

/// Adds an adapter to the weights of its base.
pub(crate) fn run(args: &MergeArgs) -> anyhow::Result<()> {
    check_args(args)?;
    let adapter = AdapterDir::open(&find_adapter(args)?)?;
    let base = open_base(args, &adapter)?;
    let values = scaled(adapter.load(&base.config)?, args.scale)?;
    let card = ModelCard {
        merged_change: merged_change(&values, &base)?,
        ..card(&adapter, &base)?
    };
    write(args, &base, &values, &card)?;
    let difference = largest_difference(args, &base, &values)?;
    let size = fs::metadata(args.out.join("model.safetensors")).map_or(0, |file| file.len());
    if args.json {
        return output::print_json(&json!({
            "path": args.out, "base": base.path, "scale": args.scale, "bytes": size,
            "largest_logit_difference": difference,
        }));
    }
    output::print_line(&format!(
        "{}: {} merged into {}, {}",
        args.out.display(),
        adapter.path.display(),
        base.path.display(),
        bytes(size)
    ))?;
    output::eprint_line(&format!(
        "largest difference between the logits of the merged model and those of base and adapter on a sample: \
         {difference:.1e}"
    ));
    Ok(())
}

/// The norm of what merging `adapter` adds to the weights of `base`, relative to theirs; `None` with `DoRA`, which scales
/// them too.
pub(crate) fn merged_change(adapter: &Adapter, base: &ModelDir) -> anyhow::Result<Option<f64>> {
    if adapter.config.use_dora || adapter.modules.is_empty() {
        return Ok(None);
    }
    let changes = adapter.weight_changes(&*base.open_weights()?)?;
    Ok(Some(WeightChange::total_ratio(&changes)))
}

fn check_args(args: &MergeArgs) -> anyhow::Result<()> {
    if !args.scale.is_finite() {
        return Err(exit::usage(
            "--scale must be a finite number; hint: 1 is what was trained",
        ));
    }
    output_file::check_folder(&args.out)?;
    if args.out.exists() {
        return Err(exit::usage(format!(
            "`{}` already exists; hint: choose another folder with --out, or remove it",
            args.out.display()
        )));
    }
    Ok(())
}

fn find_adapter(args: &MergeArgs) -> anyhow::Result<PathBuf> {
    let path = models::find(&args.adapter, args.last)?;
    if AdapterDir::is_adapter(&path) {
        return Ok(path);
    }
    Err(exit::usage(format!(
        "`{}` is a model of its own, not an adapter; hint: it can be used as it is",
        args.adapter.display()
    )))
}

/// The model to merge into.
fn open_base(args: &MergeArgs, adapter: &AdapterDir) -> anyhow::Result<ModelDir> {
    let given = args.base.path().map(|path| models::find(path, false));
    let given = given.transpose()?;
    let base = match &given {
        Some(path) if adapter.base.bits.is_some() => open_full(path, adapter)?,
        given => find_base(adapter, given.as_deref())?,
    };
    if base.bits()?.0.is_some() && !args.dequantize {
        return Err(exit::usage(format!(
            "the base {} is quantized, and rounding the sum again would lose most of the adapter; hint: --dequantize \
             writes the sum as f32, and --base FULL merges into the unquantized model",
            describe_base(&adapter.base)
        )));
    }
    Ok(base)
}

/// Opens the model in `path`, given as the unquantized form of an adapter's base: it must have the architecture and the
/// tokenizer of the base, and the weights that it was made from, as far as these are known.
fn open_full(path: &Path, adapter: &AdapterDir) -> anyhow::Result<ModelDir> {
    let model = models::open(path, false)?;
    let (expected, found) = (&adapter.base, BaseModel::of(&model)?);
    if found.weights_sha256 == expected.weights_sha256 {
        return Ok(model);
    }
    let rounded = find_base(adapter, None).ok();
    let made_from = rounded
        .as_ref()
        .and_then(|rounded| rounded.card.made_from.as_ref());
    let is_other = made_from.is_some_and(|source| *source != found.weights_sha256);
    if is_other || found.tokenizer_sha256 != expected.tokenizer_sha256 {
        return Err(exit::bad_file(format!(
            "{} is not the unquantized form of {}, for which this adapter was made; hint: name that model with --base",
            describe_base(&found),
            describe_base(expected)
        )));
    }
    if made_from.is_none() {
        output::eprint_line(&format!(
            "warning: it is not known whether {} was made from {}; compare the merged model with `nextword eval`",
            describe_base(expected),
            describe_base(&found)
        ));
    }
    Ok(model)
}

/// `adapter` with `factor` times its update. The magnitudes of `DoRA` and full copies of parameters have no scale.
fn scaled(mut adapter: Adapter, factor: f32) -> anyhow::Result<Adapter> {
    #[allow(clippy::float_cmp)] // The default, as it is.
    let is_scaled = factor != 1.0;
    let has_magnitudes = adapter.modules.values().any(|m| m.magnitude.is_some());
    if is_scaled && (has_magnitudes || !adapter.saved.is_empty()) {
        return Err(exit::usage(
            "--scale applies only to low-rank updates, and this adapter has more (DoRA or full copies of parameters); \
             hint: leave it out",
        ));
    }
    for module in adapter.modules.values_mut() {
        module.scale *= factor;
    }
    Ok(adapter)
}

/// The metadata of the merged model: that of the adapter, and of the base where that has none.
fn card(adapter: &AdapterDir, base: &ModelDir) -> anyhow::Result<ModelCard> {
    let card = adapter.card_over(&base.card);
    card.check_templates()?;
    Ok(ModelCard {
        made_from: None,
        ..card
    })
}

/// Writes the merged model, one tensor at a time.
fn write(
    args: &MergeArgs,
    base: &ModelDir,
    adapter: &Adapter,
    card: &ModelCard,
) -> anyhow::Result<()> {
    let file = base.tokenizer_path();
    let tokenizer = match base.tokenizer_json() {
        Some(json) => json.to_string(),
        None => fs::read_to_string(&file)
            .map_err(|e| exit::bad_file(format!("cannot read `{}`: {e}", file.display())))?,
    };
    let merged = adapter.merged_weights(&base.config, base.open_weights()?);
    ModelDir::replace(&args.out, |new| {
        ModelDir::write_small_files(new, &base.config, &tokenizer, card)?;
        let layout = layout(&base.config);
        let file = new.join("model.safetensors");
        write_tensors(&file, FloatType::F32, &layout, |name| merged.values(name)).map(drop)
    })
    .map_err(|error: ModelError| error.into())
}

/// The largest difference between the logits of the written model and those of base and adapter.
fn largest_difference(args: &MergeArgs, base: &ModelDir, adapter: &Adapter) -> anyhow::Result<f32> {
    let device = models::open_device("flex")?;
    let merged = ModelDir::open(&args.out)?;
    let tokenizer = open_tokenizer(&merged)?;
    let mut ids = tokenizer.encode(SAMPLE).ids;
    if ids.is_empty() {
        ids.push(0);
    }
    ids.truncate(MAX_SAMPLE_TOKENS.min(base.config.context_length));
    let ids: Vec<i32> = ids.iter().map(|id| id.cast_signed()).collect();
    let logits = |model: &nextword_model::Transformer| {
        let data = TensorData::new(ids.clone(), [1, ids.len()]);
        let tokens = Tensor::<2, Int>::from_data(data, &device);
        let mut ctx = ForwardContext::inference();
        if base.config.has_encoder() {
            ctx = ctx.with_source(tokens.clone(), vec![ids.len()]);
        }
        to_f32_vec(model.forward(tokens, &mut ctx).into_data())
    };
    let unmerged = logits(&base.load(&device)?.with_adapter(adapter)?);
    let merged = logits(&merged.load(&device)?);
    let differences = unmerged.iter().zip(&merged).map(|(a, b)| (a - b).abs());
    Ok(differences.fold(0.0, f32::max))
}
