//! Adapters behind HTTP: they share the weights of their base, and a signal reads them again.

use std::fs;
use std::path::Path;

use nextword_model::{AdapterDir, BaseModel, CounterRng, LoraConfig, ModelCard, ModelDir};
use serde_json::{Value, json};

use crate::serving::Server;
use crate::test_dir::{BAD_FILE, TestDir, json_lines};
use crate::util::{copy, flex, root, stderr};

/// Writes an adapter of `base` with values that depend on `seed`.
fn write_adapter(base: &Path, path: &Path, config: &LoraConfig, seed: u64) {
    let base = ModelDir::open(base).unwrap();
    let model = base.load(&flex()).unwrap();
    let new = model.with_new_adapter(config, seed).unwrap();
    let mut adapter = new.adapter().unwrap();
    let rng = CounterRng::new(seed);
    for (number, module) in adapter.modules.values_mut().enumerate() {
        let rng = rng.stream(number as u64);
        for (i, value) in module.b.iter_mut().enumerate() {
            *value = 0.1 * rng.normal(i as u64) as f32;
        }
    }
    let description = BaseModel::of(&base).unwrap();
    AdapterDir::save(path, &adapter, &description, &ModelCard::default()).unwrap();
}

/// A folder with the model `base` and its adapters `poet` and `tutor`.
fn with_adapters() -> TestDir {
    let dir = TestDir::new();
    let base = dir.path("base");
    copy(&root().join("docs/models/letters"), &base);
    let config = LoraConfig {
        rank: 4,
        ..LoraConfig::default()
    };
    write_adapter(&base, &dir.path("poet"), &config, 1);
    write_adapter(&base, &dir.path("tutor"), &config, 2);
    dir
}

/// `NAME=PATH`, as an argument.
fn named(dir: &TestDir, name: &str) -> String {
    format!("{name}={}", dir.path(name).display())
}

fn complete(server: &Server, model: &str) -> String {
    let body = json!({
        "model": model, "prompt": "One day", "max_tokens": 30, "seed": 4,
    });
    let (status, _, body) = server.post("/v1/completions", &body);
    assert_eq!(status, 200, "{body}");
    let body: Value = serde_json::from_str(&body).unwrap();
    body["choices"][0]["text"].as_str().unwrap().to_string()
}

/// The names of the models, with their parents.
fn listed(server: &Server) -> Vec<(String, Option<String>)> {
    let (_, _, body) = server.get("/v1/models", "");
    let body: Value = serde_json::from_str(&body).unwrap();
    let models = body["data"].as_array().unwrap().iter();
    let entry = |model: &Value| {
        let text = |key: &str| model[key].as_str().map(str::to_string);
        (text("id").unwrap(), text("parent"))
    };
    models.map(entry).collect()
}

fn generated(dir: &TestDir, name: &str) -> String {
    let model = dir.path(name).display().to_string();
    let args = [
        "generate",
        &model,
        "One day",
        "--json",
        "--seed",
        "4",
        "--temperature",
        "1",
        "--max-tokens",
        "30",
    ];
    let output = dir.run(&args);
    assert!(output.status.success(), "{}", stderr(&output));
    json_lines(&output)[0]["text"].as_str().unwrap().to_string()
}

#[test]
fn adapters_beside_their_base_answer_as_generate_does() {
    let dir = with_adapters();
    let adapters = [named(&dir, "poet"), named(&dir, "tutor")];
    let server = Server::start(&dir.path("base"), &[&adapters[0], &adapters[1]]);
    let parent = || Some("m".to_string());
    assert_eq!(
        listed(&server),
        [
            ("m".to_string(), None),
            ("poet".to_string(), parent()),
            ("tutor".to_string(), parent())
        ]
    );
    let texts = ["m", "poet", "tutor"].map(|name| complete(&server, name));
    let expected = ["base", "poet", "tutor"].map(|name| generated(&dir, name));
    assert_eq!(texts, expected);
    assert!(texts[0] != texts[1] && texts[1] != texts[2]);
}

#[test]
fn an_adapter_alone_brings_its_base() {
    let dir = with_adapters();
    let server = Server::start(&dir.path("poet"), &[]);
    let base = ("base".to_string(), None);
    assert_eq!(
        listed(&server),
        [base, ("m".to_string(), Some("base".to_string()))]
    );
    let (_, _, body) = server.post("/v1/completions", &json!({"prompt": "x", "max_tokens": 1}));
    assert!(body.contains("\"model\":\"m\""), "{body}");
    assert_eq!(complete(&server, "m"), generated(&dir, "poet"));
}

#[test]
fn an_adapter_with_dora_is_served_with_weights_of_its_own() {
    let dir = with_adapters();
    let config = LoraConfig {
        use_dora: true,
        ..LoraConfig::default()
    };
    write_adapter(&dir.path("base"), &dir.path("dora"), &config, 3);
    let adapters = [named(&dir, "dora"), named(&dir, "poet")];
    let server = Server::start(&dir.path("base"), &[&adapters[0], &adapters[1]]);
    assert_eq!(
        listed(&server)[1],
        ("dora".to_string(), Some("m".to_string()))
    );
    assert_eq!(complete(&server, "dora"), generated(&dir, "dora"));
    let scaled = json!({"model": "dora", "prompt": "x", "adapter_scale": 0.5});
    let (status, _, body) = server.post("/v1/completions", &scaled);
    assert_eq!(status, 400, "{body}");
    assert!(body.contains("it uses DoRA"), "{body}");
    let scaled = json!({"model": "m", "prompt": "x", "adapter_scale": 0.5});
    let (status, _, body) = server.post("/v1/completions", &scaled);
    assert_eq!(status, 400, "{body}");
    assert!(body.contains("this model is none"), "{body}");
}

#[test]
fn a_damaged_adapter_or_a_missing_base_is_an_error_at_the_start() {
    let dir = with_adapters();
    let fails = |expected: &[&str]| {
        let output = dir.run(&["serve", "base", "poet", "--port", "0"]);
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(BAD_FILE), "{error}");
        for part in expected {
            assert!(error.contains(part), "`{part}` is missing from {error}");
        }
    };
    let tensors = dir.path("poet/adapter.safetensors");
    let bytes = fs::read(&tensors).unwrap();
    fs::write(&tensors, &bytes[..bytes.len() - 5]).unwrap();
    fails(&["adapter.safetensors"]);
    fs::remove_file(&tensors).unwrap();
    fails(&["adapter.safetensors"]);
    fs::write(&tensors, &bytes).unwrap();

    // Another model is served, and the base is gone.
    let other = dir.path("elsewhere/other");
    fs::create_dir(dir.path("elsewhere")).unwrap();
    copy(&root().join("docs/models/statquest"), &other);
    fs::remove_dir_all(dir.path("base")).unwrap();
    let output = dir.run(&["serve", "elsewhere/other", "poet", "--port", "0"]);
    let error = stderr(&output);
    assert_eq!(output.status.code(), Some(BAD_FILE), "{error}");
    assert!(
        error.contains("base") && error.contains("--base"),
        "{error}"
    );
}

#[cfg(unix)]
#[test]
fn a_signal_reads_the_folder_of_adapters_again() {
    let dir = with_adapters();
    let folder = dir.path("adapters");
    fs::create_dir(&folder).unwrap();
    copy(&dir.path("poet"), &folder.join("writer"));
    fs::create_dir(folder.join("no adapter")).unwrap();
    let argument = folder.display().to_string();
    let mut server = Server::start(&dir.path("base"), &["--adapters", &argument]);
    let names = |server: &Server| listed(server).into_iter().map(|(name, _)| name);
    assert_eq!(names(&server).collect::<Vec<_>>(), ["m", "writer"]);
    let [base, poet, tutor] = ["base", "poet", "tutor"].map(|name| generated(&dir, name));
    assert_eq!(complete(&server, "writer"), poet);

    // Another adapter gets the name, and a second one is added.
    fs::remove_dir_all(folder.join("writer")).unwrap();
    copy(&dir.path("tutor"), &folder.join("writer"));
    copy(&dir.path("poet"), &folder.join("second"));
    server.reload();
    assert_eq!(
        server.log_line("adapters: "),
        "adapters: `second`, `writer`"
    );
    assert_eq!(complete(&server, "writer"), tutor);
    assert_eq!(complete(&server, "second"), poet);

    // A damaged one stays as it is, and a removed one is gone.
    fs::write(folder.join("writer/adapter.json"), "{").unwrap();
    fs::remove_dir_all(folder.join("second")).unwrap();
    server.reload();
    let warning = server.log_line("warning: ");
    assert!(warning.contains("`writer` stays as it is"), "{warning}");
    assert_eq!(server.log_line("adapters: "), "adapters: `writer`");
    assert_eq!(complete(&server, "writer"), tutor);
    let gone = json!({"model": "second", "prompt": "x"});
    assert_eq!(server.post("/v1/completions", &gone).0, 404);
    assert_eq!(complete(&server, "m"), base);
}
