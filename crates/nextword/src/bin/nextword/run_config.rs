//! The configuration of a run, from the command line, and checks before the run starts.

use std::path::Path;

use nextword_train::plan::Plan;
use nextword_train::{RunConfig, RunSetup, TrainError, read_config};

use crate::{exit, output};

/// Reads the configuration in `path` and applies the command line's overrides.
pub(crate) fn load(path: &Path, set: &[String], device: Option<&str>) -> anyhow::Result<RunConfig> {
    let config = read_config(path, set).map_err(|error| match error {
        // A missing configuration file is a usage error, not a data error.
        TrainError::Io { .. } => exit::usage(format!(
            "{error}; hint: pass a TOML configuration file, e.g. configs/quickstart.toml"
        )),
        other => other.into(),
    });
    let mut config = config?;
    if let Some(device) = device {
        config.device = device.to_string();
    }
    Ok(config)
}

/// Prints the warnings about the configuration, which a run that starts reports itself.
pub(crate) fn print_warnings(setup: &RunSetup) {
    for warning in &setup.config.warnings {
        output::eprint_line(&format!("warning: {warning}"));
    }
}

/// Refuses a run in `folder` that cannot fit into memory or on the disk, and warns about one that may not.
pub(crate) fn check_resources(plan: &Plan, folder: &Path) -> anyhow::Result<()> {
    check_memory(plan)?;
    match plan.disk_shortage(folder) {
        Some(shortage) if shortage.is_certain() => return Err(shortage.into()),
        Some(shortage) => output::eprint_line(&format!("warning: {shortage}")),
        None => {}
    }
    Ok(())
}

/// Refuses a run that cannot fit into memory and warns about one that may not.
pub(crate) fn check_memory(plan: &Plan) -> anyhow::Result<()> {
    match plan.memory_shortage() {
        Some(shortage) if shortage.is_certain() => return Err(shortage.into()),
        Some(shortage) => output::eprint_line(&format!("warning: {shortage}")),
        None => {}
    }
    Ok(())
}
