//! How much an adapter changes the weights of its base model.

use super::Adapter;
use crate::weights::{WeightSource, dequantized_values};
use crate::{LowRank, ModelError};

/// The size of the update of one linear layer beside that of its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightChange {
    /// The path of the layer, such as `blocks.0.attention.query`.
    pub module: String,
    /// The Frobenius norm of `scale A B`.
    pub update_norm: f64,
    /// The Frobenius norm of the base model's weights.
    pub weight_norm: f64,
}

impl WeightChange {
    /// The update's norm divided by that of the weights.
    pub fn ratio(&self) -> f64 {
        self.update_norm / self.weight_norm.max(f64::MIN_POSITIVE)
    }

    /// The same for several layers together.
    ///
    /// ```
    /// use nextword_model::WeightChange;
    ///
    /// let change = |update_norm, weight_norm| WeightChange { module: String::new(), update_norm, weight_norm };
    /// assert_eq!(WeightChange::total_ratio(&[change(3.0, 30.0), change(4.0, 40.0)]), 0.1); // 5 of 50
    /// ```
    pub fn total_ratio(changes: &[Self]) -> f64 {
        let sum = |norm: fn(&Self) -> f64| changes.iter().map(|c| norm(c).powi(2)).sum::<f64>();
        let (update, weights) = (sum(|c| c.update_norm), sum(|c| c.weight_norm));
        update.sqrt() / weights.sqrt().max(f64::MIN_POSITIVE)
    }
}

impl Adapter {
    /// What the low-rank updates add to the weights in `base`, in the order of the layers' paths. Magnitudes (`DoRA`) and
    /// full copies of parameters are not counted.
    ///
    /// # Errors
    /// Errors from reading the weights.
    pub fn weight_changes(&self, base: &dyn WeightSource) -> Result<Vec<WeightChange>, ModelError> {
        let changes = self.modules.iter().map(|(name, module)| {
            let weight = format!("{name}.weight");
            let values = match dequantized_values(base, &weight, &[module.d_in, module.d_out])? {
                Some(values) => values,
                None => base.values(&weight)?,
            };
            Ok(WeightChange {
                module: name.clone(),
                update_norm: update_norm(module),
                weight_norm: sum_of_squares(&values).sqrt(),
            })
        });
        changes.collect()
    }
}

fn sum_of_squares(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value).powi(2)).sum()
}

/// The Frobenius norm of `scale * a b`, from products of the size of the rank.
fn update_norm(module: &LowRank) -> f64 {
    let LowRank {
        a, b, rank, d_out, ..
    } = module;
    let mut square = 0.0;
    for i in 0..*rank {
        for j in 0..*rank {
            // Column i of a times column j, and row i of b times row j.
            let columns = a
                .chunks_exact(*rank)
                .map(|row| f64::from(row[i]) * f64::from(row[j]));
            let (first, second) = (&b[i * d_out..][..*d_out], &b[j * d_out..][..*d_out]);
            let rows = first
                .iter()
                .zip(second)
                .map(|(x, y)| f64::from(*x) * f64::from(*y));
            square += columns.sum::<f64>() * rows.sum::<f64>();
        }
    }
    f64::from(module.scale).abs() * square.max(0.0).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_norm_of_an_update_is_that_of_the_product() {
        let module = LowRank {
            a: vec![1.0, -2.0, 0.5, 3.0, 4.0, -1.0], // [3, 2]
            b: vec![2.0, 1.0, -1.0, 0.5],            // [2, 2]
            rank: 2,
            d_in: 3,
            d_out: 2,
            scale: -2.0,
            magnitude: None,
        };
        let mut product = vec![0.0; 6];
        module.add_to(&mut product);
        let expected = sum_of_squares(&product).sqrt();
        assert!((update_norm(&module) - expected).abs() < 1e-5 * expected);
    }
}
