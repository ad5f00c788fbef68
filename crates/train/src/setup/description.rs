//! The data of a run in words, its hash, and warnings about it.

use nextword_data::{unknown_note, whole_documents_note};

use super::RunSetup;
use crate::conversations::Conversations;
use crate::pairs::Pairs;

/// Bytes of text from which it matters that one thread encodes a document.
const LONG_TEXT: u64 = 1 << 20;

/// Names the files in a list of sources as they are named in the working directory, if they are in it.
fn from_working_dir(sources: &str) -> String {
    let Ok(base) = std::env::current_dir().and_then(std::fs::canonicalize) else {
        return sources.to_string();
    };
    let names = sources.split(", ").map(|name| {
        let inside = std::path::Path::new(name).strip_prefix(&base);
        inside
            .ok()
            .and_then(|inside| inside.to_str())
            .unwrap_or(name)
    });
    names.collect::<Vec<_>>().join(", ")
}

impl RunSetup {
    /// Identifies the data, so that a resumed run can check that it is unchanged.
    pub fn data_fingerprint(&self) -> String {
        let of_conversations = self.conversations.as_ref().map(Conversations::fingerprint);
        let of_samples = of_conversations.or(self.pairs.as_ref().map(Pairs::fingerprint));
        if let Some(samples) = of_samples {
            return format!("{samples}, vocabulary {}", self.dataset.tokenizer.hash());
        }
        format!(
            "train {}, validation {}, vocabulary {}",
            self.dataset.train.content_hash(),
            self.dataset.validation.content_hash(),
            self.dataset.tokenizer.hash()
        )
    }

    /// Describes the data: its sources, as they were named when the run started, and the number of tokens in each
    /// split.
    pub fn data_description(&self) -> String {
        match &self.trained_on {
            Some(described) => described.clone(),
            // A run that was stored before its first checkpoint, with the whole paths of its files.
            None if self.config.run_folder.is_some() => from_working_dir(&self.described_data()),
            None => self.described_data(),
        }
    }

    fn described_data(&self) -> String {
        if let Some(conversations) = &self.conversations {
            return conversations.description();
        }
        if let Some(pairs) = &self.pairs {
            return pairs.description();
        }
        let sources = self
            .dataset
            .card
            .as_ref()
            .map(|card| card.sources.join(", "));
        format!(
            "{}: {} training and {} validation tokens",
            sources.unwrap_or_else(|| "token files of another program".to_string()),
            self.dataset.train.len(),
            self.dataset.validation.len()
        )
    }

    /// Number of tokens for training and for validation.
    pub(crate) fn token_counts(&self) -> (usize, usize) {
        match self.samples() {
            Some((train, validation)) => (train.token_count(), validation.token_count()),
            None => (self.dataset.train.len(), self.dataset.validation.len()),
        }
    }

    /// Of conversations, the number of training tokens that the model learns to predict; `None` for text, of which these
    /// are all.
    pub(crate) fn trained_tokens(&self) -> Option<usize> {
        let read = self.conversations.as_ref()?;
        Some(read.train.trained_count())
    }

    /// Warnings to report before the run starts.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let slow = !self.config.train.precision.is_fast(&self.device);
        let slow = slow.then(|| {
            "this CPU has no bf16 instructions: train.precision = \"bf16\" is less precise than f32 and \
             not faster here"
                .to_string()
        });
        let config = self.config.warnings.iter().cloned();
        config
            .chain(slow)
            .chain(self.unknown_tokens_warning())
            .chain(self.whole_documents_warning())
            .chain(self.prompt_warnings())
            .chain(self.document_warnings())
            .chain(
                self.conversations
                    .iter()
                    .flat_map(|read| read.report.warnings()),
            )
            .chain(self.pairs.iter().flat_map(|read| read.report.warnings()))
            .chain(self.preference_warnings())
            .collect()
    }

    /// What a run on preferences warns about before it starts.
    fn preference_warnings(&self) -> Vec<String> {
        let (Some(settings), Some(read)) = (&self.config.preferences, &self.conversations) else {
            return Vec::new();
        };
        let ratings = &read.ratings.train;
        let good = ratings.iter().filter(|is_good| **is_good).count();
        let is_rated = !settings.loss.is_pairwise();
        let balance = settings.balance_warning(good, ratings.len() - good);
        let balance = balance.filter(|_| is_rated);
        let dropout = &self.config.model.dropout;
        let lora = self.config.lora.as_ref().map_or(0.0, |lora| lora.dropout);
        let rates = [dropout.embedding, dropout.attention, dropout.residual, lora];
        let dropout = rates.iter().any(|rate| *rate > 0.0).then(|| {
            "dropout has no effect with [preferences]: the log probabilities are compared with those of the reference"
                .to_string()
        });
        balance.into_iter().chain(dropout).collect()
    }

    fn unknown_tokens_warning(&self) -> Option<String> {
        let card = self.dataset.card.as_ref()?;
        let what = format!("{} are", card.unknown_share());
        let special = self.dataset.tokenizer.special_tokens();
        (!card.unknown.is_empty()).then(|| unknown_note(&what, &card.unknown, special))
    }

    fn whole_documents_warning(&self) -> Option<String> {
        let card = self.dataset.card.as_ref()?;
        let is_long = card.bytes >= LONG_TEXT && self.config.data.prepared.is_none();
        whole_documents_note(self.dataset.tokenizer.as_ref()).filter(|_| is_long)
    }
}
