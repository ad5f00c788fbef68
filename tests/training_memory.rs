//! Memory of training: as planned, and not more at the end than during the updates.

use std::fs;

use serde_json::Value;

use crate::run_folders::TrainingProcess;
use crate::test_dir::TestDir;
use crate::training::succeeds;

/// Peak memory of a process in bytes, so far.
fn peak_memory(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
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
        "train.steps=5",
        "schedule.warmup_steps=0",
        "data.documents=400",
        "validation.every=0",
        "validation.windows=64",
        "validation.batch_size=64",
        "checkpoint.every=0",
        "samples.every=5",
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
        let mut running = TrainingProcess::start(&dir, &set);
        running.wait_for("step", 4);
        let pid = running.child.id();
        let training = peak_memory(pid).unwrap();
        let mut all = training;
        for line in running.lines.by_ref() {
            line.unwrap();
            all = peak_memory(pid).map_or(all, |peak| peak.max(all));
        }
        assert!(running.child.wait().unwrap().success());
        let output = succeeds(&dir, &["train", "tiny.toml", "--dry-run", "--json"], &set);
        let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
        let planned = plan["memory_bytes"]["total"].as_u64().unwrap();
        let [at_end, of_plan] = [all, planned].map(|bytes| bytes as f64 / training as f64);
        println!("{set:?}: {training} bytes, {at_end:.3} at the end, {of_plan:.3} planned");
        assert!(at_end < 1.05, "{set:?}: {at_end}");
        assert!((0.9..1.1).contains(&of_plan), "{set:?}: {of_plan}");
    }
}
