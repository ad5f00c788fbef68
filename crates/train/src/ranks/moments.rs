//! Gathering the moments of which each rank has a part, tensor by tensor, while rank 0 writes them.

use std::collections::BTreeMap;

use nextword_parallel::Group;

use crate::checkpoint::MomentSource;
use crate::{Optimizer, TrainError};

/// Name and length of a tensor of moments.
pub(crate) type MomentTensor = (String, usize);

/// The moments of all ranks, for rank 0. In the meantime, the others must [serve](serve_moments) theirs.
pub(crate) struct ShardedMoments<'a> {
    group: &'a Group,
    optimizer: &'a Optimizer,
    tensors: &'a [MomentTensor],
}

impl<'a> ShardedMoments<'a> {
    /// `tensors` are those of [`begin_gathering`].
    pub(crate) fn new(
        group: &'a Group,
        optimizer: &'a Optimizer,
        tensors: &'a [MomentTensor],
    ) -> Self {
        Self {
            group,
            optimizer,
            tensors,
        }
    }
}

impl MomentSource for ShardedMoments<'_> {
    fn tensors(&self) -> Vec<MomentTensor> {
        self.tensors.to_vec()
    }

    fn values(&self, name: &str) -> Result<Vec<f32>, TrainError> {
        let index = self.tensors.iter().position(|(known, _)| known == name);
        let Some(index) = index else {
            return Ok(Vec::new());
        };
        let request = (index as u64).to_le_bytes();
        self.group.broadcast(request.to_vec())?;
        gather(self.group, self.optimizer, name)
    }
}

/// Asks for no more tensors.
const END: u64 = u64::MAX;

/// Names and lengths of the moments of all ranks. All ranks call this.
pub(crate) fn begin_gathering(
    group: &Group,
    optimizer: &Optimizer,
) -> Result<Vec<MomentTensor>, TrainError> {
    let own = optimizer.state_tensors().into_iter();
    let own: Vec<String> = own.map(|(name, len)| format!("{len} {name}\n")).collect();
    let mut tensors = BTreeMap::<String, usize>::new();
    for bytes in group.gather(own.concat().into_bytes())? {
        for line in String::from_utf8_lossy(&bytes).lines() {
            let (len, name) = line.split_once(' ').unwrap_or_default();
            *tensors.entry(name.to_string()).or_default() += len.parse().unwrap_or(0);
        }
    }
    Ok(tensors.into_iter().collect())
}

/// Ends what the other ranks do in [`serve_moments`].
pub(crate) fn end_gathering(group: &Group) -> Result<(), TrainError> {
    group.broadcast(END.to_le_bytes().to_vec())?;
    Ok(())
}

/// Sends this rank's part of the tensors that rank 0 asks for, until it has enough.
pub(crate) fn serve_moments(
    group: &Group,
    optimizer: &Optimizer,
    tensors: &[MomentTensor],
) -> Result<(), TrainError> {
    loop {
        group.expect_save();
        let index = super::number(&group.broadcast(Vec::new())?);
        let Some((name, _)) = tensors.get(index as usize) else {
            return Ok(());
        };
        gather(group, optimizer, name)?;
    }
}

/// The values of a tensor, of which each rank has a part, on rank 0; none on the others.
fn gather(group: &Group, optimizer: &Optimizer, name: &str) -> Result<Vec<f32>, TrainError> {
    let own = optimizer.state_values(name).into_iter();
    let parts = group.gather_on_first(own.flat_map(f32::to_le_bytes).collect())?;
    let values = parts.iter().flat_map(|bytes| bytes.as_chunks().0);
    Ok(values.map(|bytes| f32::from_le_bytes(*bytes)).collect())
}
