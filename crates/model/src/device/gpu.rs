//! GPU devices, which depend on the build and on the machine.

#![allow(dead_code, clippy::unnecessary_wraps)] // Usage depends on the features.

use super::{Device, DeviceInfo, DeviceName, GraphicsAdapter, GraphicsApi, ModelError, self_test};

/// The first discrete GPU that works, through the fastest backend of this build, and its name.
pub(super) fn open_discrete() -> Option<(DeviceName, Device)> {
    #[cfg(feature = "cuda")]
    if let Ok(device) = open_cuda(&DeviceName::Cuda(0), 0) {
        return Some((DeviceName::Cuda(0), device));
    }
    #[cfg(feature = "rocm")]
    if let Ok(device) = open_rocm(&DeviceName::Rocm(0), 0) {
        return Some((DeviceName::Rocm(0), device));
    }
    #[cfg(feature = "wgpu")]
    if let Ok((device, _)) = wgpu::first(GraphicsApi::Auto, &wgpu::DISCRETE, 0) {
        // Discrete GPUs have the first numbers.
        let name = DeviceName::Wgpu(GraphicsApi::Auto, GraphicsAdapter::Nth(0));
        return Some((name, device));
    }
    None
}

pub(super) fn open_wgpu(
    name: &DeviceName,
    api: GraphicsApi,
    adapter: GraphicsAdapter,
) -> Result<Device, ModelError> {
    #[cfg(not(feature = "wgpu"))]
    {
        let _ = (api, adapter);
        Err(name.not_built("wgpu"))
    }
    #[cfg(feature = "wgpu")]
    {
        let (kinds, n): (&[wgpu::Kind], _) = match adapter {
            GraphicsAdapter::Best => (&wgpu::HARDWARE, 0),
            GraphicsAdapter::Nth(n) => (&wgpu::HARDWARE, n),
            GraphicsAdapter::Software => (&[wgpu::Kind::Software], 0),
        };
        let (device, _) = wgpu::first(api, kinds, n).map_err(|found| {
            let found = if found.is_empty() {
                "no GPU found".to_string()
            } else {
                format!("found only {}", found.join(", "))
            };
            name.error(
                found,
                "use --device flex for the CPU, or install the GPU's driver; a software \
                 adapter is used only with --device wgpu:software",
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
        let found = super::catch_panic(|| Device::enumerate(DeviceType::Cuda).len()).unwrap_or(0);
        if index >= found {
            return Err(name.error(
                format!("CUDA devices found: {found}"),
                "install NVIDIA's driver and the CUDA runtime, or use --device flex",
            ));
        }
        check_device(name, Device::cuda(index))
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
        let found = super::catch_panic(|| Device::enumerate(DeviceType::Rocm).len()).unwrap_or(0);
        if index >= found {
            return Err(name.error(
                format!("ROCm devices found: {found}"),
                "install AMD's ROCm, or use --device flex",
            ));
        }
        check_device(name, Device::rocm(index))
    }
}

fn check_device(name: &DeviceName, device: Device) -> Result<Device, ModelError> {
    match self_test(&device) {
        Ok(()) => Ok(device),
        Err(problem) => Err(name.error(problem, "use --device flex for the CPU")),
    }
}

/// Lists the GPUs that this build can use on this machine.
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
    super::catch_panic(|| device.identity())
        .ok()
        .flatten()
        .map_or_else(|| "GPU".to_string(), |identity| identity.name)
}

#[cfg(not(any(feature = "cuda", feature = "rocm", feature = "wgpu")))]
fn describe(_device: &Device) -> String {
    "GPU".to_string()
}

#[cfg(feature = "wgpu")]
#[path = "wgpu.rs"]
mod wgpu;
