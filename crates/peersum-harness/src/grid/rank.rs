//! What one rank does, whether it is a thread or a process.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use peersum::Rendezvous;

use super::case::{Case, GroupKind};
use super::event::Event;
use super::selection;
use super::session::Session;
use super::settings::{FaultKind, Settings};
use crate::machine::{DeviceOf, Machine};

/// How a rank reaches the others.
pub(crate) struct Links<'a> {
    /// Returns the rendezvous of a group, given its world size and slot.
    pub(crate) join: &'a mut dyn FnMut(u32, usize) -> Result<Rendezvous>,
    /// Waits for the ranks of the group of this world size that are threads of this process.
    pub(crate) meet: &'a dyn Fn(u32),
}

/// A case and its place in the plan.
type Placed<'a> = (usize, &'a Case);

/// Runs every case of every group that `rank` is in, and passes events to `emit`.
///
/// # Errors
/// The rank cannot continue. A mismatch is an event, not an error.
pub(crate) fn run<M: Machine>(
    machine: &M,
    settings: &Settings,
    rank: u32,
    mut links: Links<'_>,
    emit: &dyn Fn(Event),
) -> Result<()> {
    let cases = selection::cases(settings);
    // All ranks form the groups in the same order.
    for kind in GroupKind::ALL {
        for &world_size in settings.world_sizes.iter().filter(|size| **size > rank) {
            let all = cases.iter().enumerate();
            let is_own = |case: &Case| case.kind == kind && case.world_size == world_size;
            let own: Vec<Placed<'_>> = all.filter(|(_, case)| is_own(case)).collect();
            if !own.is_empty() {
                run_group(machine, settings, rank, &own, &mut links, emit)?;
            }
        }
    }
    Ok(())
}

/// Runs the cases of one group.
fn run_group<M: Machine>(
    machine: &M,
    settings: &Settings,
    rank: u32,
    cases: &[Placed<'_>],
    links: &mut Links<'_>,
    emit: &dyn Fn(Event),
) -> Result<()> {
    let of_group: Vec<&Case> = cases.iter().map(|(_, case)| *case).collect();
    let (world_size, slot) = (of_group[0].world_size, of_group[0].kind.slot());
    emit(Event::Building { world_size });
    let began = Instant::now();
    let mut session = Session::<DeviceOf<M>>::new(machine, settings, &of_group, rank, links.join)
        .with_context(|| format!("set-up of rank {rank} of {world_size}"))?;
    // The driver can make a rank that allocates wait for the running kernels of another.
    (links.meet)(world_size);
    emit(Event::Built {
        world_size,
        slot,
        seconds: began.elapsed().as_secs_f64(),
    });
    for &(index, case) in cases {
        emit(Event::Began { case: index });
        let fault = settings
            .fault
            .as_ref()
            .filter(|fault| fault.rank == rank && fault.case == case.name);
        session.corrupts = fault.is_some_and(|fault| fault.kind == FaultKind::Corrupt);
        if let Some(fault) = fault.filter(|_| !session.corrupts) {
            suffer(fault.kind, rank);
        }
        let outcome = session
            .run_case(index, case, &|| (links.meet)(world_size), emit)
            .with_context(|| format!("rank {rank} in {}", case.name));
        if outcome.is_err() {
            // Before the session ends, which waits for peers that may wait for this rank.
            emit(Event::last(&outcome));
            return outcome;
        }
    }
    Ok(())
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
