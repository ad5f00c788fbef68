//! Looks into the model while it learns, for those who want to see it form.

use std::sync::Arc;

use burn::module::Module;
use nextword_model::write_atomically;
use serde_json::{Value, json};

use super::Trainer;
use crate::report::{Hooks, Reporter};

impl Trainer {
    /// Keeps what the model makes of the probe sentences, when due.
    pub(super) fn look(
        &mut self,
        at_end: bool,
        reporter: &mut dyn Reporter,
        hooks: &mut dyn Hooks,
    ) {
        let config = &self.ingredients.config;
        let step = self.state.step;
        let every = match config.probes.every {
            0 => config.validation.every,
            every => every,
        };
        let due = step == 0 || at_end || every > 0 && step.is_multiple_of(every);
        if config.probes.sentences.is_empty() || !due {
            return;
        }
        let plain = self.model().valid();
        let tokenizer = Arc::clone(&self.ingredients.dataset.tokenizer);
        let mut seen: Vec<Value> = Vec::new();
        for sentence in &config.probes.sentences {
            match hooks.look(&plain, &tokenizer, sentence) {
                Ok(found) => seen.extend(found),
                Err(e) => reporter.warned(&format!("no look at step {step}: {e}")),
            }
        }
        if seen.is_empty() {
            return;
        }
        let folder = self.folder.path().join("probes");
        let file = folder.join(format!("step-{step:08}.json"));
        let record = json!({"step": step, "loss": self.state.loss, "sentences": seen});
        let written = std::fs::create_dir_all(&folder)
            .map_err(|e| e.to_string())
            .and_then(|()| {
                write_atomically(&file, record.to_string().as_bytes()).map_err(|e| e.to_string())
            });
        if let Err(e) = written {
            reporter.warned(&format!("cannot keep the look at step {step}: {e}"));
        }
    }
}
