//! What a resumed run reads from the model that it saved, before it reads its checkpoint.

use std::path::PathBuf;

use nextword_model::{AdapterDir, ModelCard, ModelDir};

use crate::RunConfig;

/// The folders in which the run that `config` resumes saved its model; none for a new run.
fn folders(config: &RunConfig) -> impl Iterator<Item = PathBuf> {
    let run = config.run_folder.as_ref();
    run.into_iter()
        .flat_map(|run| ["last", "best"].map(|name| run.join(name)))
}

/// The card of the model that a resumed run saved, if all weights are trained and the run no longer needs the model that
/// it started from.
pub(crate) fn saved_card(config: &RunConfig) -> Option<ModelCard> {
    if config.start_from.is_some() || config.lora.is_some() {
        return None;
    }
    let mut cards = folders(config).filter_map(|path| Some(ModelDir::open(&path).ok()?.card));
    cards.find(|card| card.check_templates().is_ok())
}

/// The adapter that a resumed run saved.
pub(crate) fn saved_adapter(config: &RunConfig) -> Option<AdapterDir> {
    config.lora.as_ref()?;
    let mut saved = folders(config).filter_map(|path| AdapterDir::open(&path).ok());
    saved.find(|adapter| adapter.card.check_templates().is_ok())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn only_the_runs_own_model_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        fs::create_dir_all(run.join("last")).unwrap();
        fs::write(run.join("run.toml"), "").unwrap();
        let model = Path::new("../../docs/models/letters");
        for file in ["config.json", "card.json", "tokenizer.json"] {
            fs::copy(model.join(file), run.join("last").join(file)).unwrap();
        }
        let tokenizer = run.join("tokenizer.json");
        fs::copy(model.join("tokenizer.json"), &tokenizer).unwrap();
        let mut config = RunConfig::default();
        config.data.tokenizer.file = Some(tokenizer);
        assert!(
            saved_card(&config).is_none(),
            "a new run with this tokenizer"
        );
        config.run_folder = Some(folder.path().join("other"));
        assert!(saved_card(&config).is_none(), "another run");
        config.run_folder = Some(run.clone());
        assert_eq!(saved_card(&config).unwrap().name, "letters");
        config.start_from = Some(run);
        assert!(saved_card(&config).is_none(), "a run that needs its source");
    }
}
