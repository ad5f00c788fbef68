//! Exit codes of errors, and panics as errors.

mod device_memory;

use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use nextword_benchmark::BenchmarkError;
use nextword_chat::ChatError;
use nextword_convert::ConvertError;
use nextword_data::{DataError, ErrorClass as DataClass};
use nextword_eval::EvalError;
use nextword_experiments::ExperimentError;
use nextword_explain::ExplainError;
use nextword_generate::GenerateError;
use nextword_hub::HubError;
use nextword_model::ModelError;
use nextword_parallel::ParallelError;
use nextword_server::ServerError;
use nextword_train::TrainError;
use nextword_train::plan::{DiskShortage, MemoryShortage};

use self::device_memory::DeviceMemoryError;
use crate::output::{self, BrokenPipe};

/// Prefix of the report of a panic.
const INTERNAL_ERROR: &str = "internal error (bug in nextword)";

/// Exit codes. They are documented in the README and stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Code {
    /// Any other failure: of the network, a port that is in use, findings of `doctor`.
    Failure = 1,
    /// The command line or the configuration is invalid, or names a path that cannot be written, a device that cannot
    /// be used, or a model that the command or the format is not for.
    Usage = 2,
    /// A data, model or checkpoint file is missing or invalid.
    BadFile = 3,
    /// Training diverged.
    Diverged = 4,
    /// Out of disk space or memory.
    Resources = 5,
    /// The user interrupted the run.
    Interrupted = 130,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// An error in the command line or configuration.
#[derive(Debug)]
pub(crate) struct UsageError(String);

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// Returns an error with the code [`Code::Usage`].
pub(crate) fn usage(message: impl Into<String>) -> anyhow::Error {
    UsageError(message.into()).into()
}

/// An error in a file.
#[derive(Debug)]
pub(crate) struct FileError(String);

impl std::fmt::Display for FileError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for FileError {}

/// Returns an error with the code [`Code::BadFile`].
pub(crate) fn bad_file(message: impl Into<String>) -> anyhow::Error {
    FileError(message.into()).into()
}

/// Returns the code of the first error in the chain that has one.
pub(crate) fn code(error: &anyhow::Error) -> Code {
    error.chain().find_map(code_of).unwrap_or(Code::Failure)
}

/// Returns whether the error is a closed standard output.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<BrokenPipe>().is_some()
}

/// Joins the error chain into one message. Many errors include the message of their source, so a
/// part that is already included is skipped.
pub(crate) fn message(error: &anyhow::Error) -> String {
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

/// Whether the server logs the panics of other threads.
static PANICS_ARE_LOGGED: AtomicBool = AtomicBool::new(false);

/// Leaves panics of other threads to the server, which logs them with the request or model that they
/// concern.
pub(crate) fn leave_panics_to_the_server() {
    PANICS_ARE_LOGGED.store(true, Ordering::Relaxed);
}

/// Runs `work` and turns a panic of this thread into a one-line error. A panic of any other thread is
/// printed when it happens, since that thread may end without a report. With `RUST_BACKTRACE` the
/// default hook prints all panics.
pub(crate) fn catch_panics<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    static LAST_LINE: Mutex<String> = Mutex::new(String::new());
    // The first one is the cause of those that follow.
    static MEMORY_ERROR: Mutex<Option<DeviceMemoryError>> = Mutex::new(None);
    let last_line = || LAST_LINE.lock().unwrap_or_else(PoisonError::into_inner);
    let memory_error = || MEMORY_ERROR.lock().unwrap_or_else(PoisonError::into_inner);
    let backtrace = std::env::var_os("RUST_BACKTRACE").is_some();
    let this_thread = std::thread::current().id();
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = one_line(panic);
        let is_other_thread = std::thread::current().id() != this_thread;
        let is_logged = is_other_thread && PANICS_ARE_LOGGED.load(Ordering::Relaxed);
        // The thread that works with the device has it first; this one reports it.
        if let Some(error) = DeviceMemoryError::from_panic(&text).filter(|_| !is_logged) {
            memory_error().get_or_insert(error);
            if backtrace {
                default_hook(panic);
            }
            return;
        }
        let line = format!("{INTERNAL_ERROR}: {text}");
        // A panic that was printed here may still be resumed on this thread.
        *last_line() = if is_other_thread {
            format!("{INTERNAL_ERROR}, see above")
        } else {
            line.clone()
        };
        if backtrace {
            default_hook(panic);
        } else if is_other_thread && !is_logged {
            output::eprint_line(&line);
        }
    }));
    let result = catch_unwind(AssertUnwindSafe(work));
    match (result, memory_error().take()) {
        (Ok(Ok(value)), None) => Ok(value),
        // The work was done without the thread that had it.
        (Ok(Ok(value)), Some(error)) => {
            output::eprint_line(&format!("warning: {error}"));
            Ok(value)
        }
        (Err(_) | Ok(Err(_)), Some(error)) => Err(error.into()),
        (Ok(Err(error)), None) => Err(error),
        (Err(_), None) => Err(anyhow::anyhow!(
            "{}; hint: please report it, including the command line",
            last_line()
        )),
    }
}

/// Returns a panic's message and location.
fn one_line(panic: &PanicHookInfo<'_>) -> String {
    let message = panic.payload_as_str().unwrap_or("unknown reason");
    let message: Vec<&str> = message.split_whitespace().collect();
    let location = panic.location().map(|location| format!(" ({location})"));
    format!("{}{}", message.join(" "), location.unwrap_or_default())
}

fn code_of(error: &(dyn std::error::Error + 'static)) -> Option<Code> {
    let own = [
        (error.is::<UsageError>(), Code::Usage),
        (error.is::<FileError>(), Code::BadFile),
        (error.is::<ChatError>(), Code::BadFile),
        (error.is::<MemoryShortage>(), Code::Resources),
        (error.is::<DeviceMemoryError>(), Code::Resources),
        (error.is::<DiskShortage>(), Code::Resources),
    ];
    let own = own.into_iter().find_map(|(is, code)| is.then_some(code));
    own.or_else(|| error.downcast_ref().map(train_code))
        .or_else(|| error.downcast_ref().map(generate_code))
        .or_else(|| error.downcast_ref().map(parallel_code))
        .or_else(|| error.downcast_ref().map(benchmark_code))
        .or_else(|| error.downcast_ref().map(experiment_code))
        .or_else(|| error.downcast_ref().map(explain_code))
        .or_else(|| error.downcast_ref().map(eval_code))
        .or_else(|| error.downcast_ref().map(convert_code))
        .or_else(|| error.downcast_ref().map(hub_code))
        .or_else(|| error.downcast_ref().map(server_code))
        .or_else(|| error.downcast_ref().map(model_code))
        .or_else(|| error.downcast_ref().map(data_code))
        .or_else(|| error.downcast_ref().map(|error| io_code("write", error)))
}

fn train_code(error: &TrainError) -> Code {
    match error {
        TrainError::Config { .. }
        | TrainError::ConfigFile { .. }
        | TrainError::Run { .. }
        | TrainError::FolderInUse { .. }
        | TrainError::FirstLoss { .. } => Code::Usage,
        TrainError::Diverged { .. } => Code::Diverged,
        TrainError::Damaged { .. } | TrainError::Conversation { .. } | TrainError::Chat(_) => {
            Code::BadFile
        }
        TrainError::FolderRemoved { .. } | TrainError::DiskFull { .. } => Code::Resources,
        // The paths were writable when the run started.
        TrainError::NotSaved { source, .. } => match train_code(source) {
            Code::Usage => Code::Failure,
            code => code,
        },
        TrainError::Io { action, source, .. } => io_code(action, source),
        TrainError::Model(error) => model_code(error),
        TrainError::Data(error) => data_code(error),
        TrainError::Eval(error) => eval_code(error),
        TrainError::Parallel(error) => parallel_code(error),
        TrainError::Convert(error) => convert_code(error),
        _ => Code::Failure,
    }
}

fn parallel_code(error: &ParallelError) -> Code {
    match error {
        ParallelError::Division { .. } | ParallelError::Start(_) => Code::Usage,
        _ => Code::Failure,
    }
}

fn benchmark_code(error: &BenchmarkError) -> Code {
    match error {
        BenchmarkError::Model(error) => model_code(error),
        BenchmarkError::Generate(error) => generate_code(error),
        BenchmarkError::Start { source, .. } => io_code("start", source),
        _ => Code::Failure,
    }
}

fn experiment_code(error: &ExperimentError) -> Code {
    match error {
        ExperimentError::Option { .. } | ExperimentError::Sweep { .. } => Code::Usage,
        ExperimentError::Arm { source, .. } => train_code(source),
        ExperimentError::Train(source) => train_code(source),
        ExperimentError::Eval(error) => eval_code(error),
        ExperimentError::Memory(_) => Code::Resources,
        ExperimentError::Path(error) => io_code(error.action, &error.source),
        _ => Code::Failure,
    }
}

fn explain_code(error: &ExplainError) -> Code {
    match error {
        ExplainError::Generate(error) => generate_code(error),
        ExplainError::Model(error) => model_code(error),
        ExplainError::TooLarge { .. } | ExplainError::InsufficientMemory { .. } => Code::Resources,
        _ => Code::Usage,
    }
}

fn server_code(error: &ServerError) -> Code {
    match error {
        ServerError::Generate(error) => generate_code(error),
        ServerError::Model(error) => model_code(error),
        ServerError::ApiKeyRequired { .. }
        | ServerError::DuplicateName { .. }
        | ServerError::UnknownBase { .. } => Code::Usage,
        ServerError::Budget { .. } => Code::Resources,
        _ => Code::Failure,
    }
}

fn eval_code(error: &EvalError) -> Code {
    match error {
        EvalError::Data(error) => data_code(error),
        EvalError::Model(error) => model_code(error),
        // All others concern a text or a tokenizer that does not fit the model.
        _ => Code::BadFile,
    }
}

fn generate_code(error: &GenerateError) -> Code {
    match error {
        GenerateError::Model(error) => model_code(error),
        GenerateError::Data(error) => data_code(error),
        GenerateError::WrongTokenizer { .. } | GenerateError::NotFinite { .. } => Code::BadFile,
        _ => Code::Usage,
    }
}

fn convert_code(error: &ConvertError) -> Code {
    match error {
        ConvertError::Io { action, source, .. } => io_code(action, source),
        ConvertError::Model(error) => model_code(error),
        ConvertError::Data(error) => data_code(error),
        // The model is right, but not for the format that the command line asks for.
        ConvertError::Inexpressible { .. }
        | ConvertError::InexpressibleAdapter { .. }
        | ConvertError::Tokenizer { .. }
        | ConvertError::TooLarge { .. } => Code::Usage,
        // All others concern a file that is invalid.
        _ => Code::BadFile,
    }
}

fn hub_code(error: &HubError) -> Code {
    match error {
        HubError::Reference { .. } | HubError::Setting { .. } => Code::Usage,
        HubError::NotFound { .. } | HubError::WrongContent { .. } => Code::BadFile,
        HubError::DiskFull { .. } => Code::Resources,
        HubError::Io { action, source, .. } => io_code(action, source),
        _ => Code::Failure,
    }
}

fn model_code(error: &ModelError) -> Code {
    match error {
        // A model that the command is not for is not a damaged file.
        ModelError::Config { .. }
        | ModelError::Lora { .. }
        | ModelError::Device { .. }
        | ModelError::Architecture { .. } => Code::Usage,
        ModelError::Mismatch { .. } | ModelError::Format { .. } | ModelError::Adapter { .. } => {
            Code::BadFile
        }
        ModelError::Io { action, source, .. } => io_code(action, source),
        _ => Code::Failure,
    }
}

fn data_code(error: &DataError) -> Code {
    match (error.class(), error) {
        (_, DataError::Write { source, .. }) => io_code("write", source),
        (DataClass::Usage, _) => Code::Usage,
        (DataClass::Data, _) => Code::BadFile,
        (DataClass::Storage, _) => Code::Resources,
    }
}

/// A file that cannot be read counts as invalid; a path that cannot be written, as wrong usage.
fn io_code(action: &str, error: &std::io::Error) -> Code {
    match error.kind() {
        ErrorKind::OutOfMemory | ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            Code::Resources
        }
        _ if action == "read" => Code::BadFile,
        ErrorKind::NotFound
        | ErrorKind::NotADirectory
        | ErrorKind::IsADirectory
        | ErrorKind::AlreadyExists
        | ErrorKind::InvalidFilename
        | ErrorKind::PermissionDenied
        | ErrorKind::ReadOnlyFilesystem => Code::Usage,
        _ => Code::Resources,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
