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

mod gpu {
    //! The devices that may not be there.

    #![allow(dead_code, clippy::unnecessary_wraps)] // What is used depends on the features.

    use super::{Adapter, Device, DeviceInfo, DeviceName, GraphicsApi, ModelError, calculates};

    /// The first discrete GPU that works, by the fastest backend of this build.
    pub(super) fn open_discrete() -> Option<Device> {
        #[cfg(feature = "cuda")]
        if let Ok(device) = open_cuda(&DeviceName::Cuda(0), 0) {
            return Some(device);
        }
        #[cfg(feature = "rocm")]
        if let Ok(device) = open_rocm(&DeviceName::Rocm(0), 0) {
            return Some(device);
        }
        #[cfg(feature = "wgpu")]
        if let Ok((device, _)) = wgpu::first(GraphicsApi::Auto, &wgpu::DISCRETE, 0) {
            return Some(device);
        }
        None
    }

    pub(super) fn open_wgpu(
        name: &DeviceName,
        api: GraphicsApi,
        adapter: Adapter,
    ) -> Result<Device, ModelError> {
        #[cfg(not(feature = "wgpu"))]
        {
            let _ = (api, adapter);
            Err(name.not_built("wgpu"))
        }
        #[cfg(feature = "wgpu")]
        {
            let (kinds, n): (&[wgpu::Kind], _) = match adapter {
                Adapter::Best => (&wgpu::HARDWARE, 0),
                Adapter::Nth(n) => (&wgpu::HARDWARE, n),
                Adapter::Software => (&[wgpu::Kind::Software], 0),
            };
            let (device, _) = wgpu::first(api, kinds, n).map_err(|found| {
                let found = if found.is_empty() {
                    "no GPU was found".to_string()
                } else {
                    format!("found only {}", found.join(", "))
                };
                name.error(
                    found,
                    "use --device flex for the CPU, or install the GPU's driver; a software \
                     adapter is used only if asked for by --device wgpu:software",
                )
            })?;
            Ok(device)
        }
    }

    pub(super) fn open_cuda(name: &DeviceName, index: usize) -> Result<Device, ModelError> {
        #[cfg(not(feature = "cuda"))]
        {
            let _ = index;
            Err(name.not_built("cuda"))
        }
        #[cfg(feature = "cuda")]
        {
            use burn::tensor::DeviceType;
            let found = super::quietly(|| Device::enumerate(DeviceType::Cuda).len()).unwrap_or(0);
            if index >= found {
                return Err(name.error(
                    format!("{found} CUDA devices were found"),
                    "install NVIDIA's driver and the CUDA runtime, or use --device flex",
                ));
            }
            working(name, Device::cuda(index))
        }
    }

    pub(super) fn open_rocm(name: &DeviceName, index: usize) -> Result<Device, ModelError> {
        #[cfg(not(feature = "rocm"))]
        {
            let _ = index;
            Err(name.not_built("rocm"))
        }
        #[cfg(feature = "rocm")]
        {
            use burn::tensor::DeviceType;
            let found = super::quietly(|| Device::enumerate(DeviceType::Rocm).len()).unwrap_or(0);
            if index >= found {
                return Err(name.error(
                    format!("{found} ROCm devices were found"),
                    "install AMD's ROCm, or use --device flex",
                ));
            }
            working(name, Device::rocm(index))
        }
    }

    fn working(name: &DeviceName, device: Device) -> Result<Device, ModelError> {
        match calculates(&device) {
            Ok(()) => Ok(device),
            Err(problem) => Err(name.error(problem, "use --device flex for the CPU")),
        }
    }

    /// Every GPU of this build and machine.
    pub(super) fn list() -> Vec<DeviceInfo> {
        #[allow(unused_mut)]
        let mut found = Vec::new();
        for index in 0..16 {
            for name in [DeviceName::Cuda(index), DeviceName::Rocm(index)] {
                if let Ok(device) = name.open() {
                    let description = describe(&device);
                    found.push(DeviceInfo { name, description });
                }
            }
        }
        #[cfg(feature = "wgpu")]
        found.extend(wgpu::list());
        found
    }

    #[cfg(any(feature = "cuda", feature = "rocm", feature = "wgpu"))]
    fn describe(device: &Device) -> String {
        super::quietly(|| device.identity())
            .ok()
            .flatten()
            .map_or_else(|| "GPU".to_string(), |identity| identity.name)
    }

    #[cfg(not(any(feature = "cuda", feature = "rocm", feature = "wgpu")))]
    fn describe(_device: &Device) -> String {
        "GPU".to_string()
    }

    #[cfg(feature = "wgpu")]
    mod wgpu {
        //! Adapters of wgpu, opened one by one.

        use std::collections::HashMap;
        use std::sync::{Mutex, OnceLock, PoisonError};

        use burn::tensor::wgpu::WgpuBackend;
        use burn::tensor::{Device, DeviceKind};

        use super::super::{Adapter, DeviceInfo, DeviceName, GraphicsApi, calculates, quietly};

        /// What kind of adapter.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(super) enum Kind {
            Discrete,
            Integrated,
            Virtual,
            Software,
        }

        pub(super) const DISCRETE: [Kind; 1] = [Kind::Discrete];
        pub(super) const HARDWARE: [Kind; 3] = [Kind::Discrete, Kind::Integrated, Kind::Virtual];

        /// More adapters of one kind than any machine has.
        const MOST: usize = 16;

        type Opened = HashMap<(GraphicsApi, Kind, usize), Result<Device, String>>;

        /// Opens the `n`-th adapter of one kind, once in a process, and remembers the outcome.
        fn open(api: GraphicsApi, kind: Kind, n: usize) -> Result<Device, String> {
            static OPENED: OnceLock<Mutex<Opened>> = OnceLock::new();
            let mut opened = OPENED
                .get_or_init(Mutex::default)
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            opened
                .entry((api, kind, n))
                .or_insert_with(|| open_new(api, kind, n))
                .clone()
        }

        fn open_new(api: GraphicsApi, kind: Kind, n: usize) -> Result<Device, String> {
            let kind = match kind {
                Kind::Discrete => DeviceKind::DiscreteGpu(n),
                Kind::Integrated => DeviceKind::IntegratedGpu(n),
                Kind::Virtual => DeviceKind::VirtualGpu(n),
                Kind::Software => DeviceKind::Cpu,
            };
            let api = match api {
                GraphicsApi::Auto => WgpuBackend::Auto,
                GraphicsApi::Vulkan => WgpuBackend::Vulkan,
                GraphicsApi::Metal => WgpuBackend::Metal,
            };
            let options = Device::wgpu_options().device_kind(kind).graphics_api(api);
            let device = quietly(|| options.init())?.map_err(|e| e.to_string())?;
            calculates(&device)?;
            Ok(device)
        }

        /// The `n`-th adapter of these kinds that works; else what was found instead.
        pub(super) fn first(
            api: GraphicsApi,
            kinds: &[Kind],
            n: usize,
        ) -> Result<(Device, String), Vec<String>> {
            let mut found = Vec::new();
            for (device, description, _) in all(api, kinds) {
                if found.len() == n {
                    return Ok((device, description));
                }
                found.push(description);
            }
            Err(found)
        }

        fn all(
            api: GraphicsApi,
            kinds: &[Kind],
        ) -> impl Iterator<Item = (Device, String, Kind)> + '_ {
            kinds.iter().flat_map(move |kind| {
                let most = if *kind == Kind::Software { 1 } else { MOST };
                (0..most).map_while(move |n| {
                    let device = open(api, *kind, n).ok()?;
                    let description = super::describe(&device);
                    Some((device, description, *kind))
                })
            })
        }

        pub(super) fn list() -> Vec<DeviceInfo> {
            let kinds = [HARDWARE.as_slice(), &[Kind::Software]].concat();
            all(GraphicsApi::Auto, &kinds)
                .enumerate()
                .map(|(n, (_, description, kind))| DeviceInfo {
                    name: DeviceName::Wgpu(
                        GraphicsApi::Auto,
                        match kind {
                            Kind::Software => Adapter::Software,
                            _ => Adapter::Nth(n),
                        },
                    ),
                    description,
                })
                .collect()
        }
    }
}

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
