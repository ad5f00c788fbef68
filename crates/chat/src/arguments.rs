//! Arguments of filters, functions and methods, by position or by name.

use minijinja::value::{Kwargs, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

/// Maximum length of a text that a width or a count can ask for, in characters.
const MAX_WIDTH: i64 = 1 << 20;

/// Arguments bound to the names of parameters. `none` counts as absent, as in Python's defaults.
pub(crate) struct Arguments {
    names: &'static [&'static str],
    values: Vec<Option<Value>>,
}

impl Arguments {
    /// Binds `args` to parameters called `names`.
    pub(crate) fn bind(args: &[Value], names: &'static [&'static str]) -> Result<Self, Error> {
        let (positional, named): (&[Value], Kwargs) = from_args(args)?;
        if positional.len() > names.len() {
            return Err(Error::from(ErrorKind::TooManyArguments));
        }
        let bind = |(at, name): (usize, &&str)| match positional.get(at) {
            Some(value) => Ok(Some(value.clone())),
            None => named.get::<Option<Value>>(name),
        };
        let values: Result<Vec<_>, Error> = names.iter().enumerate().map(bind).collect();
        named.assert_all_used()?;
        let values = values?.into_iter();
        let values = values.map(|value| value.filter(|v| !v.is_none() && !v.is_undefined()));
        Ok(Self {
            names,
            values: values.collect(),
        })
    }

    pub(crate) fn get(&self, at: usize) -> Option<&Value> {
        self.values.get(at)?.as_ref()
    }

    /// A text, if it is given.
    pub(crate) fn text(&self, at: usize) -> Result<Option<&str>, Error> {
        let text = |value: &'_ Value| value.as_str().is_some();
        match self.get(at) {
            Some(value) if !text(value) => Err(self.problem(at, "a string")),
            value => Ok(value.and_then(Value::as_str)),
        }
    }

    pub(crate) fn required_text(&self, at: usize) -> Result<&str, Error> {
        self.text(at)?.ok_or_else(|| self.problem(at, "a string"))
    }

    /// An integer, if it is given. Python takes `true` for 1.
    pub(crate) fn integer(&self, at: usize) -> Result<Option<i64>, Error> {
        let Some(value) = self.get(at) else {
            return Ok(None);
        };
        if value.kind() == ValueKind::Bool {
            return Ok(Some(value.is_true().into()));
        }
        let number = value.as_i64().filter(|_| value.is_integer());
        number
            .map(Some)
            .ok_or_else(|| self.problem(at, "an integer"))
    }

    /// A width or a count, in characters, at least 0.
    pub(crate) fn width(&self, at: usize, default: usize) -> Result<usize, Error> {
        let Some(width) = self.integer(at)? else {
            return Ok(default);
        };
        if width > MAX_WIDTH {
            return Err(self.problem(at, "smaller"));
        }
        Ok(usize::try_from(width).unwrap_or(0))
    }

    pub(crate) fn flag(&self, at: usize, default: bool) -> bool {
        self.get(at).map_or(default, Value::is_true)
    }

    fn problem(&self, at: usize, expected: &str) -> Error {
        let name = self.names.get(at).unwrap_or(&"argument");
        invalid(format!("`{name}` must be {expected}"))
    }
}

/// An error of a filter, function or method.
pub(crate) fn invalid(problem: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem.into())
}

/// Charges a template for `bytes` of work or output.
pub(crate) fn charge(state: &State<'_, '_>, bytes: usize) -> Result<(), Error> {
    state.consume_fuel(bytes as u64 / 64)
}
