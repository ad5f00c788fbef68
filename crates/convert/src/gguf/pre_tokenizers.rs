//! Pre-tokenizers of `llama.cpp` by name, as steps of a `tokenizer.json`.
//!
//! The patterns are those of the models' own tokenizers; those of `llama.cpp` are written for another engine, and
//! some only approximate letters outside ASCII.

use serde_json::{Value, json};

/// A pre-tokenizer.
pub(super) struct PreTokenizer {
    names: &'static [&'static str],
    /// Each cuts what the one before left.
    patterns: &'static [&'static str],
    /// Whether the last step has GPT-2's pattern.
    ends_with_gpt2: bool,
    /// Whether a word that is a token is not split into merges (`ignore_merges`).
    pub(super) ignores_merges: bool,
    /// Whether `llama.cpp` puts BOS before a text if the file does not say.
    pub(super) adds_bos: bool,
}

const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT_4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT_2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// All that are supported. The first name is the one that is written.
const ALL: [PreTokenizer; 10] = [
    PreTokenizer {
        names: &[
            "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4", "gigachat", "mellum",
        ],
        patterns: &[],
        ends_with_gpt2: true,
        ignores_merges: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
        ],
        patterns: &[LLAMA_3],
        ends_with_gpt2: false,
        ignores_merges: true,
        adds_bos: true,
    },
    PreTokenizer {
        names: &["dbrx", "smaug-bpe"],
        patterns: &[LLAMA_3],
        ends_with_gpt2: false,
        ignores_merges: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &[
            "qwen2",
            "deepseek-r1-qwen",
            "stablelm2",
            "megrez",
            "hunyuan",
        ],
        patterns: &[QWEN_2],
        ends_with_gpt2: false,
        ignores_merges: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
        ],
        patterns: &[r"\p{N}"],
        ends_with_gpt2: true,
        ignores_merges: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["tekken"],
        patterns: &[TEKKEN],
        ends_with_gpt2: false,
        ignores_merges: true,
        adds_bos: true,
    },
    PreTokenizer {
        names: &["gpt-4o", "llama4"],
        patterns: &[GPT_4O],
        ends_with_gpt2: false,
        ignores_merges: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["deepseek-coder"],
        patterns: &[
            r"[\r\n]",
            r"\s?\p{L}+",
            r"\s?\p{P}+",
            "[一-龥ࠀ-一가-퟿]+",
            r"\p{N}",
        ],
        ends_with_gpt2: false,
        ignores_merges: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["deepseek-v3"],
        patterns: &[
            r"\p{N}{1,3}",
            "[一-龥぀-ゟ゠-ヿ]+",
            r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
        ],
        ends_with_gpt2: false,
        ignores_merges: false,
        adds_bos: false,
    },
    // What llama.cpp takes if a file does not name one.
    PreTokenizer {
        names: &["default"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT_2, r"\p{N}+", "[0-9][0-9][0-9]"],
        ends_with_gpt2: false,
        ignores_merges: false,
        adds_bos: false,
    },
];

/// The pre-tokenizer called `name`, or a list of all names.
pub(super) fn find(name: &str) -> Result<&'static PreTokenizer, String> {
    let found = ALL.iter().find(|known| known.names.contains(&name));
    let names = || {
        let names: Vec<&str> = ALL.iter().flat_map(|known| known.names).copied().collect();
        names.join(", ")
    };
    found.ok_or_else(names)
}

/// The name of the pre-tokenizer with the steps of `file`, the content of a `tokenizer.json`, and its rule about words that
/// are tokens.
pub(super) fn name_of(pre_tokenizer: &Value, ignores_merges: bool) -> Option<&'static str> {
    let list = pre_tokenizer["pretokenizers"].as_array();
    let steps: Vec<&Value> = list.map_or_else(|| vec![pre_tokenizer], |list| list.iter().collect());
    let (last, cuts) = steps.split_last()?;
    if last["type"] != "ByteLevel" || last["add_prefix_space"] == true {
        return None;
    }
    let patterns: Vec<&str> = cuts
        .iter()
        .map(|step| pattern(step))
        .collect::<Option<_>>()?;
    let uses_gpt2 = last["use_regex"] != false;
    let is_same = |known: &&PreTokenizer| {
        known.patterns == patterns
            && known.ends_with_gpt2 == uses_gpt2
            && known.ignores_merges == ignores_merges
    };
    ALL.iter().find(is_same).map(|known| known.names[0])
}

/// The pattern of a step that cuts at its matches.
fn pattern(step: &Value) -> Option<&str> {
    match step["type"].as_str()? {
        "Digits" if step["individual_digits"] == true => Some(r"\p{N}"),
        "Digits" => Some(r"\p{N}+"),
        "Split" if step["behavior"] == "Isolated" && step["invert"] != true => {
            step["pattern"]["Regex"].as_str()
        }
        _ => None,
    }
}

impl PreTokenizer {
    /// The `pre_tokenizer` of a `tokenizer.json`.
    pub(super) fn to_json(&self) -> Value {
        let split = |pattern: &&str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": self.ends_with_gpt2});
        if self.patterns.is_empty() {
            return bytes;
        }
        let steps: Vec<Value> = self.patterns.iter().map(split).chain([bytes]).collect();
        json!({"type": "Sequence", "pretokenizers": steps})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_found_by_their_steps() {
        for (i, known) in ALL.iter().enumerate() {
            for name in known.names {
                let others = ALL[i + 1..].iter().flat_map(|other| other.names);
                assert!(others.into_iter().all(|other| other != name), "{name}");
                assert_eq!(find(name).map(|found| found.names[0]), Ok(known.names[0]));
            }
            let found = name_of(&known.to_json(), known.ignores_merges);
            assert_eq!(found, Some(known.names[0]));
        }
        assert!(find("no such name").is_err_and(|names| names.contains("smollm")));
        let digits = json!({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true}]});
        assert_eq!(name_of(&digits, false), Some("smollm"));
        assert_eq!(name_of(&json!({"type": "Metaspace"}), false), None);
    }
}
