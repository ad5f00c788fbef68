//! Parses the command line, with errors that name the argument and the fix.

use std::error::Error;
use std::num::{ParseFloatError, ParseIntError};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command, CommandFactory, FromArgMatches};

use crate::cli::Cli;
use crate::exit::Code;
use crate::output;

/// Parses the arguments of this process. Prints help, or what is wrong with them, and ends the process.
pub(crate) fn parse() -> Cli {
    let arguments: Vec<String> = std::env::args_os()
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    let parsed = command().try_get_matches();
    match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => match problem(&error, &arguments) {
            Some(problem) => {
                output::eprint_line(&format!("error: {problem}"));
                std::process::exit(Code::Usage as i32)
            }
            None => error.exit(),
        },
    }
}

/// The command line's definition. The value of an option may be a negative number, so that the error is
/// about the number.
fn command() -> Command {
    let allow = |argument: Arg| {
        let is_option = !argument.is_positional() && argument.get_action().takes_values();
        argument.allow_negative_numbers(is_option)
    };
    Cli::command().mut_subcommands(move |command| {
        command
            .mut_args(allow)
            .mut_subcommands(|c| c.mut_args(allow))
    })
}

/// Rewrites errors whose own words do not say what to do.
fn problem(error: &clap::Error, arguments: &[String]) -> Option<String> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let argument = text(ContextKind::InvalidArg)?;
    match error.kind() {
        ErrorKind::ValueValidation => {
            let expected = expected_number(error.source()?)?;
            let name = argument.split(' ').next().unwrap_or(argument);
            let value = text(ContextKind::InvalidValue)?;
            Some(format!("{name} must be {expected}, not {value:?}"))
        }
        ErrorKind::UnknownArgument => {
            let prompt = unquoted_prompt(argument, arguments)?;
            Some(format!(
                "unexpected argument {argument:?}; hint: a prompt of several words needs quotes: \"{prompt}\""
            ))
        }
        _ => None,
    }
}

/// What a number must be, if `source` is about one.
fn expected_number(source: &(dyn Error + 'static)) -> Option<String> {
    if source.is::<ParseIntError>() {
        return Some("a whole number of at least 0".to_string());
    }
    if source.is::<ParseFloatError>() {
        return Some("a number".to_string());
    }
    // From `RangedU64ValueParser`: "0 is not in 1..=10000".
    let text = source.to_string();
    let (_, range) = text.split_once(" is not in ")?;
    let (start, end) = range.split_once("..")?;
    let end = end.trim_start_matches('=');
    let is_open = end.is_empty()
        || end
            .parse::<u64>()
            .is_ok_and(|end| end > u64::from(u32::MAX));
    Some(if is_open {
        format!("a whole number of at least {start}")
    } else {
        format!("a whole number from {start} to {end}")
    })
}

/// The words of a prompt without quotes, of which `unexpected` is the second one.
fn unquoted_prompt(unexpected: &str, arguments: &[String]) -> Option<String> {
    let takes_prompt = ["generate", "explain"].map(|name| arguments.iter().any(|a| a == name));
    let at = arguments
        .iter()
        .rposition(|argument| argument == unexpected)?;
    if !takes_prompt.contains(&true) || unexpected.starts_with('-') {
        return None;
    }
    let is_word = |argument: &&String| !argument.starts_with('-');
    let first = arguments[..at].iter().next_back().filter(is_word)?;
    let rest = arguments[at..].iter().take_while(is_word);
    let words: Vec<&str> = std::iter::once(first)
        .chain(rest)
        .map(String::as_str)
        .collect();
    Some(words.join(" "))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn error_of(line: &str) -> Option<String> {
        let line: Vec<String> = std::iter::once("nextword")
            .chain(line.split(' '))
            .map(ToString::to_string)
            .collect();
        let error = command().try_get_matches_from(&line).unwrap_err();
        problem(&error, &line)
    }

    #[test]
    fn clap_accepts_the_changed_definition() {
        command().debug_assert();
    }

    #[test]
    fn a_wrong_number_is_named_with_what_it_must_be() {
        for (line, expected) in [
            (
                "generate r x -m -1",
                "--max-tokens must be a whole number of at least 0, not \"-1\"",
            ),
            (
                "generate r x --max-tokens many",
                "--max-tokens must be a whole number of at least 0",
            ),
            (
                "generate r x --top-k -5",
                "--top-k must be a whole number of at least 0, not \"-5\"",
            ),
            (
                "generate r x --top-p x",
                "--top-p must be a number, not \"x\"",
            ),
            (
                "generate r x -n 0",
                "--samples must be a whole number from 1 to 1024, not \"0\"",
            ),
            (
                "generate r x -n -3",
                "--samples must be a whole number of at least 0, not \"-3\"",
            ),
            (
                "explain r x --decimals 99",
                "--decimals must be a whole number from 0 to 9, not \"99\"",
            ),
            (
                "explain r x --top 0",
                "--top must be a whole number of at least 1, not \"0\"",
            ),
            (
                "explain r x --layer -1",
                "--layer must be a whole number of at least 0",
            ),
            (
                "explain r x --width a",
                "--width must be a whole number of at least 0",
            ),
            (
                "eval r x --batch-size 0",
                "--batch-size must be a whole number of at least 1, not \"0\"",
            ),
            (
                "eval r x --batch-size -2",
                "--batch-size must be a whole number of at least 0",
            ),
            (
                "serve r --slots 0",
                "--slots must be a whole number of at least 1, not \"0\"",
            ),
            (
                "serve r --queue -1",
                "--queue must be a whole number of at least 0",
            ),
            (
                "bench train --rounds 0",
                "--rounds must be a whole number from 1 to 10000",
            ),
            (
                "bench train --steps 0",
                "--steps must be a whole number of at least 1",
            ),
            (
                "bench decode --tokens 0",
                "--tokens must be a whole number of at least 1",
            ),
            (
                "plan c --steps -1",
                "--steps must be a whole number of at least 0",
            ),
            (
                "chat r -m x",
                "--max-tokens must be a whole number of at least 0",
            ),
            (
                "prepare t --out d --vocab-size -1",
                "--vocab-size must be a whole number of at least 0",
            ),
        ] {
            let problem = error_of(line).unwrap();
            assert!(problem.starts_with(expected), "{line}: {problem}");
        }
    }

    #[test]
    fn forgotten_quotes_are_recognized() {
        for (line, prompt) in [
            ("generate runs/a On a day", "On a day"),
            ("generate runs/a One day -m 3", "One day"),
            ("explain runs/a what is statquest", "what is statquest"),
            ("generate -m 3 runs/a to be or not", "to be or not"),
        ] {
            let problem = error_of(line).unwrap();
            assert!(
                problem.ends_with(&format!("needs quotes: \"{prompt}\"")),
                "{problem}"
            );
        }
        assert_eq!(error_of("generate r x --sed 3"), None);
        assert_eq!(error_of("devices extra"), None);
    }
}
