//! Which pages are free, and how many users the others have.

/// The pages of a cache.
#[derive(Clone, Debug)]
pub(super) struct PagePool {
    /// Number of users of each page.
    references: Vec<usize>,
    /// The pages without users; the last one is taken first.
    free: Vec<usize>,
}

impl PagePool {
    pub(super) fn new(len: usize) -> Self {
        Self {
            references: vec![0; len],
            free: (0..len).rev().collect(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.references.len()
    }

    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    pub(super) fn references(&self, page: usize) -> usize {
        self.references[page]
    }

    /// Takes a free page, for one user.
    pub(super) fn take(&mut self) -> Option<usize> {
        let page = self.free.pop()?;
        self.references[page] = 1;
        Some(page)
    }

    /// Adds a user to a used page.
    pub(super) fn retain(&mut self, page: usize) {
        assert!(self.references[page] > 0, "page {page} is free");
        self.references[page] += 1;
    }

    /// Removes a user.
    pub(super) fn release(&mut self, page: usize) {
        assert!(self.references[page] > 0, "page {page} is free");
        self.references[page] -= 1;
        if self.references[page] == 0 {
            self.free.push(page);
        }
    }
}
