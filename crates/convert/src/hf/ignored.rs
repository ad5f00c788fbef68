//! Fields of a foreign `config.json` that do not affect the logits.
//!
//! `scripts/check_config_fields.py` writes the fields that `transformers` itself writes, with their
//! defaults, to a fixture; a test imports them.

use serde_json::Value;

/// Fields that do not affect the logits: training, bookkeeping, output, the choice of an implementation,
/// and sampling settings that belong in `generation_config.json`.
pub(crate) const FIELDS: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "_commit_hash",
    "_experts_implementation",
    "_flash_attn_2_enabled",
    "_model_name_or_path",
    "_name_or_path",
    "_num_labels",
    "_use_flash_attention_2",
    "activation_dropout",
    "add_bos_token",
    "add_eos_token",
    "architectures",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_implementation",
    "attn_pdrop",
    "auto_map",
    "aux_loss_alpha",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "classifier_dropout_prob",
    "cls_token_id",
    "cross_attention_hidden_size",
    "custom_pipelines",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dropout",
    "dtype",
    "early_stopping",
    "emb_dropout",
    "embd_pdrop",
    "embedding_dropout",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "experts_implementation",
    "exponential_decay_length_penalty",
    "ffn_dropout",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "hidden_dropout",
    "hidden_dropout_prob",
    "id2label",
    "initializer_range",
    "is_decoder",
    "is_llama_config",
    "keys_to_ignore_at_inference",
    "label2id",
    "layerdrop",
    "length_penalty",
    "loss_type",
    "mask_token_id",
    "max_length",
    "max_new_tokens",
    "max_seq_len",
    "max_seq_length",
    "max_sequence_length",
    "min_length",
    "mlp_dropout",
    "model_max_length",
    "n_ctx",
    "n_special",
    "neftune_noise_alpha",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "output_router_logits",
    "output_scores",
    "pad_token_id",
    "predict_special_tokens",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "remove_invalid_values",
    "reorder_and_upcast_attn",
    "repetition_penalty",
    "resid_dropout",
    "resid_pdrop",
    "return_dict",
    "return_dict_in_generate",
    "router_aux_loss_coef",
    "sep_token_id",
    "seq_length",
    "sliding_window_size",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    "use_flash_attention",
    "use_flash_attention_2",
    "use_flash_attn",
    "use_sdpa",
    "xla_device",
];

/// Whether the field `name` leaves the logits unchanged with this value. `None` if the field is unknown.
pub(crate) fn is_neutral(name: &str, value: &Value) -> Option<bool> {
    let is_one = value
        .as_f64()
        .is_some_and(|n| n.to_bits() == 1.0_f64.to_bits());
    Some(match name {
        "is_causal" => *value == Value::Bool(true),
        "partial_rotary_factor"
        | "rotary_pct"
        | "residual_multiplier"
        | "embedding_multiplier"
        | "logits_scaling"
        | "logit_scale" => is_one,
        "alibi"
        | "attention_bias"
        | "attention_k_eq_v"
        | "lm_head_bias"
        | "mlp_bias"
        | "qk_layernorm"
        | "qk_norm"
        | "scale_embedding"
        | "scale_embeddings"
        | "use_alibi"
        | "use_bidirectional_attention"
        | "use_dynamic_ntk"
        | "use_logn_attn"
        | "use_qk_norm"
        | "use_sliding_window" => *value == Value::Bool(false),
        "n_routed_experts" | "num_experts" | "num_experts_per_tok" | "num_local_experts" => {
            value.as_u64() == Some(0)
        }
        "layer_types" => value
            .as_array()
            .is_some_and(|types| types.iter().all(|kind| kind == "full_attention")),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_sorted_and_unique() {
        assert!(FIELDS.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(
            FIELDS
                .iter()
                .all(|name| is_neutral(name, &json!(1)).is_none())
        );
    }

    #[test]
    fn a_field_is_neutral_only_at_its_own_value() {
        for (name, neutral, other) in [
            ("is_causal", json!(true), json!(false)),
            ("partial_rotary_factor", json!(1), json!(0.5)),
            ("attention_bias", json!(false), json!(true)),
            ("num_experts", json!(0), json!(8)),
            (
                "layer_types",
                json!(["full_attention"]),
                json!(["full_attention", "sliding_attention"]),
            ),
        ] {
            assert_eq!(is_neutral(name, &neutral), Some(true), "{name}");
            assert_eq!(is_neutral(name, &other), Some(false), "{name}");
        }
        assert_eq!(is_neutral("sparse_attention", &json!(false)), None);
    }
}
