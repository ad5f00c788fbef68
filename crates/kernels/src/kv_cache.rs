//! Writes the keys or values of new tokens to a KV cache.

use burn::tensor::Tensor;

/// Writes `new`, `[rows, heads, seq, head_dim]`, to `cache`, `[slots, heads, capacity, head_dim]`:
/// row i goes to slot `slots[i]`, starting at position `starts[i]`. The cache is updated in place
/// unless other tensors share its storage.
///
/// # Panics
/// If a slot does not exist or is named twice, the tokens do not fit into it, the shapes do not match, or
/// `slots` or `starts` do not have one element for each row.
///
/// # Example
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use nextword_kernels::write_cache;
///
/// let device = Device::flex();
/// let cache = Tensor::<4>::zeros([2, 1, 4, 3], &device); // [slots, heads, capacity, head_dim]
/// let new = Tensor::<4>::ones([1, 1, 2, 3], &device); // two tokens of one sequence
/// let cache = write_cache(cache, new, &[1], &[2]); // to slot 1, positions 2 and 3
/// assert_eq!(cache.clone().sum().into_scalar::<f32>(), 6.0);
/// assert_eq!(cache.narrow(0, 1, 1).narrow(2, 2, 2).sum().into_scalar::<f32>(), 6.0);
/// ```
pub fn write_cache(
    cache: Tensor<4>,
    new: Tensor<4>,
    slots: &[usize],
    starts: &[usize],
) -> Tensor<4> {
    check(&cache, &new, slots, starts);
    #[cfg(feature = "flex")]
    if crate::fused::is_flex_f32(&cache) && crate::fused::is_flex_f32(&new) {
        return fast::write(cache, new, slots, starts);
    }
    if slots.is_empty() {
        return cache;
    }
    let ([_, heads, _, head_dim], seq) = (cache.dims(), new.dims()[2]);
    let contiguous = slots.windows(2).all(|pair| pair[1] == pair[0] + 1);
    if contiguous && starts.windows(2).all(|pair| pair[1] == pair[0]) {
        let (first, start) = (slots[0], starts[0]);
        let tokens = start..start + seq;
        let range = [first..first + slots.len(), 0..heads, tokens, 0..head_dim];
        return cache.slice_assign(range, new);
    }
    let rows = slots.iter().zip(starts).enumerate();
    rows.fold(cache, |cache, (row, (slot, start))| {
        let range = [*slot..slot + 1, 0..heads, *start..start + seq, 0..head_dim];
        cache.slice_assign(range, new.clone().narrow(0, row, 1))
    })
}

/// Panics unless the rows of `new` fit into their slots.
fn check(cache: &Tensor<4>, new: &Tensor<4>, slots: &[usize], starts: &[usize]) {
    let [slot_count, heads, capacity, head_dim] = cache.dims();
    let [rows, new_heads, seq, new_dim] = new.dims();
    assert_eq!(
        [new_heads, new_dim],
        [heads, head_dim],
        "the new tokens and the cache differ in number or size of heads"
    );
    assert!(
        slots.len() == rows && starts.len() == rows,
        "{} slots and {} starts for {rows} rows",
        slots.len(),
        starts.len()
    );
    assert!(are_distinct(slots), "duplicate slots: {slots:?}");
    for (slot, start) in slots.iter().zip(starts) {
        assert!(*slot < slot_count, "slot {slot} of {slot_count}");
        let end = start.checked_add(seq);
        assert!(
            end.is_some_and(|end| end <= capacity),
            "{seq} tokens from position {start} on exceed the capacity of {capacity}"
        );
    }
}

/// Whether no slot occurs twice. Slots are usually in ascending order.
fn are_distinct(slots: &[usize]) -> bool {
    slots.windows(2).all(|pair| pair[0] < pair[1])
        || (1..slots.len()).all(|i| !slots[..i].contains(&slots[i]))
}

#[cfg(feature = "flex")]
mod fast {
    use burn::backend::Flex;
    use burn::backend::flex::FlexTensor;
    use burn::tensor::Tensor;

    pub(super) fn write(
        cache: Tensor<4>,
        new: Tensor<4>,
        slots: &[usize],
        starts: &[usize],
    ) -> Tensor<4> {
        let ([_, heads, capacity, dim], seq) = (cache.dims(), new.dims()[2]);
        let (mut cache, mut new) = (primitive(cache), primitive(new));
        if !cache.is_contiguous() || cache.layout().start_offset() != 0 {
            cache = cache.to_contiguous();
        }
        if new.layout().strides()[3] != 1 {
            new = new.to_contiguous();
        }
        let stride = |axis: usize| new.layout().strides()[axis].unsigned_abs();
        let base = new.layout().start_offset();
        let source: &[f32] = new.storage();
        let target: &mut [f32] = cache.storage_mut();
        for (row, (slot, start)) in slots.iter().zip(starts).enumerate() {
            for head in 0..heads {
                let to = ((slot * heads + head) * capacity + start) * dim;
                for token in 0..seq {
                    let source_start =
                        base + row * stride(0) + head * stride(1) + token * stride(2);
                    target[to + token * dim..][..dim]
                        .copy_from_slice(&source[source_start..][..dim]);
                }
            }
        }
        Tensor::from_primitive::<Flex>(cache)
    }

    fn primitive(x: Tensor<4>) -> FlexTensor {
        let x = x.try_into_primitive::<Flex>();
        x.unwrap_or_else(|e| unreachable!("the caller checked `is_flex_f32`: {e:?}"))
    }
}

#[cfg(all(test, feature = "flex"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use burn::tensor::{Device, Distribution, Tensor};

    use super::{are_distinct, write_cache};

    /// Compares with a scalar loop over all elements.
    #[test]
    fn write_cache_changes_only_the_target_rows() {
        let device = Device::flex();
        let random = |shape: [usize; 4]| {
            Tensor::<4>::random(shape, Distribution::Uniform(-1.0, 1.0), &device)
        };
        let (slots, heads, capacity, dim, seq) = (5, 3, 7, 4, 2);
        let cache = random([slots, heads, capacity, dim]);
        // The layout that attention produces: tokens before heads.
        let new = random([3, seq, heads, dim]).swap_dims(1, 2);
        let (rows, starts) = ([4, 0, 2], [5, 0, 3]);
        let written = write_cache(cache.clone(), new.clone(), &rows, &starts);
        let [original, new, written] =
            [cache, new, written].map(|x| x.into_data().try_into_vec::<f32>().unwrap());
        let mut expected = original;
        for row in 0..3 {
            for head in 0..heads {
                for token in 0..seq {
                    for i in 0..dim {
                        let to = (rows[row] * heads + head) * capacity + starts[row] + token;
                        let from = (row * heads + head) * seq + token;
                        expected[to * dim + i] = new[from * dim + i];
                    }
                }
            }
        }
        assert_eq!(written, expected);
    }

    #[test]
    fn duplicate_slots_are_detected() {
        for slots in [&[][..], &[3], &[0, 1, 2], &[2, 0, 1]] {
            assert!(are_distinct(slots), "{slots:?}");
        }
        for slots in [[1, 1, 2], [2, 1, 2], [0, 2, 2]] {
            assert!(!are_distinct(&slots), "{slots:?}");
        }
    }
}
