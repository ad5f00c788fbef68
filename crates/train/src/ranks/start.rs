//! What the ranks compare and share before the first step.

use std::path::PathBuf;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor, TensorData};
use nextword_base::hash::{sha256, sha256_hex};
use nextword_data::EvalWindows;
use nextword_model::Transformer;
use nextword_model::weights::{self, TensorFile};
use nextword_parallel::{Group, Shards};

use crate::checkpoint::State;
use crate::config_file::to_toml;
use crate::{Optimizer, RunConfig, RunSetup, TrainError};

/// Checks that all ranks of `group` run the same version with the same instructions on the same kind of device; `device`
/// is the name of this rank's, such as `cuda:1`. All ranks call this.
///
/// # Errors
/// [`TrainError::Parallel`] with the first rank that differs, or if one is gone.
///
/// ```
/// let group = nextword_parallel::Group::alone();
/// nextword_train::check_same_program(&group, "flex")?;
/// # Ok::<(), nextword_train::TrainError>(())
/// ```
pub fn check_same_program(group: &Group, device: &str) -> Result<(), TrainError> {
    let version = env!("CARGO_PKG_VERSION");
    group.check_equal(
        "the version",
        version,
        "install the same program everywhere",
    )?;
    let kernels = nextword_kernels::Isa::current().name();
    let hint = "set NEXTWORD_SIMD to the lower one on all ranks: each computes with its own copy of the weights, and the \
                results must be the same";
    group.check_equal("the instruction set", kernels, hint)?;
    let backend = device.split(':').next().unwrap_or_default();
    let hint = "use the same kind of device on all ranks";
    Ok(group.check_equal("the device", backend, hint)?)
}

/// Checks that all ranks run the same program with the same configuration on the same data.
pub(crate) fn check_agreement(setup: &RunSetup) -> Result<(), TrainError> {
    let group = &setup.group;
    check_same_program(group, &setup.device_name())?;
    let config = sha256_hex(to_toml(&shared_settings(&setup.config))?.as_bytes());
    let hint = "start all ranks with the same configuration and the same --set";
    group.check_equal("the configuration (SHA-256)", &config, hint)?;
    if let Some(base) = &setup.lora {
        let hash = &base.description.weights_sha256;
        let hint = "copy the same model to each machine";
        group.check_equal("the model in start_from (SHA-256)", hash, hint)?;
    }
    let hint = "copy the same data to each machine";
    group.check_equal("the data", &setup.data_fingerprint(), hint)?;
    check_other_texts(setup)
}

/// Checks that the windows of the texts in `validation.also` are the same on all ranks.
fn check_other_texts(setup: &RunSetup) -> Result<(), TrainError> {
    let group = &setup.group;
    if group.size() == 1 {
        return Ok(());
    }
    for text in &setup.other_texts {
        let hash = hash_of_windows(&text.windows, setup.validation_rows())?;
        let subject = format!("the tokens of the text {} (SHA-256)", text.name);
        let hint = "copy the same files of validation.also to each machine";
        group.check_equal(&subject, &hash, hint)?;
    }
    Ok(())
}

/// Identifies the tokens of `windows`.
pub(super) fn hash_of_windows(windows: &EvalWindows, rows: usize) -> Result<String, TrainError> {
    let mut hashes = Vec::new();
    for batch in windows.batches(rows) {
        let batch = batch?;
        let ids = batch.inputs.iter().chain(&batch.targets);
        let bytes: Vec<u8> = ids.flat_map(|id| id.to_le_bytes()).collect();
        hashes.extend(sha256(&bytes));
    }
    Ok(sha256_hex(&hashes))
}

/// `config` without what may differ between machines: where files are and which device computes.
fn shared_settings(config: &RunConfig) -> RunConfig {
    let mut shared = config.clone();
    shared.out = None;
    shared.start_from = None;
    shared.device = String::new();
    shared.data = nextword_data::DataConfig {
        order: shared.data.order,
        packing: shared.data.packing,
        masked: shared.data.masked,
        ..Default::default()
    };
    for text in &mut shared.validation.also {
        text.path = PathBuf::new();
    }
    shared
}

/// What a run starts from: a new model, or a checkpoint.
pub(crate) struct Start {
    pub(crate) model: Transformer,
    pub(crate) optimizer: Optimizer,
    /// Moments that `optimizer` does not have yet.
    pub(crate) moments: Option<TensorFile>,
    pub(crate) state: State,
}

/// Gives all ranks the model, the moments and the state of rank 0: those of a checkpoint, if it resumes a run. With
/// `shards`, each rank gets its part of the moments.
pub(crate) fn share_start(
    group: &Group,
    start: Start,
    shards: Option<&Shards>,
) -> Result<(Transformer, Optimizer, State), TrainError> {
    if group.size() == 1 {
        return Ok((start.model, start.optimizer, start.state));
    }
    let device = start.model.device().without_autodiff();
    let model = share_weights(group, start.model)?;
    let moments = Moments {
        optimizer: start.optimizer,
        file: start.moments,
    };
    let optimizer = moments.share(group, start.state.step, shards, &device)?;
    let state = share_state(group, start.state)?;
    Ok((model, optimizer, state))
}

/// Bytes of a SHA-256.
const HASH: usize = 32;

/// Sends the parameters of rank 0 that another rank does not have.
fn share_weights(group: &Group, model: Transformer) -> Result<Transformer, TrainError> {
    let mut hashes = Vec::new();
    weights::for_each(&model, |_, data| hashes.extend(sha256(data.as_bytes())));
    let all = group.gather(hashes)?;
    let differs = |index: usize| {
        let own = index * HASH..(index + 1) * HASH;
        all.iter()
            .any(|hashes| hashes.get(own.clone()) != all[0].get(own.clone()))
    };
    let parameters = all[0].len() / HASH;
    let mut mapper = WeightReceiver {
        group,
        differs: (0..parameters).map(differs).collect(),
        index: 0,
        failed: None,
    };
    let model = model.map(&mut mapper);
    mapper.failed.map_or(Ok(model), Err)
}

/// Replaces parameters by those of rank 0.
struct WeightReceiver<'a> {
    group: &'a Group,
    /// Whether each parameter is sent.
    differs: Vec<bool>,
    index: usize,
    failed: Option<TrainError>,
}

impl ModuleMapper for WeightReceiver<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let is_sent = self.differs.get(self.index).copied().unwrap_or(false);
        self.index += 1;
        if !is_sent || self.failed.is_some() {
            return param;
        }
        let values = share_values(self.group, &weights::to_f32_vec(param.val().into_data()));
        match values {
            Ok(values) => param.map(|tensor| {
                let (shape, device) = (tensor.dims(), tensor.device());
                let requires_grad = tensor.is_require_grad();
                Tensor::from_data(TensorData::new(values, shape), &device)
                    .set_require_grad(requires_grad)
            }),
            Err(error) => {
                self.failed = Some(error);
                param
            }
        }
    }
}

/// The values of rank 0.
fn share_values(group: &Group, own: &[f32]) -> Result<Vec<f32>, TrainError> {
    let bytes = if group.is_first() {
        own.iter().flat_map(|value| value.to_le_bytes()).collect()
    } else {
        Vec::new()
    };
    let bytes = group.broadcast(bytes)?;
    let values = bytes.as_chunks().0.iter();
    Ok(values.map(|value| f32::from_le_bytes(*value)).collect())
}

/// The moments of rank 0: in memory, or in a file.
struct Moments {
    optimizer: Optimizer,
    file: Option<TensorFile>,
}

impl Moments {
    fn names(&self) -> Vec<String> {
        match &self.file {
            Some(file) => file.names().map(ToString::to_string).collect(),
            None => self.optimizer.state().into_keys().collect(),
        }
    }

    fn values(&self, name: &str) -> Result<Vec<f32>, TrainError> {
        match &self.file {
            Some(file) => Ok(file.values(name)?),
            None => Ok(self.optimizer.state_values(name)),
        }
    }

    /// Gives all ranks the moments of rank 0, tensor by tensor, or their part of them.
    fn share(
        self,
        group: &Group,
        updates: u64,
        shards: Option<&Shards>,
        device: &Device,
    ) -> Result<Optimizer, TrainError> {
        let names = group.broadcast(self.names().join("\n").into_bytes())?;
        let updates = group.broadcast(updates.to_le_bytes().to_vec())?;
        let names = String::from_utf8_lossy(&names).into_owned();
        let mut shared = self.optimizer.without_moments();
        shared.set_updates(super::number(&updates));
        for name in names.lines() {
            let own = if group.is_first() {
                self.values(name)?
            } else {
                Vec::new()
            };
            let mut values = share_values(group, &own)?;
            if let Some(shards) = shards {
                values = shard_of(name, values, shards, group.rank())?;
            }
            if !values.is_empty() {
                let len = values.len();
                let data = TensorData::new(values, [len]);
                shared.set_moment(name, Tensor::from_data(data, device));
            }
        }
        Ok(shared)
    }
}

/// The part of `rank` of the moments `name`.
fn shard_of(
    name: &str,
    mut values: Vec<f32>,
    shards: &Shards,
    rank: usize,
) -> Result<Vec<f32>, TrainError> {
    let parameter = name
        .rsplit_once('.')
        .map_or(name, |(parameter, _)| parameter);
    let expected = shards.len(parameter).unwrap_or_default();
    if values.len() != expected {
        let found = values.len();
        let problem = format!("`{name}` has {found} values instead of {expected}");
        return Err(TrainError::run("optimizer.safetensors", problem));
    }
    let range = shards.range(parameter, rank);
    values.truncate(range.end);
    values.drain(..range.start);
    Ok(values)
}

/// Gives all ranks the state of rank 0.
fn share_state(group: &Group, state: State) -> Result<State, TrainError> {
    let own = serde_json::to_vec(&state).unwrap_or_default();
    let bytes = group.broadcast(own)?;
    if group.is_first() {
        return Ok(state);
    }
    serde_json::from_slice(&bytes).map_err(|error| {
        TrainError::run(
            "state.json",
            format!("rank 0 sent an invalid state: {error}"),
        )
    })
}
