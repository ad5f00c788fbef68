//! Jinja's `cycler`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::value::{Object, ObjectRepr};
use minijinja::{Error, ErrorKind, State, Value};

use crate::arguments::{Arguments, invalid};

/// Values that are taken in turn.
#[derive(Debug)]
pub(crate) struct Cycler {
    items: Vec<Value>,
    /// Index of the current value.
    position: AtomicUsize,
}

impl Cycler {
    pub(crate) fn value(items: Vec<Value>) -> Result<Value, Error> {
        if items.is_empty() {
            return Err(invalid("a cycler needs at least one value"));
        }
        Ok(Value::from_object(Self {
            items,
            position: AtomicUsize::new(0),
        }))
    }

    fn current(&self) -> Value {
        let position = self.position.load(Ordering::Relaxed);
        self.items.get(position).cloned().unwrap_or_default()
    }
}

impl Object for Cycler {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        (key.as_str() == Some("current")).then(|| self.current())
    }

    fn call_method(
        self: &Arc<Self>,
        _: &mut State<'_, '_>,
        method: &str,
        args: &[Value],
    ) -> Result<Value, Error> {
        let next = match method {
            "next" => (self.position.load(Ordering::Relaxed) + 1) % self.items.len(),
            "reset" => 0,
            _ => return Err(Error::from(ErrorKind::UnknownMethod)),
        };
        Arguments::bind(args, &[])?;
        let current = self.current();
        self.position.store(next, Ordering::Relaxed);
        Ok(if method == "next" {
            current
        } else {
            Value::from(())
        })
    }
}
