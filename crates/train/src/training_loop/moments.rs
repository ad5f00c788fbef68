//! Saving moments of which each rank has a part.

use super::TrainingLoop;
use crate::TrainError;
use crate::checkpoint::MomentSource;
use crate::ranks::{ShardedMoments, begin_gathering, end_gathering, serve_moments};

impl TrainingLoop {
    /// Runs `save`, which may write the [moments](Self::moments): rank 0 gathers those that it writes. All ranks call
    /// this; on the others, `save` does nothing.
    pub(crate) fn with_moments(
        &mut self,
        save: impl FnOnce(&mut Self) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        if !self.setup.shards_optimizer() {
            return save(self);
        }
        let group = self.setup.group.clone();
        self.gathered = Some(begin_gathering(&group, self.stepper.optimizer())?);
        let saved = save(self);
        let tensors = self.gathered.take().unwrap_or_default();
        if group.is_first() {
            // Also after an error, which the others cannot know.
            return saved.and(end_gathering(&group));
        }
        saved.and_then(|()| serve_moments(&group, self.stepper.optimizer(), &tensors))
    }

    /// The moments of the run.
    pub(crate) fn moments(&self) -> Box<dyn MomentSource + '_> {
        let optimizer = self.stepper.optimizer();
        match &self.gathered {
            Some(tensors) => Box::new(ShardedMoments::new(&self.setup.group, optimizer, tensors)),
            None => Box::new(optimizer),
        }
    }
}
