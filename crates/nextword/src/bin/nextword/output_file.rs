//! Files that commands write: an existing file is replaced only if a command of its kind wrote it.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use clap::Args;
use nextword_convert::GGUF_WRITER_KEY;
use nextword_model::write_atomically;

use crate::{exit, output};

/// How much of an existing file is read to recognize it.
const HEAD_BYTES: u64 = 64 << 10;

/// The metadata of activations, by which they are told from tensors of other programs.
pub(crate) const ACTIVATIONS: (&str, &str) = ("writer", "nextword explain");

/// How the titles of drawings begin; the last one is of earlier versions.
const DRAWING_TITLES: [&str; 3] = [
    "<title>Loss of ",
    "<title>Attention over training: ",
    "<title>Loss by step</title>",
];

/// `--force`, of commands that write a file.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct ForceArgs {
    /// Overwrite an existing file of another kind
    #[arg(long)]
    pub(crate) force: bool,
}

/// The kind of a file that a command writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A model for llama.cpp.
    Gguf,
    /// The page of `explain`.
    Page,
    /// The report of `explain` as JSON.
    Report,
    /// The report of `explain` as text.
    Text,
    /// The tensors of `explain`.
    Activations,
    /// A drawing of `plot`.
    Drawing,
    /// Metrics as CSV.
    MetricsTable,
    /// Metrics for `TensorBoard`.
    MetricsEvents,
}

impl Kind {
    fn description(self) -> &'static str {
        match self {
            Self::Gguf => "a GGUF file of `nextword export`",
            Self::Page => "a page of `nextword explain`",
            Self::Report => "a JSON report of `nextword explain`",
            Self::Text => "a report of `nextword explain`",
            Self::Activations => "activations of `nextword explain`",
            Self::Drawing => "a drawing of `nextword plot`",
            Self::MetricsTable | Self::MetricsEvents => "a file of `nextword export-metrics`",
        }
    }

    /// Whether a file that begins with `head` is of this kind, and not the user's own.
    fn matches(self, head: &[u8]) -> bool {
        let text = String::from_utf8_lossy(head);
        let first_line = text.lines().next().unwrap_or_default();
        match self {
            Self::Gguf => head.starts_with(b"GGUF") && text.contains(GGUF_WRITER_KEY),
            Self::Page => {
                first_line.eq_ignore_ascii_case("<!doctype html>")
                    && text.contains("<title>nextword explain</title>")
            }
            Self::Report => text.starts_with("{\"format\":\"explain/"),
            Self::Text => first_line.contains(", step ") && first_line.ends_with(" parameters"),
            Self::Activations => {
                let (key, value) = ACTIVATIONS;
                let mark = format!("{{\"__metadata__\":{{\"{key}\":\"{value}\"}}");
                let header = head.get(8..).unwrap_or_default();
                header.starts_with(mark.as_bytes())
            }
            Self::MetricsTable => first_line.starts_with("step,tokens,elapsed,"),
            Self::MetricsEvents => head.get(23..36) == Some(b"brain.Event:2"),
            Self::Drawing => {
                let second_line = text.lines().nth(1).unwrap_or_default();
                let has_title = DRAWING_TITLES.iter().any(|t| second_line.starts_with(t));
                first_line.starts_with("<svg ") && has_title
            }
        }
    }
}

/// Checks, before the work begins, that `path` can be written without the loss of another file.
///
/// # Errors
/// If `path` is a folder or in a folder that does not exist, or if it is a file of another kind and
/// `force` is not set.
pub(crate) fn check(path: &Path, kind: Kind, force: ForceArgs) -> anyhow::Result<()> {
    let shown = path.display();
    refuse_dash(path)?;
    check_parent(path)?;
    let Ok(metadata) = fs::metadata(path) else {
        return Ok(());
    };
    if metadata.is_dir() {
        return Err(exit::usage(format!(
            "`{shown}` is a folder; hint: name a file in it, e.g. {shown}/NAME"
        )));
    }
    // Pipes and devices keep nothing that could be lost.
    if force.force || !metadata.is_file() || metadata.len() == 0 {
        return Ok(());
    }
    let mut head = Vec::new();
    let read = File::open(path).and_then(|file| file.take(HEAD_BYTES).read_to_end(&mut head));
    if read.is_ok() && kind.matches(&head) {
        return Ok(());
    }
    Err(exit::usage(format!(
        "`{shown}` already exists and is not {}; hint: choose another name with --out, or overwrite it with --force",
        kind.description()
    )))
}

/// Checks that `path`, where a folder is to be written, is not a file.
///
/// # Errors
/// If it is a file.
pub(crate) fn check_folder(path: &Path) -> anyhow::Result<()> {
    refuse_dash(path)?;
    let is_file = path.exists() && !path.is_dir();
    if is_file {
        return Err(exit::usage(format!(
            "`{}` is a file, but a folder is written; hint: choose another name with --out",
            path.display()
        )));
    }
    Ok(())
}

/// Writes `bytes` to `path`, which was checked, and says so.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    write_atomically(path, bytes)?;
    output::eprint_line(&format!("wrote {}", path.display()));
    Ok(())
}

/// Refuses the name `-`, which commands that write to standard output handle before.
fn refuse_dash(path: &Path) -> anyhow::Result<()> {
    if path.as_os_str() != "-" {
        return Ok(());
    }
    Err(exit::usage(
        "cannot write to standard output; hint: name a file or folder with --out",
    ))
}

fn check_parent(path: &Path) -> anyhow::Result<()> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let problem = match fs::metadata(parent) {
        Ok(metadata) if metadata.is_dir() => return Ok(()),
        Ok(_) => "is a file, not a folder; hint: choose another --out".to_string(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => format!(
            "does not exist; hint: create it with `mkdir -p {}`, or choose another --out",
            parent.display()
        ),
        Err(error) => format!("cannot be used: {error}; hint: choose another --out"),
    };
    Err(exit::usage(format!(
        "cannot write `{}`: the folder `{}` {problem}",
        path.display(),
        parent.display()
    )))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use nextword_plot::{AttentionFigure, Curve, Figure};

    use super::*;

    const KINDS: [(Kind, &[u8]); 6] = [
        (
            Kind::Gguf,
            b"GGUF\x03\0\0\0\x10\0\0\0\0\0\0\0nextword.version",
        ),
        (
            Kind::Page,
            b"<!doctype html>\n<title>nextword explain</title>",
        ),
        (Kind::Report, b"{\"format\":\"explain/1\",\"model\":{}}"),
        (Kind::Text, b"small, step 3, 37 parameters\nprompt      a\n"),
        (
            Kind::Activations,
            b"\x40\0\0\0\0\0\0\0{\"__metadata__\":{\"writer\":\"nextword explain\"},\"hook_embed\":{}}",
        ),
        (
            Kind::Drawing,
            b"<svg xmlns=\"x\" viewBox=\"0 0 1 1\" role=\"img\">\n<title>Loss of a</title>\n",
        ),
    ];

    /// Files that no command wrote.
    const OTHER: [&[u8]; 20] = [
        // A model of another program.
        b"GGUF\x03\0\0\0\x14\0\0\0\0\0\0\0general.architecture",
        // A badge, an icon, a drawing with the title of another program.
        b"<svg xmlns=\"x\" width=\"90\" height=\"20\" role=\"img\" aria-label=\"build: passing\"><title>build: passing</title>",
        b"<svg role=\"img\" viewBox=\"0 0 24 24\" xmlns=\"x\"><title>Rust</title><path d=\"M0 0\"/></svg>",
        b"<svg role=\"img\">\n<title>Loss</title>\n<text>Loss of a</text></svg>\n",
        // Activations that other programs stored under the same names.
        b"\x20\0\0\0\0\0\0\0{\"hook_embed\":{}}",
        b"\x20\0\0\0\0\0\0\0{\"__metadata__\":{\"format\":\"pt\"},\"blocks.0.attn.hook_q\":{}}",
        b"\x20\0\0\0\0\0\0\0{\"a\":{\"__metadata__\":{\"writer\":\"nextword explain\"}}}",
        b"<!doctype html>\n<title>How I use nextword</title>",
        b"to be or not to be\n",
        b"name = \"run\"\n[train]\nsteps = 3\n",
        b"{\"text\": \"a\"}\n",
        b"{\"format\": 3}",
        b"<!doctype html>\n<title>mine</title>",
        b"<html><body>nextword</body></html>",
        b"<svg width=\"3\"><path d=\"M0 0\"/></svg>",
        b"%PDF-1.7\n",
        b"\x89PNG\r\n\x1a\n",
        b"\x20\0\0\0\0\0\0\0{\"blocks.0.attention.key.weight\":{}}",
        b"gguf",
        b"x",
    ];

    #[test]
    fn only_files_of_the_same_kind_are_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for (kind, own) in KINDS {
            for force in [false, true] {
                let force = ForceArgs { force };
                fs::remove_file(&path).ok();
                assert!(check(&path, kind, force).is_ok(), "a new file");
                fs::write(&path, b"").unwrap();
                assert!(check(&path, kind, force).is_ok(), "an empty file");
                fs::write(&path, own).unwrap();
                assert!(check(&path, kind, force).is_ok(), "{kind:?}");
                let others = KINDS.iter().filter(|(other, _)| *other != kind);
                for content in others.map(|(_, content)| *content).chain(OTHER) {
                    fs::write(&path, content).unwrap();
                    let result = check(&path, kind, force);
                    let shown = String::from_utf8_lossy(content);
                    assert_eq!(result.is_ok(), force.force, "{kind:?} over {shown}");
                }
            }
        }
    }

    #[test]
    fn every_drawing_is_recognized() {
        let mut curve = Curve::new("run");
        curve.push(1, Some(2.0), None);
        let long = Curve::new("r".repeat(200));
        for curves in [
            vec![],
            vec![curve.clone()],
            vec![long],
            vec![curve.clone(), curve.clone()],
            vec![curve; 3],
        ] {
            let drawing = Figure::new(curves, false).unwrap().to_svg();
            assert!(Kind::Drawing.matches(drawing.as_bytes()), "{drawing}");
        }
        for prompt in ["", "a <b>", "two\nlines"] {
            let figure = AttentionFigure {
                prompt,
                tokens: &[],
                steps: Vec::new(),
            };
            assert!(
                Kind::Drawing.matches(figure.to_svg().as_bytes()),
                "{prompt}"
            );
        }
        for title in DRAWING_TITLES {
            let drawing = format!("<svg role=\"img\">\r\n{title}\r\n");
            assert!(Kind::Drawing.matches(drawing.as_bytes()), "{title}");
        }
    }

    #[test]
    fn paths_that_cannot_be_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let force = ForceArgs { force: true };
        fs::write(folder.path().join("file"), "x").unwrap();
        for (name, problem) in [
            ("", "is a folder"),
            ("missing/x", "mkdir -p"),
            ("file/x", "file"),
        ] {
            let error = check(&folder.path().join(name), Kind::Gguf, force).unwrap_err();
            assert!(error.to_string().contains(problem), "{error}");
            assert_eq!(exit::code(&error), exit::Code::Usage);
        }
        assert!(check_folder(&folder.path().join("file")).is_err());
        assert!(
            check_folder(Path::new("-")).is_err()
                && check(Path::new("-"), Kind::Gguf, force).is_err()
        );
        assert!(check_folder(folder.path()).is_ok());
    }
}
