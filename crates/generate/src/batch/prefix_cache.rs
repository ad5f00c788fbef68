//! Pages that can be reused because another sequence begins with the same tokens.

use std::collections::HashMap;

use nextword_base::hash::sha256;
use nextword_model::{KvCache, ModelConfig, RowAdapter};

/// What a page contains: a hash of what computed it, of its tokens and of all pages before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PageKey([u8; 32]);

impl PageKey {
    /// The key before the first page. The configuration stands for the model, since a cache does not outlive
    /// its model. `adapter` is that of the sequence; one that is off computes what the model alone does.
    pub(super) fn root(config: &ModelConfig, adapter: Option<&RowAdapter>) -> Self {
        let adapter = adapter.filter(|adapter| !adapter.is_off());
        let adapter = adapter.map(RowAdapter::id).unwrap_or_default();
        Self(sha256(format!("{adapter} {config:?}").as_bytes()))
    }

    /// The key of the page of `tokens` after the page of this key.
    pub(super) fn next(&self, tokens: &[u32]) -> Self {
        let tokens = tokens.iter().flat_map(|id| id.to_le_bytes());
        let bytes: Vec<u8> = self.0.into_iter().chain(tokens).collect();
        Self(sha256(&bytes))
    }
}

/// Finds pages by their keys. Each is one use of the page, so that its contents stay when its sequence
/// ends, until the memory is needed.
#[derive(Debug, Default)]
pub(super) struct PrefixCache {
    entries: HashMap<PageKey, Entry>,
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    page: usize,
    last_used: u64,
}

impl PrefixCache {
    /// The page of `key`.
    pub(super) fn get(&self, key: &PageKey) -> Option<usize> {
        self.entries.get(key).map(|entry| entry.page)
    }

    /// Offers `page` for reuse, unless another page of `key` is.
    pub(super) fn insert(&mut self, key: PageKey, page: usize, cache: &mut KvCache) {
        let last_used = self.tick();
        self.entries.entry(key).or_insert_with(|| {
            cache.retain(page);
            Entry { page, last_used }
        });
    }

    /// Marks the pages of `keys`, a sequence from its start, as used now. The last pages are the first to
    /// be evicted, because others cannot be found without those before them.
    pub(super) fn touch(&mut self, keys: &[PageKey]) {
        for key in keys.iter().rev() {
            let last_used = self.tick();
            if let Some(entry) = self.entries.get_mut(key) {
                entry.last_used = last_used;
            }
        }
    }

    /// Removes the pages of `keys`.
    pub(super) fn remove(&mut self, keys: &[PageKey], cache: &mut KvCache) {
        for key in keys {
            if let Some(entry) = self.entries.remove(key) {
                cache.release(entry.page);
            }
        }
    }

    /// Frees the least recently used page that no sequence uses. Returns false if there is none.
    pub(super) fn evict(&mut self, cache: &mut KvCache) -> bool {
        let unused = self
            .entries
            .iter()
            .filter(|(_, entry)| cache.references(entry.page) == 1);
        let oldest = unused.min_by_key(|(_, entry)| entry.last_used);
        let Some(key) = oldest.map(|(key, _)| *key) else {
            return false;
        };
        self.remove(&[key], cache);
        true
    }

    /// Number of pages that no sequence uses.
    pub(super) fn unused(&self, cache: &KvCache) -> usize {
        let pages = self.entries.values().map(|entry| entry.page);
        pages.filter(|page| cache.references(*page) == 1).count()
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}
