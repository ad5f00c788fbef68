//! What a sweep's folder says about the sweep, so that a later call continues the same one.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use nextword_train::{parse_stored_config, to_toml};
use serde::{Deserialize, Serialize};

use super::Budget;
use super::run::to_json;
use crate::ExperimentError;

/// The file in the folder of a sweep.
const DEFINITION: &str = "sweep.json";

/// What all runs of a sweep share. Values and seeds may be added later, this may not change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Definition {
    /// The configuration without what is varied, as TOML with every default.
    pub(super) config: String,
    /// The length of the runs, if it is not the configuration's.
    pub(super) budget: Option<Budget>,
    /// The number of updates of each arm, by its name, where the budget determines it.
    #[serde(default)]
    pub(super) steps: BTreeMap<String, u64>,
}

impl Definition {
    /// The definition in `folder` with its steps, or `self` if there is none.
    ///
    /// # Errors
    /// [`ExperimentError::Sweep`] if the folder has another sweep.
    pub(super) fn continued(mut self, folder: &Path) -> Result<Self, ExperimentError> {
        let path = folder.join(DEFINITION);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(self),
            Err(error) => return Err(ExperimentError::io(&path, "read")(error)),
        };
        let earlier: Self = serde_json::from_str(&text).map_err(|error| {
            let problem = format!("not the definition of a sweep: {error}");
            ExperimentError::sweep(
                &path,
                format!("{problem}; hint: choose another folder with --out"),
            )
        })?;
        // A later version may write more defaults.
        let stored = parse_stored_config(&earlier.config, &path, &[])?;
        let changed = if to_toml(&stored)? != self.config {
            "the configuration has changed"
        } else if earlier.budget != self.budget {
            "--steps, --tokens or --minutes has changed"
        } else {
            self.steps = earlier.steps;
            return Ok(self);
        };
        Err(ExperimentError::sweep(
            folder,
            format!(
                "this folder has the runs of another sweep: {changed}; hint: choose another folder with --out, or repeat \
                 the command as it was"
            ),
        ))
    }

    /// Writes the definition.
    pub(super) fn write(&self, folder: &Path) -> Result<(), ExperimentError> {
        fs::create_dir_all(folder).map_err(ExperimentError::io(folder, "create"))?;
        let path = folder.join(DEFINITION);
        nextword_base::atomic::write(&path, to_json(self).as_bytes())
            .map_err(ExperimentError::io(&path, "write"))
    }
}
