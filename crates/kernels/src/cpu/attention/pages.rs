//! A paged KV cache, and copies of it as contiguous runs.

use std::ops::Range;

use super::super::par::{self, Shared};

/// Elements of a cache, `[pages, n_kv_heads, page_len, head_dim]`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PageElements<'a> {
    /// In 32 bits.
    F32(&'a [f32]),
    /// Products of integers and the scale of their token and head, `[pages, n_kv_heads, page_len]`.
    Int8 {
        /// The integers.
        integers: &'a [i8],
        /// The scales.
        scales: &'a [f32],
    },
}

impl<'a> PageElements<'a> {
    /// Number of elements; 0 unless the scales fit.
    fn len(&self, head_dim: usize) -> usize {
        match self {
            Self::F32(elements) => elements.len(),
            Self::Int8 { integers, scales } => {
                let fits = integers.len() == scales.len() * head_dim;
                if fits { integers.len() } else { 0 }
            }
        }
    }

    /// The elements in `range`, whole tokens of `head_dim` elements. Integers are written to `scratch` as
    /// floats.
    #[inline(always)]
    pub(super) fn read<'s>(
        &self,
        range: Range<usize>,
        head_dim: usize,
        scratch: &'s mut [f32],
    ) -> &'s [f32]
    where
        'a: 's,
    {
        match self {
            Self::F32(elements) => &elements[range],
            Self::Int8 { integers, scales } => {
                let scales = &scales[range.start / head_dim..range.end / head_dim];
                let scratch = &mut scratch[..range.len()];
                let tokens = integers[range].chunks_exact(head_dim).zip(scales);
                for (out, (token, scale)) in scratch.chunks_exact_mut(head_dim).zip(tokens) {
                    for (out, integer) in out.iter_mut().zip(token) {
                        *out = f32::from(*integer) * scale;
                    }
                }
                scratch
            }
        }
    }
}

/// Cached keys and values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PagedCache<'a> {
    /// Keys.
    pub(crate) keys: PageElements<'a>,
    /// Values.
    pub(crate) values: PageElements<'a>,
    /// Number of key/value heads.
    pub(crate) n_kv_heads: usize,
    /// Tokens per page.
    pub(crate) page_len: usize,
    /// Elements per head.
    pub(crate) head_dim: usize,
}

impl PagedCache<'_> {
    /// The elements of one head of `tokens`, which must be in one page of the sequence with `pages`.
    #[inline(always)]
    pub(super) fn range(
        &self,
        pages: &[usize],
        kv_head: usize,
        tokens: &Range<usize>,
    ) -> Range<usize> {
        let (page, at) = (
            pages[tokens.start / self.page_len],
            tokens.start % self.page_len,
        );
        let start = ((page * self.n_kv_heads + kv_head) * self.page_len + at) * self.head_dim;
        start..start + tokens.len() * self.head_dim
    }

    /// Divides `tokens` into blocks of at most `max_len` that do not cross a page.
    #[inline(always)]
    pub(super) fn blocks(
        &self,
        tokens: Range<usize>,
        max_len: usize,
    ) -> impl Iterator<Item = Range<usize>> + use<> {
        let (page_len, mut first) = (self.page_len, tokens.start);
        std::iter::from_fn(move || {
            let end = (first + max_len).min((first / page_len + 1) * page_len);
            let block = first..end.min(tokens.end);
            first = block.end;
            (!block.is_empty()).then_some(block)
        })
    }

    /// Panics unless the pages exist.
    pub(super) fn check(&self, pages: &[usize]) {
        let page = self.n_kv_heads * self.page_len * self.head_dim;
        let len = self.keys.len(self.head_dim);
        assert!(page > 0 && len == self.values.len(self.head_dim));
        assert!(pages.iter().all(|index| (index + 1) * page <= len));
    }
}

/// Copies the first `len` keys of each row's pages to `out`, `[rows, n_kv_heads, len, head_dim]`. Positions
/// beyond a row's pages become 0.
pub(crate) fn gather(cache: &PagedCache<'_>, pages: &[&[usize]], len: usize, out: &mut [f32]) {
    for pages in pages {
        cache.check(pages);
    }
    let run = len * cache.head_dim;
    assert_eq!(out.len(), pages.len() * cache.n_kv_heads * run);
    let tasks = pages.len() * cache.n_kv_heads;
    let out = Shared::new(out);
    par::for_each(tasks, run, |task| {
        let (row, kv_head) = (task / cache.n_kv_heads, task % cache.n_kv_heads);
        let pages = pages[row];
        // SAFETY: `out` has `tasks` runs, and each task accesses only its own.
        let out = unsafe { out.slice(task * run, run) };
        let end = len.min(pages.len() * cache.page_len);
        let (cached, beyond) = out.split_at_mut(end * cache.head_dim);
        for block in cache.blocks(0..end, usize::MAX / 2) {
            let range = cache.range(pages, kv_head, &block);
            let out = &mut cached[block.start * cache.head_dim..][..range.len()];
            match cache.keys {
                PageElements::F32(elements) => out.copy_from_slice(&elements[range]),
                integers @ PageElements::Int8 { .. } => {
                    integers.read(range, cache.head_dim, out);
                }
            }
        }
        beyond.fill(0.0);
    });
}
