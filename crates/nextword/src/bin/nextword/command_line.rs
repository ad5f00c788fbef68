//! Parses the command line, with errors that name the argument and the fix.

use std::error::Error;
use std::num::{IntErrorKind, ParseFloatError, ParseIntError};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
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
    let argument = context(error, ContextKind::InvalidArg)?;
    match error.kind() {
        ErrorKind::ValueValidation => {
            let value = context(error, ContextKind::InvalidValue)?;
            let range = || range_of(argument, value, arguments);
            let expected = expected_number(error.source()?, range)?;
            let name = argument.split(' ').next().unwrap_or(argument);
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

fn context(error: &clap::Error, kind: ContextKind) -> Option<&str> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text),
        _ => None,
    }
}

/// The smallest and the largest whole number that an argument takes.
type Range = (u64, u64);

/// What a number must be, if `source` is about one. `range` is that of the argument, which errors about text
/// that is not a number, or is negative, do not state.
fn expected_number(
    source: &(dyn Error + 'static),
    range: impl FnOnce() -> Option<Range>,
) -> Option<String> {
    if source.is::<ParseFloatError>() {
        return Some("a number".to_string());
    }
    let parse = source.downcast_ref::<ParseIntError>();
    let (start, end) = match parse {
        Some(_) => range().unwrap_or((0, u64::MAX)),
        None => stated_range(source)?,
    };
    let is_too_large = parse.is_some_and(|error| *error.kind() == IntErrorKind::PosOverflow);
    let is_open = end > u64::from(u32::MAX) && !is_too_large;
    Some(if is_open {
        format!("a whole number of at least {start}")
    } else {
        format!("a whole number from {start} to {end}")
    })
}

/// The range in an error such as "0 is not in 1..=10000".
fn stated_range(source: &(dyn Error + 'static)) -> Option<Range> {
    let text = source.to_string();
    let (_, range) = text.split_once(" is not in ")?;
    let (start, end) = range.split_once("..")?;
    let end = match end.strip_prefix('=') {
        Some(end) => end.parse().ok()?,
        None if end.is_empty() => u64::MAX,
        None => end.parse::<u64>().ok()?.saturating_sub(1),
    };
    Some((start.parse().ok()?, end))
}

/// The range of `argument`, from the errors for very small and large numbers in the place of `value`. `None` if
/// it takes both.
fn range_of(argument: &str, value: &str, arguments: &[String]) -> Option<Range> {
    // Not `u64::MAX`, which parsers of signed numbers do not read.
    [0, i64::MAX].iter().find_map(|number| {
        let replace = |given: &String| {
            let before = given.strip_suffix(value);
            let is_short = |option: &str| option.len() == 2 && option.starts_with('-');
            match before {
                Some(option) if option.is_empty() || option.ends_with('=') || is_short(option) => {
                    format!("{option}{number}")
                }
                _ => given.clone(),
            }
        };
        let error = command()
            .try_get_matches_from(arguments.iter().map(replace))
            .err()?;
        let is_same = context(&error, ContextKind::InvalidArg) == Some(argument);
        stated_range(error.source()?).filter(|_| is_same)
    })
}

/// The words of a prompt without quotes, of which `unexpected` is the second one: the word before it is the
/// prompt, and not the value of an option.
fn unquoted_prompt(unexpected: &str, arguments: &[String]) -> Option<String> {
    let is_word = |argument: &&String| !argument.starts_with('-');
    let first = (0..arguments.len().checked_sub(1)?).find(|first| {
        arguments[first + 1] == unexpected
            && has_prompt(&arguments[..*first]) == Some(false)
            && has_prompt(&arguments[..=*first]) == Some(true)
    })?;
    let words: Vec<&str> = arguments[first..]
        .iter()
        .take_while(is_word)
        .map(String::as_str)
        .collect();
    (words.len() > 1).then(|| words.join(" "))
}

/// Whether `arguments` contain a prompt. `None` if they are not valid by themselves, or if the subcommand takes
/// no prompt.
fn has_prompt(arguments: &[String]) -> Option<bool> {
    let matches = command().try_get_matches_from(arguments).ok()?;
    let (_, matches) = matches.subcommand()?;
    matches.try_contains_id("prompt").ok()?;
    Some(matches.value_source("prompt") == Some(ValueSource::CommandLine))
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
    #[allow(clippy::too_many_lines)] // A table.
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
                "--samples must be a whole number from 1 to 1024, not \"-3\"",
            ),
            (
                "generate r x -n=many",
                "--samples must be a whole number from 1 to 1024, not \"many\"",
            ),
            (
                "generate r 3 --samples=-3",
                "--samples must be a whole number from 1 to 1024, not \"-3\"",
            ),
            (
                "generate r x -n 99999999999999999999",
                "--samples must be a whole number from 1 to 1024",
            ),
            (
                "generate r x -m 99999999999999999999",
                "--max-tokens must be a whole number from 0 to 18446744073709551615",
            ),
            (
                "explain r x --decimals -1",
                "--decimals must be a whole number from 0 to 9, not \"-1\"",
            ),
            (
                "explain r x --top -1 --width -2",
                "--top must be a whole number of at least 1, not \"-1\"",
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
                "--batch-size must be a whole number of at least 1, not \"-2\"",
            ),
            (
                "serve r --slots 0",
                "--slots must be a whole number of at least 1, not \"0\"",
            ),
            (
                "serve r --slots -4",
                "--slots must be a whole number of at least 1, not \"-4\"",
            ),
            (
                "serve r --slots two",
                "--slots must be a whole number of at least 1, not \"two\"",
            ),
            (
                "bench train --rounds -1",
                "--rounds must be a whole number from 1 to 10000, not \"-1\"",
            ),
            (
                "serve r --port -1",
                "--port must be a whole number from 0 to 65535, not \"-1\"",
            ),
            (
                "serve r --port http",
                "--port must be a whole number from 0 to 65535, not \"http\"",
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
    fn a_mistyped_option_is_not_a_prompt() {
        let parse = |line: &str| {
            let line = std::iter::once("nextword").chain(line.split(' '));
            command().try_get_matches_from(line)
        };
        for (line, argument) in [
            ("generate r --temperture=0 -m 5", "--temperture"),
            ("generate r --temperture 0", "--temperture"),
            ("generate --temperture=0 r", "--temperture"),
            ("generate r -T 1", "-T"),
            ("generate r -x", "-x"),
            ("generate r x --sed 3", "--sed"),
            ("explain r --breif", "--breif"),
            ("explain r x --breif", "--breif"),
            ("explain r -b", "-b"),
            ("chat r --temperture=0", "--temperture"),
            ("eval r a.txt --temperture=0", "--temperture"),
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnknownArgument, "{line}");
            let found = context(&error, ContextKind::InvalidArg);
            assert_eq!(found, Some(argument), "{line}");
        }
        for (line, prompt) in [
            ("generate r -- --temperture=0", "--temperture=0"),
            ("generate r -m 5 -- -x", "-x"),
            ("generate r -", "-"),
            ("explain r -- --breif", "--breif"),
        ] {
            let matches = parse(line).unwrap();
            let (_, matches) = matches.subcommand().unwrap();
            let found = matches.get_one::<String>("prompt").map(String::as_str);
            assert_eq!(found, Some(prompt), "{line}");
        }
    }

    #[test]
    fn forgotten_quotes_are_recognized() {
        for (line, prompt) in [
            ("generate runs/a On a day", "On a day"),
            ("generate runs/a One day -m 3", "One day"),
            ("explain runs/a what is statquest", "what is statquest"),
            ("generate -m 3 runs/a to be or not", "to be or not"),
            ("generate runs/a to be to be", "to be to be"),
            ("generate runs/a 3 day -m 3", "3 day"),
            ("explain --head 0 runs/a one two --head 1", "one two"),
        ] {
            let problem = error_of(line).unwrap();
            assert!(
                problem.ends_with(&format!("needs quotes: \"{prompt}\"")),
                "{problem}"
            );
        }
        for line in [
            "generate r x --sed 3",
            "devices extra",
            "explain r x --head 0 1",
            "explain r x --layer 0 1 2",
            "explain r x --top 3 x",
            "generate r One -m 3 day",
            "generate r One -m=3 day",
            "generate r One --raw day",
            "generate r One --stop x day",
            "generate r One --temperature 0.5 day",
            "inspect r x",
        ] {
            assert_eq!(error_of(line), None, "{line}");
        }
    }
}
