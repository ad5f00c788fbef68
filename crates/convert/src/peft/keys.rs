//! Names of the tensors in a file of PEFT.

/// What comes before the name of a module of the base model.
pub(super) const PREFIX: &str = "base_model.model.";

/// What a tensor is, with the name of a module or a parameter of the base model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// The factor A of a module's update.
    A(String),
    /// The factor B of a module's update.
    B(String),
    /// The magnitudes of a module.
    Magnitude(String),
    /// The factor A of the update of an embedding, `[rank, vocab_size]`.
    EmbeddingA(String),
    /// The factor B of the update of an embedding, `[d_model, rank]`.
    EmbeddingB(String),
    /// The weight of the base model below an update, which PEFT stores with updates of the embedding.
    Base(String),
    /// A full copy of a parameter.
    Parameter(String),
}

/// Parses the name of a tensor. The error is a phrase that says what it is.
pub(super) fn parse(name: &str) -> Result<Key, &'static str> {
    const NOT_OF_PEFT: &str = "is not the name of a tensor in an adapter";
    let name = name.strip_prefix(PREFIX).ok_or(NOT_OF_PEFT)?;
    if name.contains(".token_adapter.") {
        return Err(
            "trains single tokens, which nextword does not support; hint: merge the adapter with PEFT",
        );
    }
    for (part, key) in [
        (".lora_A", Key::A as fn(String) -> Key),
        (".lora_B", Key::B),
        (".lora_magnitude_vector", Key::Magnitude),
    ] {
        let Some((module, rest)) = name.split_once(part) else {
            continue;
        };
        return match rest.split('.').collect::<Vec<_>>()[..] {
            // A state dict that was not saved by PEFT has the adapter's name.
            ["", "weight"] | ["", _, "weight"] => Ok(key(module.to_string())),
            [""] | ["", _] if part == ".lora_magnitude_vector" => Ok(key(module.to_string())),
            ["", "bias"] | ["", _, "bias"] => Err(
                "is a bias of the adapter (lora_bias), which nextword does not support; hint: merge the adapter \
                     with PEFT",
            ),
            _ => Err(NOT_OF_PEFT),
        };
    }
    for (part, key) in [
        (".lora_embedding_A", Key::EmbeddingA as fn(String) -> Key),
        (".lora_embedding_B", Key::EmbeddingB),
    ] {
        let Some((module, rest)) = name.split_once(part) else {
            continue;
        };
        return match rest.split('.').collect::<Vec<_>>()[..] {
            [""] | ["", _] => Ok(key(module.to_string())),
            _ => Err(NOT_OF_PEFT),
        };
    }
    if let Some(module) = name.strip_suffix(".base_layer.weight") {
        return Ok(Key::Base(module.to_string()));
    }
    if let Some(module) = name.strip_suffix(".base_layer.bias") {
        return Ok(Key::Parameter(format!("{module}.bias")));
    }
    Ok(Key::Parameter(name.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_and_without_the_name_of_the_adapter_are_parsed() {
        let module = "model.layers.0.mlp.up_proj".to_string();
        for (name, key) in [
            ("lora_A.weight", Key::A(module.clone())),
            ("lora_A.default.weight", Key::A(module.clone())),
            ("lora_B.weight", Key::B(module.clone())),
            ("lora_B.other.weight", Key::B(module.clone())),
            ("lora_magnitude_vector", Key::Magnitude(module.clone())),
            (
                "lora_magnitude_vector.default",
                Key::Magnitude(module.clone()),
            ),
            (
                "lora_magnitude_vector.default.weight",
                Key::Magnitude(module.clone()),
            ),
            ("lora_embedding_A", Key::EmbeddingA(module.clone())),
            ("lora_embedding_B.default", Key::EmbeddingB(module.clone())),
            ("base_layer.weight", Key::Base(module.clone())),
            ("weight", Key::Parameter(format!("{module}.weight"))),
            ("base_layer.bias", Key::Parameter(format!("{module}.bias"))),
        ] {
            assert_eq!(
                parse(&format!("{PREFIX}{module}.{name}")),
                Ok(key),
                "{name}"
            );
        }
    }

    #[test]
    fn other_names_are_errors_that_say_what_they_are() {
        for (name, problem) in [
            ("model.norm.weight", "not the name"),
            ("base_model.model.a.lora_A", "not the name"),
            ("base_model.model.a.lora_A.b.c.weight", "not the name"),
            ("base_model.model.a.lora_Aweight", "not the name"),
            ("base_model.model.a.lora_B.bias", "lora_bias"),
            (
                "base_model.model.wte.lora_embedding_A.b.weight",
                "not the name",
            ),
            (
                "base_model.model.wte.token_adapter.trainable_tokens_delta",
                "single tokens",
            ),
        ] {
            assert!(
                parse(name).is_err_and(|found| found.contains(problem)),
                "{name}"
            );
        }
    }
}
