//! The functions and filters that Hugging Face's templates expect besides Jinja's own.

use jiff::ZonedDateTime;
use jiff::fmt::strtime::{BrokenDownTime, Config, PosixCustom};
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};

/// Maximum indentation of `tojson`, in spaces.
const MAX_INDENT: i64 = 16;
/// Maximum length of a format of `strftime_now`, in bytes.
const MAX_FORMAT_BYTES: usize = 256;

/// Adds `raise_exception`, `strftime_now`, `tojson` and the methods of Python's strings, lists and dicts.
pub(crate) fn register(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", |format: &str| {
        strftime(format, &ZonedDateTime::now())
    });
    environment.add_filter("tojson", tojson);
}

fn raise_exception(message: String) -> Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// Formats a local time like Python's `datetime.now().strftime(format)`. Unknown directives are copied
/// unchanged.
///
/// Two differences: `%Z` and `%z` are the name and offset of the time zone, where Python's time has none and
/// they are empty; `%f` has no trailing zeros.
fn strftime(format: &str, time: &ZonedDateTime) -> Result<String, Error> {
    let invalid = |problem: String| Error::new(ErrorKind::InvalidOperation, problem);
    if format.len() > MAX_FORMAT_BYTES {
        return Err(invalid(format!(
            "the format of strftime_now must have at most {MAX_FORMAT_BYTES} bytes"
        )));
    }
    let config = Config::new().custom(PosixCustom::new()).lenient(true);
    let text = BrokenDownTime::from(time).to_string_with_config(&config, format);
    text.map_err(|e| invalid(e.to_string()))
}

/// `tojson` as in Hugging Face's templates: minijinja's own also escapes characters for HTML.
fn tojson(
    state: &State<'_, '_>,
    value: &Value,
    indent: Option<Value>,
    options: Kwargs,
) -> Result<String, Error> {
    for ignored in ["ensure_ascii", "separators", "sort_keys"] {
        options.get::<Option<Value>>(ignored)?;
    }
    let indent = match indent {
        None => options.get::<Option<Value>>("indent")?,
        given => given,
    };
    let is_valid = |indent: &Value| {
        indent.is_none()
            || indent.kind() == ValueKind::Bool
            || indent
                .as_i64()
                .is_some_and(|spaces| (0..=MAX_INDENT).contains(&spaces))
    };
    if !indent.as_ref().is_none_or(is_valid) {
        let problem = format!("the indent of tojson must be from 0 to {MAX_INDENT} spaces");
        return Err(Error::new(ErrorKind::InvalidOperation, problem));
    }
    let json = minijinja::filters::tojson(value, indent, options)?;
    let json = json.as_str().unwrap_or_default();
    state.consume_fuel(json.len() as u64 / 64)?;
    Ok(unescape_html(json))
}

/// Replaces the four escapes that minijinja adds for HTML.
fn unescape_html(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        out.push_str(before);
        let plain = match escape.get(..6) {
            Some("\\u003c") => '<',
            Some("\\u003e") => '>',
            Some("\\u0026") => '&',
            Some("\\u0027") => '\'',
            _ => {
                // Copy the next character too: it may be another backslash.
                out.push_str(&escape[..2]);
                rest = &escape[2..];
                continue;
            }
        };
        out.push(plain);
        rest = &escape[6..];
    }
    out + rest
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
