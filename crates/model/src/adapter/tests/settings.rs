//! The settings, and the modules that they select.

use super::*;
use crate::{SAVED_MODULES, TargetModule, TargetModules, linear_modules};

fn parse(json: &str) -> Result<LoraConfig, String> {
    serde_json::from_str(json).map_err(|e| e.to_string())
}

#[test]
fn settings_survive_a_file() {
    let list = TargetModules::List(vec![TargetModule::Query, TargetModule::Down]);
    for target_modules in [
        TargetModules::AllLinear,
        TargetModules::Attention,
        TargetModules::FeedForward,
        list,
    ] {
        let config = LoraConfig {
            target_modules,
            layers: Some([1, 2]),
            use_rslora: true,
            modules_to_save: vec!["norms".to_string()],
            ..LoraConfig::default()
        };
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(parse(&json), Ok(config));
    }
    assert_eq!(parse("{}"), Ok(LoraConfig::default()));
    let one = parse(r#"{"target_modules": "value"}"#).unwrap();
    assert_eq!(
        one.target_modules,
        TargetModules::List(vec![TargetModule::Value])
    );
}

#[test]
fn unknown_settings_are_errors_that_name_the_known_ones() {
    assert!(
        parse(r#"{"r": 8}"#)
            .unwrap_err()
            .contains("unknown field `r`")
    );
    let error = parse(r#"{"target_modules": ["q_proj"]}"#).unwrap_err();
    assert!(
        error.contains("`q_proj` is not a target module") && error.contains("query, key"),
        "{error}"
    );
}

#[test]
fn impossible_settings_are_errors_that_name_the_key() {
    let default = LoraConfig::default;
    let save = |name: &str| vec![name.to_string()];
    let layers = Some([2, 3]);
    let gate = TargetModules::List(vec![TargetModule::Gate]);
    let cases = [
        ("lora.rank: 0 is not a rank", lora(0)),
        (
            "lora.rank: 33 exceeds the smaller dimension of `blocks.0.attention.query`, 32",
            lora(33),
        ),
        (
            "lora.alpha: NaN",
            LoraConfig {
                alpha: f64::NAN,
                ..default()
            },
        ),
        (
            "lora.alpha: 0",
            LoraConfig {
                alpha: 0.0,
                ..default()
            },
        ),
        (
            "lora.dropout: 1",
            LoraConfig {
                dropout: 1.0,
                ..default()
            },
        ),
        (
            "lora.layers: [2, 3]",
            LoraConfig {
                layers,
                ..default()
            },
        ),
        (
            "lora.target_modules",
            LoraConfig {
                target_modules: gate,
                ..default()
            },
        ),
        (
            "lora.modules_to_save: `lm_head`",
            LoraConfig {
                modules_to_save: save("lm_head"),
                ..default()
            },
        ),
        (
            "lora.modules_to_save: the output layer shares",
            LoraConfig {
                modules_to_save: save("head"),
                ..default()
            },
        ),
    ];
    for (message, config) in cases {
        let error = build(&gpt2(), None)
            .with_new_adapter(&config, 1)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with(message) && error.contains("; hint: "),
            "{error}"
        );
    }
}

#[test]
fn targets_and_layers_select_modules() {
    let names = |config: &LoraConfig| -> Vec<String> {
        let modules = config.modules(&llama()).unwrap();
        modules.into_iter().map(|(name, _)| name).collect()
    };
    assert_eq!(names(&lora(4)).len(), 3 * 7);
    let config = LoraConfig {
        target_modules: TargetModules::List(vec![TargetModule::Up, TargetModule::Value]),
        layers: Some([1, 1]),
        ..lora(4)
    };
    assert_eq!(
        names(&config),
        ["blocks.1.attention.value", "blocks.1.feed_forward.up"]
    );
    assert_eq!(
        linear_modules(&llama())[1],
        ("blocks.0.attention.key".to_string(), [32, 16])
    );
}

#[test]
fn the_number_of_parameters_is_that_of_the_adapter() {
    for use_dora in [false, true] {
        let modules_to_save = SAVED_MODULES.map(str::to_string).to_vec();
        let config = LoraConfig {
            use_dora,
            modules_to_save,
            ..lora(4)
        };
        let adapter = build(&llama(), None)
            .with_new_adapter(&config, 1)
            .unwrap()
            .adapter()
            .unwrap();
        assert_eq!(adapter.parameters(), config.parameters(&llama()).unwrap());
        assert_eq!(
            adapter.saved.len(),
            1 + 1 + 2 * 3 + 1,
            "embedding, head, norms of blocks, last norm"
        );
    }
}

#[test]
fn the_scale_of_rslora_divides_by_the_root_of_the_rank() {
    let config = LoraConfig {
        alpha: 16.0,
        use_rslora: true,
        ..lora(2)
    };
    assert!((config.scale() - 11.313_708).abs() < 1e-5); // As PEFT.
    assert_eq!(
        LoraConfig {
            use_rslora: false,
            ..config
        }
        .scale(),
        8.0
    );
}
