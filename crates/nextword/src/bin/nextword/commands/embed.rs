//! `nextword embed MODEL|RUN [TEXT...]`.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum, ValueHint};
use nextword_data::{Encoding, unknown_note};
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
    /// A file with a text on each line, none of them blank
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
    check_blank(&texts)?;
    let dir = args.mapping.apply(args.base.open(&args.model, args.last)?);
    let device = models::open_and_name_device(&args.device)?;
    let generator = TextGenerator::open(&dir, &device)?;
    let mut embeddings = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        let Encoding { ids, unknown, .. } = generator.encode_whole(text)?;
        let embedding = generator.embed(&ids, args.pooling.into())?;
        if !unknown.is_empty() {
            let subject = format!("text {} has text that is", index + 1);
            let special = generator.tokenizer().special_tokens();
            let note = unknown_note(&subject, &unknown, special);
            output::eprint_line(&format!("note: {note}"));
        }
        if args.json {
            output::print_json(&json!({
                "index": index, "text": text, "tokens": ids.len(), "unknown": unknown,
                "embedding": embedding,
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
    let texts: Vec<String> = text.lines().map(str::to_string).collect();
    if texts.is_empty() {
        return Err(exit::usage(
            "there is no text to embed; hint: pass texts, or a file with one on each line as --file",
        ));
    }
    Ok(texts)
}

/// Refuses blank texts: their embeddings mean nothing, and skipping them would shift the numbers of lines.
fn check_blank(texts: &[String]) -> anyhow::Result<()> {
    let blank = texts.iter().position(|text| text.trim().is_empty());
    blank.map_or(Ok(()), |at| {
        Err(exit::usage(format!(
            "text {} of {} is blank; hint: each line is one text, so remove blank lines",
            at + 1,
            texts.len()
        )))
    })
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
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn blank_texts_are_refused_by_their_number() {
        let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert!(check_blank(&texts(&["a", "b"])).is_ok());
        let error = check_blank(&texts(&["a", " ", "b"])).unwrap_err();
        assert!(error.to_string().starts_with("text 2 of 3 is blank"));
    }

    #[test]
    fn similarities_are_cosines() {
        let vectors = [vec![1.0, 0.0], vec![0.6, 0.8]];
        assert_eq!(similarities(&vectors[0], &vectors), " 1.0000  0.6000");
        assert_eq!(numbers(&vectors[1]), "0.6 0.8");
    }
}
