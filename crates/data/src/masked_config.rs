//! The `[data.masked]` table.

use serde::{Deserialize, Serialize};

use crate::error::DataError;

/// How tokens are masked for the training of encoders, by default as in BERT (Devlin et al. 2018, arXiv 1810.04805,
/// section 3.1): the `[data.masked]` table.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MaskedConfig {
    /// The share of tokens that are to be predicted.
    pub rate: f64,
    /// Of these, the share that the mask token replaces.
    pub mask: f64,
    /// Of these, the share that random tokens replace. The rest stays as it is.
    pub random: f64,
    /// Whether all tokens of a word are to be predicted, or none.
    pub whole_words: bool,
}

impl Default for MaskedConfig {
    fn default() -> Self {
        Self {
            rate: 0.15,
            mask: 0.8,
            random: 0.1,
            whole_words: false,
        }
    }
}

impl MaskedConfig {
    /// Checks the shares.
    ///
    /// # Errors
    /// [`DataError::Config`] that names the key and the fix.
    ///
    /// ```
    /// use nextword_data::MaskedConfig;
    ///
    /// assert!(MaskedConfig::default().validate().is_ok());
    /// let error = MaskedConfig { rate: 15.0, ..MaskedConfig::default() }.validate().unwrap_err();
    /// assert!(error.to_string().contains("masked.rate = 15"));
    /// ```
    pub fn validate(&self) -> Result<(), DataError> {
        let shares = [
            ("mask", self.mask),
            ("random", self.random),
            ("rate", self.rate),
        ];
        for (key, share) in shares {
            if !(0.0..=1.0).contains(&share) || (key == "rate" && share == 0.0) {
                return Err(DataError::config(format!(
                    "masked.{key} = {share} is not a share from 0 to 1; hint: BERT has rate = 0.15, mask = 0.8, \
                     random = 0.1"
                )));
            }
        }
        if self.mask + self.random > 1.0 {
            return Err(DataError::config(format!(
                "masked.mask = {} and masked.random = {} are more than 1 together; hint: BERT has 0.8 and 0.1",
                self.mask, self.random
            )));
        }
        Ok(())
    }
}
