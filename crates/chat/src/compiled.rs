//! One template, compiled: what it reads, and how it runs within limits.

use std::io::{self, Write};
use std::sync::OnceLock;
use std::thread;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value};

use crate::repr::repr;
use crate::{ChatError, Json, functions, source};

/// Maximum instructions per rendering.
const FUEL: u64 = 1_000_000;
/// Maximum size of a rendered conversation, in bytes.
const MAX_OUTPUT_BYTES: usize = 4 << 20;
/// Maximum length of the message of a template's error, in characters.
const MAX_PROBLEM_CHARS: usize = 300;
/// Stack of the thread that runs a template, in bytes. A value can be nested as deeply as the instructions last,
/// and minijinja visits and drops it recursively. The system provides only the part that is used.
const STACK_BYTES: usize = 512 << 20;

const TEMPLATE_NAME: &str = "chat";
/// Functions of Jinja that are not available.
const MISSING_FUNCTIONS: [&str; 1] = ["lipsum"];

/// A template and what it does with its input.
#[derive(Debug)]
pub(crate) struct Compiled {
    environment: Environment<'static>,
    pub(crate) source: String,
    /// Variables that the template reads.
    reads: Vec<String>,
    /// Methods that no value has here: conversations that call them are rejected.
    pub(crate) unknown_methods: Vec<String>,
    /// Whether it has `{% generation %}` blocks.
    has_generation: bool,
    /// The same template with marks around the text of these blocks, made when it is first needed.
    marked: OnceLock<Option<Box<Compiled>>>,
}

impl Compiled {
    /// Parses a template.
    pub(crate) fn new(source: &str) -> Result<Self, Error> {
        Self::compile(source, false)
    }

    /// The template with [`functions::MARK_BEGIN`] and [`functions::MARK_END`] around the text of each
    /// `{% generation %}` block, if it has any.
    pub(crate) fn marked(&self) -> Option<&Self> {
        if !self.has_generation {
            return None;
        }
        let compile = || Self::compile(&self.source, true).ok().map(Box::new);
        self.marked.get_or_init(compile).as_deref()
    }

    fn compile(source: &str, marks: bool) -> Result<Self, Error> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        let mut syntax = SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true);
        environment.set_syntax(syntax.build()?);
        environment.set_formatter(|out, state, value| match repr(value)? {
            Some(text) => out.write_str(&text).map_err(Error::from),
            None => minijinja::escape_formatter(out, state, value),
        });
        functions::register(&mut environment);
        let (prepared, uses) = source::prepare(source, environment.syntax(), marks)?;
        check_names(&environment, &uses)?;
        environment.add_template_owned(TEMPLATE_NAME, prepared)?;
        let reads = environment
            .get_template(TEMPLATE_NAME)?
            .undeclared_variables(false);
        let mut unknown_methods = uses.unknown_methods;
        unknown_methods.sort_unstable();
        unknown_methods.dedup();
        Ok(Self {
            environment,
            source: source.to_owned(),
            reads: reads.into_iter().collect(),
            unknown_methods,
            has_generation: uses.has_generation,
            marked: OnceLock::new(),
        })
    }

    /// Whether the template reads the variable `name`.
    pub(crate) fn has_place_for(&self, name: &str) -> bool {
        self.reads.iter().any(|read| read == name)
    }

    /// Renders the template with `variables`, within its limits.
    pub(crate) fn render(&self, variables: &[(String, Json)]) -> Result<String, ChatError> {
        let rendered = on_large_stack(|| {
            let mut out = LimitedWriter(Vec::new());
            self.render_to(variables, &mut out).map_err(|e| {
                let problem = e.detail().map_or_else(|| e.to_string(), str::to_owned);
                problem.chars().take(MAX_PROBLEM_CHARS).collect::<String>()
            })?;
            Ok(String::from_utf8_lossy(&out.0).into_owned())
        });
        let rendered = rendered.unwrap_or_else(|e| Err(format!("it cannot run: {e}")));
        rendered.map_err(|problem| ChatError::Rejected { problem })
    }

    fn render_to(
        &self,
        variables: &[(String, Json)],
        out: &mut LimitedWriter,
    ) -> Result<(), Error> {
        let pairs = variables
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_value()));
        let template = self.environment.get_template(TEMPLATE_NAME)?;
        template.render_captured_to(Value::from_pairs(pairs), out)?;
        Ok(())
    }
}

/// Checks that the filters, tests and functions of a template exist.
fn check_names(environment: &Environment<'_>, uses: &source::Uses) -> Result<(), Error> {
    let mut state = environment.empty_state();
    for (test, names) in [("filter", &uses.filters), ("test", &uses.tests)] {
        for name in names {
            if !state.perform_test(test, &[Value::from(name.as_str())])? {
                let problem = format!("the {test} `{name}` is not available");
                return Err(Error::new(ErrorKind::SyntaxError, problem));
            }
        }
    }
    let missing = uses
        .functions
        .iter()
        .find(|name| MISSING_FUNCTIONS.contains(&name.as_str()));
    match missing {
        Some(name) => {
            let problem = format!("the function `{name}` is not available");
            Err(Error::new(ErrorKind::SyntaxError, problem))
        }
        None => Ok(()),
    }
}

/// Runs `work` on a thread with a stack of `STACK_BYTES`. Fails if the thread cannot be started.
fn on_large_stack<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("chat-template".to_owned());
        let thread = builder.stack_size(STACK_BYTES).spawn_scoped(scope, work)?;
        Ok(thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// A buffer limited to `MAX_OUTPUT_BYTES`.
struct LimitedWriter(Vec<u8>);

impl Write for LimitedWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT_BYTES {
            return Err(io::Error::other("the template's output is too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
