//! The configurations of a run by name, whatever the calls do.

use anyhow::{Result, ensure};
use peersum_artifact::Dtype;

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

/// The operations that have no configuration of these settings whatever the filter is, each with
/// the flags that exclude each other.
pub(super) fn excluded(settings: &Settings) -> Vec<String> {
    let Settings {
        ops, world_sizes, ..
    } = settings;
    let without = |op: &Operation| {
        let flag = format!("--op {}", op.name());
        if settings.dtypes_of(*op).is_empty() {
            let dtypes: Vec<String> = settings.dtypes.iter().map(Dtype::to_string).collect();
            return Some(format!("{flag} has no --dtype {}", dtypes.join(",")));
        }
        let has_group = *op == Operation::RmsNorm || world_sizes.iter().any(|size| *size > 1);
        (!has_group).then(|| format!("{flag} has no --world-size 1"))
    };
    ops.iter().filter_map(without).collect()
}

/// Fails if nothing is selected, and says by which flags.
pub(super) fn ensure_any(settings: &Settings, cases: &[Listed]) -> Result<()> {
    let excluded = excluded(settings);
    ensure!(
        excluded.len() < settings.ops.len(),
        "there is no configuration: {}",
        excluded.join("; ")
    );
    ensure!(
        !cases.is_empty(),
        "--filter selects no configuration; without it --list prints the names of all"
    );
    Ok(())
}
