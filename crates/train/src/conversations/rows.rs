//! How full the rows of training batches are, with and without packing.

use nextword_data::{Loader, LoaderConfig, Packing, Samples};

use super::Conversations;
use crate::TrainError;

/// The rows of the first epoch of a run on conversations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowReport {
    /// Whether samples share rows.
    pub is_packed: bool,
    /// Maximum number of tokens in a row.
    pub length: usize,
    /// With a row for each sample.
    pub unpacked: RowUse,
    /// With as many samples in a row as fit.
    pub packed: RowUse,
}

/// Number and use of rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowUse {
    /// Number of rows in an epoch.
    pub rows: usize,
    /// Share of their positions that is padding, from 0 to 1.
    pub padding: f64,
}

impl Conversations {
    /// How full the rows of the training batches are, as configured, and with the other setting of `data.packing`. `None`
    /// for preferences, whose samples do not share rows.
    ///
    /// # Errors
    /// [`TrainError::Data`] for a batch that is too large.
    ///
    /// ```
    /// use std::path::Path;
    ///
    /// use nextword_train::{parse_config, prepare_conversations};
    ///
    /// # fn main() -> Result<(), nextword_train::TrainError> {
    /// let text = r#"
    ///     [data]
    ///     builtin = "stories_chat"
    ///     documents = 100
    ///     packing = "samples"
    ///     [train]
    ///     batch_size = 2
    ///     sequence_length = 1024
    ///     [model]
    ///     context_length = 1024
    /// "#;
    /// let config = parse_config(text, Path::new("chat.toml"), &[])?;
    /// let conversations = prepare_conversations(config)?.unwrap();
    /// let report = conversations.row_report()?.unwrap();
    /// assert!(report.is_packed && report.packed.rows < report.unpacked.rows);
    /// assert!((0.0..0.5).contains(&report.packed.padding));
    /// # Ok(())
    /// # }
    /// ```
    pub fn row_report(&self) -> Result<Option<RowReport>, TrainError> {
        if self.loss.is_some() {
            return Ok(None);
        }
        let config = self.batches;
        Ok(Some(RowReport {
            is_packed: config.packing == Packing::Samples,
            length: config.context_length,
            unpacked: row_use(&self.train, config, Packing::default())?,
            packed: row_use(&self.train, config, Packing::Samples)?,
        }))
    }
}

fn row_use(
    samples: &Samples,
    config: LoaderConfig,
    packing: Packing,
) -> Result<RowUse, TrainError> {
    let loader = Loader::from_samples(samples.clone(), LoaderConfig { packing, ..config })?;
    Ok(RowUse {
        rows: loader.sequences_per_epoch(),
        padding: loader.padding_share().unwrap_or(0.0),
    })
}
