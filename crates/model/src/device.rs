//! Devices, chosen by name at run time.
//!
//! Burn's GPU devices are lazy: creating one never fails, but its first operation may panic. Every
//! device is therefore tested with a small computation when it is opened, and failures become errors.

use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use burn::tensor::{Device, Tensor};

use crate::ModelError;

/// The name of a device, as given by the user.
///
/// # Example
///
/// ```
/// use nextword_model::{GraphicsAdapter, DeviceName, GraphicsApi};
///
/// let second = "wgpu:1".parse::<DeviceName>()?;
/// assert_eq!(second, DeviceName::Wgpu(GraphicsApi::Auto, GraphicsAdapter::Nth(1)));
/// let device = "flex".parse::<DeviceName>()?.open()?;
/// assert_eq!(device, burn::tensor::Device::flex());
/// assert!("gpu".parse::<DeviceName>().is_err());
/// # Ok::<(), nextword_model::ModelError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum DeviceName {
    /// A working discrete GPU, or `flex` if there is none.
    #[default]
    Auto,
    /// The CPU, through Burn's flex backend: the default.
    Flex,
    /// The CPU, through Burn's ndarray backend.
    NdArray,
    /// A GPU through wgpu, with the given graphics API and adapter.
    Wgpu(GraphicsApi, GraphicsAdapter),
    /// An NVIDIA GPU by its index, through CUDA.
    Cuda(usize),
    /// An AMD GPU by its index, through `ROCm`.
    Rocm(usize),
}

/// The graphics API that wgpu uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GraphicsApi {
    /// The system's default: Vulkan, Metal or DirectX 12.
    Auto,
    /// Only Vulkan.
    Vulkan,
    /// Only Metal.
    Metal,
}

/// Which adapter wgpu uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GraphicsAdapter {
    /// The first discrete GPU, otherwise an integrated one, otherwise a virtual one; never software.
    Best,
    /// The n-th GPU, discrete ones first.
    Nth(usize),
    /// A software adapter (lavapipe, WARP): slow, for tests.
    Software,
}

/// One device of this machine.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// The value for `--device`.
    pub name: DeviceName,
    /// The name that the hardware reports.
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
                    GraphicsAdapter::Best => Ok(()),
                    GraphicsAdapter::Nth(n) => write!(f, ":{n}"),
                    GraphicsAdapter::Software => f.write_str(":software"),
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
            problem: "unknown device".to_string(),
            hint: "use auto, flex, ndarray, wgpu, wgpu:N, wgpu:software, vulkan, metal, cuda or \
                   rocm; `nextword devices` lists the devices of this machine"
                .to_string(),
        };
        let (kind, suffix) = match text.split_once(':') {
            Some((kind, suffix)) => (kind, Some(suffix)),
            None => (text, None),
        };
        let index = || match suffix {
            None => Ok(0),
            Some(suffix) => suffix.parse().map_err(|_| unknown()),
        };
        let adapter = || match suffix {
            None => Ok(GraphicsAdapter::Best),
            Some("software") => Ok(GraphicsAdapter::Software),
            Some(suffix) => suffix
                .parse()
                .map(GraphicsAdapter::Nth)
                .map_err(|_| unknown()),
        };
        match kind {
            "auto" if suffix.is_none() => Ok(Self::Auto),
            "flex" | "cpu" if suffix.is_none() => Ok(Self::Flex),
            "ndarray" if suffix.is_none() => Ok(Self::NdArray),
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
    /// Opens the device and tests it with a small computation.
    ///
    /// # Errors
    /// [`ModelError::Device`] if this build does not support the device, this machine does not have it,
    /// or it does not work.
    pub fn open(&self) -> Result<Device, ModelError> {
        if *self == Self::Auto {
            return self.resolve()?.open();
        }
        let mut opened = opened();
        if let Some(device) = opened.get(self) {
            return Ok(device.clone());
        }
        let device = self.open_new()?;
        tracing::debug!(name = %self, ?device, "device opened");
        opened.insert(self.clone(), device.clone());
        Ok(device)
    }

    /// The name of the device that [`open`](Self::open) opens: this one, or for `auto` the one that it
    /// takes on this machine.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    ///
    /// ```
    /// use nextword_model::DeviceName;
    ///
    /// assert_eq!(DeviceName::Flex.resolve()?, DeviceName::Flex);
    /// assert_ne!(DeviceName::Auto.resolve()?, DeviceName::Auto);
    /// # Ok::<(), nextword_model::ModelError>(())
    /// ```
    pub fn resolve(&self) -> Result<Self, ModelError> {
        static TAKEN: OnceLock<DeviceName> = OnceLock::new();
        if *self != Self::Auto {
            return Ok(self.clone());
        }
        if let Some(taken) = TAKEN.get() {
            return Ok(taken.clone());
        }
        let (taken, device) = match gpu::open_discrete() {
            Some(found) => found,
            None => (Self::Flex, flex()?),
        };
        opened().entry(taken.clone()).or_insert(device);
        Ok(TAKEN.get_or_init(|| taken).clone())
    }

    fn open_new(&self) -> Result<Device, ModelError> {
        match self {
            Self::Auto => self.resolve()?.open_new(),
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

    /// The error for a backend that this build does not include.
    #[allow(dead_code)] // Not used where every backend is compiled in.
    fn not_built(&self, feature: &str) -> ModelError {
        self.error(
            format!("this build of nextword has no `{feature}` backend"),
            format!("build with `cargo build --release --features {feature}`"),
        )
    }
}

/// Lists the devices that this build can use on this machine, software adapters last. Opens each.
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

/// The open devices. wgpu can open each only once in a process.
fn opened() -> MutexGuard<'static, HashMap<DeviceName, Device>> {
    static OPENED: OnceLock<Mutex<HashMap<DeviceName, Device>>> = OnceLock::new();
    OPENED
        .get_or_init(Mutex::default)
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

#[cfg(feature = "flex")]
fn flex() -> Result<Device, ModelError> {
    use nextword_kernels::Isa;

    match Isa::from_env() {
        Ok(_) => Ok(Device::flex()),
        Err(error) => Err(ModelError::Device {
            name: DeviceName::Flex.to_string(),
            problem: error.to_string(),
            hint: format!(
                "correct or unset the environment variable {}",
                Isa::VARIABLE
            ),
        }),
    }
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

/// Runs `work` and returns the message of a panic as an error, without printing it.
#[allow(dead_code)] // Only GPU backends panic.
fn catch_panic<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let result = catch_unwind(AssertUnwindSafe(work));
    std::panic::set_hook(hook);
    result.map_err(|panic| {
        panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
            .unwrap_or_else(|| "the backend panicked".to_string())
    })
}

/// Tests `device` with a small computation.
#[allow(dead_code)] // Only GPU backends are tested.
fn self_test(device: &Device) -> Result<(), String> {
    let sum = catch_panic(|| {
        // Elementwise: Burn tunes reductions at their first use, which takes seconds.
        (Tensor::<1>::ones([1], device) + 1.0).try_into_scalar::<f32>()
    })?;
    match sum {
        Ok(2.0) => Ok(()),
        Ok(sum) => Err(format!("its self-test failed: 1 + 1 = {sum}")),
        Err(e) => Err(e.to_string()),
    }
}

mod gpu;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn device_names_round_trip() {
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
