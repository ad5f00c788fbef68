//! Methods of Python's strings, lists and dicts.

mod ranges;
mod split;
mod strings;

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use crate::arguments::{Arguments, invalid};

pub(crate) use self::split::lines;
pub(crate) use self::strings::center;

/// Methods that change a list or a dict, which chat templates may not do.
const MUTATING: &[&str] = &[
    "append",
    "clear",
    "extend",
    "insert",
    "pop",
    "popitem",
    "remove",
    "reverse",
    "setdefault",
    "sort",
    "update",
];

/// All methods that a template can call, besides its own macros.
const KNOWN: &[&str] = &[
    "capitalize",
    "casefold",
    "center",
    "changed",
    "copy",
    "count",
    "cycle",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "get",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "islower",
    "isnumeric",
    "isspace",
    "istitle",
    "isupper",
    "items",
    "join",
    "keys",
    "ljust",
    "lower",
    "lstrip",
    "next",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "reset",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "values",
    "zfill",
];

/// Whether `name` is a method that templates can call here.
pub(crate) fn is_known(name: &str) -> bool {
    KNOWN.contains(&name)
}

/// Calls a method that minijinja does not have.
pub(crate) fn call(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let result = match value.kind() {
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            strings::call(state, text, method, args)?
        }
        ValueKind::Seq | ValueKind::Iterable => list_method(value, method, args)?,
        ValueKind::Map if method == "copy" => {
            Arguments::bind(args, &[])?;
            Some(value.clone())
        }
        _ => None,
    };
    if let Some(result) = result {
        return Ok(result);
    }
    let is_container = matches!(
        value.kind(),
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map
    );
    if is_container
        && MUTATING.contains(&method)
        && value.get_attr(method).is_ok_and(|v| v.is_undefined())
    {
        return Err(invalid(format!(
            "`{method}` changes a {}, which chat templates may not do",
            value.kind()
        )));
    }
    pycompat::unknown_method_callback(state, value, method, args)
}

fn list_method(value: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "copy" => {
            Arguments::bind(args, &[])?;
            value.clone()
        }
        "count" => {
            let args = Arguments::bind(args, &["value"])?;
            let wanted = args.get(0).cloned().unwrap_or_else(|| Value::from(()));
            Value::from(value.try_iter()?.filter(|item| *item == wanted).count())
        }
        "index" => {
            let args = Arguments::bind(args, &["value", "start", "stop"])?;
            let wanted = args.get(0).cloned().unwrap_or_else(|| Value::from(()));
            let items: Vec<Value> = value.try_iter()?.collect();
            let range = ranges::clamp(args.integer(1)?, args.integer(2)?, items.len());
            let found = range.into_iter().flatten().find(|at| items[*at] == wanted);
            let found = found.ok_or_else(|| {
                Error::new(ErrorKind::InvalidOperation, "the value is not in the list")
            })?;
            Value::from(found)
        }
        _ => return Ok(None),
    }))
}
