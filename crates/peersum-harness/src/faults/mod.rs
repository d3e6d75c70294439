//! Faults between ranks that are threads of one process on one device: what every rank is told when
//! a peer is absent, aborted or calls something else, and that the process lives on; also replayed
//! graphs mixed with eager calls, two communicators at once, and a few cases of processes. Each
//! case is a process of its own, so that a spinning kernel costs one case. (`kill` is about ranks
//! that die or stop.)

mod abort;
mod absent;
mod captures;
mod disagreement;
mod processes;
mod replays;
mod stage;
mod two;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use peersum::Rendezvous;
use peersum::device::DeviceStream;

use crate::machine::{DeviceKind, Emulators, Gpus, Machine, decide, give_each_stream_a_queue};
use crate::ranks::{RankProcess, run_threads};
use stage::{Case, Stage, again};

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
    match kind {
        DeviceKind::Cuda if case == Case::Captures => {
            let began = Instant::now();
            captures::captures(args)?;
            report(case, began);
            Ok(())
        }
        DeviceKind::Cuda => {
            let ranks = match case {
                Case::TwoCommunicators => 8,
                _ => 1,
            };
            run_on(case, args, &Gpus::open(ranks)?)
        }
        DeviceKind::Emulator => run_on(case, args, &Emulators::default()),
    }
}

fn run_on<M: Machine>(case: Case, args: &FaultsArgs, machine: &M) -> Result<()> {
    let stage = Stage {
        args,
        kind: machine.kind(),
        stream: &|rank| machine.stream(rank),
    };
    run_case(case, &stage)
}

fn run_case<S: DeviceStream + Send>(case: Case, stage: &Stage<'_, S>) -> Result<()> {
    let began = Instant::now();
    match (case, stage.args.rank, &stage.args.directory) {
        (Case::GraphReplays, ..) => {
            let forms: &[(u32, bool)] = match stage.kind {
                DeviceKind::Cuda => &[(2, true), (2, false), (4, true), (8, true), (8, false)],
                // The emulator has no programmatic dependent launch.
                DeviceKind::Emulator => &[(2, false), (3, false)],
            };
            for &(world_size, pdl) in forms {
                run_threads(world_size, 1, |member| {
                    replays::graph_replays(member, stage, pdl)
                })?;
                println!(
                    "  world size {world_size}, pdl {pdl}: 100 replays of 4 layers and 10 eager \
                     calls, all equal to the reference"
                );
            }
        }
        (Case::TwoCommunicators, ..) => {
            let (largest, pdl): (u32, &[bool]) = match stage.kind {
                DeviceKind::Cuda => (Gpus::count()?.clamp(2, 8), &[true, false]),
                DeviceKind::Emulator => (3, &[false]),
            };
            let mut world_sizes = vec![2, largest];
            world_sizes.dedup();
            for world_size in world_sizes {
                for &pdl in pdl {
                    run_threads(world_size, 2, |member| {
                        two::two_communicators(member, stage, pdl)
                    })?;
                    println!(
                        "  world size {world_size}, pdl {pdl}: two communicators at once, all \
                         results equal to the reference"
                    );
                }
            }
        }
        (Case::AbsentRank, ..) => {
            run_threads(3, 2, |member| absent::absent_rank(member, stage))?;
        }
        (Case::Abort, ..) => abort::aborts(stage)?,
        (Case::Disagreement, ..) => disagreement::disagreements(stage)?,
        (case, Some(rank), Some(directory)) => {
            let rendezvous = Rendezvous::unix(directory, "faults", rank, 2);
            return if case == Case::Killed {
                processes::calls_until_failure(rendezvous, stage)
            } else {
                processes::legacy_ipc(rendezvous, stage)
            };
        }
        (Case::Killed, ..) => processes::killed(stage)?,
        (Case::LegacyIpc, ..) => processes::processes_succeed(stage)?,
        (Case::Captures, ..) => bail!("{case:?} is a case of GPUs"),
    }
    report(case, began);
    Ok(())
}

fn report(case: Case, began: Instant) {
    println!("{case:?}: passed, {:.1} s", began.elapsed().as_secs_f64());
}

/// Runs every case that the device has, each in a process of its own.
fn all(args: &FaultsArgs, kind: DeviceKind) -> Result<()> {
    for case in Case::value_variants() {
        if let (DeviceKind::Emulator, Some(reason)) = (kind, case.not_emulated()) {
            println!("{case:?}: {reason}");
            continue;
        }
        let mut command = again(args, kind, *case)?;
        let mut process =
            RankProcess::spawn(&mut command, 0).with_context(|| format!("starting {case:?}"))?;
        let began = Instant::now();
        let status = loop {
            if let Some(status) = process.ended() {
                break status;
            }
            ensure!(
                began.elapsed() < CASE_PATIENCE,
                "{case:?} did not end within {CASE_PATIENCE:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        };
        ensure!(status.success(), "{case:?} ended with {status}");
    }
    Ok(())
}
