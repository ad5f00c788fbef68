//! The functions and filters that Hugging Face's templates expect besides Jinja's own.

use jiff::ZonedDateTime;
use jiff::fmt::strtime::{BrokenDownTime, Config, PosixCustom};
use minijinja::value::{Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use crate::arguments::{charge, invalid};
use crate::cycler::Cycler;
use crate::{filters, methods, repr, source};

/// Begins the text of a `{% generation %}` block in a marked template: a character without a meaning.
pub(crate) const MARK_BEGIN: char = '\u{10FFFC}';
/// Ends the text of a `{% generation %}` block in a marked template.
pub(crate) const MARK_END: char = '\u{10FFFD}';

/// Maximum length of a format of `strftime_now`, in bytes.
const MAX_FORMAT_BYTES: usize = 256;

/// Adds the functions of Jinja and of transformers, the filters, and the methods of Python's values.
pub(crate) fn register(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(methods::call);
    environment.remove_global("debug"); // Jinja has no such function.
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", |format: &str| {
        strftime(format, &ZonedDateTime::now())
    });
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
    environment.add_function("cycler", |items: Rest<Value>| Cycler::value(items.0));
    environment.add_function(source::REMAINDER, remainder);
    environment.add_filter(source::GENERATION, mark_generation);
    filters::register(environment);
}

/// The text of a `{% generation %}` block between two marks.
fn mark_generation(state: &State<'_, '_>, text: &str) -> Result<String, Error> {
    charge(state, text.len())?;
    Ok(format!("{MARK_BEGIN}{text}{MARK_END}"))
}

fn raise_exception(message: String) -> Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// Formats the values of a tuple, or one value, as Python's `%`.
fn printf(state: &mut State<'_, '_>, format: &str, values: &Value) -> Result<Value, Error> {
    let mut values: Vec<Value> = if values.is_tuple() {
        values.try_iter()?.collect()
    } else {
        vec![values.clone()]
    };
    let (mut plain, mut used) = (String::with_capacity(format.len()), 0);
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        // Flags, width and precision up to the letter that says how a value is converted.
        let options = rest[at + 1..].find(|c: char| !"#0- +123456789.*".contains(c));
        let Some(letter) = options.map(|options| at + 1 + options) else {
            break;
        };
        used += rest[at..letter].matches('*').count();
        plain.push_str(&rest[..letter]);
        rest = &rest[letter..];
        let is_key = rest.starts_with('(');
        if rest.starts_with('r') {
            if let Some(value) = values.get_mut(used) {
                *value = Value::from(repr::quoted(value)?);
            }
            plain.push('s');
            rest = &rest[1..];
        } else if let Some(c) = rest.chars().next() {
            plain.push(c);
            rest = &rest[c.len_utf8()..];
        }
        // `%%` converts nothing, and a key in brackets uses none of the values in turn.
        used += usize::from(!plain.ends_with("%%") && !is_key);
    }
    let is_map = values
        .first()
        .is_some_and(|value| value.kind() == ValueKind::Map);
    if used < values.len() && !is_map {
        return Err(invalid("not all values of % are converted by its format"));
    }
    plain.push_str(rest);
    let mut args = vec![Value::from(plain)];
    args.extend(values);
    state.apply_filter("format", &args)
}

/// `LEFT % RIGHT`: formats a string, or computes a remainder with the sign of the divisor.
fn remainder(state: &mut State<'_, '_>, left: &Value, right: &Value) -> Result<Value, Error> {
    if let Some(format) = left.as_str() {
        return printf(state, format, right);
    }
    let is_integer = |value: &Value| value.is_integer() || value.kind() == ValueKind::Bool;
    if is_integer(left) && is_integer(right) {
        let (left, right) = (
            i128::try_from(left.clone())?,
            i128::try_from(right.clone())?,
        );
        let rest = left
            .checked_rem(right)
            .ok_or_else(|| invalid("division by zero"))?;
        let has_other_sign = rest != 0 && (rest < 0) != (right < 0);
        let rest = if has_other_sign { rest + right } else { rest };
        return Ok(i64::try_from(rest).map_or_else(|_| Value::from(rest), Value::from));
    }
    let number = |value: &Value| match value.kind() {
        ValueKind::Number | ValueKind::Bool => f64::try_from(value.clone()),
        other => Err(invalid(format!(
            "the operator % does not work on a value of type {other}"
        ))),
    };
    let (left, right) = (number(left)?, number(right)?);
    if right == 0.0 {
        return Err(invalid("division by zero"));
    }
    let rest = left % right;
    let has_other_sign = rest != 0.0 && (rest < 0.0) != (right < 0.0);
    Ok(Value::from(if has_other_sign {
        rest + right
    } else {
        rest
    }))
}

/// Formats a local time like Python's `datetime.now().strftime(format)`. Unknown directives are copied
/// unchanged.
///
/// Two differences: `%Z` and `%z` are the name and offset of the time zone, where Python's time has none and
/// they are empty; `%f` has no trailing zeros.
fn strftime(format: &str, time: &ZonedDateTime) -> Result<String, Error> {
    if format.len() > MAX_FORMAT_BYTES {
        return Err(invalid(format!(
            "the format of strftime_now must have at most {MAX_FORMAT_BYTES} bytes"
        )));
    }
    let config = Config::new().custom(PosixCustom::new()).lenient(true);
    let text = BrokenDownTime::from(time).to_string_with_config(&config, format);
    text.map_err(|e| invalid(e.to_string()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use jiff::Timestamp;
    use jiff::tz::TimeZone;

    use super::*;

    fn utc(format: &str, seconds: i64) -> String {
        let time = Timestamp::from_second(seconds).unwrap();
        strftime(format, &time.to_zoned_datetime(TimeZone::UTC)).unwrap()
    }

    #[test]
    fn dates_match_gnu_date() {
        // date -u -d @N '+%d %b %Y|%A|%j|%H:%M:%S|%I %p|%-d'
        for (seconds, expected) in [
            (0, "01 Jan 1970|Thursday|001|00:00:00|12 AM|1"),
            (951_782_399, "28 Feb 2000|Monday|059|23:59:59|11 PM|28"),
            (951_782_400, "29 Feb 2000|Tuesday|060|00:00:00|12 AM|29"),
            (1_735_689_599, "31 Dec 2024|Tuesday|366|23:59:59|11 PM|31"),
            (1_735_689_600, "01 Jan 2025|Wednesday|001|00:00:00|12 AM|1"),
            (4_107_542_400, "01 Mar 2100|Monday|060|00:00:00|12 AM|1"),
        ] {
            let format = "%d %b %Y|%A|%j|%H:%M:%S|%I %p|%-d";
            assert_eq!(utc(format, seconds), expected);
        }
    }

    #[test]
    fn formats_match_python() {
        // datetime.fromtimestamp(1751362205, UTC).replace(tzinfo=None).strftime(...)
        for (format, expected) in [
            ("%c", "Tue Jul  1 09:30:05 2025"),
            (
                "%x|%X|%D|%F|%T",
                "07/01/25|09:30:05|07/01/25|2025-07-01|09:30:05",
            ),
            ("%y %m %e %h %B", "25 07  1 Jul July"),
            ("%U %W %V %G %u %w %j", "26 26 27 2025 2 2 182"),
            ("%-I:%M %p, %-m/%-d", "9:30 AM, 7/1"),
        ] {
            assert_eq!(utc(format, 1_751_362_205), expected, "{format}");
        }
    }

    #[test]
    fn unknown_directives_are_copied() {
        assert_eq!(utc("100%% of é %E%", 0), "100% of é %E%");
        assert_eq!(utc("%-é%", 0), "%-é%");
    }

    #[test]
    fn long_formats_are_rejected() {
        let now = ZonedDateTime::now();
        assert!(strftime(&"%255d".repeat(51), &now).unwrap().len() < 2000);
        assert!(strftime(&"x".repeat(257), &now).is_err());
    }
}
