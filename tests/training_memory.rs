//! Memory of training: as planned, and not more at the end than during the updates.

use nextword_data::{Dataset, TokenizerConfig};
use nextword_train::plan::Plan;
use nextword_train::{RunConfig, RunSetup};
use serde_json::Value;

use crate::test_dir::TestDir;
use crate::training::succeeds;
use crate::util::{devices, nextword, stderr};

/// Trains, and returns the peak memory in bytes after the last update and at the end, as the process itself logs
/// them.
fn peak_memory(dir: &TestDir, set: &[&str]) -> [f64; 2] {
    let output = nextword()
        .args(dir.train_with(set))
        .env("NEXTWORD_LOG", "nextword_train=debug")
        .current_dir(dir.folder.path())
        .output()
        .unwrap();
    let log = stderr(&output);
    assert!(output.status.success(), "{log}");
    ["updates done", "run ended"].map(|event| {
        let line = log.lines().find(|line| line.contains(event)).unwrap();
        let (_, bytes) = line.split_once("peak_memory=").unwrap();
        bytes.trim().parse().unwrap()
    })
}

#[test]
fn memory_is_as_planned_and_does_not_rise_at_the_end() {
    let base = [
        "model.vocab_size=9000",
        "model.context_length=512",
        "model.n_layers=6",
        "model.n_heads=6",
        "model.d_model=384",
        "train.sequence_length=64",
        "train.batch_size=4",
        "train.accumulation=1",
        "train.steps=12",
        "schedule.warmup_steps=0",
        "data.documents=400",
        "validation.every=0",
        "validation.windows=64",
        "validation.batch_size=64",
        "checkpoint.every=0",
        "samples.every=12",
        "samples.prompts=[\"One day\"]",
    ];
    for set in [
        &[][..],
        &["train.accumulation=3"],
        &["train.precision=bf16"],
        &["train.recompute=true", "train.batch_size=16"],
        &["train.batch_size=32"],
        &["model.tied_head=false"],
        &[
            "model.position=rotary",
            "model.norm=rms",
            "model.feed_forward=swiglu",
        ],
    ] {
        let dir = TestDir::new();
        let set = [&base[..], set].concat();
        let [training, all] = peak_memory(&dir, &set);
        let output = succeeds(&dir, &["train", "tiny.toml", "--dry-run", "--json"], &set);
        let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
        let planned = plan["memory_bytes"]["total"].as_f64().unwrap();
        let [at_end, of_plan] = [all, planned].map(|bytes| bytes / training);
        println!("{set:?}: {training} bytes, {at_end:.3} at the end, {of_plan:.3} planned");
        assert!(at_end < 1.2, "{set:?}: {at_end}");
        assert!((0.75..1.25).contains(&of_plan), "{set:?}: {of_plan}");
    }
}

#[test]
fn a_plan_counts_the_memory_of_the_program_only_on_the_cpu() {
    let text = "to be or not to be ".repeat(50);
    let dataset = Dataset::from_text(&text, &TokenizerConfig::chars()).unwrap();
    for (name, device) in devices() {
        let config = RunConfig::default();
        let setup = RunSetup::from_dataset_on(config, dataset.clone(), &device).unwrap();
        let memory = Plan::estimate(&setup).memory_bytes;
        assert_eq!(memory.program > 0, name != "wgpu", "{name}: {memory:?}");
        assert_eq!(memory.total, memory.program + memory.by_part.total());
    }
}
