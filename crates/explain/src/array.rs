//! Plain f64 arrays without a tensor library, for reports and for the recomputation.

/// Values with a shape, in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Length of each axis.
    pub shape: Vec<usize>,
    /// The values.
    pub data: Vec<f64>,
}

impl Array {
    /// Creates an array of zeros.
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

    /// Row `at` along the last axis, with all other axes flattened.
    pub fn row(&self, at: usize) -> &[f64] {
        let width = self.width();
        &self.data[at * width..(at + 1) * width]
    }

    /// Flat offset of the value at `index`.
    ///
    /// # Panics
    /// If `index` does not have one entry per axis.
    pub fn offset(&self, index: &[usize]) -> usize {
        assert_eq!(index.len(), self.shape.len(), "one index for each axis");
        let axes = index.iter().zip(&self.shape);
        axes.fold(0, |offset, (index, length)| offset * length + index)
    }

    /// The value at `index`.
    pub fn at(&self, index: &[usize]) -> f64 {
        self.data[self.offset(index)]
    }
}
