//! The negative controls: the grid must fail on every protocol that is broken on purpose; otherwise
//! its success would prove nothing.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::ValueEnum;
use peersum_artifact::Dtype;
use peersum_emulator::{Break, EmulatorOptions};

use super::report::CaseStatus;
use super::selection::cases;
use super::settings::{GridKind, Settings};
use super::{runner, workers};
use crate::machine::{DeviceKind, Emulators};
use crate::operation::Operation;

/// A race does not show in every run. A sound protocol never fails.
const ATTEMPTS: u64 = 20;

/// How long a call waits for a peer, since a broken protocol may show only as a rank that waits in
/// vain. The sound ones have the same limit: if a busy machine exceeds it, they fail too.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The operations in whose configurations the grid must see a broken protocol.
fn ops_that_show(broken: Break) -> &'static [Operation] {
    match broken {
        _ if broken.is_of_norm() => &[Operation::RmsNorm],
        Break::NoRearm | Break::LaneUnchecked | Break::EpochNotAdvanced => &[
            Operation::AllReduce,
            Operation::AllGather,
            Operation::ReduceScatter,
            Operation::Broadcast,
        ],
        Break::RankOrderReversed => &[Operation::AllReduce, Operation::ReduceScatter],
        _ => &[Operation::AllReduce],
    }
}

/// Runs the smoke grids on every broken protocol, and on the sound one. Returns whether it has seen
/// each broken one in each operation that it breaks.
pub(crate) fn run() -> Result<bool> {
    let sound = fails(Operation::value_variants(), None, 1)?;
    if let Some(how) = sound {
        bail!("the sound protocols fail: {how}");
    }
    println!("sound protocols: pass");
    let mut unseen = Vec::new();
    for broken in Break::ALL {
        for op in ops_that_show(broken) {
            let what = format!("{broken:?} in {}", op.name());
            let mut attempts = 1..=ATTEMPTS;
            let seen = attempts.find_map(|attempt| {
                let how = fails(&[*op], Some(broken), attempt).transpose()?;
                Some(how.map(|how| println!("{what}: seen in run {attempt}: {how}")))
            });
            match seen {
                Some(shown) => shown?,
                None => unseen.push(what),
            }
        }
    }
    match unseen[..] {
        [] => println!(
            "the grid fails on each of the {} negative controls",
            Break::ALL.len()
        ),
        _ => println!("the grid did not see these in {ATTEMPTS} runs: {unseen:?}"),
    }
    Ok(unseen.is_empty())
}

/// How the grid of these operations fails, if it does: by a wrong result, or by a failed call.
fn fails(ops: &[Operation], broken: Option<Break>, seed: u64) -> Result<Option<String>> {
    let mut options = EmulatorOptions::default();
    options.broken = broken;
    let settings = Arc::new(Settings {
        ops: ops.into(),
        // The broken kernels are compiled for these two sizes; a wrong rank order shows from 3
        // ranks on. One type shows as much as two; the emulator's own controls have both.
        dtypes: match broken {
            Some(_) => [Dtype::Bf16].into(),
            None => [Dtype::Bf16, Dtype::F32].into(),
        },
        timeout: TIMEOUT,
        ..Settings::of(DeviceKind::Emulator, GridKind::Smoke, [2, 3], seed)
    });
    let cases = cases(&settings);
    let (sender, receiver) = channel();
    let machine = Arc::new(Emulators { options });
    let workers = workers::start_threads(&machine, &settings, &sender)?;
    let tally = runner::watch(&settings, &cases, workers, sender, &receiver, &mut |_| {});
    let mut report = tally.report("emulator", None, Duration::ZERO);
    // Not its first line alone: the rank that failed first may report after its peers.
    if let (None, Some(failure)) = (broken, &report.failure) {
        return Ok(Some(failure.clone()));
    }
    if !report.first_mismatches.is_empty() {
        return Ok(Some(report.first_mismatches.swap_remove(0)));
    }
    let mut statuses = report.cases.into_iter().map(|case| case.status);
    let failed = statuses.find_map(|status| match status {
        CaseStatus::Failed(how) => Some(how),
        _ => None,
    });
    match (failed, report.failure) {
        // A failure outside of all cases says nothing about the protocols.
        (None, Some(failure)) => bail!("{broken:?}: {failure}"),
        (failed, _) => Ok(failed),
    }
}
