//! Faults between ranks that are threads of one process on one device: what every rank is told when
//! a peer is absent, aborted or calls something else, and that the process lives on; also two
//! communicators at once, and replays of graphs. Each case is a process of its own, so that a
//! spinning kernel costs one case. (`kill` is about ranks that die or stop.)

mod abort;
mod absent;
mod captures;
mod disagreement;
mod replays;
mod stage;
mod two;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use peersum::device::DeviceStream;

use crate::calls::What;
use crate::machine::{DeviceKind, Emulators, Gpus, Machine, decide, give_each_stream_a_queue};
use crate::names::name_of;
use crate::ranks::{ChildProcess, Member, run_threads, this_program};
use stage::{Case, Stage};

pub(crate) use stage::FaultsArgs;

/// A case that takes longer hangs.
const CASE_PATIENCE: Duration = Duration::from_secs(120);

/// Runs one case or all.
///
/// # Errors
/// A case failed.
pub(crate) fn run(args: &FaultsArgs) -> Result<()> {
    give_each_stream_a_queue();
    // All ranks share one device, so their number does not matter.
    let kind = decide(args.device, 1)?.kind;
    let Some(case) = args.case else {
        return all(args, kind);
    };
    let began = Instant::now();
    match kind {
        DeviceKind::Cuda if case == Case::Captures => captures::captures(args)?,
        DeviceKind::Cuda => {
            let ranks = match case {
                Case::TwoCommunicators | Case::GraphReplays => 8,
                _ => 1,
            };
            run_case(case, args, &Gpus::open(ranks)?)?;
        }
        DeviceKind::Emulator => run_case(case, args, &Emulators::default())?,
    }
    println!("{case:?}: passed, {:.1} s", began.elapsed().as_secs_f64());
    Ok(())
}

fn run_case<M: Machine>(case: Case, args: &FaultsArgs, machine: &M) -> Result<()> {
    let stage = &Stage {
        args,
        kind: machine.kind(),
        stream: &|rank| machine.stream(rank),
    };
    match case {
        Case::TwoCommunicators => {
            let largest = match stage.kind {
                DeviceKind::Cuda => Gpus::count()?.clamp(2, 8),
                DeviceKind::Emulator => 3,
            };
            let mut world_sizes = vec![2, largest];
            world_sizes.dedup();
            run_groups(stage, &world_sizes, 2, two::two_communicators)
        }
        Case::GraphReplays => {
            let world_sizes: &[u32] = match stage.kind {
                DeviceKind::Cuda => &[4, 8],
                DeviceKind::Emulator => &[3],
            };
            run_groups(stage, world_sizes, 1, replays::graph_replays)
        }
        Case::AbsentRank => {
            for what in What::ALL {
                println!("  {what}");
                run_threads(3, 2, |member| absent::absent_rank(member, stage, what))?;
            }
            Ok(())
        }
        Case::Abort => abort::aborts(stage),
        Case::Disagreement => disagreement::disagreements(stage),
        Case::Captures => bail!("the emulator has no cudarc"),
    }
}

/// Runs `body` on each rank of groups of these sizes, which form so many communicators, with and
/// without programmatic dependent launch, which the emulator does not have.
fn run_groups<S: DeviceStream + Send>(
    stage: &Stage<'_, S>,
    world_sizes: &[u32],
    groups: usize,
    body: impl Fn(Member<'_>, &Stage<'_, S>, bool) -> Result<()> + Sync,
) -> Result<()> {
    for &world_size in world_sizes {
        for pdl in [true, false] {
            if pdl && stage.kind == DeviceKind::Emulator {
                continue;
            }
            run_threads(world_size, groups, |member| body(member, stage, pdl))?;
            println!("  world size {world_size}, pdl {pdl}: all results equal to the reference");
        }
    }
    Ok(())
}

/// Runs every case that the device has, each in a process of its own.
fn all(args: &FaultsArgs, kind: DeviceKind) -> Result<()> {
    for case in Case::value_variants() {
        if kind == DeviceKind::Emulator && *case == Case::Captures {
            println!("{case:?}: the emulator has no cudarc");
            continue;
        }
        let mut command = this_program("faults")?;
        command
            .args(["--case", &name_of(case)])
            .args(["--device", &name_of(&kind)])
            .args(["--grace-ms", &args.grace_ms.to_string()])
            .args(["--abort-ms", &args.abort_ms.to_string()]);
        let status = ChildProcess::spawn(&mut command)?.wait_for(CASE_PATIENCE);
        let status =
            status.with_context(|| format!("{case:?} did not end within {CASE_PATIENCE:?}"))?;
        ensure!(status.success(), "{case:?} ended with {status}");
    }
    Ok(())
}
