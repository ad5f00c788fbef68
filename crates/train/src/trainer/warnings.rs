//! Reports of measurements, with what has just become worth a warning.

use crate::OtherTextLoss;
use crate::preferences::PreferenceWarning;
use crate::report::{Reporter, ValidationReport};
use crate::training_loop::TrainingLoop;

/// Reports the losses of other texts, and warns about those that have just become too large; `before` are the earlier
/// ones.
pub(super) fn report_other_text(
    training: &TrainingLoop,
    before: &[OtherTextLoss],
    reporter: &mut dyn Reporter,
) {
    reporter.measured_other_text(training.state.step, &training.other_text);
    for text in &training.other_text {
        let mut earlier = before.iter().filter(|earlier| earlier.name == text.name);
        let was_large = earlier.any(|earlier| earlier.warning().is_some());
        if let Some(warning) = text.warning().filter(|_| !was_large) {
            reporter.warned(&warning);
        }
    }
}

/// Reports a validation, and what has just become worth a warning in a run on preferences.
pub(super) fn report_validation(
    training: &TrainingLoop,
    report: &ValidationReport,
    reporter: &mut dyn Reporter,
) {
    reporter.validated(report);
    let earlier = training.last_validation;
    let earlier = earlier.map_or_else(Vec::new, |(loss, metrics)| metrics.warnings(loss));
    let is_new =
        |(kind, _): &(PreferenceWarning, String)| earlier.iter().all(|(known, _)| known != kind);
    let warnings = report.preferences.warnings(report.loss);
    for (_, warning) in warnings.into_iter().filter(is_new) {
        reporter.warned(&warning);
    }
}
