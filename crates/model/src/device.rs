//! Where a model runs, chosen by name while the program runs.
//!
//! Burn's GPU devices are lazy: making one never fails, the first operation panics. So every device
//! is opened here with a small calculation, and what goes wrong becomes a sentence.

use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use burn::tensor::{Device, Tensor};

use crate::ModelError;

/// A device as a user names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum DeviceName {
    /// A working discrete GPU, else `flex`.
    #[default]
    Auto,
    /// The CPU, through Burn's flex backend: the default.
    Flex,
    /// The CPU, through Burn's ndarray backend.
    NdArray,
    /// A GPU through wgpu, on a graphics API of the system's choice or a named one.
    Wgpu(GraphicsApi, Adapter),
    /// An NVIDIA GPU by its index, through CUDA.
    Cuda(usize),
    /// An AMD GPU by its index, through `ROCm`.
    Rocm(usize),
}

/// Which graphics API wgpu uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GraphicsApi {
    /// The system's own: Vulkan, Metal or DirectX 12.
    Auto,
    /// Vulkan and no other.
    Vulkan,
    /// Metal and no other.
    Metal,
}

/// Which of several adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Adapter {
    /// The first discrete GPU, else an integrated one, else a virtual one. Never software.
    Best,
    /// The n-th GPU, discrete ones first.
    Nth(usize),
    /// A software adapter (lavapipe, WARP): slow, for tests.
    Software,
}

/// One device of this machine.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// What to pass as `--device`.
    pub name: DeviceName,
    /// What the hardware calls itself.
    pub description: String,
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Flex => f.write_str("flex"),
            Self::NdArray => f.write_str("ndarray"),
            Self::Wgpu(api, adapter) => {
                f.write_str(match api {
                    GraphicsApi::Auto => "wgpu",
                    GraphicsApi::Vulkan => "vulkan",
                    GraphicsApi::Metal => "metal",
                })?;
                match adapter {
                    Adapter::Best => Ok(()),
                    Adapter::Nth(n) => write!(f, ":{n}"),
                    Adapter::Software => f.write_str(":software"),
                }
            }
            Self::Cuda(n) => write!(f, "cuda:{n}"),
            Self::Rocm(n) => write!(f, "rocm:{n}"),
        }
    }
}

impl FromStr for DeviceName {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || ModelError::Device {
            name: text.to_string(),
            problem: "there is no device of that name".to_string(),
            hint: "use auto, flex, ndarray, wgpu, wgpu:N, wgpu:software, vulkan, metal, cuda or \
                   rocm; `nextword devices` lists what this machine has"
                .to_string(),
        };
        let (kind, place) = match text.split_once(':') {
            Some((kind, place)) => (kind, Some(place)),
            None => (text, None),
        };
        let index = || match place {
            None => Ok(0),
            Some(place) => place.parse().map_err(|_| unknown()),
        };
        let adapter = || match place {
            None => Ok(Adapter::Best),
            Some("software") => Ok(Adapter::Software),
            Some(place) => place.parse().map(Adapter::Nth).map_err(|_| unknown()),
        };
        match kind {
            "auto" if place.is_none() => Ok(Self::Auto),
            "flex" | "cpu" if place.is_none() => Ok(Self::Flex),
            "ndarray" if place.is_none() => Ok(Self::NdArray),
            "wgpu" => Ok(Self::Wgpu(GraphicsApi::Auto, adapter()?)),
            "vulkan" => Ok(Self::Wgpu(GraphicsApi::Vulkan, adapter()?)),
            "metal" => Ok(Self::Wgpu(GraphicsApi::Metal, adapter()?)),
            "cuda" => Ok(Self::Cuda(index()?)),
            "rocm" => Ok(Self::Rocm(index()?)),
            _ => Err(unknown()),
        }
    }
}

impl DeviceName {
    /// Opens the device and makes sure that it calculates.
    ///
    /// # Errors
    /// [`ModelError::Device`] if this build or this machine does not have it, or it does not work.
    pub fn open(&self) -> Result<Device, ModelError> {
        let mut opened = opened();
        if let Some(device) = opened.get(self) {
            return Ok(device.clone());
        }
        let device = self.open_new()?;
        opened.insert(self.clone(), device.clone());
        Ok(device)
    }

    fn open_new(&self) -> Result<Device, ModelError> {
        match self {
            Self::Auto => open_auto(),
            Self::Flex => flex(),
            Self::NdArray => ndarray(),
            Self::Wgpu(api, adapter) => gpu::open_wgpu(self, *api, *adapter),
            Self::Cuda(index) => gpu::open_cuda(self, *index),
            Self::Rocm(index) => gpu::open_rocm(self, *index),
        }
    }

    fn error(&self, problem: impl Into<String>, hint: impl Into<String>) -> ModelError {
        ModelError::Device {
            name: self.to_string(),
            problem: problem.into(),
            hint: hint.into(),
        }
    }

    /// The error for a backend that this build leaves out.
    #[allow(dead_code)] // Not used where every backend is compiled in.
    fn not_built(&self, feature: &str) -> ModelError {
        self.error(
            format!("this build of nextword has no `{feature}` backend"),
            format!("build with `cargo build --release --features {feature}`"),
        )
    }
}

/// Every device that this build can use on this machine, software adapters last. Opens each.
pub fn list_devices() -> Vec<DeviceInfo> {
    let mut found = Vec::new();
    for (name, open) in [
        (DeviceName::Flex, flex as fn() -> Result<Device, ModelError>),
        (DeviceName::NdArray, ndarray as fn() -> _),
    ] {
        if open().is_ok() {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            let description = format!("CPU, {cores} cores");
            found.push(DeviceInfo { name, description });
        }
    }
    found.extend(gpu::list());
    found
}

/// Devices opened so far: wgpu can open each only once in a process.
fn opened() -> MutexGuard<'static, HashMap<DeviceName, Device>> {
    static OPENED: OnceLock<Mutex<HashMap<DeviceName, Device>>> = OnceLock::new();
    OPENED
        .get_or_init(Mutex::default)
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

fn open_auto() -> Result<Device, ModelError> {
    gpu::open_discrete().map_or_else(flex, Ok)
}

#[cfg(feature = "flex")]
#[allow(clippy::unnecessary_wraps)] // The other configuration fails.
fn flex() -> Result<Device, ModelError> {
    Ok(Device::flex())
}

#[cfg(not(feature = "flex"))]
fn flex() -> Result<Device, ModelError> {
    Err(DeviceName::Flex.not_built("flex"))
}

#[cfg(feature = "ndarray")]
#[allow(deprecated)] // Offered as long as Burn 0.22 is pinned; flex is the default.
#[allow(clippy::unnecessary_wraps)] // The other configuration fails.
fn ndarray() -> Result<Device, ModelError> {
    Ok(Device::ndarray())
}

#[cfg(not(feature = "ndarray"))]
fn ndarray() -> Result<Device, ModelError> {
    Err(DeviceName::NdArray.not_built("ndarray"))
}

/// Runs `work`, turning a panic into its message and keeping it off the terminal.
#[allow(dead_code)] // Only GPU backends panic.
fn quietly<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let result = catch_unwind(AssertUnwindSafe(work));
    std::panic::set_hook(hook);
    result.map_err(|panic| {
        panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
            .unwrap_or_else(|| "it panicked".to_string())
    })
}

/// Whether `device` adds one and one.
#[allow(dead_code)] // Only GPU backends need asking.
fn calculates(device: &Device) -> Result<(), String> {
    let sum = quietly(|| {
        Tensor::<1>::ones([2], device)
            .sum()
            .try_into_scalar::<f32>()
    })?;
    match sum {
        Ok(2.0) => Ok(()),
        Ok(sum) => Err(format!("it adds 1 and 1 to {sum}")),
        Err(e) => Err(e.to_string()),
    }
}

mod gpu;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in [
            "auto",
            "flex",
            "ndarray",
            "wgpu",
            "wgpu:1",
            "wgpu:software",
            "vulkan",
            "metal:2",
            "cuda:0",
            "rocm:3",
        ] {
            assert_eq!(DeviceName::from_str(name).unwrap().to_string(), name);
        }
        for name in ["", "gpu", "wgpu:x", "flex:1", "cuda:-1"] {
            assert!(DeviceName::from_str(name).is_err(), "{name}");
        }
    }
}
