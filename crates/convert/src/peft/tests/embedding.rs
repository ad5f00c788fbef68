//! Updates of token embedding and output layer, and adapters of encoder-decoders.

use super::*;

/// The name of a tensor of the embedding or of the output layer.
fn outside(name: &str) -> String {
    format!("base_model.model.{name}")
}

#[test]
fn updates_of_embedding_and_output_layer_become_full_copies() {
    let case = Case::new("llama_embedding");
    let adapter = case.import().unwrap();
    assert_eq!(adapter.config.modules_to_save, ["token_embedding", "head"]);
    assert!(adapter.modules.keys().all(|name| name.ends_with("query")));
    let base = case.base.open_weights().unwrap();
    let tensors = load_tensors(&case.path("peft").join(TENSORS)).unwrap();
    let values = |name: &str| &tensors[&outside(name)].1;
    // The scale is 2 for rank 3, and 3 for rank 2.
    for (ours, [a, b], rank, scale) in [
        (
            "token_embedding.weight",
            [
                "model.embed_tokens.lora_embedding_A",
                "model.embed_tokens.lora_embedding_B",
            ],
            3,
            2.0,
        ),
        (
            "head.weight",
            ["lm_head.lora_A.weight", "lm_head.lora_B.weight"],
            2,
            3.0,
        ),
    ] {
        let (a, b, saved) = (values(a), values(b), &adapter.saved[ours]);
        let [n, m] = saved.shape[..] else { panic!() };
        for (i, base) in base.values(ours).unwrap().iter().enumerate() {
            let (row, column) = (i / m, i % m);
            let product: f32 = (0..rank)
                .map(|r| a[r * n + row] * b[column * rank + r])
                .sum();
            let expected = base + scale * product;
            assert!((saved.values[i] - expected).abs() < 1e-5, "{ours} {i}");
        }
    }
    // A weight in the file replaces that of the base.
    let table = outside("model.embed_tokens.base_layer.weight");
    let had_one = tensors.contains_key(&table);
    assert!(had_one, "PEFT stores it");
    case.change_tensors(|tensors| tensors.get_mut(&table).unwrap().1[0] += 1.0);
    let changed = case.import().unwrap().saved["token_embedding.weight"].values[0];
    let before = adapter.saved["token_embedding.weight"].values[0];
    assert!((changed - before - 1.0).abs() < 1e-5, "{changed} {before}");
    case.change_tensors(|tensors| drop(tensors.remove(&table)));
    assert_eq!(case.import().unwrap().saved, adapter.saved);
}

#[test]
fn updates_of_embedding_and_output_layer_that_do_not_fit_are_errors() {
    const B: &str = "model.embed_tokens.lora_embedding_B";
    const BASE: &str = "model.embed_tokens.base_layer.weight";
    let error = |change: &dyn Fn(&mut NamedTensors)| {
        let case = Case::new("llama_embedding");
        case.change_tensors(|tensors| change(tensors));
        case.import().unwrap_err()
    };
    for (change, part) in [
        (
            &(|t: &mut NamedTensors| drop(t.remove(&outside(B)))) as &dyn Fn(&mut NamedTensors),
            "missing",
        ),
        (
            &|t| t.get_mut(&outside(B)).unwrap().0.reverse(),
            "has shape",
        ),
        (
            &|t| t.get_mut(&outside(B)).unwrap().1[3] = f32::NAN,
            "lora_embedding_B` contains NaN",
        ),
        (
            &|t| t.get_mut(&outside(BASE)).unwrap().1[3] = f32::NAN,
            "base_layer.weight` contains NaN",
        ),
        (
            &|t| {
                let copy = t[&outside(BASE)].clone();
                t.insert(outside("model.embed_tokens.weight"), copy);
            },
            "both a copy and an update",
        ),
    ] {
        let error = error(change);
        assert!(error.contains(part), "{part}: {error}");
    }
    let case = Case::new("llama_embedding");
    case.change_config(|config| config["use_dora"] = json!(true));
    let error = case.import().unwrap_err();
    assert!(
        error.contains("DoRA") && error.contains("`lm_head`"),
        "{error}"
    );
}

#[test]
fn updates_of_tied_weights_must_be_equal() {
    let case = Case::new("qwen2_tied_embedding");
    let adapter = case.import().unwrap();
    assert_eq!(adapter.config.modules_to_save, ["token_embedding"]);
    let head = outside("lm_head.lora_B.weight");
    let has_head = load_tensors(&case.path("peft").join(TENSORS))
        .unwrap()
        .contains_key(&head);
    assert!(has_head, "PEFT stores the update of the output layer, too");
    case.change_tensors(|tensors| tensors.get_mut(&head).unwrap().1[5] += 1.0);
    let error = case.import().unwrap_err();
    assert!(
        error.contains("ties") && error.contains("ensure_weight_tying"),
        "{error}"
    );
    let case = Case::new("qwen2_tied_embedding");
    // PEFT scales the update of the output layer by the settings for its own name.
    case.change_config(|config| config["alpha_pattern"] = json!({"embed_tokens": 16}));
    assert!(case.import().unwrap_err().contains("ties"));
    case.change_config(|config| config["alpha_pattern"]["lm_head"] = json!(16));
    assert_ne!(case.import().unwrap().saved, adapter.saved);
    case.change_config(|config| config["alpha_pattern"] = json!({}));
    // Only the embedding: tied if the settings say so.
    case.change_tensors(|tensors| tensors.retain(|name, _| !name.contains("lm_head")));
    assert_eq!(case.import().unwrap().saved, adapter.saved);
    case.change_config(|config| config["alpha_pattern"] = json!({"embed_tokens": 16}));
    assert!(case.import().unwrap_err().contains("ties"));
    case.change_config(|config| config["alpha_pattern"] = json!({}));
    case.change_config(|config| config["ensure_weight_tying"] = json!(false));
    assert!(case.import().unwrap_err().contains("ties"));
}

#[test]
fn other_tensors_of_a_tied_output_layer_are_errors() {
    for name in [
        "lm_head.lora_magnitude_vector",
        "lm_head.lora_embedding_A",
        "lm_head.lora_embedding_B",
    ] {
        let case = Case::new("qwen2_tied_embedding");
        case.change_tensors(|tensors| {
            tensors.insert(outside(name), (vec![2], vec![1.0; 2]));
        });
        let error = case.import().unwrap_err();
        let line = format!("unused: `{}`", outside(name));
        assert!(error.contains(&line), "{error}");
    }
}

/// Updates in both stacks and in cross-attention; layers of the encoder and of the decoder have the same numbers.
#[test]
fn adapters_of_encoder_decoders_are_those_of_all_stacks() {
    let case = Case::new("bart");
    let adapter = case.import().unwrap();
    let count = |part: &str| {
        let names = adapter.modules.keys();
        names.filter(|name| name.contains(part)).count()
    };
    assert_eq!(count("encoder.blocks."), 3 * 6);
    assert_eq!(count("cross_attention."), 2 * 4);
    assert_eq!(adapter.modules.len(), 3 * 6 + 2 * 10);
    assert_eq!(adapter.config.target_modules, TargetModules::AllLinear);
    let path = case.path("peft").join(CONFIG);
    let original = read_json(&path);
    case.export();
    let exported = read_json(&path);
    for field in ["task_type", "r", "lora_alpha", "rank_pattern"] {
        assert_eq!(exported[field], original[field], "{field}");
    }
    let targets = exported["target_modules"].as_array().unwrap();
    assert!(targets.contains(&json!("fc1")) && targets.contains(&json!("encoder_attn.q_proj")));
    let readme = fs::read_to_string(case.path("peft").join("README.md")).unwrap();
    assert!(readme.contains("AutoModelForSeq2SeqLM"), "{readme}");
}

/// `transformers` has the shared embedding as three modules, of which PEFT adapts one.
#[test]
fn embeddings_of_encoder_decoders_are_not_adapted() {
    let shared = "model.shared";
    for (names, part) in [
        (&["lora_embedding_A", "lora_embedding_B"][..], "is adapted"),
        (&["weight"], "is a full copy"),
    ] {
        let case = Case::new("bart");
        case.change_tensors(|tensors| {
            for name in names {
                let name = outside(&format!("{shared}.{name}"));
                tensors.insert(name, (vec![1], vec![1.0]));
            }
        });
        let error = case.import().unwrap_err();
        assert!(error.contains(part) && error.contains(shared), "{error}");
    }
    let case = Case::new("bart");
    let mut adapter = case.import().unwrap();
    let shape = vec![case.base.config.vocab_size, case.base.config.d_model];
    let values = vec![0.5; shape.iter().product()];
    let copy = SavedTensor { shape, values };
    adapter
        .saved
        .insert("token_embedding.weight".to_string(), copy);
    adapter.config.modules_to_save = vec!["token_embedding".to_string()];
    let base = BaseModel::of(&case.base).unwrap();
    let to = case.path("adapter");
    AdapterDir::save(&to, &adapter, &base, &ModelCard::default()).unwrap();
    let adapter = AdapterDir::open(&to).unwrap();
    let error = export_peft(&adapter, &case.base, &case.path("peft")).map(drop);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("token embedding"), "{error}");
}
