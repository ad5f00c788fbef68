//! Numbers in rows and columns, without a tensor library: what the reader sees and what the
//! recomputation works on.

/// Numbers with a shape, the last axis running fastest.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Length of each axis.
    pub shape: Vec<usize>,
    /// The numbers.
    pub data: Vec<f64>,
}

impl Array {
    /// All zeros.
    pub fn zeros(shape: &[usize]) -> Self {
        Self {
            shape: shape.to_vec(),
            data: vec![0.0; shape.iter().product()],
        }
    }

    /// Length of the last axis.
    pub fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The rows along the last axis.
    pub fn rows(&self) -> std::slice::ChunksExact<'_, f64> {
        self.data.chunks_exact(self.width().max(1))
    }

    /// Row `at` along the last axis, all other axes counted through.
    pub fn row(&self, at: usize) -> &[f64] {
        let width = self.width();
        &self.data[at * width..(at + 1) * width]
    }

    /// Where the number at `index` lies.
    ///
    /// # Panics
    /// If the index has another number of axes.
    pub fn place(&self, index: &[usize]) -> usize {
        assert_eq!(index.len(), self.shape.len(), "one index for each axis");
        let axes = index.iter().zip(&self.shape);
        axes.fold(0, |place, (index, length)| place * length + index)
    }

    /// The number at `index`.
    pub fn at(&self, index: &[usize]) -> f64 {
        self.data[self.place(index)]
    }
}
