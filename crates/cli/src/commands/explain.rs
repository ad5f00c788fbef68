//! `nextword explain RECORD|RUN [PROMPT]`.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use nextword_explain::learning::Learning;
use nextword_explain::terminal::{self, View};
use nextword_explain::{Edit, Explainer, Explanation, StoryOptions, WhatIf, page, text};
use nextword_generate::{PROMPT, TextGenerator, TextOptions};
use nextword_model::{weights, write_atomically};

use crate::args::{ExplainArgs, Format};
use crate::format::harmless;
use crate::{exit, learning, output, records, resources};

/// Columns where neither the user nor the terminal tells.
const COLUMNS: usize = 80;

/// Explains a prompt.
pub(crate) fn run(args: &ExplainArgs) -> anyhow::Result<()> {
    if args.schema {
        return output::text(nextword_explain::SCHEMA);
    }
    let Some(model) = &args.model else {
        return Err(exit::usage("no record is named; hint: give a run's folder"));
    };
    check(args)?;
    let options = options(args)?;
    let explainer = open(model, args)?;
    let learning = if args.over_training {
        Some(learning::read(model)?)
    } else {
        None
    };
    let first = learning.as_ref().and_then(|l| l.sentences.first());
    let prompt = match first {
        Some(sentence) if args.prompt.is_empty() => &sentence.prompt,
        _ => &args.prompt,
    };
    let explanation = explainer.explain(prompt, &options)?;
    check_places(args, &explanation)?;
    if !args.why.is_empty() {
        return why(args, &explanation);
    }
    if !args.what_if.is_empty() {
        return what_if(args, &explanation);
    }
    let story_options = StoryOptions {
        layers: list(&args.layer),
        top: args.top.max(1),
        ..StoryOptions::default()
    };
    match args.format() {
        _ if learning.is_some() => html(args, &explanation, &options, &story_options, learning),
        Format::Text => {
            let story = explanation.story(&StoryOptions {
                most: usize::MAX,
                ..story_options
            })?;
            let drawn = terminal::draw(&explanation, &story, &view(args));
            write(args, drawn.as_bytes())
        }
        Format::Json => {
            let story = explanation.story(&story_options)?;
            write(
                args,
                format!("{}\n", serde_json::to_string(&story)?).as_bytes(),
            )
        }
        Format::Safetensors => safetensors(args, &explanation),
        Format::Html => html(args, &explanation, &options, &story_options, None),
    }
}

/// Refuses options that would have no effect.
fn check(args: &ExplainArgs) -> anyhow::Result<()> {
    let asks = !args.why.is_empty() || !args.what_if.is_empty();
    let (text, html) = (args.format() == Format::Text, args.format() == Format::Html);
    let page = html || args.over_training && text;
    let compares = args.compare.is_some() || args.compare_with.is_some();
    let picks = !args.head.is_empty() || !args.position.is_empty() || args.brief;
    let problem = if !args.why.is_empty() && !args.what_if.is_empty() {
        "--why and --what-if are two questions; hint: ask one at a time"
    } else if asks && (args.out.is_some() || compares || args.over_training || picks) {
        "--why and --what-if answer in the terminal or as JSON; hint: leave --out, --compare, \
         --over-training and what picks steps away"
    } else if asks && !text && args.format() != Format::Json {
        "--why and --what-if answer in the terminal or with --format json"
    } else if compares && !page {
        "--compare and --compare-with show two stories side by side on a page; hint: add --format html"
    } else if args.over_training && !page {
        "--over-training is a slider on a page; hint: use --format html or a file that ends in .html"
    } else if picks && (!text || page) {
        "--head, --position and --brief pick what the terminal shows; hint: leave them away, the other \
         formats hold everything"
    } else {
        return Ok(());
    };
    Err(exit::usage(problem))
}

/// Refuses layers, heads and positions that are not there.
fn check_places(args: &ExplainArgs, explanation: &Explanation<'_>) -> anyhow::Result<()> {
    let trace = &explanation.trace;
    let tokens = trace.ids.len();
    for (what, given, count) in [
        ("layer", &args.layer, trace.config.n_layers),
        ("head", &args.head, trace.config.n_heads),
        ("position", &args.position, tokens),
    ] {
        if let Some(wrong) = given.iter().find(|at| **at >= count) {
            return Err(exit::usage(format!(
                "there is no {what} {wrong}; hint: they are 0 to {}",
                count - 1
            )));
        }
    }
    Ok(())
}

fn open(model: &Path, args: &ExplainArgs) -> anyhow::Result<Explainer> {
    let record = records::open(model, args.last)?;
    resources::check_explained(record.config.counts().total())?;
    let device = records::device(&args.device)?;
    Ok(Explainer::new(TextGenerator::open(&record, &device)?))
}

fn options(args: &ExplainArgs) -> anyhow::Result<TextOptions> {
    let sampling = args.cuts.sampling(args.temperature, args.seed);
    sampling.validate()?;
    Ok(TextOptions {
        sampling,
        max_tokens: args.max_tokens.max(1),
        prompt_template: args.raw.then(|| PROMPT.to_string()),
        ..TextOptions::default()
    })
}

fn list(of: &[usize]) -> Option<Vec<usize>> {
    (!of.is_empty()).then(|| of.to_vec())
}

fn view(args: &ExplainArgs) -> View {
    let to_terminal = args.out.is_none() && std::io::stdout().is_terminal();
    let columns = || std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok());
    let width = args.width.or_else(columns);
    View {
        width: width.unwrap_or(COLUMNS).max(40),
        colours: to_terminal && std::env::var_os("NO_COLOR").is_none(),
        decimals: args.decimals.min(9),
        steps: !args.brief,
        layers: list(&args.layer),
        heads: list(&args.head),
        positions: list(&args.position),
        top: args.top.max(1),
    }
}

fn write(args: &ExplainArgs, bytes: &[u8]) -> anyhow::Result<()> {
    let Some(file) = &args.out else {
        return output::bytes(bytes);
    };
    write_atomically(file, bytes)?;
    output::note(&format!("wrote {}", file.display()));
    Ok(())
}

fn why(args: &ExplainArgs, explanation: &Explanation<'_>) -> anyhow::Result<()> {
    for address in &args.why {
        let derivation = explanation.why(address)?;
        if args.format() == Format::Json {
            output::json(&derivation)?;
            continue;
        }
        for line in text::lines(&derivation) {
            output::line(&harmless(&line))?;
        }
    }
    Ok(())
}

fn what_if(args: &ExplainArgs, explanation: &Explanation<'_>) -> anyhow::Result<()> {
    let edits: Vec<Edit> = args
        .what_if
        .iter()
        .map(|edit| read_edit(edit, explanation))
        .collect::<anyhow::Result<_>>()?;
    let found: WhatIf = explanation.what_if(&edits)?;
    if args.format() == Format::Json {
        return output::json(&found);
    }
    output::line("next word      as it is    changed")?;
    for word in found.words.iter().take(args.top.max(1)) {
        let (before, after) = (100.0 * word.before, 100.0 * word.after);
        let text = harmless(&word.text);
        output::line(&format!("{text:<14}{before:>7.2} %  {after:>7.2} %"))?;
    }
    Ok(())
}

/// `head=0.1`, `token=2:is`, `embedding=what.0:1.5`.
fn read_edit(text: &str, explanation: &Explanation<'_>) -> anyhow::Result<Edit> {
    let parsed = text
        .split_once('=')
        .and_then(|(what, how)| match what.trim() {
            "head" => {
                let (layer, head) = how.split_once('.')?;
                Some(Edit::HeadOff {
                    layer: layer.trim().parse().ok()?,
                    head: head.trim().parse().ok()?,
                })
            }
            "token" => {
                let (position, token) = how.split_once(':')?;
                Some(Edit::Token {
                    position: position.trim().parse().ok()?,
                    id: id_of(token, explanation)?,
                })
            }
            "embedding" => {
                let (place, value) = how.rsplit_once(':')?;
                let (token, dim) = place.rsplit_once('.')?;
                Some(Edit::Embedding {
                    id: id_of(token, explanation)?,
                    dim: dim.trim().parse().ok()?,
                    value: value.trim().parse().ok()?,
                })
            }
            _ => None,
        });
    parsed.ok_or_else(|| {
        exit::usage(format!(
            "`{text}` is no change; hint: head=0.1 switches head 1 of layer 0 off, token=2:TEXT puts \
             another token at position 2, embedding=TOKEN.0:1.5 sets a number of a token's embedding; TEXT \
             and TOKEN are one token each that the vocabulary has"
        ))
    })
}

/// The id of a text that is one token.
fn id_of(text: &str, explanation: &Explanation<'_>) -> Option<u32> {
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
            "safetensors is a binary format; hint: name a file with --out trace.safetensors",
        ));
    };
    let trace = &explanation.trace;
    let tensors = trace.graph.iter().map(|node| {
        let value = trace.value(&node.name);
        let data = value.data.iter().map(|x| *x as f32).collect();
        (node.name.clone(), (value.shape.clone(), data))
    });
    weights::save_tensors(&tensors.collect(), file)?;
    output::note(&format!("wrote {}", file.display()));
    Ok(())
}

fn html(
    args: &ExplainArgs,
    explanation: &Explanation<'_>,
    options: &TextOptions,
    story_options: &StoryOptions,
    learning: Option<Learning>,
) -> anyhow::Result<()> {
    let mut panes = vec![page::Pane::of(explanation, story_options)?];
    if let Some(prompt) = &args.compare {
        let other = explanation.explainer.explain(prompt, options)?;
        panes.push(page::Pane::of(&other, story_options)?);
    }
    if let Some(record) = &args.compare_with {
        let explainer = open(record, args)?;
        let other = explainer.explain(&explanation.prompt, options)?;
        panes.push(page::Pane::of(&other, story_options)?);
    }
    let html = page::render(&page::Data { panes, learning });
    let file = args.out.clone();
    let file = file.unwrap_or_else(|| PathBuf::from("explain.html"));
    write_atomically(&file, html.as_bytes())?;
    output::note(&format!("wrote {}", file.display()));
    Ok(())
}
