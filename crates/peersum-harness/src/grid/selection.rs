//! The configurations that the settings select, whatever their calls do.

use anyhow::{Result, ensure};
use peersum_artifact::Dtype;

use super::case::{Case, is_selected};
use super::norms::{self, NormCase};
use super::settings::{GridKind, Settings};
use super::{moves, sums};
use crate::machine::DeviceKind;
use crate::operation::Operation;

/// All configurations that the settings select, each operation's together.
pub(crate) fn cases(settings: &Settings) -> Vec<Case> {
    let sums = sums::cases(settings).into_iter();
    let moves = moves::cases(settings).into_iter();
    let mut all: Vec<Case> = sums.map(|case| case.case(settings)).collect();
    all.extend(norms::cases(settings).into_iter().map(NormCase::case));
    all.extend(moves.map(|case| case.case(settings)));
    all.retain(|case| {
        let is_selected = |filter: &String| is_selected(filter, &case.name);
        settings.ops.contains(&case.op) && settings.filter.as_ref().is_none_or(is_selected)
    });
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
pub(super) fn ensure_any(settings: &Settings, cases: &[Case]) -> Result<()> {
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

/// What the grids do not contain although a reader might expect it, with the reason.
pub(crate) fn left_out(settings: &Settings) -> Vec<&'static str> {
    let has = |op| settings.ops.contains(&op);
    let moves = [
        Operation::AllGather,
        Operation::ReduceScatter,
        Operation::Broadcast,
    ];
    let (grid, sums) = (settings.grid, has(Operation::AllReduce));
    let all = [
        (
            has(Operation::RmsNorm) && grid != GridKind::Full,
            "more than 3 rows of more than 64 elements: --grid full has them",
        ),
        (
            moves.into_iter().any(has) && grid != GridKind::Full,
            "calls that move data or scatter a sum: chunks above 10 KB, every length with every \
             type: --grid full has them",
        ),
        (
            sums && settings.device == DeviceKind::Cuda,
            "delays injected per block: the kernels have no switch for it; the emulator delays \
             blocks, here ranks are delayed",
        ),
        (
            sums && grid == GridKind::Sanitizer,
            "sizes above 2000 elements, more than one round, launches above 8 blocks, delays, \
             two communicators: --grid smoke and --grid full have them",
        ),
        (
            sums && grid == GridKind::Smoke,
            "sizes above 4096 elements, more than 3 rounds, ranks that start seconds apart: \
             --grid full has them",
        ),
    ];
    let left_out = all.into_iter().filter(|(is_left_out, _)| *is_left_out);
    left_out.map(|(_, what)| what).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_configuration_has_a_name_of_its_own() {
        for grid in [GridKind::Smoke, GridKind::Full, GridKind::Sanitizer] {
            let world_sizes = [1, 2, 3, 4, 5, 6, 7, 8];
            let cases = cases(&Settings::of(DeviceKind::Emulator, grid, world_sizes, 1));
            let names: HashSet<&str> = cases.iter().map(|case| &*case.name).collect();
            assert_eq!(names.len(), cases.len());
        }
    }
}
