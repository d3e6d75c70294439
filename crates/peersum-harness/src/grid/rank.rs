//! What one rank does, whether it is a thread or a process.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use peersum::Rendezvous;

use super::case::{Adversarial, Case, Work};
use super::event::Event;
use super::session::Session;
use super::settings::{FaultKind, Settings};
use crate::machine::Machine;

/// Runs every case of every group that `rank` is in, and passes events to `emit`. `rendezvous`
/// returns the rendezvous of a group, given its world size and slot.
///
/// # Errors
/// The rank cannot continue. A mismatch is an event, not an error.
pub(crate) fn run<M: Machine>(
    machine: &M,
    settings: &Settings,
    cases: &[Case],
    rank: u32,
    rendezvous: &mut dyn FnMut(u32, usize) -> Result<Rendezvous>,
    emit: &dyn Fn(Event),
) -> Result<()> {
    for &world_size in settings.world_sizes.iter().filter(|size| **size > rank) {
        for lanes in [1, 2] {
            let own: Vec<(usize, &Case)> = cases
                .iter()
                .enumerate()
                .filter(|(_, case)| case.world_size == world_size && lanes_of(case) == lanes)
                .collect();
            if own.is_empty() {
                continue;
            }
            emit(Event::Building { world_size });
            let began = Instant::now();
            let all: Vec<&Case> = own.iter().map(|(_, case)| *case).collect();
            let mut session = Session::new(machine, settings, &all, rank, lanes, rendezvous)
                .with_context(|| format!("set-up of rank {rank} of {world_size}"))?;
            emit(Event::Built {
                world_size,
                lanes,
                seconds: began.elapsed().as_secs_f64(),
            });
            for (index, case) in own {
                emit(Event::Began { case: index });
                let fault = settings
                    .fault
                    .as_ref()
                    .filter(|fault| fault.rank == rank && fault.case == case.to_string());
                session.corrupts = fault.is_some_and(|fault| fault.kind == FaultKind::Corrupt);
                if let Some(fault) = fault.filter(|fault| fault.kind != FaultKind::Corrupt) {
                    suffer(fault.kind, rank);
                }
                session
                    .run_case(index, case, emit)
                    .with_context(|| format!("rank {rank} in {case}"))?;
            }
        }
    }
    Ok(())
}

/// How many communicators a case needs.
fn lanes_of(case: &Case) -> usize {
    1 + usize::from(case.work == Work::Adversarial(Adversarial::TwoCommunicators))
}

/// Performs the fault that a test asked for.
fn suffer(kind: FaultKind, rank: u32) {
    eprintln!("rank {rank}: {kind:?}, as a test asked for");
    match kind {
        FaultKind::Exit => std::process::exit(0),
        FaultKind::Kill => {
            let _ = rustix::process::kill_process(
                rustix::process::getpid(),
                rustix::process::Signal::KILL,
            );
        }
        FaultKind::Hang | FaultKind::Corrupt => {}
    }
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}
