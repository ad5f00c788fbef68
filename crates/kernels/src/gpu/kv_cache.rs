//! Writes to the pages of a KV cache, and copies of them.

use burn::tensor::Tensor;
use burn_cubecl::Cube;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{buffer, empty, exclusive, len, per_element, upload_recent};

/// Writes new keys and values, `[rows, heads, seq, head_dim]`, to both parts of a cache, in one launch.
pub(crate) fn write(
    cache: [Tensor<4>; 2],
    new: [Tensor<4>; 2],
    pages: &[&[usize]],
    starts: &[usize],
) -> [Tensor<4>; 2] {
    let ([_, heads, page_len, dim], seq) = (cache[0].dims(), new[0].dims()[2]);
    let [mut k, mut v] = new.map(strided);
    if k.meta.strides() != v.meta.strides() || k.meta.strides()[3] != 1 {
        (k, v) = (into_contiguous(k), into_contiguous(v));
    }
    let [keys, values] = cache.map(|x| exclusive(into_contiguous(strided(x))));
    if let Some((cubes, units)) = per_element(&k, len(&k)) {
        let mut slots = Vec::with_capacity(pages.len() * seq);
        for (pages, start) in pages.iter().zip(starts) {
            slots.extend((0..seq).map(|token| {
                let position = start + token;
                (pages[position / page_len] * page_len + position % page_len) as u32
            }));
        }
        let slots = upload_recent(&k, &slots);
        let stride = |axis: usize| k.meta.strides()[axis];
        write_pages::launch(
            &k.client,
            cubes,
            units,
            buffer(&k),
            buffer(&v),
            buffer(&slots),
            buffer(&keys),
            buffer(&values),
            SourceLaunch::new(stride(0), stride(1), stride(2), seq, len(&k)),
            heads,
            page_len,
            dim,
        );
    }
    [keys, values].map(Tensor::from_primitive::<Cube>)
}

/// The first `len` keys and values of each row in one run, `[rows, len, heads, head_dim]`, in one launch. What
/// follows a row's last page is unspecified.
pub(crate) fn gather(cache: [&Tensor<4>; 2], pages: &[&[usize]], len: usize) -> [Tensor<4>; 2] {
    let [_, heads, page_len, dim] = cache[0].dims();
    let [keys, values] = cache.map(|x| into_contiguous(strided(x.clone())));
    let shape = [pages.len(), len, heads, dim];
    let [k, v] = [(); 2].map(|()| empty(&keys, shape));
    if let Some((cubes, units)) = per_element(&keys, shape.iter().product()) {
        let (table, per_row) = page_table(&keys, pages);
        copy_pages::launch(
            &keys.client,
            cubes,
            units,
            buffer(&keys),
            buffer(&values),
            buffer(&table),
            buffer(&k),
            buffer(&v),
            len,
            per_row,
            heads,
            page_len,
            dim,
        );
    }
    [k, v].map(Tensor::from_primitive::<Cube>)
}

/// The pages of all rows on the device of `like`, and their number in a row; shorter rows end with page 0.
pub(super) fn page_table(like: &CubeTensor, pages: &[&[usize]]) -> (CubeTensor, usize) {
    let per_row = pages
        .iter()
        .map(|pages| pages.len())
        .max()
        .unwrap_or(0)
        .max(1);
    let mut table = Vec::with_capacity(pages.len() * per_row);
    for (row, pages) in pages.iter().enumerate() {
        table.extend(pages.iter().map(|page| *page as u32));
        table.resize((row + 1) * per_row, 0);
    }
    (upload_recent(like, &table), per_row)
}

fn strided(x: Tensor<4>) -> CubeTensor {
    let x = x.try_into_primitive::<Cube>();
    x.unwrap_or_else(|e| unreachable!("the caller checked `is_gpu_f32`: {e:?}"))
}

/// Distances between rows, heads and tokens of the new keys, tokens of a row, and all elements.
#[derive(CubeType, CubeLaunch)]
struct Source {
    row: usize,
    head: usize,
    token: usize,
    seq: usize,
    len: usize,
}

/// `slots` has the place of each token of each row: its page times `page_len` plus its position in the page.
#[cube(launch)]
fn write_pages(
    k: &[f32],
    v: &[f32],
    slots: &[u32],
    keys: &mut [f32],
    values: &mut [f32],
    source: Source,
    heads: usize,
    page_len: usize,
    dim: usize,
) {
    let i = ABSOLUTE_POS;
    if i < source.len {
        let (element, head, token) = (i % dim, i / dim % heads, i / (dim * heads));
        let from = token / source.seq * source.row
            + token % source.seq * source.token
            + head * source.head
            + element;
        let slot = slots[token] as usize;
        let (page, at) = (slot / page_len, slot % page_len);
        let to = ((page * heads + head) * page_len + at) * dim + element;
        keys[to] = k[from];
        values[to] = v[from];
    }
}

#[cube(launch)]
fn copy_pages(
    keys: &[f32],
    values: &[f32],
    table: &[u32],
    k: &mut [f32],
    v: &mut [f32],
    len: usize,
    per_row: usize,
    heads: usize,
    page_len: usize,
    dim: usize,
) {
    let i = ABSOLUTE_POS;
    if i < k.len() {
        let (element, head, token) = (i % dim, i / dim % heads, i / (dim * heads));
        let (row, position) = (token / len, token % len);
        // A row may have fewer pages than the longest one needs.
        let index = min(position / page_len, per_row - 1);
        let page = table[row * per_row + index] as usize;
        let from = ((page * heads + head) * page_len + position % page_len) * dim + element;
        k[i] = keys[from];
        v[i] = values[from];
    }
}
