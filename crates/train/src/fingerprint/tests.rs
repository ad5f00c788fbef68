use nextword_model::{NormKind, Position, RotaryScaling};
use serde_json::json;

use super::*;
use crate::ScheduleKind;

#[test]
fn defaults_add_nothing_to_the_fingerprint() {
    let config = RunConfig::default();
    assert_eq!(settings(&config), Settings::new());
    assert_eq!(fingerprint(&config), sha256_hex(b""));
}

#[test]
fn settings_differing_from_defaults_are_included() {
    let mut config = RunConfig::default();
    config.model.d_model = 64;
    config.schedule.end_step = Some(7);
    let expected = Settings::from([
        ("model.d_model".to_string(), json!(64)),
        ("schedule.end_step".to_string(), json!(7)),
    ]);
    assert_eq!(settings(&config), expected);
    let lines = b"model.d_model=64\nschedule.end_step=7\n";
    assert_eq!(fingerprint(&config), sha256_hex(lines));
}

#[test]
fn settings_that_may_change_on_resume_are_excluded() {
    let mut config = RunConfig::default();
    config.name = "other".to_string();
    config.device = "ndarray".to_string();
    config.train.steps = 9;
    config.train.recompute = true;
    config.checkpoint.every = 3;
    config.samples.every = 5;
    assert_eq!(fingerprint(&config), fingerprint(&RunConfig::default()));
    let old = v0_1_fingerprint(&config);
    assert_eq!(old, v0_1_fingerprint(&RunConfig::default()));
}

// Both hashes were computed by version 0.1 itself.
#[test]
fn v0_1_fingerprints_are_reproduced() {
    let old = |config: &RunConfig| v0_1_fingerprint(config).unwrap();
    let mut config = RunConfig::default();
    config.model.vocab_size = 55;
    assert_eq!(
        old(&config),
        "e3e9deafb4091ebc7b0f5c34ceed8c4258a1d9ac9ecaf32f394f17e9160fec09"
    );
    config.seed = 5;
    config.model.n_kv_heads = Some(2);
    config.model.position = Position::Rotary;
    config.model.rotary.scaling = RotaryScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context_length: 32,
    };
    config.model.rotary.local_base = Some(1e6);
    config.model.norm = NormKind::Rms;
    config.model.norm_unit_offset = true;
    config.model.windows = vec![16, 0];
    config.model.dropout.attention = 0.1;
    config.train.accumulation = 3;
    config.schedule.kind = ScheduleKind::Wsd;
    config.schedule.decay_steps = Some(40);
    assert_eq!(
        old(&config),
        "783a73f19e04abc741faa4f85e6aa9e55489dc410d7d9377b5687dab4c4a85b0"
    );
}

/// Every field of the configuration is listed here. A new one does not compile until it is added:
/// also add it to `later_settings`, unless it may change on resume.
#[test]
#[allow(clippy::too_many_lines)] // A list.
fn every_setting_is_considered() {
    let config = RunConfig::default();
    let RunConfig {
        name: _,
        out: _,
        seed: _,
        device: _,
        start_from: _,
        expect_parameters: _,
        data,
        model,
        train,
        lora: _,
        preferences: _,
        optimizer,
        schedule,
        validation: _,
        checkpoint: _,
        samples: _,
        probes: _,
        warnings: _,
        unset: _,
        parallel: _,
        run_folder: _,
    } = &config;
    let crate::LoraSettings {
        rank: _,
        alpha: _,
        dropout: _,
        target_modules: _,
        layers: _,
        use_rslora: _,
        use_dora: _,
        plus_ratio: _,
        modules_to_save: _,
    } = crate::LoraSettings::default();
    let crate::PreferenceSettings {
        loss: _,
        beta: _,
        label_smoothing: _,
        desirable_weight: _,
        undesirable_weight: _,
    } = crate::PreferenceSettings::default();
    // The hashes of tokens, samples and template cover all but `order` and `packing`.
    let nextword_data::DataConfig {
        path: _,
        paths: _,
        format: _,
        separator: _,
        field: _,
        builtin: _,
        seed: _,
        documents: _,
        prepared: _,
        conversations: _,
        train_on: _,
        chat_template: _,
        eos_token: _,
        too_long: _,
        pairs: _,
        loss_on: _,
        masked: _,
        tokenizer: _,
        split: _,
        order: _,
        packing: _,
    } = data;
    let nextword_model::ModelConfig {
        architecture: _,
        n_encoder_layers: _,
        share_embeddings: _,
        embedding_norm: _,
        head_transform: _,
        vocab_size: _,
        context_length: _,
        n_layers: _,
        n_heads: _,
        n_kv_heads: _,
        head_dim: _,
        d_model: _,
        d_ff: _,
        position: _,
        rotary,
        norm: _,
        norm_eps: _,
        norm_placement: _,
        feed_forward: _,
        bias,
        tied_head: _,
        output_projection: _,
        qk_norm: _,
        norm_unit_offset: _,
        embedding_scale: _,
        score_width: _,
        score_soft_cap: _,
        parallel: _,
        logit_soft_cap: _,
        windows: _,
        dropout,
        residual: _,
        init,
    } = model;
    let nextword_model::RotaryConfig {
        base: _,
        scaling: _,
        width: _,
        local_base: _,
    } = rotary;
    let nextword_model::BiasConfig {
        qkv: _,
        attention_output: _,
        feed_forward: _,
        norm: _,
        head: _,
    } = bias;
    let nextword_model::DropoutConfig {
        embedding: _,
        attention: _,
        residual: _,
    } = dropout;
    let nextword_model::InitConfig {
        std: _,
        scale_output: _,
    } = init;
    let crate::TrainConfig {
        steps: _,
        epochs: _,
        batch_size: _,
        accumulation: _,
        lanes: _,
        sequence_length: _,
        precision: _,
        recompute: _,
        log_every: _,
    } = train;
    let crate::OptimizerConfig {
        kind: _,
        beta1: _,
        beta2: _,
        eps: _,
        weight_decay: _,
        momentum: _,
        muon_learning_rate: _,
        clip_norm: _,
    } = optimizer;
    let crate::ScheduleConfig {
        kind: _,
        learning_rate: _,
        min_learning_rate: _,
        warmup_steps: _,
        end_step: _,
        decay_steps: _,
    } = schedule;
    // `seed`, `order` and `packing`; the model's fields without its four tables; those of the tables;
    // `train` without steps, epochs, recompute and log_every; all of lora, optimizer and schedule;
    // and the tables `data.masked` and `preferences`.
    let count = v0_1_settings(&config).len() + later_settings(&config).len();
    assert_eq!(count, 3 + (33 - 4) + 14 + 5 + 9 + 5 + 8 + 6 + 4);
}

#[test]
fn differences_name_key_and_both_values() {
    let mut config = RunConfig::default();
    config.train.batch_size = 16;
    let earlier = settings(&config);
    config.train.batch_size = 12;
    config.model.n_layers = 6;
    assert_eq!(
        differences(&earlier, &config),
        [
            "model.n_layers was 4, is 6",
            "train.batch_size was 16, is 12"
        ]
    );
}

#[test]
fn the_settings_of_preferences_are_part_of_the_fingerprint() {
    let supervised = fingerprint(&RunConfig::default());
    let with = |change: fn(&mut PreferenceSettings)| {
        let mut preferences = PreferenceSettings::default();
        change(&mut preferences);
        fingerprint(&RunConfig {
            preferences: Some(preferences),
            ..RunConfig::default()
        })
    };
    let found = [
        supervised,
        with(|_| {}),
        with(|preferences| preferences.loss = crate::PreferenceLoss::Kto),
        with(|preferences| preferences.beta = 0.2),
        with(|preferences| preferences.label_smoothing = 0.1),
        with(|preferences| preferences.desirable_weight = 2.0),
        with(|preferences| preferences.undesirable_weight = 2.0),
    ];
    let distinct: std::collections::BTreeSet<_> = found.iter().collect();
    assert_eq!(distinct.len(), found.len());
}
