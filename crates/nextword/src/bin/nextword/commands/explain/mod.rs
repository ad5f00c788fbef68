//! `nextword explain MODEL|RUN [PROMPT]`.

mod args;
mod edits;

use std::io::IsTerminal;
use std::path::PathBuf;

use nextword_explain::history::TrainingHistory;
use nextword_explain::terminal::{self, View};
use nextword_explain::{
    Edit, Explainer, Explanation, ReportOptions, WhatIf, derivation_text, page,
};
use nextword_generate::{PROMPT_PLACEHOLDER, TextGenerator, TextOptions};
use nextword_model::{ModelDir, weights};

use crate::format::sanitize;
use crate::output_file::{self, Kind};
use crate::{exit, history, models, output, prompt};

pub(crate) use args::ExplainArgs;
use args::Format;
use edits::parse_edit;

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
    let explainer = open(&args.mapping.apply(args.base.open(model, args.last)?), args)?;
    let history = if args.over_training {
        Some(history::load(model)?)
    } else {
        None
    };
    let first = history
        .as_ref()
        .and_then(|history| history.sentences.first());
    let given = args.prompt.as_deref().filter(|prompt| !prompt.is_empty());
    let prompt = match (first, given) {
        (Some(sentence), None) => sentence.prompt.clone(),
        _ => prompt::read(args.prompt.as_deref())?,
    };
    let explanation = explainer.explain(&prompt, &options)?;
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
    let layers = trace.config.n_layers.max(trace.config.encoder_layers());
    for (name, indices, count) in [
        ("layer", &args.layer, layers),
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

fn open(dir: &ModelDir, args: &ExplainArgs) -> anyhow::Result<Explainer> {
    Explainer::check_memory(&dir.config)?;
    let device = models::open_and_name_device(&args.device)?;
    Ok(Explainer::new(TextGenerator::open(dir, &device)?))
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
    let to_stdout = args.out.is_none() || args.prints();
    let to_terminal = to_stdout && std::io::stdout().is_terminal();
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
        Some(file) if !args.prints() => output_file::write(file, bytes),
        _ => output::print_bytes(bytes),
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
    if args.prints() {
        return Ok(());
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
        if let Some(note) = assumed_indices(address, &derivation.address) {
            output::eprint_line(&note);
        }
    }
    Ok(())
}

/// Says which indices `full`, the address of a value, has for axes that `given` leaves out, if there are any.
fn assumed_indices(given: &str, full: &str) -> Option<String> {
    let index_of = |address: &str| {
        let (_, index) = address.split_once('[')?;
        Some(index.trim_end().trim_end_matches(']').to_string())
    };
    let given = index_of(given).unwrap_or_default();
    let axis_of = |part: &str| {
        part.split('=')
            .next()
            .unwrap_or_default()
            .trim()
            .to_string()
    };
    let chosen: Vec<String> = given.split(',').map(axis_of).collect();
    let full_index = index_of(full)?;
    let assumed = full_index
        .split(',')
        .filter(|part| !chosen.contains(&axis_of(part)));
    let assumed: Vec<&str> = assumed.collect();
    (!assumed.is_empty()).then(|| {
        format!(
            "note: {} by default; choose another value with --why '{full}'",
            assumed.join(", ")
        )
    })
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
    output::print_line(if explanation.trace.predicts_masked() {
        "masked token     before      after"
    } else {
        "next token       before      after"
    })?;
    for token in result.tokens.iter().take(args.top.max(1)) {
        let (before, after) = (100.0 * token.before, 100.0 * token.after);
        let text = sanitize(&token.text);
        output::print_line(&format!("{text:<14}{before:>7.2} %  {after:>7.2} %"))?;
    }
    if result.positions.len() > 1 {
        // An edit can change every position; without the mask, only earlier ones may change.
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

fn safetensors(args: &ExplainArgs, explanation: &Explanation<'_>) -> anyhow::Result<()> {
    let Some(file) = args.out.as_ref().filter(|_| !args.prints()) else {
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
        let explainer = open(&args.mapping.apply(models::open(model, args.last)?), args)?;
        let other = explainer.explain(&explanation.prompt, options)?;
        panels.push(page::Panel::new(&other, report_options)?);
    }
    let html = page::render(&page::PageData { panels, history });
    if args.prints() {
        return output::print_bytes(html.as_bytes());
    }
    let file = args.out.clone().or_else(|| default_file(Format::Html));
    output_file::write(&file.unwrap_or_default(), html.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_that_an_address_leaves_out_are_named() {
        let full = "logits[position=0,token=0]";
        for (given, assumed) in [
            ("logits", Some("position=0, token=0 by default")),
            ("logits[]", Some("position=0, token=0 by default")),
            ("logits[token=2]", Some("note: position=0 by default")),
            (" logits[ position=1 ]", Some("note: token=0 by default")),
            ("logits[token=awesome,position=3]", None),
        ] {
            let note = assumed_indices(given, full);
            let is_right = match (&note, assumed) {
                (Some(note), Some(text)) => {
                    note.contains(text) && note.ends_with("'logits[position=0,token=0]'")
                }
                (note, text) => note.is_none() && text.is_none(),
            };
            assert!(is_right, "{given}: {note:?}");
        }
    }
}
