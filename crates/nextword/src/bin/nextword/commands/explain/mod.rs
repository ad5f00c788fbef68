//! `nextword explain MODEL|RUN [PROMPT]`.

mod args;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use nextword_explain::history::TrainingHistory;
use nextword_explain::terminal::{self, View};
use nextword_explain::{
    Edit, Explainer, Explanation, ReportOptions, WhatIf, derivation_text, page,
};
use nextword_generate::{PROMPT_PLACEHOLDER, TextGenerator, TextOptions};
use nextword_model::weights;

use crate::format::sanitize;
use crate::output_file::{self, Kind};
use crate::{exit, history, models, output};

pub(crate) use args::ExplainArgs;
use args::Format;

/// Width in columns if neither `--width` nor `COLUMNS` is set.
const DEFAULT_COLUMNS: usize = 80;

/// Explains a prompt in the chosen format.
pub(crate) fn run(args: &ExplainArgs) -> anyhow::Result<()> {
    if args.schema {
        return output::print(nextword_explain::SCHEMA);
    }
    let Some(model) = &args.model else {
        return Err(exit::usage(
            "no model specified; hint: pass a run folder, e.g. runs/NAME",
        ));
    };
    check_flags(args)?;
    check_output(args)?;
    let options = options(args)?;
    let explainer = open(model, args)?;
    let history = if args.over_training {
        Some(history::load(model)?)
    } else {
        None
    };
    let first = history
        .as_ref()
        .and_then(|history| history.sentences.first());
    let prompt = match first {
        Some(sentence) if args.prompt.is_empty() => &sentence.prompt,
        _ => &args.prompt,
    };
    let explanation = explainer.explain(prompt, &options)?;
    check_indices(args, &explanation)?;
    if !args.why.is_empty() {
        return print_why(args, &explanation);
    }
    if !args.what_if.is_empty() {
        return print_what_if(args, &explanation);
    }
    let report_options = ReportOptions {
        layers: non_empty(&args.layer),
        top: args.top.max(1),
        ..ReportOptions::default()
    };
    match args.format() {
        Format::Text => {
            let report = explanation.report(&ReportOptions {
                max_values: usize::MAX,
                ..report_options
            })?;
            let text = terminal::render(&explanation, &report, &view(args));
            write(args, text.as_bytes())
        }
        Format::Json => {
            let report = explanation.report(&report_options)?;
            write(
                args,
                format!("{}\n", serde_json::to_string(&report)?).as_bytes(),
            )
        }
        Format::Safetensors => safetensors(args, &explanation),
        Format::Html => html(args, &explanation, &options, &report_options, history),
    }
}

/// Refuses options that would have no effect.
fn check_flags(args: &ExplainArgs) -> anyhow::Result<()> {
    let has_queries = !args.why.is_empty() || !args.what_if.is_empty();
    let (text, html) = (args.format() == Format::Text, args.format() == Format::Html);
    let compare = args.compare.is_some() || args.compare_with.is_some();
    let has_selection = !args.head.is_empty() || !args.position.is_empty() || args.brief;
    let problem = if !args.why.is_empty() && !args.what_if.is_empty() {
        "--why and --what-if cannot be combined; hint: use one at a time"
    } else if has_queries && (args.out.is_some() || compare || args.over_training || has_selection)
    {
        "--why and --what-if print to the terminal or as JSON; hint: omit --out, --compare, \
         --compare-with, --over-training, --head, --position and --brief"
    } else if has_queries && !text && args.format() != Format::Json {
        "--why and --what-if support only --format text and --format json; hint: use one of these"
    } else if compare && !html {
        "--compare and --compare-with need a web page; hint: add --format html"
    } else if args.over_training && !html {
        "--over-training needs a web page; hint: add --format html or an --out file ending in .html"
    } else if has_selection && !text {
        "--head, --position and --brief apply only to text output; hint: omit them; the other formats \
         contain everything"
    } else {
        return Ok(());
    };
    Err(exit::usage(problem))
}

/// Refuses layers, heads and positions that do not exist.
fn check_indices(args: &ExplainArgs, explanation: &Explanation<'_>) -> anyhow::Result<()> {
    let trace = &explanation.trace;
    let positions = trace.ids.len();
    for (name, indices, count) in [
        ("layer", &args.layer, trace.config.n_layers),
        ("head", &args.head, trace.config.n_heads),
        ("position", &args.position, positions),
    ] {
        if let Some(invalid) = indices.iter().find(|index| **index >= count) {
            let range = match count {
                1 => "0".to_string(),
                _ => format!("0 to {}", count - 1),
            };
            return Err(exit::usage(format!(
                "no {name} {invalid}; valid {name}s: {range}"
            )));
        }
    }
    Ok(())
}

fn open(model: &Path, args: &ExplainArgs) -> anyhow::Result<Explainer> {
    let dir = models::open(model, args.last)?;
    Explainer::check_memory(&dir.config)?;
    let device = models::open_and_name_device(&args.device)?;
    Ok(Explainer::new(TextGenerator::open(&dir, &device)?))
}

fn options(args: &ExplainArgs) -> anyhow::Result<TextOptions> {
    let sampling = args.sampling.config(args.temperature, args.seed);
    sampling.validate()?;
    Ok(TextOptions {
        sampling,
        max_tokens: args.max_tokens.max(1),
        prompt_template: args.raw.then(|| PROMPT_PLACEHOLDER.to_string()),
        ..TextOptions::default()
    })
}

/// Returns the indices, or `None` if there are none.
fn non_empty(indices: &[usize]) -> Option<Vec<usize>> {
    (!indices.is_empty()).then(|| indices.to_vec())
}

fn view(args: &ExplainArgs) -> View {
    let to_terminal = args.out.is_none() && std::io::stdout().is_terminal();
    let columns = || std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok());
    let width = args.width.or_else(columns);
    View {
        width: width.unwrap_or(DEFAULT_COLUMNS).max(40),
        colours: to_terminal && std::env::var_os("NO_COLOR").is_none(),
        decimals: args.decimals,
        steps: !args.brief,
        layers: non_empty(&args.layer),
        heads: non_empty(&args.head),
        positions: non_empty(&args.position),
        top: args.top.max(1),
        names: args.names,
    }
}

fn write(args: &ExplainArgs, bytes: &[u8]) -> anyhow::Result<()> {
    match &args.out {
        Some(file) => output_file::write(file, bytes),
        None => output::print_bytes(bytes),
    }
}

/// Checks the file that is to be written: a known extension, and nothing is lost.
fn check_output(args: &ExplainArgs) -> anyhow::Result<()> {
    if let Some(file) = args.out.as_ref().filter(|_| !args.has_known_format()) {
        return Err(exit::usage(format!(
            "`{}`: unknown extension; hint: end the name in .html, .json, .safetensors or .txt, or choose the \
             format with --format",
            file.display()
        )));
    }
    let format = args.format();
    let kind = match format {
        Format::Text => Kind::Text,
        Format::Json => Kind::Report,
        Format::Html => Kind::Page,
        Format::Safetensors => Kind::Activations,
    };
    match args.out.clone().or_else(|| default_file(format)) {
        Some(file) => output_file::check(&file, kind, args.force),
        None => Ok(()),
    }
}

/// The file to write without `--out`: pages are not printed.
fn default_file(format: Format) -> Option<PathBuf> {
    (format == Format::Html).then(|| PathBuf::from("explain.html"))
}

fn print_why(args: &ExplainArgs, explanation: &Explanation<'_>) -> anyhow::Result<()> {
    for address in &args.why {
        let derivation = explanation.why(address)?;
        if args.format() == Format::Json {
            output::print_json(&derivation)?;
            continue;
        }
        for line in derivation_text::lines(&derivation) {
            output::print_line(&sanitize(&line))?;
        }
    }
    Ok(())
}

fn print_what_if(args: &ExplainArgs, explanation: &Explanation<'_>) -> anyhow::Result<()> {
    let edits: Vec<Edit> = args
        .what_if
        .iter()
        .map(|edit| parse_edit(edit, explanation))
        .collect::<anyhow::Result<_>>()?;
    let result: WhatIf = explanation.what_if(&edits)?;
    if args.format() == Format::Json {
        return output::print_json(&result);
    }
    output::print_line("next token       before      after")?;
    for token in result.tokens.iter().take(args.top.max(1)) {
        let (before, after) = (100.0 * token.before, 100.0 * token.after);
        let text = sanitize(&token.text);
        output::print_line(&format!("{text:<14}{before:>7.2} %  {after:>7.2} %"))?;
    }
    let removes_a_part =
        |edit: &Edit| matches!(edit, Edit::NoResidual | Edit::NoPositions | Edit::NoMask);
    if edits.iter().any(removes_a_part) {
        // Such an edit can change every position; without the mask, only earlier ones may change.
        output::print_line("\nat each position, the token that follows")?;
        for change in &result.positions {
            let (before, after) = (100.0 * change.before, 100.0 * change.after);
            let text = sanitize(&change.text);
            let position = change.position;
            output::print_line(&format!(
                "{position:>3} {text:<14}{before:>7.2} %  {after:>7.2} %"
            ))?;
        }
    }
    Ok(())
}

/// Parses an edit: `head=0.1`, `token=2:is`, `embedding=what.0:1.5`, `no-mask`.
fn parse_edit(text: &str, explanation: &Explanation<'_>) -> anyhow::Result<Edit> {
    match text.trim() {
        "no-residual" => return Ok(Edit::NoResidual),
        "no-positions" => return Ok(Edit::NoPositions),
        "no-mask" => return Ok(Edit::NoMask),
        _ => {}
    }
    let parsed = text
        .split_once('=')
        .and_then(|(kind, value)| match kind.trim() {
            "head" => {
                let (layer, head) = value.split_once('.')?;
                Some(Edit::HeadOff {
                    layer: layer.trim().parse().ok()?,
                    head: head.trim().parse().ok()?,
                })
            }
            "token" => {
                let (position, token) = value.split_once(':')?;
                Some(Edit::Token {
                    position: position.trim().parse().ok()?,
                    id: token_id(token, explanation)?,
                })
            }
            "embedding" => {
                let (element, value) = value.rsplit_once(':')?;
                let (token, dim) = element.rsplit_once('.')?;
                Some(Edit::Embedding {
                    id: token_id(token, explanation)?,
                    dim: dim.trim().parse().ok()?,
                    value: value.trim().parse().ok()?,
                })
            }
            _ => None,
        });
    parsed.ok_or_else(|| {
        exit::usage(format!(
            "invalid edit `{text}`; hint: head=0.1 disables head 1 of layer 0, token=2:TEXT replaces the \
             token at position 2, embedding=TOKEN.0:1.5 sets element 0 of a token's embedding, no-residual, \
             no-positions and no-mask remove a part of the model; TEXT and TOKEN must each be a single token \
             of the vocabulary"
        ))
    })
}

/// Returns the id of `text` if it is a single token.
fn token_id(text: &str, explanation: &Explanation<'_>) -> Option<u32> {
    let tokenizer = explanation.explainer.generator().tokenizer();
    let encoding = tokenizer.encode(text);
    match encoding.ids.as_slice() {
        [id] if encoding.unknown.is_empty() => Some(*id),
        _ => None,
    }
}

fn safetensors(args: &ExplainArgs, explanation: &Explanation<'_>) -> anyhow::Result<()> {
    let Some(file) = &args.out else {
        return Err(exit::usage(
            "safetensors is a binary format; hint: write it to a file, e.g. --out trace.safetensors",
        ));
    };
    let trace = &explanation.trace;
    let tensors = trace.graph.iter().map(|node| {
        let value = trace.value(&node.name);
        let data = value.data.iter().map(|x| *x as f32).collect();
        (node.name.clone(), (value.shape.clone(), data))
    });
    weights::save_tensors_with(&tensors.collect(), output_file::ACTIVATIONS, file)?;
    output::eprint_line(&format!("wrote {}", file.display()));
    Ok(())
}

fn html(
    args: &ExplainArgs,
    explanation: &Explanation<'_>,
    options: &TextOptions,
    report_options: &ReportOptions,
    history: Option<TrainingHistory>,
) -> anyhow::Result<()> {
    let mut panels = vec![page::Panel::new(explanation, report_options)?];
    if let Some(prompt) = &args.compare {
        let other = explanation.explainer.explain(prompt, options)?;
        panels.push(page::Panel::new(&other, report_options)?);
    }
    if let Some(model) = &args.compare_with {
        let explainer = open(model, args)?;
        let other = explainer.explain(&explanation.prompt, options)?;
        panels.push(page::Panel::new(&other, report_options)?);
    }
    let html = page::render(&page::PageData { panels, history });
    let file = args.out.clone().or_else(|| default_file(Format::Html));
    output_file::write(&file.unwrap_or_default(), html.as_bytes())
}
