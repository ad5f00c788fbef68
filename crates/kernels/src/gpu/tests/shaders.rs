//! The programs of the kernels in the languages of the graphics interfaces: on Macs and Windows, wgpu translates
//! them from WGSL with naga, as this test does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use naga::back::{hlsl, msl};
use naga::valid::{Capabilities, ValidationFlags, Validator};

use super::gpu;

/// Filters of tests that together launch every kernel.
const TESTS: [&str; 10] = [
    "launches",
    "positions",
    "optimizer",
    "kv_cache",
    "norms",
    "output_layer",
    "table",
    "quantized",
    "decod",
    "parameters_alone",
];

/// The name and the WGSL of each program that other tests compile, from the log of a process of its own.
fn programs() -> Vec<(String, String)> {
    let log = std::env::temp_dir().join(format!("nextword-kernels-{}.log", std::process::id()));
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(TESTS)
        .args(["--skip", "cpu::", "--skip", "shaders"]);
    command.env("CUBECL_DEBUG_LOG", &log);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = fs::read_to_string(&log).unwrap();
    fs::remove_file(&log).unwrap();
    let program = |part: &str| {
        let name = part.lines().find_map(|line| line.strip_prefix("name: "))?;
        let source = part.split_once("```wgsl\n")?.1.split_once("\n```\n")?.0;
        Some((name.to_string(), source.to_string()))
    };
    let parts = text.split("[START_KERNEL_COMPILATION]");
    parts.filter_map(program).collect()
}

/// The Rust files of a folder and its folders.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let files = entries.flat_map(|path| {
        if path.is_dir() {
            rust_files(&path)
        } else {
            vec![path]
        }
    });
    files.collect()
}

/// The names of all kernels in the sources.
fn kernels() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gpu");
    let mut names = Vec::new();
    for file in rust_files(&folder) {
        if file.ends_with("tests/shaders.rs") {
            continue;
        }
        let text = fs::read_to_string(file).unwrap();
        for part in text.split("#[cube(launch)]").skip(1) {
            let name = part.split_once("fn ").unwrap().1.split_once('(').unwrap().0;
            names.push(name.to_string());
        }
    }
    names
}

/// Translates a program to the languages of Metal and DirectX 12.
fn translate(source: &str) -> Result<(), String> {
    let module = naga::front::wgsl::parse_str(source).map_err(|e| e.emit_to_string(source))?;
    let mut validator = Validator::new(ValidationFlags::all(), Capabilities::all());
    let info = validator.validate(&module);
    let info = info.map_err(|e| e.emit_to_string(source))?;
    let options = msl::Options {
        lang_version: (2, 4),
        ..msl::Options::default()
    };
    msl::write_string(&module, &info, &options, &msl::PipelineOptions::default())
        .map_err(|e| format!("Metal: {e}"))?;
    let (options, pipeline) = (hlsl::Options::default(), hlsl::PipelineOptions::default());
    let mut text = String::new();
    let mut writer = hlsl::Writer::new(&mut text, &options, &pipeline);
    let written = writer.write(&module, &info, None);
    written.map(|_| ()).map_err(|e| format!("DirectX: {e}"))
}

#[test]
fn every_kernel_is_translated_for_metal_and_directx() {
    if gpu().is_none() {
        return;
    }
    let programs = programs();
    for kernel in kernels() {
        let is_compiled = |(name, _): &(String, String)| name.contains(&format!("::{kernel}::"));
        assert!(
            programs.iter().any(is_compiled),
            "{kernel} was not compiled"
        );
    }
    for (name, source) in &programs {
        if let Err(error) = translate(source) {
            panic!("{name}: {error}\n{source}");
        }
    }
}
