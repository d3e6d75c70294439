//! The configurations of a run by name, whatever the calls do.

use super::case::{Case, Listed};
use super::settings::Settings;
use super::{moves, norm, plan};
use crate::operation::Operation;

/// All configurations that the settings select, in the order in which ranks run them.
pub(crate) fn listed(settings: &Settings) -> Vec<Listed> {
    let mut all = Vec::new();
    if settings.ops.contains(&Operation::AllReduce) {
        all.extend(plan::cases(settings).iter().map(Case::listed));
    }
    if settings.ops.contains(&Operation::RmsNorm) {
        all.extend(norm::cases(settings).iter().map(|case| case.listed()));
    }
    all.extend(moves::cases(settings).iter().map(|case| case.listed()));
    all
}
