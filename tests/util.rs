//! Shared helpers.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use burn::tensor::Device;
use nextword_data::{IGNORE, TokenBatch};
use nextword_model::{CounterRng, DeviceName};

/// Set in CI, where a software adapter is installed, so that wgpu must not be skipped.
const REQUIRE_WGPU: &str = "NEXTWORD_REQUIRE_WGPU";

/// Whether no test may be skipped on this machine.
pub(crate) fn must_not_skip() -> bool {
    std::env::var_os(REQUIRE_WGPU).is_some()
}

/// The SHA-256 of a file, in hexadecimal.
pub(crate) fn sha256(path: &Path) -> String {
    let hash = nextword_base::hash::hash_file(path);
    hash.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        .hex()
}

/// The root of the workspace.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_path_buf()
}

/// The device that the others are compared with.
pub(crate) fn flex() -> Device {
    DeviceName::Flex.open().unwrap()
}

/// The names of flex, ndarray and, where there is an adapter, wgpu.
pub(crate) fn device_names() -> Vec<&'static str> {
    static WGPU: OnceLock<Option<&'static str>> = OnceLock::new();
    let wgpu = WGPU.get_or_init(|| {
        let opens = |name: &&str| name.parse::<DeviceName>().unwrap().open().is_ok();
        let found = ["wgpu", "wgpu:software"].into_iter().find(opens);
        assert!(
            found.is_some() || !must_not_skip(),
            "{REQUIRE_WGPU} is set, and wgpu finds no adapter: install a Vulkan driver"
        );
        if found.is_none() {
            eprintln!("wgpu skipped: no adapter found");
        }
        found
    });
    ["flex", "ndarray"].into_iter().chain(*wgpu).collect()
}

/// The devices of [`device_names`], each with the name of its backend.
pub(crate) fn devices() -> Vec<(&'static str, Device)> {
    let open = |name: &'static str| {
        let backend = name.split(':').next().unwrap_or(name);
        (backend, name.parse::<DeviceName>().unwrap().open().unwrap())
    };
    device_names().into_iter().map(open).collect()
}

/// Copies a folder with everything in it.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Random ids with a few ignored targets.
pub(crate) fn batch(batch: usize, seq: usize, vocab_size: usize, salt: u64) -> TokenBatch {
    let rng = CounterRng::new(salt).named("batch");
    let id = |index: u64| (rng.at(index) % vocab_size as u64) as u32;
    let n = (batch * seq) as u64;
    TokenBatch {
        batch,
        seq,
        inputs: (0..n).map(id).collect(),
        targets: (n..2 * n)
            .map(|index| if index % 7 == 3 { IGNORE } else { id(index) })
            .collect(),
        ..TokenBatch::default()
    }
}

/// Longer than any command in a test takes, also on a busy machine.
const TIME_LIMIT: Duration = Duration::from_mins(10);

/// Runs a command without input to its end. A command that does not end fails the test instead of holding up all.
pub(crate) fn output(command: &mut Command) -> Output {
    output_within(command, TIME_LIMIT)
}

fn output_within(command: &mut Command, limit: Duration) -> Output {
    command.stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let stdout = read_to_end(child.stdout.take().unwrap());
    let stderr = read_to_end(child.stderr.take().unwrap());
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if started.elapsed() > limit {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{command:?} did not end in {} s", limit.as_secs());
        }
        thread::sleep(Duration::from_millis(2));
    };
    Output {
        status,
        stdout: stdout.join().unwrap(),
        stderr: stderr.join().unwrap(),
    }
}

fn read_to_end(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

#[test]
#[should_panic(expected = "did not end")]
fn a_command_that_does_not_end_fails_its_test() {
    let letters = root().join("docs/models/letters");
    let mut command = nextword();
    command.arg("serve").arg(letters).args(["--port", "0"]);
    output_within(&mut command, Duration::from_millis(50));
}

/// The built program, in the profile of these tests.
pub(crate) fn nextword() -> Command {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| {
        let test = std::env::current_exe().unwrap(); // target/PROFILE/deps/tests-HASH
        let profile = test.parent().unwrap().parent().unwrap();
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--package", "nextword", "--target-dir"]);
        build.arg(profile.parent().unwrap()).current_dir(root());
        // Cargo sets these for the tests. Build scripts that read them would run again.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
                build.env_remove(name);
            }
        }
        if profile.ends_with("release") {
            build.arg("--release");
        }
        assert!(
            build.status().unwrap().success(),
            "the program does not build"
        );
        profile.join(format!("nextword{}", std::env::consts::EXE_SUFFIX))
    });
    let mut command = Command::new(program);
    command.env_remove("RUST_BACKTRACE");
    // Without it, graphics drivers print warnings to standard error.
    command.env("XDG_RUNTIME_DIR", std::env::temp_dir());
    command
}

/// Standard error of a finished command.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The permitted error of an element: `absolute`, plus `relative` times its magnitude.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tolerance {
    relative: f32,
    absolute: f32,
}

impl Tolerance {
    pub(crate) const fn new(relative: f32, absolute: f32) -> Self {
        Self { relative, absolute }
    }
}

/// Asserts that each element of `a` equals that of `b` up to the tolerance, and names the first one
/// that does not.
pub(crate) fn assert_close(a: &[f32], b: &[f32], tolerance: Tolerance, label: &str) {
    assert_eq!(a.len(), b.len(), "{label}: lengths");
    let Tolerance { relative, absolute } = tolerance;
    for (index, (a, b)) in a.iter().zip(b).enumerate() {
        assert!(
            (a - b).abs() <= absolute + relative * b.abs(),
            "{label}[{index}]: {a} instead of {b}, {tolerance:?}"
        );
    }
}
