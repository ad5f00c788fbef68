//! Who has the pages of the cache: admission, prefix reuse, eviction and preemption.

use nextword_kernels::MATVEC_MAX_SEQ;
use nextword_model::{Architecture, RowAdapter};

use super::prefix_cache::PageKey;
use super::sequence::ActiveSequence;
use super::{BatchRequest, Batcher, CacheUsage, RequestId};

impl Batcher {
    /// Whether [`admit`](Self::admit) would accept `request` now: a slot is free, no sequence waits for
    /// memory, and the pages of the prompt fit, with one more page for each active sequence.
    pub fn can_admit(&self, request: &BatchRequest) -> bool {
        let waits = self.active.values().any(|s| s.preempted && !s.paused);
        let tokens = self.first_tokens(request);
        let reusable = if request.score_prompt {
            0
        } else {
            tokens.len()
        };
        let root = || self.root(request.adapter.as_ref());
        !waits && self.free_slots() > 0 && self.fits(root, tokens, reusable)
    }

    /// The tokens that the decoder begins with: the prompt, or in encoder-decoder models the first token.
    pub(super) fn first_tokens<'a>(&'a self, request: &'a BatchRequest) -> &'a [u32] {
        if self.model.config().has_encoder() {
            std::slice::from_ref(&self.options.start_id)
        } else {
            &request.prompt
        }
    }

    /// Whether keys and values of a token depend on earlier tokens alone, so that sequences can share them.
    fn shares_pages(&self) -> bool {
        self.model.config().architecture == Architecture::Decoder
    }

    /// The key before the first page of a sequence with `adapter`.
    pub(super) fn root(&self, adapter: Option<&RowAdapter>) -> PageKey {
        PageKey::root(self.model.config(), adapter)
    }

    /// How the pages of the cache are used.
    pub fn cache_usage(&self) -> CacheUsage {
        let (free, cached) = (self.cache.free_pages(), self.prefixes.unused(&self.cache));
        CacheUsage {
            used: self.cache.pages() - free - cached,
            cached,
            free,
            preemptions: self.preemptions,
        }
    }

    /// Whether the pages for `tokens` and one generated token fit besides the other sequences, each of
    /// which may need another page. Pages of the first `reusable` tokens may be found in the cache, after the
    /// key `root`.
    fn fits(&self, root: impl FnOnce() -> PageKey, tokens: &[u32], reusable: usize) -> bool {
        let len = (tokens.len() + 1).min(self.model.config().context_length);
        let pages = len.div_ceil(self.cache.page_len());
        let running = self.active.values().filter(|s| !s.preempted).count();
        let available = self.cache.free_pages() + self.prefixes.unused(&self.cache);
        if pages + running <= available {
            return true;
        }
        // Pages that other sequences use now take no memory.
        let matching = self.matching_pages(root(), &tokens[..reusable], 0);
        let matching = matching.iter().map(|(_, page)| *page);
        let shared = matching.filter(|page| self.cache.references(*page) > 1);
        pages + running <= available + shared.count()
    }

    /// The reusable pages of `tokens` from position `start` on, after the page of `key`.
    fn matching_pages(
        &self,
        mut key: PageKey,
        tokens: &[u32],
        start: usize,
    ) -> Vec<(PageKey, usize)> {
        let page_len = self.cache.page_len();
        let mut matching = Vec::new();
        for tokens in tokens[start..].chunks_exact(page_len) {
            key = key.next(tokens);
            let Some(page) = self.prefixes.get(&key) else {
                break;
            };
            matching.push((key, page));
        }
        let continues_after = |count: usize| {
            let position = start + count * page_len;
            self.continues_exactly(position, tokens.len())
        };
        let mut count = matching.len();
        while count > 0 && !continues_after(count) {
            count -= 1;
        }
        matching.truncate(count);
        matching
    }

    /// Whether a prompt of `len` tokens that continues at `position` is computed with the bits of one that
    /// starts at 0. The logits of its last token are to be computed in any case.
    ///
    /// The rest of a chunk has the bits of the whole chunk if both are long enough for the same matrix
    /// products, since it begins at a multiple of 16 tokens, the largest number of queries in a register.
    /// Models with sliding windows are the exception: there the tiles of keys begin with the window of the
    /// first query of a pass.
    fn continues_exactly(&self, position: usize, len: usize) -> bool {
        let rest = self.chunk_end(position, len).saturating_sub(position);
        let is_chunk_start = position.is_multiple_of(self.options.chunk);
        let has_windows = (0..self.model.config().n_layers)
            .any(|layer| self.model.config().window(layer).is_some());
        position < len && (is_chunk_start || (rest > MATVEC_MAX_SEQ && !has_windows))
    }

    /// The end of the prefill chunk that contains `position` of a prompt of `len` tokens. The prompt of a prefix model
    /// is a single chunk.
    pub(super) fn chunk_end(&self, position: usize, len: usize) -> usize {
        if self.model.config().architecture == Architecture::Prefix {
            return len;
        }
        len.min((position / self.options.chunk + 1) * self.options.chunk)
    }

    /// Takes the cached pages that continue the prompt of `slot`.
    pub(super) fn reuse_pages(&mut self, slot: usize) {
        let Some(sequence) = self.active.get(&slot) else {
            return;
        };
        let start = self.cache.len(slot);
        let is_whole = sequence.page_keys.len() * self.cache.page_len() == start;
        if sequence.preempted
            || sequence.scores_prompt()
            || start >= sequence.prefill_len
            || !is_whole
        {
            return;
        }
        let prompt = &sequence.context[..sequence.prefill_len];
        let matching = self.matching_pages(sequence.last_key(), prompt, start);
        if let Some(sequence) = self.active.get_mut(&slot) {
            for (key, page) in matching {
                self.cache.append_page(slot, page);
                sequence.page_keys.push(key);
            }
            self.prefixes.touch(&sequence.page_keys);
        }
    }

    /// Offers the full pages among the tokens from `start` on, which were computed by prefill, for reuse.
    pub(super) fn offer_pages(&mut self, slot: usize, start: usize) {
        let (page_len, end) = (self.cache.page_len(), self.cache.len(slot));
        let shares_pages = self.shares_pages();
        let Some(sequence) = self.active.get_mut(&slot).filter(|_| shares_pages) else {
            return;
        };
        for first in (start..end).step_by(page_len) {
            let index = first / page_len;
            if first + page_len > end || sequence.page_keys.len() != index {
                return;
            }
            let key = sequence
                .last_key()
                .next(&sequence.context[first..first + page_len]);
            let page = self.cache.slot_pages(slot)[index];
            self.prefixes.insert(key, page, &mut self.cache);
            sequence.page_keys.push(key);
        }
    }

    /// Makes room for `len` tokens in `slot`, if needed by evicting cached pages and preempting the newest
    /// sequences. Returns false if `slot` itself was preempted.
    ///
    /// The oldest sequence always gets its pages, since there are enough for a whole context.
    pub(super) fn reserve_pages(&mut self, slot: usize, len: usize) -> bool {
        loop {
            if self.cache.reserve(slot, len) {
                return true;
            }
            if self.prefixes.evict(&mut self.cache) {
                continue;
            }
            let with_pages = self.active.iter().filter(|(_, s)| !s.preempted);
            let newest = with_pages.max_by_key(|(_, s)| s.id).map(|(slot, _)| *slot);
            let victim = newest.unwrap_or(slot);
            self.preempt(victim);
            if victim == slot {
                return false;
            }
        }
    }

    /// Takes the pages of `slot` away. Its sequence is recomputed when there is room again.
    fn preempt(&mut self, slot: usize) {
        self.drop_pages(slot);
        if let Some(sequence) = self.active.get_mut(&slot) {
            sequence.preempted = true;
            if sequence.generated == 0 {
                sequence.scores.clear();
            }
        }
        self.preemptions += 1;
    }

    /// Empties `slot`; its reusable pages stay in the cache.
    pub(super) fn drop_pages(&mut self, slot: usize) {
        if let Some(sequence) = self.active.get_mut(&slot) {
            self.prefixes.touch(&sequence.page_keys);
            sequence.page_keys.clear();
        }
        self.cache.clear(slot);
    }

    /// Readmits preempted sequences, oldest first, as far as their pages fit.
    pub(super) fn readmit(&mut self) {
        let preempted = self.active.iter().filter(|(_, s)| s.preempted && !s.paused);
        let mut waiting: Vec<(RequestId, usize)> =
            preempted.map(|(slot, s)| (s.id, *slot)).collect();
        waiting.sort_unstable();
        for (_, slot) in waiting {
            while !self.fits_again(slot) {
                // Paused sequences must not block the only ones that could run.
                let is_blocked = !self.active.values().any(ActiveSequence::is_running);
                let paused = self.active.iter().filter(|(_, s)| !s.preempted);
                let newest = paused.max_by_key(|(_, s)| s.id).map(|(slot, _)| *slot);
                match newest {
                    Some(paused) if is_blocked => self.preempt(paused),
                    _ => return,
                }
            }
            if let Some(sequence) = self.active.get_mut(&slot) {
                sequence.preempted = false;
            }
            self.take_pages(slot);
        }
    }

    fn fits_again(&self, slot: usize) -> bool {
        let sequence = self.active.get(&slot);
        sequence.is_none_or(|s| {
            let reusable = if s.scores_prompt() { 0 } else { s.prefill_len };
            self.fits(|| s.root, &s.context, reusable)
        })
    }

    /// Gives an empty `slot` the pages of its context: cached ones as far as possible, then free ones.
    pub(super) fn take_pages(&mut self, slot: usize) {
        self.reuse_pages(slot);
        let len = self.active.get(&slot).map_or(0, |s| s.context.len());
        self.reserve_pages(slot, len.min(self.model.config().context_length));
    }
}
