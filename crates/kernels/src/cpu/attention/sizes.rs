//! Sizes of the blocks and tiles that both passes work on.

/// Queries per block. A multiple of every register size.
pub(super) const QUERIES: usize = 64;

/// Keys per tile: the tile's scores (32 KiB) and its keys and values stay in the L2 cache.
pub(super) const KEYS: usize = 128;
