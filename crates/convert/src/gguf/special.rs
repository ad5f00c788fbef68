//! The special tokens as GGUF metadata.

use nextword_data::Tokenizer;
use nextword_model::ModelTokens;

use super::file::MetadataValue;
use super::{BOS_IDS_KEY, EOS_IDS_KEY};
use crate::ConvertError;
use crate::error::unsupported_tokenizer as unsupported;

/// The keys under which a file can name tokens that end a completion.
pub(super) const EOS_KEYS: [&str; 3] = ["eos_token_id", "eot_token_id", "eom_token_id"];

/// Tokens at which `llama.cpp` ends a completion because of their name, as measured.
pub(super) const KNOWN_EOS: [&str; 23] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<eos>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
    "<turn|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<fim_pad>",
];

/// The special tokens of a GGUF file.
pub(super) struct Special {
    /// One for each of [`EOS_KEYS`], at most.
    eos: Vec<u32>,
    /// For llama.cpp, which has a default of its own for a file without one.
    bos: Option<u32>,
    /// That of the model, for nextword.
    declared_bos: Option<u32>,
    pad: Option<u32>,
    adds_bos: bool,
    adds_eos: bool,
    /// All tokens that end a completion, for nextword.
    declared: Vec<u32>,
    pub(super) notes: Vec<String>,
}

impl Special {
    /// `spare` is the EOS token of a model without one.
    pub(super) fn new(
        special: &ModelTokens,
        tokenizer: &dyn Tokenizer,
        tokens: &[Option<String>],
        spare: Option<u32>,
    ) -> Result<Self, ConvertError> {
        let text = |id: u32| {
            tokens
                .get(id as usize)
                .cloned()
                .flatten()
                .unwrap_or_default()
        };
        let by_name = tokenizer.special_tokens();
        let eos = eos_ids(special, by_name.eos, &text)?;
        let mut notes = Vec::new();
        for known in KNOWN_EOS {
            let id = tokens
                .iter()
                .position(|token| token.as_deref() == Some(known));
            if id.is_some_and(|id| !eos.all.contains(&(id as u32))) {
                notes.push(format!(
                    "llama.cpp also ends a completion at {known}, because of its name"
                ));
            }
        }
        let prefix = special.prefix();
        if prefix.len() > 1 {
            let names: Vec<String> = prefix.iter().map(|id| text(*id)).collect();
            return unsupported(format!(
                "it puts several tokens before every text ({}), but llama.cpp only one",
                names.join(" ")
            ));
        }
        let first = eos.keyed.first().copied();
        let adds_eos = !special.suffix_ids.is_empty() && special.suffix_ids == first.as_slice();
        if !adds_eos && let Some(id) = special.suffix_ids.first() {
            notes.push(format!(
                "llama.cpp does not put {} after every text",
                text(*id)
            ));
        }
        let keyed = if eos.keyed.is_empty() {
            spare.into_iter().collect()
        } else {
            eos.keyed
        };
        Ok(Self {
            bos: prefix
                .first()
                .copied()
                .or(special.bos_id)
                .or(keyed.first().copied()),
            declared_bos: special.bos_id,
            eos: keyed,
            declared: eos.all,
            pad: match special.source {
                Some(_) => special.pad_id,
                None => by_name.pad,
            },
            adds_bos: !prefix.is_empty(),
            adds_eos,
            notes,
        })
    }

    /// The entries, without `tokenizer.ggml.`.
    pub(super) fn entries(&self) -> Vec<(&'static str, MetadataValue)> {
        let ids = EOS_KEYS.into_iter().zip(self.eos.iter().copied().map(Some));
        let ids = ids.chain([("bos_token_id", self.bos), ("padding_token_id", self.pad)]);
        let ids = ids.filter_map(|(key, id)| Some((key, MetadataValue::U32(id? as usize))));
        let flags = [
            ("add_bos_token", MetadataValue::Bool(self.adds_bos)),
            ("add_eos_token", MetadataValue::Bool(self.adds_eos)),
        ];
        ids.chain(flags).collect()
    }

    /// The entries that name exactly the EOS tokens and the BOS token of the model. Without the first, tokens end a
    /// completion by their names.
    pub(super) fn declared_entries(&self) -> Vec<(String, MetadataValue)> {
        let ids = self.declared.iter().map(|id| id.cast_signed());
        let eos = MetadataValue::I32Array(ids.collect());
        let mut entries = vec![(EOS_IDS_KEY.to_string(), eos)];
        if self.bos != self.declared_bos {
            let bos = self.declared_bos.into_iter().map(u32::cast_signed);
            let bos = MetadataValue::I32Array(bos.collect());
            entries.push((BOS_IDS_KEY.to_string(), bos));
        }
        entries
    }
}

/// The EOS tokens of a model.
struct EosIds {
    all: Vec<u32>,
    /// Those with a key in the file.
    keyed: Vec<u32>,
}

/// The token that ends a document comes first, as in `llama.cpp`'s own converter, then those that
/// `llama.cpp` does not know by name. Of the others only as many as there are keys.
fn eos_ids(
    special: &ModelTokens,
    tokenizer_eos: Option<u32>,
    text: &impl Fn(u32) -> String,
) -> Result<EosIds, ConvertError> {
    let all = special.stop_ids(tokenizer_eos);
    let main = special.document_eos_id.filter(|id| all.contains(id));
    let main = main.or(all.first().copied());
    let rest = all.iter().copied().filter(|id| Some(*id) != main);
    let (known, unknown): (Vec<u32>, Vec<u32>) =
        rest.partition(|id| KNOWN_EOS.contains(&text(*id).as_str()));
    let keys = EOS_KEYS.len() - usize::from(main.is_some());
    if let Some(id) = unknown.get(keys) {
        return unsupported(format!(
            "it has {} EOS tokens, but a GGUF file can name only {}; {:?} does not fit",
            all.len(),
            EOS_KEYS.len(),
            text(*id)
        ));
    }
    let keyed = main.into_iter().chain(unknown).chain(known);
    Ok(EosIds {
        keyed: keyed.take(EOS_KEYS.len()).collect(),
        all,
    })
}
