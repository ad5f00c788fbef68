//! Log probabilities under the reference: the model that the run started from.
//!
//! They are computed before the first step and stored in the run's folder, so that a resumed run has the same bits
//! and the model is needed no longer. All integers of the file are little-endian:
//! ```text
//! 0    8   "NWREFLP" and a zero byte
//! 8    8   version, 1
//! 16   32  SHA-256 of what the values depend on: data, model and precision
//! 48   32  SHA-256 of everything after the header
//! 80   16  numbers of training and validation samples, as u64
//! 96       log probabilities in nats, as f32: those of the training samples, then those of the validation samples
//! ```

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::ops::ControlFlow;
use std::path::Path;

use burn::module::Module;
use nextword_base::atomic;
use nextword_base::hash::{sha256, sha256_hex};
use nextword_model::{Transformer, weights};

use super::log_probs::of_samples;
use super::{ComparedSamples, Objective};
use crate::{RunSetup, TrainError};

const MAGIC: &[u8; 8] = b"NWREFLP\0";
const VERSION: u64 = 1;
const HEADER_LEN: usize = 96;
/// The key, the checksum and the counts.
const KEY: usize = 16;
const CHECK: usize = 48;
const COUNTS: usize = 80;

/// Log probabilities of the samples of both splits.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ReferenceLogProbs {
    /// SHA-256 of what they depend on.
    pub(super) key: [u8; 32],
    pub(super) train: Vec<f32>,
    pub(super) validation: Vec<f32>,
}

impl ReferenceLogProbs {
    /// The values as bytes.
    fn bytes(&self) -> Vec<u8> {
        let values = self.train.iter().chain(&self.validation);
        values.flat_map(|value| value.to_le_bytes()).collect()
    }

    /// The SHA-256 of the values in hexadecimal.
    fn hash(&self) -> String {
        sha256_hex(&self.bytes())
    }

    /// Writes the file atomically.
    pub(super) fn write(&self, path: &Path) -> Result<(), TrainError> {
        let values = self.bytes();
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.key);
        bytes.extend(sha256(&values));
        for count in [self.train.len(), self.validation.len()] {
            bytes.extend((count as u64).to_le_bytes());
        }
        bytes.extend(values);
        atomic::write(path, &bytes).map_err(TrainError::io(path, "write"))
    }

    /// Reads the file, which must have values for these numbers of samples. `Ok(Err(_))` says what is wrong with it.
    pub(super) fn read(
        path: &Path,
        counts: [usize; 2],
    ) -> Result<Result<Self, &'static str>, TrainError> {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Err("is missing")),
            Err(error) => return Err(TrainError::io(path, "read")(error)),
        };
        let length = file.metadata().map_err(TrainError::io(path, "read"))?.len();
        // The numbers of samples bound what is read.
        let expected = HEADER_LEN + 4 * (counts[0] + counts[1]);
        if length != expected as u64 {
            return Ok(Err("has another length than the data needs"));
        }
        let mut bytes = vec![0; expected];
        file.read_exact(&mut bytes)
            .map_err(TrainError::io(path, "read"))?;
        Ok(Self::parse(&bytes, counts))
    }

    /// Parses a file of the right length.
    fn parse(bytes: &[u8], counts: [usize; 2]) -> Result<Self, &'static str> {
        let (header, values) = bytes.split_at(HEADER_LEN);
        let number = |at: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&header[at..at + 8]);
            u64::from_le_bytes(number)
        };
        if header[..8] != MAGIC[..] {
            return Err("is not a file of reference log probabilities");
        }
        if number(8) != VERSION {
            return Err("has another version than this program reads");
        }
        if header[CHECK..COUNTS] != sha256(values) {
            return Err("does not match its checksum");
        }
        if [number(COUNTS), number(COUNTS + 8)] != counts.map(|count| count as u64) {
            return Err("has other numbers of samples than the data");
        }
        let mut key = [0; 32];
        key.copy_from_slice(&header[KEY..CHECK]);
        let values = values.chunks_exact(4);
        let values: Vec<f32> = values
            .map(|value| f32::from_le_bytes([value[0], value[1], value[2], value[3]]))
            .collect();
        let (train, validation) = values.split_at(counts[0]);
        Ok(Self {
            key,
            train: train.to_vec(),
            validation: validation.to_vec(),
        })
    }
}

/// Identifies the values: the data, the model's weights, and the precision of its matrix products.
fn key(setup: &RunSetup, model: &Transformer) -> [u8; 32] {
    let base = setup.lora.as_ref();
    let mut described = vec![
        setup.data_fingerprint(),
        format!("precision {:?}", setup.config.train.precision),
        base.map_or_else(String::new, |base| base.description.weights_sha256.clone()),
    ];
    weights::for_each(model, |name, data| {
        let values = weights::to_f32_vec(data);
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        described.push(format!("{name} {}", sha256_hex(&bytes)));
    });
    sha256(described.join("\n").as_bytes())
}

/// The state of a run that prepares its reference.
pub(crate) struct ReferenceRequest<'a> {
    pub(crate) setup: &'a RunSetup,
    /// The current model on an autodiff device; before the first step, the reference.
    pub(crate) model: &'a Transformer,
    /// The hash that the checkpoint of a later step has; `None` before the first step.
    pub(crate) expected: Option<&'a str>,
    /// The file in the run's folder; a run in memory has none.
    pub(crate) path: Option<&'a Path>,
}

impl Objective {
    /// Number of training and validation samples.
    fn counts(&self) -> [usize; 2] {
        [self.train.samples.len(), self.validation.samples.len()]
    }

    /// Reads the log probabilities of the reference or, before the first step, computes and stores them. Returns their
    /// hash. `on_batch` is called before each batch that is computed, with the number of samples before it and of all.
    ///
    /// # Errors
    /// [`TrainError::Damaged`] if the file of a run that was trained before is missing, damaged or of another run;
    /// [`TrainError::Interrupted`] if `on_batch` breaks.
    pub(crate) fn prepare_reference(
        &mut self,
        request: &ReferenceRequest<'_>,
        on_batch: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<String, TrainError> {
        let stored = match request.path {
            Some(path) => Some(ReferenceLogProbs::read(path, self.counts())?),
            None => None,
        };
        let found = match (request.expected, stored) {
            (Some(expected), Some(Ok(stored))) if stored.hash() == *expected => stored,
            (Some(_), stored) => {
                let problem = match stored {
                    Some(Err(problem)) => problem,
                    _ => "is not that of this run",
                };
                return Err(TrainError::Damaged {
                    path: request.path.unwrap_or(Path::new("")).to_path_buf(),
                    problem: format!(
                        "{problem}, and the model that its log probabilities are from was trained since; hint: restore \
                         the file, or start a new run from the last model with start_from"
                    ),
                });
            }
            (None, stored) => {
                let key = key(request.setup, &request.model.valid());
                match stored {
                    Some(Ok(stored)) if stored.key == key => stored,
                    _ => {
                        let computed = self.compute_reference(request.model, key, on_batch)?;
                        if let Some(path) = request.path {
                            computed.write(path)?;
                        }
                        computed
                    }
                }
            }
        };
        let hash = found.hash();
        self.train.reference = found.train;
        self.validation.reference = found.validation;
        Ok(hash)
    }

    /// Computes the values with `model`, which is on an autodiff device. Those for training have the precision of
    /// training, those for validation f32, as the values that they are compared with.
    fn compute_reference(
        &self,
        model: &Transformer,
        key: [u8; 32],
        on_batch: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<ReferenceLogProbs, TrainError> {
        let total = self.counts().iter().sum();
        let mut earlier = 0;
        let mut of_all = |model: &Transformer, compared: &ComparedSamples| {
            let indices: Vec<usize> = (0..compared.samples.len()).collect();
            let mut on_batch = |done| on_batch(earlier + done, total);
            let samples = &compared.samples;
            let found = of_samples(model, samples, &indices, self.batching, &mut on_batch);
            earlier += indices.len();
            found
        };
        let model = model.valid();
        Ok(ReferenceLogProbs {
            key,
            train: of_all(&model, &self.train)?,
            validation: of_all(&model.in_f32(), &self.validation)?,
        })
    }
}
