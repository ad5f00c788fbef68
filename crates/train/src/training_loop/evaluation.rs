//! The loss of held-out data, and the objective of runs on preferences.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use nextword_model::Transformer;

use super::{LoopObserver, TrainingLoop};
use crate::nonfinite::{first_nonfinite_validation, first_nonfinite_weight};
use crate::objective::{Evaluation, Objective, ReferenceRequest};
use crate::ranks::{decision_of_first, evaluate, stopped_by_first};
use crate::report::{Progress, Reporter, ValidationReport};
use crate::{OtherTextLoss, PreferenceMetrics, TrainError};

/// Tells `observer` about a part of an evaluation, and asks it whether to continue.
fn continues(observer: &mut impl LoopObserver, progress: &Progress<'_>) -> ControlFlow<()> {
    observer.progressed(progress);
    if observer.stop_requested() {
        ControlFlow::Break(())
    } else {
        ControlFlow::Continue(())
    }
}

impl TrainingLoop {
    /// Computes the validation loss.
    pub(super) fn validate(&mut self, observer: &mut impl LoopObserver) -> Result<(), TrainError> {
        let step = self.state.step;
        if !self.has_validation() {
            return Ok(());
        }
        let start = Instant::now();
        let model = self.stepper.inference_model();
        nextword_kernels::release_unused_memory();
        let Some(found) = self.evaluate(&model, observer)? else {
            return Ok(());
        };
        nextword_kernels::release_unused_memory();
        let loss = found.loss;
        if !loss.is_finite() {
            let first = self.first_nonfinite_validation(&model)?;
            return Err(self.divergence(step, first, self.last_lr(), loss));
        }
        let group = self.setup.group.clone();
        let improved = self.state.best.is_none_or(|best| loss < best);
        let improved = decision_of_first(&group, improved)?;
        if improved {
            self.check_same_weights()?;
        }
        let earlier = self.state.validation.replace(loss);
        let report = ValidationReport {
            step,
            loss,
            best: self.state.best.map_or(loss, |best| best.min(loss)),
            tokens: found.tokens,
            seconds: start.elapsed().as_secs_f64(),
            preferences: found.metrics,
            completions: None,
        };
        group.expect_save();
        let reported = observer.validated(self, &report);
        if let Err(error) = stopped_by_first(&group, reported) {
            self.state.validation = earlier;
            return Err(error);
        }
        group.expect_save();
        self.last_validation = Some((loss, report.preferences));
        if !improved {
            self.state.since_best += 1;
        } else if decision_of_first(&group, observer.improved(self, &model)?)? {
            self.state.best = Some(loss);
            self.state.since_best = 0;
        }
        Ok(())
    }

    /// Prepares a run on preferences: reads or computes the log probabilities of the reference, which the file `path`
    /// stores. Does nothing for other runs, and for those that have nothing left to do. `is_stopping` says whether a stop
    /// was requested.
    ///
    /// # Errors
    /// [`TrainError::Interrupted`] if one was requested while they are computed: the resumed run computes them again.
    pub(crate) fn prepare_preferences(
        &mut self,
        path: Option<&Path>,
        reporter: &mut dyn Reporter,
        is_stopping: impl Fn() -> bool,
    ) -> Result<(), TrainError> {
        let is_over = self.state.step >= self.setup.config.train.steps;
        if is_over && self.state.unfinished.is_none() {
            return Ok(());
        }
        let Some(mut objective) = Objective::new(&self.setup) else {
            return Ok(());
        };
        let is_trained = self.state.step > 0;
        let expected = self.state.reference.as_deref().unwrap_or_default();
        let request = ReferenceRequest {
            setup: &self.setup,
            model: self.stepper.model(),
            expected: is_trained.then_some(expected),
            path,
        };
        let hash = objective.prepare_reference(&request, &mut |done, total| {
            if done == 0 {
                reporter.preparing(&format!(
                    "computing the log probabilities of {total} completions under the model that the run starts from"
                ));
            }
            reporter.progressed(&Progress {
                what: "log probabilities of completions",
                done,
                total,
            });
            if is_stopping() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        nextword_kernels::release_unused_memory();
        self.state.reference = Some(hash);
        self.objective = Some(objective);
        Ok(())
    }

    /// Whether there is held-out data.
    pub(super) fn has_validation(&self) -> bool {
        let preferences = self.objective.as_ref();
        self.setup.validation.is_some() || preferences.is_some_and(Objective::has_validation)
    }

    /// The loss of `model` on held-out data.
    pub(super) fn evaluate(
        &self,
        model: &Transformer,
        observer: &mut impl LoopObserver,
    ) -> Result<Option<Evaluation>, TrainError> {
        let mut on_batch = |done, total| {
            continues(
                observer,
                &Progress {
                    what: "validation",
                    done,
                    total,
                },
            )
        };
        if let Some(objective) = &self.objective {
            let limit = self.setup.config.validation.windows;
            return objective.evaluate(model, limit, &mut on_batch);
        }
        let Some(windows) = &self.setup.validation else {
            return Ok(None);
        };
        let (group, rows) = (&self.setup.group, self.setup.validation_rows());
        let report = evaluate(group, model, windows, rows, &mut on_batch)?;
        Ok(Some(Evaluation {
            loss: report.nats_per_token,
            metrics: PreferenceMetrics::default(),
            tokens: report.tokens as usize,
        }))
    }

    /// Computes the losses of the texts of `validation.also`.
    pub(super) fn measure_other_text(
        &mut self,
        observer: &mut impl LoopObserver,
    ) -> Result<(), TrainError> {
        if self.setup.other_texts.is_empty() {
            return Ok(());
        }
        let model = self.stepper.inference_model();
        let rows = self.setup.validation_rows();
        nextword_kernels::release_unused_memory();
        let mut losses = Vec::new();
        for text in &self.setup.other_texts {
            let what = format!("loss of {}", text.name);
            let group = &self.setup.group;
            let report = evaluate(group, &model, &text.windows, rows, &mut |done, total| {
                continues(
                    observer,
                    &Progress {
                        what: &what,
                        done,
                        total,
                    },
                )
            })?;
            losses.push((text.name.clone(), report.nats_per_token));
        }
        nextword_kernels::release_unused_memory();
        let losses = losses.into_iter().map(|(name, loss)| {
            // A text that was added when the run was resumed starts here.
            let start = self.state.other_text.entry(name.clone());
            let start = *start.or_insert(loss);
            self.state.last_other_text.insert(name.clone(), loss);
            OtherTextLoss { name, loss, start }
        });
        let losses: Vec<_> = losses.collect();
        let before = std::mem::replace(&mut self.other_text, losses);
        observer.measured_other_text(self, &before)
    }

    /// Describes the first value that is not finite in a validation.
    pub(super) fn first_nonfinite_validation(
        &self,
        model: &Transformer,
    ) -> Result<String, TrainError> {
        match &self.setup.validation {
            Some(windows) => {
                first_nonfinite_validation(model, windows, self.setup.validation_rows())
            }
            None => Ok(match first_nonfinite_weight(model) {
                Some(name) => {
                    format!("the validation loss is not finite, because weight `{name}` is not")
                }
                None => "the validation loss is not finite".to_string(),
            }),
        }
    }
}
