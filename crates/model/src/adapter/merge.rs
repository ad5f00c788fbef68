//! Adding an adapter to the weights of its base model.

use std::sync::{Mutex, PoisonError};

use burn::tensor::{Tensor, TensorData};

use super::attach::read;
use crate::weights::to_f32_vec;
use crate::{LowRank, ModelError, Transformer};

impl Transformer {
    /// Adds the adapter to the weights, `W += scale A B`, and removes it. The products are summed in f64 and rounded
    /// once. Full copies of parameters stay.
    ///
    /// # Errors
    /// [`ModelError::Adapter`] if the model has no adapter, or an adapted weight is quantized: rounding it again would
    /// lose most of the update.
    ///
    /// # Example
    ///
    /// ```
    /// use burn::tensor::Device;
    /// use nextword_model::{LoraConfig, presets};
    ///
    /// let base = presets::shakespeare_char_cpu(65).init(&Device::flex(), 1)?;
    /// let mut adapter = base.clone().with_new_adapter(&LoraConfig::default(), 7)?.adapter().unwrap();
    /// let query = adapter.modules.get_mut("blocks.0.attention.query").unwrap();
    /// query.b.fill(0.5);
    /// let first = |model: &nextword_model::Transformer| {
    ///     model.blocks[0].attention.query.weight.val().into_data().try_to_vec::<f32>().unwrap()[0]
    /// };
    /// let update = query.scale * 0.5 * query.a[..query.rank].iter().sum::<f32>();
    /// let merged = base.clone().with_adapter(&adapter)?.merge_adapter()?;
    /// assert!((first(&merged) - first(&base) - update).abs() < 1e-6);
    /// # Ok::<(), nextword_model::ModelError>(())
    /// ```
    pub fn merge_adapter(mut self) -> Result<Self, ModelError> {
        if !self.has_adapter() {
            return Err(ModelError::adapter(
                "the model has no adapter to merge",
                "attach one first",
            ));
        }
        for (name, linear) in self.linears_mut() {
            let Some(lora) = linear.lora.take() else {
                continue;
            };
            if linear.quantized().is_some() {
                return Err(ModelError::adapter(
                    format!(
                        "`{name}` is quantized, and rounding it again would lose most of the adapter"
                    ),
                    "merge the adapter into the model with float weights, or use it unmerged",
                ));
            }
            let weight = linear.weight.clone();
            linear.weight = weight.map(|weight| {
                let device = weight.device();
                let shape = weight.dims();
                let mut values = to_f32_vec(weight.into_data());
                read(&lora).add_to(&mut values);
                Tensor::from_data(TensorData::new(values, shape), &device)
            });
        }
        Ok(self.drop_adapter())
    }
}

impl LowRank {
    /// Adds the update to `weight`, `[d_in, d_out]`; with magnitudes, also scales its columns.
    ///
    /// # Panics
    /// If `weight`, `a` or `b` have other lengths.
    pub fn add_to(&self, weight: &mut [f32]) {
        let (d_out, rank) = (self.d_out, self.rank);
        assert_eq!(
            weight.len(),
            self.d_in * d_out,
            "the weight has another shape"
        );
        let row = |i: usize, weight: &[f32]| {
            let mut sums: Vec<f64> = weight.iter().map(|w| f64::from(*w)).collect();
            for (a, b) in self.a[i * rank..][..rank]
                .iter()
                .zip(self.b.chunks(d_out.max(1)))
            {
                let factor = f64::from(self.scale) * f64::from(*a);
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum += factor * f64::from(*b);
                }
            }
            sums
        };
        let factors = self.column_factors(weight, &row);
        let rows: Vec<_> = weight.chunks_mut(d_out.max(1)).map(Mutex::new).collect();
        nextword_kernels::parallel_for_each(rows.len(), d_out * rank, |i| {
            let mut weight = rows[i].lock().unwrap_or_else(PoisonError::into_inner);
            let mut sums = row(i, &weight);
            if let Some(factors) = &factors {
                sums.iter_mut()
                    .zip(factors)
                    .for_each(|(sum, factor)| *sum *= factor);
            }
            for (value, sum) in weight.iter_mut().zip(sums) {
                *value = sum as f32;
            }
        });
    }

    /// With magnitudes, the magnitude of each column divided by the norm of its updated weights.
    fn column_factors(
        &self,
        weight: &[f32],
        row: &impl Fn(usize, &[f32]) -> Vec<f64>,
    ) -> Option<Vec<f64>> {
        let magnitude = self.magnitude.as_ref()?;
        let mut squares = vec![0.0; self.d_out];
        for (i, weight) in weight.chunks(self.d_out.max(1)).enumerate() {
            for (square, sum) in squares.iter_mut().zip(row(i, weight)) {
                *square += sum * sum;
            }
        }
        let factor = |(magnitude, square): (&f32, &f64)| {
            f64::from(*magnitude) / square.max(f64::from(f32::MIN_POSITIVE)).sqrt()
        };
        Some(magnitude.iter().zip(&squares).map(factor).collect())
    }
}
