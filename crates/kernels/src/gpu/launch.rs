//! Allocation and the division of work into cubes.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use burn::tensor::{DType, Shape};
use burn_cubecl::CubeDevice;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::CubeElement;
use cubecl::prelude::{BufferArg, CubeCount, CubeDim};
use cubecl::server::CubeCountSelection;

/// Units per cube of elementwise kernels.
const ELEMENT_UNITS: usize = 256;

/// An uninitialized f32 tensor on the device of `like`.
pub(super) fn empty(like: &CubeTensor, shape: impl Into<Shape>) -> CubeTensor {
    let (client, device) = (like.client.clone(), like.device.clone());
    empty_device_contiguous_dtype(client, device, shape.into(), DType::F32)
}

/// An uninitialized f32 tensor of the same shape on the same device.
pub(super) fn empty_like(tensor: &CubeTensor) -> CubeTensor {
    empty(tensor, tensor.meta.shape().clone())
}

/// A buffer for two tensors of the shape of `like`, both tensors, and the index of the second one's first
/// element in the buffer.
pub(super) fn halves(like: &CubeTensor) -> (CubeTensor, [CubeTensor; 2], usize) {
    /// Elements to which adapters align the start of a buffer.
    const ALIGNMENT: usize = 64;
    let len = len(like);
    let start = len.next_multiple_of(ALIGNMENT);
    let both = empty(like, [2 * start]);
    let part = |first: usize| {
        let bytes = |elements: usize| 4 * elements as u64;
        let handle = both.handle.clone().offset_start(bytes(first));
        let handle = handle.offset_end(bytes(2 * start - first - len));
        let (client, device) = (like.client.clone(), like.device.clone());
        let shape = like.meta.shape().clone();
        CubeTensor::new_contiguous(client, device, shape, handle, DType::F32)
    };
    let parts = [part(0), part(start)];
    (both, parts, start)
}

/// The elements of a contiguous tensor from `first` on, in `shape`; where that is not 0, it must be a multiple
/// of 64, to which adapters align buffers.
pub(super) fn part<const D: usize>(
    tensor: &CubeTensor,
    first: usize,
    shape: [usize; D],
) -> CubeTensor {
    let bytes = |elements: usize| 4 * elements as u64;
    let count = shape.iter().product::<usize>();
    let handle = tensor.handle.clone().offset_start(bytes(first));
    let handle = handle.offset_end(bytes(len(tensor) - first - count));
    let (client, device) = (tensor.client.clone(), tensor.device.clone());
    CubeTensor::new_contiguous(client, device, shape.into(), handle, DType::F32)
}

/// A copy of `values` on the device of `like`.
pub(super) fn upload(like: &CubeTensor, values: &[u32]) -> CubeTensor {
    let handle = like.client.create_from_slice(u32::as_bytes(values));
    let (client, device) = (like.client.clone(), like.device.clone());
    CubeTensor::new_contiguous(client, device, [values.len()].into(), handle, DType::U32)
}

/// Words on a device, with what they were copied from.
type Copied = (CubeDevice, Vec<u32>, CubeTensor);

/// Like [`upload`], but the last few copies are kept: what is the same in all layers of a pass, such as lists
/// of pages, is copied once.
pub(super) fn upload_recent(like: &CubeTensor, values: &[u32]) -> CubeTensor {
    /// Copies that are kept.
    const KEPT: usize = 16;
    static RECENT: Mutex<VecDeque<Copied>> = Mutex::new(VecDeque::new());
    let mut recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
    let is_same = |(device, kept, _): &&Copied| *device == like.device && kept == values;
    if let Some((_, _, copy)) = recent.iter().find(is_same) {
        return copy.clone();
    }
    let copy = upload(like, values);
    recent.truncate(KEPT - 1);
    recent.push_front((like.device.clone(), values.to_vec(), copy.clone()));
    copy
}

/// A tensor that a kernel may write without another tensor noticing: itself, or a copy.
pub(super) fn exclusive(tensor: CubeTensor) -> CubeTensor {
    if tensor.can_mut() && tensor.is_nonoverlapping() {
        tensor
    } else {
        tensor.copy()
    }
}

/// Number of elements.
pub(super) fn len(tensor: &CubeTensor) -> usize {
    tensor.meta.shape().num_elements()
}

/// The tensor's buffer as an argument of a kernel.
pub(super) fn buffer(tensor: &CubeTensor) -> BufferArg {
    tensor.clone().into_buffer_arg()
}

/// Cubes for one unit per element, and perhaps a few more; `None` if there are no elements.
pub(super) fn per_element(like: &CubeTensor, elements: usize) -> Option<(CubeCount, CubeDim)> {
    let cubes = elements.div_ceil(ELEMENT_UNITS);
    Some((
        per_cube(like, cubes)?,
        CubeDim::new_1d(ELEMENT_UNITS as u32),
    ))
}

/// At least `cubes` cubes, numbered by `CUBE_POS`; `None` if there are none. Devices limit the number along
/// each axis, so there may be a few more.
pub(super) fn per_cube(like: &CubeTensor, cubes: usize) -> Option<CubeCount> {
    (cubes > 0).then(|| CubeCountSelection::new(&like.client, cubes as u32).cube_count())
}
