//! The configurations of a run by name, whatever the calls do.

use super::case::{Case, Listed};
use super::settings::Settings;
use super::{norm, plan};
use crate::operation::Operation;

/// All configurations that the settings select, in the order in which ranks run them.
pub(crate) fn listed(settings: &Settings) -> Vec<Listed> {
    match settings.op {
        Operation::AllReduce => plan::cases(settings).iter().map(Case::listed).collect(),
        Operation::RmsNorm => {
            let cases = norm::cases(settings);
            cases.iter().map(|case| case.listed()).collect()
        }
    }
}
