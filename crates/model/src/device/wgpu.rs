//! The adapters of wgpu.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use burn::tensor::wgpu::WgpuBackend;
use burn::tensor::{Device, DeviceKind};

use crate::device::{DeviceInfo, DeviceName, GraphicsAdapter, GraphicsApi, catch_panic, self_test};

/// The kind of an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Discrete,
    Integrated,
    Virtual,
    Software,
}

pub(super) const DISCRETE: [Kind; 1] = [Kind::Discrete];
pub(super) const HARDWARE: [Kind; 3] = [Kind::Discrete, Kind::Integrated, Kind::Virtual];

/// Maximum number of adapters of one kind, more than any machine has.
const MAX_ADAPTERS: usize = 16;

type Opened = HashMap<(GraphicsApi, Kind, usize), Result<Device, String>>;

/// Opens the `n`-th adapter of one kind. Opens each only once in a process and caches the result.
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
    let device = catch_panic(|| options.init())?.map_err(|e| e.to_string())?;
    self_test(&device)?;
    Ok(device)
}

/// Returns the `n`-th working adapter of these kinds, or the descriptions of those found instead.
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

fn all(api: GraphicsApi, kinds: &[Kind]) -> impl Iterator<Item = (Device, String, Kind)> + '_ {
    kinds.iter().flat_map(move |kind| {
        let max = if *kind == Kind::Software {
            1
        } else {
            MAX_ADAPTERS
        };
        (0..max).map_while(move |n| {
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
                    Kind::Software => GraphicsAdapter::Software,
                    _ => GraphicsAdapter::Nth(n),
                },
            ),
            description,
        })
        .collect()
}
