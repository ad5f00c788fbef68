//! Arguments that several commands share.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use burn::tensor::Device;
use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueHint};
use nextword_generate::{SamplingConfig, TextGenerator};
use nextword_model::{Bits, CachePrecision, ModelDir};
use nextword_train::RunConfig;

use crate::{models, run_config};

/// Tokens that a draft model proposes at a time.
const DRAFT_TOKENS: usize = 4;

/// The configuration of a run that does not exist yet.
#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// Configuration file (TOML)
    #[arg(value_hint = ValueHint::FilePath)]
    config: PathBuf,
    /// Override one configuration key, e.g. --set train.steps=500 (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl ConfigArgs {
    /// Reads the configuration and applies the overrides.
    pub(crate) fn load(&self, device: Option<&str>) -> anyhow::Result<RunConfig> {
        run_config::load(&self.config, &self.set, device)
    }

    /// The configuration file.
    pub(crate) fn path(&self) -> &Path {
        &self.config
    }

    /// The overrides.
    pub(crate) fn overrides(&self) -> &[String] {
        &self.set
    }
}

/// `--base`, of commands that open a model.
#[derive(Debug, Args)]
pub(crate) struct BaseArgs {
    /// The model that an adapter was trained for, if it is no longer where it was then
    #[arg(long, value_name = "MODEL", value_hint = ValueHint::AnyPath)]
    base: Option<PathBuf>,
}

impl BaseArgs {
    /// Opens the model in `path` (see [`models::open`]), with this base if it is an adapter.
    pub(crate) fn open(&self, path: &Path, last: bool) -> anyhow::Result<ModelDir> {
        models::open_with_base(path, last, self.base.as_deref())
    }

    /// The path of the base, if it is given.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.base.as_deref()
    }
}

/// `--no-mmap`, of commands that compute with a model.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct MappingArgs {
    /// Copy the weights into memory instead of memory-mapping their file; use it if the file may change while the program
    /// runs, e.g. on a network drive
    #[arg(long)]
    no_mmap: bool,
}

impl MappingArgs {
    /// `model` with weights that are mapped or copied when it is loaded.
    pub(crate) fn apply(self, model: ModelDir) -> ModelDir {
        model.with_mapping(!self.no_mmap)
    }

    /// The option, for a command that this one starts.
    pub(crate) fn option(self) -> Option<&'static str> {
        self.no_mmap.then_some("--no-mmap")
    }
}

/// Temperature and filters of the commands that are not greedy by default.
#[derive(Debug, Args)]
pub(crate) struct TemperatureArgs {
    /// Sampling temperature: 0 is greedy, 1 samples from the model's own distribution
    #[arg(
        long,
        short,
        default_value_t = 0.8,
        value_name = "X",
        allow_hyphen_values = true
    )]
    temperature: f64,
    #[command(flatten)]
    filters: SamplingArgs,
}

impl TemperatureArgs {
    /// Returns a sampling configuration with these settings and `seed`.
    pub(crate) fn config(&self, seed: u64) -> SamplingConfig {
        self.filters.config(self.temperature, seed)
    }
}

/// Speculative decoding and the KV cache.
#[derive(Debug, Args)]
pub(crate) struct DecodingArgs {
    /// Decode faster with proposals from this smaller model, which must have the same tokenizer; the text
    /// stays the same
    #[arg(long, value_name = "FOLDER", value_hint = ValueHint::DirPath, conflicts_with = "prompt_lookup")]
    draft: Option<PathBuf>,
    /// Decode faster where a text repeats itself or its prompt, by proposing up to N tokens (at most 15) that
    /// followed the last ones before; the text stays the same
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=15))]
    prompt_lookup: Option<usize>,
    /// Bits of keys and values in the KV cache: 32, or 8 for about a quarter of the memory, which changes the
    /// text slightly
    #[arg(long, value_name = "BITS", default_value_t = 32, value_parser = parse_kv_bits)]
    kv_bits: u8,
}

impl DecodingArgs {
    /// Makes `generator` decode as the arguments say. A draft model is loaded onto `device`, with weights as `mapping`
    /// says.
    pub(crate) fn apply(
        &self,
        generator: TextGenerator,
        device: &Device,
        mapping: MappingArgs,
    ) -> anyhow::Result<TextGenerator> {
        let generator = match self.kv_bits {
            8 => generator.with_cache_precision(CachePrecision::Int8),
            _ => generator,
        };
        if let Some(tokens) = self.prompt_lookup {
            return Ok(generator.with_prompt_lookup(tokens));
        }
        let Some(path) = &self.draft else {
            return Ok(generator);
        };
        let draft = TextGenerator::open(&mapping.apply(models::open(path, false)?), device)?;
        Ok(generator.with_draft(&draft, DRAFT_TOKENS)?)
    }
}

/// `--seed`, of commands whose samples are random by default.
#[derive(Debug, Args)]
pub(crate) struct SeedArgs {
    /// Random seed for reproducible sampling [default: random]
    #[arg(long, short, value_parser = parse_seed, allow_hyphen_values = true)]
    seed: Option<u64>,
}

impl SeedArgs {
    /// Returns the seed, or a new one.
    pub(crate) fn value(&self) -> u64 {
        self.seed.unwrap_or_else(new_seed)
    }
}

fn parse_kv_bits(text: &str) -> Result<u8, String> {
    match text {
        "8" => Ok(8),
        "32" => Ok(32),
        _ => Err("must be 8 or 32".to_string()),
    }
}

/// Returns a seed that differs between calls and is short enough to type again.
fn new_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::from(now.subsec_nanos()) ^ now.as_secs()) % 1_000_000
}

/// Filters that restrict sampling to the most likely tokens.
#[derive(Debug, Args)]
pub(crate) struct SamplingArgs {
    /// Keep only the K most likely tokens (top-k) [default: all]
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Keep the smallest set of tokens whose probabilities add up to P (nucleus sampling) [default: all]
    #[arg(long, value_name = "P", allow_hyphen_values = true)]
    top_p: Option<f64>,
    /// Keep tokens whose probability is at least P times that of the most likely token [default: all]
    #[arg(long, value_name = "P", allow_hyphen_values = true)]
    min_p: Option<f64>,
}

impl SamplingArgs {
    /// Returns a sampling configuration with these filters, `temperature` and `seed`.
    pub(crate) fn config(&self, temperature: f64, seed: u64) -> SamplingConfig {
        SamplingConfig {
            temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            seed,
            ..SamplingConfig::default()
        }
    }
}

/// Parses a number of bits per weight.
pub(crate) fn parse_bits(text: &str) -> Result<Bits, String> {
    match text {
        "8" => Ok(Bits::Int8),
        "4" => Ok(Bits::Int4),
        _ => Err("must be 8 or 4".to_string()),
    }
}

/// Parses a seed: any 64-bit integer. A negative one stands for the unsigned integer with the same bits, as
/// in the server's API.
pub(crate) fn parse_seed(text: &str) -> Result<u64, String> {
    let signed = || text.parse().map(i64::cast_unsigned);
    text.parse()
        .or_else(|_| signed())
        .map_err(|_| "must be a 64-bit integer".to_string())
}
