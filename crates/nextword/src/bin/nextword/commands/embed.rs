//! `nextword embed MODEL|RUN [TEXT...]`.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum, ValueHint};
use nextword_generate::{Pooling, TextGenerator};
use serde_json::json;

use crate::args::{BaseArgs, MappingArgs};
use crate::{exit, models, output, prompt};

/// `embed MODEL|RUN [TEXT...]`.
#[derive(Debug, Args)]
pub(crate) struct EmbedArgs {
    /// Model folder, adapter folder, checkpoint, run folder (the run's best model is used), or GGUF file
    #[arg(value_hint = ValueHint::AnyPath)]
    model: PathBuf,
    /// Texts to embed [default: the lines of --file, or of standard input]
    texts: Vec<String>,
    /// A file with a text on each line
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "texts")]
    file: Option<PathBuf>,
    /// Which hidden states become the embedding
    #[arg(long, value_enum, default_value_t = PoolingArg::Mean)]
    pooling: PoolingArg,
    /// Device to run on: auto, flex, ndarray, wgpu, wgpu:N, wgpu:software, vulkan, metal, cuda, rocm
    #[arg(long, short, default_value = "flex")]
    device: String,
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    mapping: MappingArgs,
    /// Use a run's last model instead of its best
    #[arg(long)]
    last: bool,
    /// Print one JSON object per text instead of a line of numbers
    #[arg(long, conflicts_with = "similarity")]
    json: bool,
    /// Print the similarity of each pair of texts, from -1 to 1, instead of their embeddings
    #[arg(long)]
    similarity: bool,
}

/// The names of [`Pooling`] on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum PoolingArg {
    /// The mean of all tokens
    Mean,
    /// The first token, for encoders
    First,
}

impl From<PoolingArg> for Pooling {
    fn from(pooling: PoolingArg) -> Self {
        match pooling {
            PoolingArg::Mean => Self::Mean,
            PoolingArg::First => Self::First,
        }
    }
}

/// Prints embeddings of texts: vectors of length 1.
pub(crate) fn run(args: &EmbedArgs) -> anyhow::Result<()> {
    let texts = texts(args)?;
    let dir = args.mapping.apply(args.base.open(&args.model, args.last)?);
    let device = models::open_and_name_device(&args.device)?;
    let generator = TextGenerator::open(&dir, &device)?;
    let mut embeddings = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        let ids = generator.encode_whole(text)?;
        let embedding = generator.embed(&ids, args.pooling.into())?;
        if args.json {
            output::print_json(&json!({
                "index": index, "text": text, "tokens": ids.len(), "embedding": embedding,
            }))?;
        } else if args.similarity {
            embeddings.push(embedding);
        } else {
            output::print_line(&numbers(&embedding))?;
        }
    }
    let mut rows = embeddings.iter().map(|row| similarities(row, &embeddings));
    rows.try_for_each(|row| output::print_line(&row))
}

/// The texts of the arguments, the file or standard input.
fn texts(args: &EmbedArgs) -> anyhow::Result<Vec<String>> {
    if !args.texts.is_empty() {
        return Ok(args.texts.clone());
    }
    let text = match &args.file {
        Some(path) => read(path)?,
        None => prompt::read(None)?,
    };
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let texts: Vec<String> = lines.map(str::to_string).collect();
    if texts.is_empty() {
        return Err(exit::usage(
            "there is no text to embed; hint: pass texts, or a file with one on each line as --file",
        ));
    }
    Ok(texts)
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).map_err(|error| {
        exit::bad_file(format!(
            "cannot read `{}`: {error}; hint: --file takes a UTF-8 text with a text on each line",
            path.display()
        ))
    })
}

/// The values of a vector, separated by spaces, as `numpy.loadtxt` reads them.
fn numbers(vector: &[f32]) -> String {
    let values: Vec<String> = vector.iter().map(ToString::to_string).collect();
    values.join(" ")
}

/// The cosines of the angles between `row` and all `others`.
fn similarities(row: &[f32], others: &[Vec<f32>]) -> String {
    let cosine = |other: &Vec<f32>| -> f64 {
        let products = row.iter().zip(other);
        products.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let values: Vec<String> = others
        .iter()
        .map(|other| format!("{:7.4}", cosine(other)))
        .collect();
    values.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn similarities_are_cosines() {
        let vectors = [vec![1.0, 0.0], vec![0.6, 0.8]];
        assert_eq!(similarities(&vectors[0], &vectors), " 1.0000  0.6000");
        assert_eq!(numbers(&vectors[1]), "0.6 0.8");
    }
}
