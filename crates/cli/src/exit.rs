//! Which exit code an error means.

use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use nextword_convert::ConvertError;
use nextword_data::{DataError, ErrorClass as DataClass};
use nextword_eval::EvalError;
use nextword_explain::ExplainError;
use nextword_generate::GenerateError;
use nextword_model::ModelError;
use nextword_server::ServerError;
use nextword_train::TrainError;

use crate::output::ReaderGone;
use crate::resources::TooLarge;

/// What the program tells its caller. Documented in the README: numbers never change their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Code {
    /// Anything that has no code of its own.
    Failure = 1,
    /// The command line or the configuration asks for something that cannot be.
    Usage = 2,
    /// A data, model or checkpoint file is missing or bad.
    BadFile = 3,
    /// Training diverged.
    Diverged = 4,
    /// Disk or memory is short, or a folder cannot be written.
    Resources = 5,
    /// The user stopped the run.
    Interrupted = 130,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// An error of the command line itself.
#[derive(Debug)]
pub(crate) struct UsageError(String);

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// An error about what the user asked for.
pub(crate) fn usage(sentence: impl Into<String>) -> anyhow::Error {
    UsageError(sentence.into()).into()
}

/// An error about a file, with the file's code.
#[derive(Debug)]
pub(crate) struct FileError(String);

impl std::fmt::Display for FileError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for FileError {}

/// An error about a file that is missing or bad.
pub(crate) fn bad_file(sentence: impl Into<String>) -> anyhow::Error {
    FileError(sentence.into()).into()
}

/// The code of the first error in the chain that has one.
pub(crate) fn code(error: &anyhow::Error) -> Code {
    error.chain().find_map(of_one).unwrap_or(Code::Failure)
}

/// Whether the reader of standard output has gone away, as `| head` does.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<ReaderGone>().is_some()
}

/// The chain as one sentence. Most of our errors say what their source says, so a part that was
/// said already is left out.
pub(crate) fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for part in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = part;
        } else if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
    }
    text.trim_end().to_string()
}

/// Runs `work`. A panic, which no input should ever lead to, becomes an error of one line; those
/// that are caught deeper down, as of a broken driver, are not shown at all.
pub(crate) fn without_panics<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    static LAST: Mutex<String> = Mutex::new(String::new());
    let last = || LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let in_full = std::env::var_os("RUST_BACKTRACE").is_some();
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        *last() = one_line(panic);
        if in_full {
            before(panic);
        }
    }));
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let what = last().clone();
        Err(anyhow::anyhow!(
            "a fault of nextword itself: {what}; hint: please report it with the command"
        ))
    })
}

fn one_line(panic: &PanicHookInfo<'_>) -> String {
    let what = panic.payload_as_str().unwrap_or("unknown reason");
    let what: Vec<&str> = what.split_whitespace().collect();
    let place = panic.location().map(|place| format!(" ({place})"));
    format!("{}{}", what.join(" "), place.unwrap_or_default())
}

fn of_one(error: &(dyn std::error::Error + 'static)) -> Option<Code> {
    let own = [
        (error.is::<UsageError>(), Code::Usage),
        (error.is::<FileError>(), Code::BadFile),
        (error.is::<TooLarge>(), Code::Resources),
    ];
    let own = own.into_iter().find_map(|(is, code)| is.then_some(code));
    own.or_else(|| error.downcast_ref().map(of_train))
        .or_else(|| error.downcast_ref().map(of_generate))
        .or_else(|| error.downcast_ref().map(of_explain))
        .or_else(|| error.downcast_ref().map(of_eval))
        .or_else(|| error.downcast_ref().map(of_convert))
        .or_else(|| error.downcast_ref().map(of_server))
        .or_else(|| error.downcast_ref().map(of_model))
        .or_else(|| error.downcast_ref().map(of_data))
        .or_else(|| error.downcast_ref().map(|error| of_io("write", error)))
}

fn of_train(error: &TrainError) -> Code {
    match error {
        TrainError::Config { .. } | TrainError::ConfigFile { .. } | TrainError::Run { .. } => {
            Code::Usage
        }
        TrainError::Diverged { .. } => Code::Diverged,
        TrainError::Damaged { .. } => Code::BadFile,
        TrainError::NotSaved { source, .. } => of_train(source),
        TrainError::Io { action, source, .. } => of_io(action, source),
        TrainError::Model(error) => of_model(error),
        TrainError::Data(error) => of_data(error),
        TrainError::Eval(error) => of_eval(error),
        _ => Code::Failure,
    }
}

fn of_explain(error: &ExplainError) -> Code {
    match error {
        ExplainError::Generate(error) => of_generate(error),
        ExplainError::Model(error) => of_model(error),
        ExplainError::TooLarge { .. } => Code::Resources,
        _ => Code::Usage,
    }
}

fn of_server(error: &ServerError) -> Code {
    match error {
        ServerError::Generate(error) => of_generate(error),
        ServerError::Template { .. } | ServerError::Chat { .. } => Code::BadFile,
        ServerError::KeyNeeded { .. } | ServerError::SameName { .. } => Code::Usage,
        ServerError::Budget { .. } => Code::Resources,
        _ => Code::Failure,
    }
}

fn of_eval(error: &EvalError) -> Code {
    match error {
        EvalError::Data(error) => of_data(error),
        EvalError::Generate(error) => of_generate(error),
        EvalError::Model(error) => of_model(error),
        // All others are about a text or a tokenizer that does not fit the model.
        _ => Code::BadFile,
    }
}

fn of_generate(error: &GenerateError) -> Code {
    match error {
        GenerateError::Model(error) => of_model(error),
        GenerateError::Data(error) => of_data(error),
        GenerateError::WrongTokenizer { .. } | GenerateError::NotFinite { .. } => Code::BadFile,
        _ => Code::Usage,
    }
}

fn of_convert(error: &ConvertError) -> Code {
    match error {
        ConvertError::Io { action, source, .. } => of_io(action, source),
        ConvertError::Model(error) => of_model(error),
        ConvertError::Data(error) => of_data(error),
        // All others are about a file that is not what it should be, or cannot be said otherwise.
        _ => Code::BadFile,
    }
}

fn of_model(error: &ModelError) -> Code {
    match error {
        ModelError::Config { .. } | ModelError::Device { .. } => Code::Usage,
        ModelError::Mismatch { .. } | ModelError::Format { .. } => Code::BadFile,
        ModelError::Io { action, source, .. } => of_io(action, source),
        _ => Code::Failure,
    }
}

fn of_data(error: &DataError) -> Code {
    match error.class() {
        DataClass::Usage => Code::Usage,
        DataClass::Data => Code::BadFile,
        DataClass::Storage => Code::Resources,
    }
}

/// A file that cannot be read is bad; one that cannot be written lacks its place.
fn of_io(action: &str, error: &std::io::Error) -> Code {
    match error.kind() {
        ErrorKind::OutOfMemory | ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            Code::Resources
        }
        _ if action == "read" => Code::BadFile,
        _ => Code::Resources,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn io(action: &'static str, kind: ErrorKind) -> TrainError {
        TrainError::Io {
            path: "x".into(),
            action,
            source: kind.into(),
        }
    }

    #[test]
    fn each_class_of_error_has_its_code() {
        let path = || "x".into();
        let config = ModelError::Config {
            key: "n_heads",
            problem: String::new(),
            hint: String::new(),
        };
        let mismatch = ModelError::Mismatch {
            path: path(),
            problems: Vec::new(),
        };
        let diverged = TrainError::Diverged {
            step: 1,
            learning_rate: 1.0,
            loss: f64::NAN,
            history: String::new(),
            first: String::new(),
        };
        let cases: Vec<(anyhow::Error, Code)> = vec![
            (config.into(), Code::Usage),
            (mismatch.into(), Code::BadFile),
            (diverged.into(), Code::Diverged),
            (io("read", ErrorKind::NotFound).into(), Code::BadFile),
            (
                io("write", ErrorKind::PermissionDenied).into(),
                Code::Resources,
            ),
            (io("write", ErrorKind::StorageFull).into(), Code::Resources),
            (DataError::Missing { path: path() }.into(), Code::BadFile),
            (
                TrainError::Data(DataError::Empty { path: path() }).into(),
                Code::BadFile,
            ),
            (usage("x"), Code::Usage),
            (bad_file("x"), Code::BadFile),
            (anyhow::anyhow!("x"), Code::Failure),
        ];
        for (error, expected) in cases {
            assert_eq!(code(&error), expected, "{error}");
            assert_eq!(code(&error.context("around it")), expected);
        }
    }

    #[test]
    fn a_panic_becomes_one_sentence() {
        let result: anyhow::Result<()> = without_panics(|| panic!("two\nlines"));
        drop(std::panic::take_hook());
        let text = result.unwrap_err().to_string();
        assert!(
            text.contains("two lines (") && !text.contains('\n'),
            "{text}"
        );
    }

    #[test]
    fn a_cause_that_the_sentence_names_is_not_said_twice() {
        let error = anyhow::Error::from(io("read", ErrorKind::NotFound));
        let text = sentence(&error);
        assert_eq!(text.matches("not found").count(), 1, "{text}");
        let text = sentence(&usage("no such thing").context("cannot plot"));
        assert_eq!(text, "cannot plot: no such thing");
    }
}
