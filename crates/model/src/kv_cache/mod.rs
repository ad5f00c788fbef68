//! Keys and values of earlier tokens, so that decoding processes only the new token.
//!
//! The memory is divided into pages of a fixed number of tokens (Kwon et al. 2023, arXiv 2309.06180). A
//! sequence is a slot with a list of pages, which grows by one page at a time. Pages are counted
//! references, so that sequences with a common prefix share its pages; a page that others use is
//! copied before it is written.
//!
//! Rows of a batch may have different lengths. A model with sliding windows stores all tokens and masks
//! those outside the window. A full slot accepts no more tokens: the caller decides which ones to drop
//! (see `generate`'s context overflow handling).

mod pool;
mod store;
#[cfg(all(test, feature = "flex"))]
#[allow(clippy::unwrap_used)]
mod tests;

use burn::tensor::{Device, Tensor};
use nextword_kernels::{AttentionOptions, QuantizedPages};

use self::pool::PagePool;
pub use self::store::CachePrecision;
use self::store::LayerStore;
use crate::ModelConfig;

/// Tokens per page unless the caller chooses another number.
pub const PAGE_LEN: usize = 16;

/// Number of pages for which memory is allocated at the start.
const INITIAL_PAGES: usize = 64;

/// Keys and values of every layer for several sequences.
///
/// # Example
///
/// ```
/// use burn::tensor::{Device, Int, Tensor};
/// use nextword_model::{ForwardContext, KvCache, presets};
///
/// let device = Device::flex();
/// let model = presets::statquest(5).init(&device, 3)?;
/// let ids = |ids: &[i32]| Tensor::<1, Int>::from_ints(ids, &device).unsqueeze::<2>();
///
/// let mut cache = KvCache::new(model.config(), 1, &device); // one slot
/// model.forward_cached(ids(&[0, 1, 2]), &mut cache, &[0]);
/// let next = model.forward_cached(ids(&[4]), &mut cache, &[0]); // [1, 1, 5]
/// assert_eq!(cache.len(0), 4);
///
/// let whole = model.forward(ids(&[0, 1, 2, 4]), &mut ForwardContext::inference());
/// assert!(next.all_close(whole.narrow(1, 3, 1), None, Some(1e-5)));
/// # Ok::<(), nextword_model::ModelError>(())
/// ```
#[derive(Clone, Debug)]
pub struct KvCache {
    layers: Vec<LayerStore>,
    /// Keys and values of cross-attention in encoder-decoder models, with the same slots.
    source: Option<Box<KvCache>>,
    pool: PagePool,
    slots: Vec<Slot>,
    capacity: usize,
    page_len: usize,
    /// Of the keys and of the values of a layer, with the pages that have been allocated.
    shape: [usize; 4],
    device: Device,
}

/// The pages of one sequence.
#[derive(Clone, Debug, Default)]
struct Slot {
    pages: Vec<usize>,
    /// Number of cached tokens; the pages may have room for more.
    len: usize,
}

impl KvCache {
    /// Creates a cache for `slots` sequences as long as the model's context.
    pub fn new(config: &ModelConfig, slots: usize, device: &Device) -> Self {
        Self::with_capacity(config, slots, config.context_length, device)
    }

    /// Creates a cache for `slots` sequences of `capacity` tokens, at most the model's context.
    pub fn with_capacity(
        config: &ModelConfig,
        slots: usize,
        capacity: usize,
        device: &Device,
    ) -> Self {
        let capacity = capacity.min(config.context_length);
        let pages = slots * capacity.div_ceil(PAGE_LEN);
        Self {
            capacity,
            ..Self::with_pages(config, slots, PAGE_LEN, pages, device)
        }
    }

    /// Creates a cache of `pages` pages of `page_len` tokens for up to `slots` sequences, each at most as
    /// long as the model's context. Memory is allocated as pages are used, at most twice as much.
    ///
    /// # Panics
    /// If `page_len` is 0.
    pub fn with_pages(
        config: &ModelConfig,
        slots: usize,
        page_len: usize,
        pages: usize,
        device: &Device,
    ) -> Self {
        assert!(page_len > 0, "a page needs at least one token");
        let allocated = pages.min(INITIAL_PAGES);
        let shape = [allocated, config.kv_heads(), page_len, config.head_dim()];
        Self {
            layers: (0..config.n_layers)
                .map(|_| LayerStore::new(shape, CachePrecision::F32, device))
                .collect(),
            source: config
                .has_encoder()
                .then(|| Box::new(Self::for_source(config, slots, page_len, device))),
            shape,
            device: device.clone(),
            pool: PagePool::new(pages),
            slots: vec![Slot::default(); slots],
            capacity: config.context_length,
            page_len,
        }
    }

    /// The cache of cross-attention. Each slot holds one source of up to the model's context.
    fn for_source(config: &ModelConfig, slots: usize, page_len: usize, device: &Device) -> Self {
        let keys = ModelConfig {
            architecture: crate::Architecture::Decoder,
            ..config.clone()
        };
        let pages = slots * config.context_length.div_ceil(page_len);
        Self::with_pages(&keys, slots, page_len, pages, device)
    }

    /// The cache of cross-attention, in encoder-decoder models.
    pub(crate) fn source(&self) -> Option<&Self> {
        self.source.as_deref()
    }

    /// The cache of cross-attention.
    ///
    /// # Panics
    /// If the cache is not that of an encoder-decoder model.
    pub(crate) fn source_mut(&mut self) -> &mut Self {
        match &mut self.source {
            Some(source) => source,
            None => panic!("the cache is not that of an encoder-decoder model"),
        }
    }

    /// Number of tokens of the source in `slot`; 0 in models without an encoder.
    pub fn source_len(&self, slot: usize) -> usize {
        self.source().map_or(0, |source| source.len(slot))
    }

    /// Stores keys and values in this precision.
    ///
    /// # Panics
    /// If the cache has been used.
    #[must_use]
    pub fn with_precision(mut self, precision: CachePrecision) -> Self {
        assert!(self.free_pages() == self.pages(), "the cache has been used");
        for layer in &mut self.layers {
            *layer = LayerStore::new(self.shape, precision, &self.device);
        }
        self.source = self
            .source
            .map(|source| Box::new(source.with_precision(precision)));
        self
    }

    /// Bytes of the keys and values of one token in all layers.
    pub fn bytes_per_token(config: &ModelConfig, precision: CachePrecision) -> usize {
        let per_head = match precision {
            CachePrecision::F32 => config.head_dim() * size_of::<f32>(),
            CachePrecision::Int8 => QuantizedPages::bytes_per_head(config.head_dim()),
        };
        2 * config.n_layers * config.kv_heads() * per_head
    }

    /// Number of tokens in `slot`.
    pub fn len(&self, slot: usize) -> usize {
        self.slots[slot].len
    }

    /// Whether all slots are empty.
    pub fn is_empty(&self) -> bool {
        self.slots.iter().all(|slot| slot.len == 0)
    }

    /// Maximum number of tokens in a slot.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Number of slots.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Tokens per page.
    pub fn page_len(&self) -> usize {
        self.page_len
    }

    /// Number of pages, used and free.
    pub fn pages(&self) -> usize {
        self.pool.len()
    }

    /// Number of pages that nothing uses.
    pub fn free_pages(&self) -> usize {
        self.pool.free()
    }

    /// The pages of `slot`, in order; the last ones may not have any tokens yet.
    pub fn slot_pages(&self, slot: usize) -> &[usize] {
        &self.slots[slot].pages
    }

    /// Number of users of `page`: slots that contain it and [`retain`](Self::retain)s.
    pub fn references(&self, page: usize) -> usize {
        self.pool.references(page)
    }

    /// Keeps the contents of `page` until it is [released](Self::release).
    pub fn retain(&mut self, page: usize) {
        self.pool.retain(page);
    }

    /// Ends one use of `page`. Without users it becomes free.
    ///
    /// # Panics
    /// If nothing uses it.
    pub fn release(&mut self, page: usize) {
        self.pool.release(page);
    }

    /// Makes room for `len` tokens in `slot`. Returns false, and changes nothing, if there are too few free
    /// pages.
    pub fn reserve(&mut self, slot: usize, len: usize) -> bool {
        let missing = len
            .div_ceil(self.page_len)
            .saturating_sub(self.slots[slot].pages.len());
        if missing > self.pool.free() {
            return false;
        }
        for _ in 0..missing {
            let page = self.take_page();
            self.slots[slot].pages.extend(page);
        }
        true
    }

    /// Takes a free page and allocates its memory if it has none.
    fn take_page(&mut self) -> Option<usize> {
        let page = self.pool.take()?;
        let allocated = self.shape[0];
        if page >= allocated {
            let [_, heads, page_len, head_dim] = self.shape;
            let pages = (page + 1).max(2 * allocated).min(self.pool.len());
            for layer in &mut self.layers {
                layer.grow([pages - allocated, heads, page_len, head_dim]);
            }
            self.shape[0] = pages;
        }
        Some(page)
    }

    /// Appends a full page of another sequence to `slot`, whose tokens must fill its pages so far. Replaces
    /// the page that was reserved for them.
    ///
    /// # Panics
    /// If the last page of `slot` is partly filled, or nothing uses `page`.
    pub fn append_page(&mut self, slot: usize, page: usize) {
        self.pool.retain(page);
        let slot = &mut self.slots[slot];
        assert_eq!(slot.len % self.page_len, 0, "the last page is not full");
        let index = slot.len / self.page_len;
        if index < slot.pages.len() {
            self.pool.release(slot.pages[index]);
            slot.pages[index] = page;
        } else {
            slot.pages.push(page);
        }
        slot.len += self.page_len;
    }

    /// Empties `slot`, also of its source.
    pub fn clear(&mut self, slot: usize) {
        self.truncate(slot, 0);
        if let Some(source) = &mut self.source {
            source.truncate(slot, 0);
        }
    }

    /// Drops all but the first `len` tokens of `slot`, and the pages that it no longer needs.
    pub fn truncate(&mut self, slot: usize, len: usize) {
        let slot = &mut self.slots[slot];
        slot.len = slot.len.min(len);
        for page in slot.pages.drain(slot.len.div_ceil(self.page_len)..) {
            self.pool.release(page);
        }
    }

    /// The position of the first token of each row that continues `slots`. A slot that is named several
    /// times continues with one token per row.
    pub(crate) fn starts(&self, slots: &[usize]) -> Vec<usize> {
        let start = |row: usize| {
            let slot = slots[row];
            let earlier = slots[..row].iter().filter(|other| **other == slot);
            self.len(slot) + earlier.count()
        };
        (0..slots.len()).map(start).collect()
    }

    /// Makes room for `seq` further tokens in each of `slots`, in pages that no other sequence uses.
    ///
    /// # Panics
    /// If a slot is full, no page is free, or `slots` contains duplicates although `seq` is not 1.
    pub(crate) fn prepare(&mut self, slots: &[usize], seq: usize) {
        for (slot, start) in slots.iter().zip(self.starts(slots)) {
            assert!(
                seq == 1 || start == self.len(*slot),
                "duplicate slots: {slots:?}"
            );
            let end = start + seq;
            assert!(
                end <= self.capacity,
                "{end} tokens do not fit into a cache of {}",
                self.capacity
            );
            assert!(self.reserve(*slot, end), "all pages of the cache are used");
            for index in start / self.page_len..end.div_ceil(self.page_len) {
                self.make_writable(*slot, index);
            }
        }
    }

    /// As [`prepare`](Self::prepare), for tokens that replace those in `slots`.
    pub(crate) fn replace(&mut self, slots: &[usize], seq: usize) {
        for slot in slots {
            self.truncate(*slot, 0);
        }
        self.prepare(slots, seq);
    }

    /// Replaces the page at `index` by a copy if others use it, too.
    fn make_writable(&mut self, slot: usize, index: usize) {
        let shared = self.slots[slot].pages[index];
        if self.pool.references(shared) == 1 {
            return;
        }
        let Some(page) = self.take_page() else {
            panic!("all pages of the cache are used");
        };
        for layer in &mut self.layers {
            layer.copy_page(shared, page);
        }
        self.pool.release(shared);
        self.slots[slot].pages[index] = page;
    }

    /// Writes `k` and `v`, `[rows, n_kv_heads, seq, head_dim]`, after the tokens of the rows' slots, for
    /// which [`prepare`](Self::prepare) made room.
    pub(crate) fn append(&mut self, layer: usize, slots: &[usize], k: Tensor<4>, v: Tensor<4>) {
        let starts = self.starts(slots);
        let pages: Vec<&[usize]> = slots
            .iter()
            .map(|slot| self.slots[*slot].pages.as_slice())
            .collect();
        self.layers[layer].write(k, v, &pages, &starts);
    }

    /// Attention of `q`, `[rows, seq, n_heads, head_dim]`, over the tokens of the rows' slots.
    pub(crate) fn attend(
        &self,
        layer: usize,
        slots: &[usize],
        q: Tensor<4>,
        options: &AttentionOptions<'_>,
    ) -> Tensor<4> {
        self.layers[layer].attend(q, &self.page_lists(slots), options)
    }

    /// The first `len` keys and values of `slots`, `[rows, n_kv_heads, len, head_dim]`. Entries past the
    /// end of a shorter row have no meaning; the attention mask excludes them.
    pub(crate) fn gather(&self, layer: usize, slots: &[usize], len: usize) -> [Tensor<4>; 2] {
        self.layers[layer].gather(&self.page_lists(slots), len)
    }

    fn page_lists(&self, slots: &[usize]) -> Vec<&[usize]> {
        slots.iter().map(|slot| self.slot_pages(*slot)).collect()
    }

    /// Adds the tokens of the sources of `slots` to their lengths; a single length applies to all.
    pub(crate) fn advance_sources(&mut self, slots: &[usize], lengths: &[usize]) {
        for (slot, len) in slots.iter().zip(lengths.iter().cycle()) {
            self.source_mut().advance(&[*slot], *len);
        }
    }

    pub(crate) fn advance(&mut self, slots: &[usize], seq: usize) {
        for slot in slots {
            self.slots[*slot].len += seq;
        }
    }
}
