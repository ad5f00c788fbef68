//! The problems of an adapter's file. One wrong setting can affect every tensor, so that alike ones become one line.

/// What is wrong with a tensor or a module, where many can have the same problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The base model does not have the module, or it cannot be adapted.
    Module,
    /// Another rank than the settings give.
    Rank,
    /// Another shape than the base model requires.
    Shape,
    /// NaN or infinity.
    NotFinite,
}

/// Problems in the order in which they were found.
#[derive(Debug, Default)]
pub(super) struct Problems {
    lines: Vec<(Option<Kind>, String)>,
}

impl Problems {
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Adds a problem that is shown by itself.
    pub(super) fn push(&mut self, line: String) {
        self.lines.push((None, line));
    }

    /// Adds a problem of which only the first of its kind is shown.
    pub(super) fn push_kind(&mut self, kind: Kind, line: String) {
        self.lines.push((Some(kind), line));
    }

    /// The lines of the error: of each kind the first one, with the number of others.
    pub(super) fn into_lines(self) -> Vec<String> {
        let count = |kind: Kind| {
            let alike = self.lines.iter();
            alike.filter(|(other, _)| *other == Some(kind)).count()
        };
        let mut shown = Vec::new();
        let mut lines = Vec::new();
        for (kind, line) in &self.lines {
            match kind {
                None => lines.push(line.clone()),
                Some(kind) if shown.contains(kind) => {}
                Some(kind) => {
                    shown.push(*kind);
                    lines.push(match count(*kind) - 1 {
                        0 => line.clone(),
                        more => format!("{line} (and {more} more with the same problem)"),
                    });
                }
            }
        }
        lines
    }
}
