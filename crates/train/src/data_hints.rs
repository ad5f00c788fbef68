//! What configuration and data say about each other: prompts that the vocabulary cannot encode, a separator that
//! divides nothing, and a prompt template that differs from the text.

use std::path::Path;

use nextword_data::{Packing, SpecialTokens, unknown_note};
use nextword_model::Architecture;

use crate::RunSetup;

/// Where the prompt belongs in a prompt template.
const PLACEHOLDER: &str = "{prompt}";

/// Number of tokens at the start of the data from which an example prompt is taken.
const EXAMPLE_TOKENS: usize = 64;

/// Number of words of an example prompt.
const EXAMPLE_WORDS: usize = 3;

/// Says that a text is one document, although documents are trained on one by one.
const SINGLE_DOCUMENT: &str = "the text is a single document, although data.packing = \"documents\" makes each \
     document a row of its own; hint: if each line is a document, set data.separator = \"\\n\"";

/// Data up to this number of tokens is searched for the tokens of the prompt template.
const MAX_SEARCHED_TOKENS: usize = 1 << 20;

impl RunSetup {
    /// A prompt for a first try of the model (see [`RunInfo::prompt`](crate::RunInfo)).
    pub(crate) fn example_prompt(&self) -> Option<String> {
        if let Some(pairs) = &self.pairs {
            return Some(pairs.first_source.clone());
        }
        if self.config.model.architecture == Architecture::Encoder {
            return self.start_of_data().as_deref().and_then(with_blank);
        }
        let samples = &self.config.samples;
        let first = samples.prompts.first().filter(|_| samples.every > 0)?;
        let known = samples.prompts.iter();
        let mut known = known.filter(|prompt| self.unknown_in(prompt).is_empty());
        if let Some(prompt) = known.next() {
            return Some(prompt.clone());
        }
        Some(self.start_of_data().unwrap_or_else(|| first.clone()))
    }

    /// The first words of the training data.
    fn start_of_data(&self) -> Option<String> {
        let train = &self.dataset.train;
        let tokenizer = self.dataset.tokenizer.as_ref();
        let mut ids = Vec::new();
        train
            .read(0..train.len().min(EXAMPLE_TOKENS), &mut ids)
            .ok()?;
        let eos = tokenizer.special_tokens().eos;
        let ids: Vec<u32> = ids.into_iter().take_while(|id| Some(*id) != eos).collect();
        let text = tokenizer.decode(&ids);
        first_words(&text)
    }

    /// What of `prompt`, within the prompt template, is not in the vocabulary.
    fn unknown_in(&self, prompt: &str) -> Vec<String> {
        let template = self.config.samples.prompt_template.as_deref();
        let text = template.map_or_else(
            || prompt.to_string(),
            |template| template.replace(PLACEHOLDER, prompt),
        );
        self.dataset.tokenizer.encode(&text).unknown
    }

    /// Warnings about sample prompts and probe sentences with text that is not in the vocabulary.
    pub(crate) fn prompt_warnings(&self) -> Vec<String> {
        let (samples, probes) = (&self.config.samples, &self.config.probes);
        let prompts = samples.prompts.iter().filter(|_| samples.every > 0);
        let texts = prompts.map(|prompt| ("samples.prompts", prompt)).chain(
            probes
                .sentences
                .iter()
                .map(|text| ("probes.sentences", text)),
        );
        let special = self.dataset.tokenizer.special_tokens();
        texts
            .filter_map(|(key, text)| prompt_warning(key, text, &self.unknown_in(text), special))
            .collect()
    }

    /// Warnings about documents: a separator that divides nothing, a text of several lines as one document, and a
    /// prompt template with an end that the text never has.
    pub(crate) fn document_warnings(&self) -> Vec<String> {
        let data = &self.config.data;
        let reads_text = data.path.is_some() || !data.paths.is_empty();
        let Some(card) = self.dataset.card.as_ref().filter(|_| reads_text) else {
            return Vec::new();
        };
        let is_undivided = card.documents <= card.sources.len() as u64;
        let is_text = card.sources.iter().all(|name| {
            let extension = Path::new(name).extension();
            extension.is_none_or(|extension| !extension.eq_ignore_ascii_case("jsonl"))
        });
        let is_single = card.documents == 1 && data.packing == Packing::Documents;
        let mut warnings = Vec::new();
        match &data.separator {
            Some(separator) if is_undivided => warnings.push(unused_separator(separator)),
            None if is_single && is_text => warnings.push(SINGLE_DOCUMENT.to_string()),
            _ => {}
        }
        warnings.extend(self.template_warning());
        warnings
    }

    /// Says that the prompt template puts EOS after a prompt, but that the text has it only at the ends of
    /// documents.
    fn template_warning(&self) -> Option<String> {
        let template = self.config.samples.prompt_template.as_deref()?;
        let (train, tokenizer) = (&self.dataset.train, self.dataset.tokenizer.as_ref());
        let eos = tokenizer.special_tokens().eos?;
        let after = template.split(PLACEHOLDER).last().unwrap_or_default();
        if train.len() > MAX_SEARCHED_TOKENS || !tokenizer.encode(after).ids.contains(&eos) {
            return None;
        }
        let mut ids = Vec::new();
        train.read(0..train.len(), &mut ids).ok()?;
        let count = ids.into_iter().filter(|id| *id == eos).count();
        let name = tokenizer.id_to_token(eos).unwrap_or_default();
        (count <= train.document_count()).then(|| {
            format!(
                "samples.prompt_template = \"{template}\" puts {name} after each prompt, but in this text {name} \
                 occurs only at the end of a document, so that the model learns nothing about what follows it; hint: \
                 set samples.prompt_template = \"{PLACEHOLDER}\", or write {name} between prompt and answer in the \
                 text"
            )
        })
    }
}

/// The first words of the first line of `text` that has any.
fn first_words(text: &str) -> Option<String> {
    let line = text.lines().find(|line| !line.trim().is_empty())?;
    let words: Vec<&str> = line.split_whitespace().take(EXAMPLE_WORDS).collect();
    Some(words.join(" "))
}

/// `text` with a blank in place of its second word.
fn with_blank(text: &str) -> Option<String> {
    let mut words: Vec<&str> = text.split(' ').collect();
    *words.get_mut(1)? = "___";
    Some(words.join(" "))
}

fn prompt_warning(
    key: &str,
    text: &str,
    unknown: &[String],
    special: SpecialTokens,
) -> Option<String> {
    (!unknown.is_empty()).then(|| {
        let note = unknown_note("", unknown, special);
        let verb = if unknown.len() == 1 {
            "a part"
        } else {
            "parts"
        };
        format!(
            "{key}: {text:?} has {verb}{note}; hint: set {key} to texts with words of this data"
        )
    })
}

fn unused_separator(separator: &str) -> String {
    format!(
        "data.separator = {separator:?} does not divide the text: each file is a single document; hint: \
         data.separator = \"\\n\" makes each line a document, \"\\n\\n\" each paragraph"
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use nextword_data::TokenizerConfig;

    use super::*;
    use crate::{RunConfig, prepare_run};

    /// The setup of a run on a file with `text`, in words.
    fn setup(text: &str, change: impl FnOnce(&mut RunConfig)) -> RunSetup {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("own.txt");
        std::fs::write(&path, text).unwrap();
        let mut config = RunConfig {
            name: "own".to_string(),
            device: "flex".to_string(),
            ..RunConfig::default()
        };
        config.data.path = Some(path);
        config.data.tokenizer = TokenizerConfig::words().with_unk("");
        config.data.split.validation = 0.0;
        config.data.packing = Packing::Documents;
        config.model.context_length = 8;
        config.samples.every = 10;
        config.samples.prompts = vec!["what is statquest".into(), "statquest is what".into()];
        change(&mut config);
        prepare_run(config).unwrap()
    }

    const RUST: &str = "what is rust <EOS> fast\nrust is what <EOS> fast\n";

    #[test]
    fn prompts_with_unknown_words_are_named_and_replaced() {
        let found = setup(RUST, |_| {});
        let warnings = found.prompt_warnings();
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        for part in ["samples.prompts", "\"statquest\"", "dropped", "hint: set"] {
            assert!(warnings[0].contains(part), "{part} in {warnings:?}");
        }
        assert_eq!(found.example_prompt().as_deref(), Some("what is rust"));

        let found = setup(RUST, |config| {
            config.samples.prompts = vec!["statquest".into(), "is rust".into()];
            config.probes.sentences = vec!["nice".into(), "rust".into()];
        });
        assert_eq!(found.prompt_warnings().len(), 2);
        assert_eq!(found.example_prompt().as_deref(), Some("is rust"));

        let found = setup(RUST, |config| config.samples.prompts = vec!["rust".into()]);
        assert!(found.prompt_warnings().is_empty());
        assert_eq!(found.example_prompt().as_deref(), Some("rust"));
        let without = setup(RUST, |config| config.samples.prompts.clear());
        assert_eq!(without.example_prompt(), None);
    }

    #[test]
    fn a_text_that_is_not_divided_into_documents_is_named() {
        let separator = |separator: &'static str| {
            move |config: &mut RunConfig| config.data.separator = Some(separator.to_string())
        };
        let single = setup(RUST, |_| {}).document_warnings();
        assert!(single[0].contains("data.separator = \"\\n\""), "{single:?}");
        let wrong = setup(RUST, separator("\\n")).document_warnings();
        assert!(wrong[0].contains("does not divide the text"), "{wrong:?}");
        let packed = setup(RUST, |config| {
            separator("---")(config);
            config.data.packing = Packing::Packed;
        });
        assert_eq!(packed.document_warnings().len(), 1);
        assert!(setup(RUST, separator("\n")).document_warnings().is_empty());
        let packed = setup(RUST, |config| config.data.packing = Packing::Packed);
        assert!(packed.document_warnings().is_empty());
    }

    #[test]
    fn a_template_with_an_end_that_the_text_lacks_is_named() {
        let with_template = |text: &str| {
            setup(text, |config| {
                config.data.separator = Some("\n".to_string());
                config.samples.prompt_template = Some("{prompt} <EOS>".to_string());
            })
            .document_warnings()
        };
        assert!(with_template(RUST).is_empty());
        let plain = with_template("what is rust\nrust is fast\n");
        assert_eq!(plain.len(), 1, "{plain:?}");
        assert!(
            plain[0].contains("samples.prompt_template = \"{prompt}\""),
            "{plain:?}"
        );
    }

    #[test]
    fn an_example_is_the_start_of_the_first_line_with_words() {
        for (text, words) in [
            ("", None),
            ("\n \n", None),
            ("one", Some("one")),
            ("\n  a b  c d\ne", Some("a b c")),
        ] {
            assert_eq!(first_words(text).as_deref(), words, "{text:?}");
        }
        assert_eq!(with_blank("a b c").as_deref(), Some("a ___ c"));
        assert_eq!(with_blank("a"), None);
    }
}
