//! `nextword plan CONFIG --minutes N`.

use std::path::Path;

use nextword_experiments::ExperimentError;
use nextword_experiments::scaling::{
    MAX_EPOCHS, SizeLimit, TOKENS_PER_PARAMETER, TimedPlan, plan_for_minutes,
};
use nextword_train::{RunConfig, to_toml};
use serde_json::json;

use super::{PlanArgs, print_plan};
use crate::format::{grouped, short};
use crate::{exit, output};

/// Chooses a model and a number of steps, prints the plan, and writes the configuration.
pub(super) fn run(args: &PlanArgs, config: &RunConfig, minutes: f64) -> anyhow::Result<()> {
    if let Some(file) = &args.out {
        check_out(file)?;
    }
    let mut on_measure = |layers: usize, width: usize| {
        let layers = crate::format::count(layers as u64, "layer");
        output::eprint_line(&format!("measuring {layers} of width {width}"));
    };
    let mut planned =
        plan_for_minutes(config, minutes, &mut on_measure).map_err(|error| match error {
            ExperimentError::Memory(shortage) => anyhow::Error::from(shortage),
            error => error.into(),
        })?;
    if let Some(file) = &args.out {
        rename(&mut planned.config, file);
        planned.plan.name.clone_from(&planned.config.name);
    }
    let text = to_toml(&planned.config)?;
    if let Some(file) = &args.out {
        nextword_model::write_atomically(file, text.as_bytes())?;
    }
    if args.json {
        return output::print_json(&json!({
            "plan": planned.plan, "tokens": planned.tokens, "limit": planned.limit, "config": text,
        }));
    }
    print_plan(&planned.plan, false)?;
    for line in choice_lines(&planned) {
        output::print_line(&line)?;
    }
    match &args.out {
        Some(file) => output::print_line(&format!("written to {}", file.display())),
        None => output::print_line("save this configuration with --out FILE"),
    }
}

/// An existing configuration of the user is not replaced.
fn check_out(file: &Path) -> anyhow::Result<()> {
    if file.exists() {
        return Err(exit::usage(format!(
            "`{}` already exists; hint: choose another name with --out",
            file.display()
        )));
    }
    Ok(())
}

/// Names the planned run after its file, so that it does not go into the folder of another run: with a number behind
/// it, if there is a run of that name.
fn rename(config: &mut RunConfig, file: &Path) {
    let stem = file.file_stem().map(|stem| stem.to_string_lossy());
    let stem = stem.map_or_else(|| config.name.clone(), String::from);
    let numbers = std::iter::once(String::new()).chain((2..).map(|number| format!("-{number}")));
    let parent = config.folder().parent().map(Path::to_path_buf);
    let parent = parent.unwrap_or_default();
    for number in numbers {
        let name = format!("{stem}{number}");
        let folder = parent.join(&name);
        if !folder.exists() {
            config.out = config.out.is_some().then_some(folder);
            config.name = name;
            return;
        }
    }
}

/// What was chosen, and why.
fn choice_lines(planned: &TimedPlan) -> Vec<String> {
    let TimedPlan { config, plan, .. } = planned;
    let model = &config.model;
    let ratio = planned.tokens as f64 / plan.parameters.total.max(1) as f64;
    let why = match planned.limit {
        SizeLimit::Time => format!(
            "a larger model would see less than {TOKENS_PER_PARAMETER} tokens per parameter"
        ),
        SizeLimit::Data => {
            format!("a larger model would need more than {MAX_EPOCHS} passes over the text")
        }
        SizeLimit::Memory => "a larger model does not fit into memory".to_string(),
        SizeLimit::Largest => "there is no larger size to choose".to_string(),
    };
    let mut lines = vec![
        format!(
            "  chosen       model.n_layers = {}, model.d_model = {}, model.n_heads = {}",
            model.n_layers, model.d_model, model.n_heads
        ),
        format!(
            "               train.steps = {}: {} tokens, {ratio:.0} per parameter",
            grouped(config.train.steps),
            short(planned.tokens as f64)
        ),
        format!("               {why}"),
    ];
    if planned.is_shortened {
        lines.push(format!(
            "               the run takes less than the time: more than {MAX_EPOCHS} passes over the text would hardly help"
        ));
    }
    lines
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_planned_run_gets_a_folder_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = RunConfig {
            name: "quickstart".to_string(),
            out: Some(folder.path().join("quickstart")),
            ..RunConfig::default()
        };
        config.data.builtin = Some(nextword_data::Builtin::Stories);
        std::fs::create_dir(config.folder()).unwrap();
        for expected in ["planned", "planned-2", "planned-3"] {
            rename(&mut config, Path::new("configs/planned.toml"));
            assert_eq!(config.name, expected);
            assert_eq!(config.folder(), folder.path().join(expected));
            config.validate().unwrap();
            std::fs::create_dir(config.folder()).unwrap();
        }
        config.out = None;
        rename(&mut config, Path::new("a run that nobody has.toml"));
        assert_eq!(config.folder(), Path::new("runs/a run that nobody has"));
    }
}
