//! What one rank does, whether it is a thread or a process.

use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use peersum::Rendezvous;

use super::case::{Adversarial, Case, Work};
use super::event::Event;
use super::moves::{self, MoveRank};
use super::norm::{self, NormRank};
use super::plan;
use super::session::Session;
use super::settings::{FaultKind, Settings};
use crate::machine::{DeviceOf, Machine};
use crate::operation::Operation;

/// The groups of a world size. Slot 0 is that of most all-reduces; slots 1 and 2 are those of cases
/// with two communicators.
pub(crate) const SLOTS: usize = 5;
const NORM_SLOT: usize = 3;
const MOVE_SLOT: usize = 4;

/// How a rank reaches the others.
pub(crate) struct Links<'a> {
    /// Returns the rendezvous of a group, given its world size and slot.
    pub(crate) join: &'a mut dyn FnMut(u32, usize) -> Result<Rendezvous>,
    /// Waits for the ranks of the group of this world size that are threads of this process.
    pub(crate) meet: &'a dyn Fn(u32),
}

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
    let mut own = Own {
        machine,
        settings,
        rank,
        links: &mut links,
        emit,
        first: 0,
    };
    // In the order of `listed`.
    if settings.ops.contains(&Operation::AllReduce) {
        own.all_reduces()?;
    }
    if settings.ops.contains(&Operation::RmsNorm) {
        own.norms()?;
    }
    own.moves()
}

/// The part of one rank in a run.
struct Own<'a, 'b, M> {
    machine: &'a M,
    settings: &'a Settings,
    rank: u32,
    links: &'a mut Links<'b>,
    emit: &'a dyn Fn(Event),
    /// The place in the plan of the first case of the next operation.
    first: usize,
}

impl<'a, M: Machine> Own<'a, '_, M> {
    fn world_sizes(&self) -> Vec<u32> {
        let all = self.settings.world_sizes.iter().copied();
        all.filter(|size| *size > self.rank).collect()
    }

    fn all_reduces(&mut self) -> Result<()> {
        let (machine, settings, rank, emit) = (self.machine, self.settings, self.rank, self.emit);
        let cases = plan::cases(settings);
        for world_size in self.world_sizes() {
            for lanes in [1, 2] {
                let group = self.group(world_size, lanes - 1);
                let join = &mut *self.links.join;
                group.run(
                    &cases,
                    |case| case.world_size == world_size && lanes_of(case) == lanes,
                    |own| Session::new(machine, settings, own, rank, lanes, join),
                    |session, index, case, corrupts| {
                        session.corrupts = corrupts;
                        session.run_case(index, case, emit)
                    },
                )?;
            }
        }
        self.first += cases.len();
        Ok(())
    }

    fn norms(&mut self) -> Result<()> {
        let (machine, settings, emit) = (self.machine, self.settings, self.emit);
        let cases = norm::cases(settings);
        for world_size in self.world_sizes() {
            let group = self.group(world_size, NORM_SLOT);
            let Links { join, meet } = &mut *self.links;
            group.run(
                &cases,
                |case| case.world_size == world_size,
                |own| {
                    let rendezvous = join(world_size, NORM_SLOT)?;
                    NormRank::<DeviceOf<M>>::new(machine, settings, rendezvous, own)
                },
                |norm, index, case, corrupts| {
                    norm.corrupts = corrupts;
                    norm.run_case(index, case, &|| meet(world_size), emit)
                },
            )?;
        }
        self.first += cases.len();
        Ok(())
    }

    fn moves(&mut self) -> Result<()> {
        let (machine, settings, emit) = (self.machine, self.settings, self.emit);
        let cases = moves::cases(settings);
        for world_size in self.world_sizes() {
            let group = self.group(world_size, MOVE_SLOT);
            let Links { join, meet } = &mut *self.links;
            group.run(
                &cases,
                |case| case.world_size == world_size,
                |own| {
                    let rendezvous = join(world_size, MOVE_SLOT)?;
                    MoveRank::<DeviceOf<M>>::new(machine, settings, rendezvous, own)
                },
                |moves, index, case, corrupts| {
                    moves.corrupts = corrupts;
                    moves.run_case(index, case, &|| meet(world_size), emit)
                },
            )?;
        }
        self.first += cases.len();
        Ok(())
    }

    fn group(&self, world_size: u32, slot: usize) -> Group<'a> {
        Group {
            settings: self.settings,
            rank: self.rank,
            world_size,
            slot,
            first: self.first,
            emit: self.emit,
        }
    }
}

/// A group that a rank joins.
struct Group<'a> {
    settings: &'a Settings,
    rank: u32,
    world_size: u32,
    slot: usize,
    /// The place in the plan of the first of the operation's cases.
    first: usize,
    emit: &'a dyn Fn(Event),
}

impl Group<'_> {
    /// Runs those of `cases` that are the group's, on what `build` makes for them. `run_case` gets
    /// a case with its place in the plan, and whether a result must be made wrong.
    fn run<C: Display, S>(
        &self,
        cases: &[C],
        is_own: impl Fn(&C) -> bool,
        build: impl FnOnce(&[&C]) -> Result<S>,
        mut run_case: impl FnMut(&mut S, usize, &C, bool) -> Result<()>,
    ) -> Result<()> {
        let Group {
            settings,
            rank,
            world_size,
            slot,
            first,
            emit,
        } = *self;
        let own = || (first..).zip(cases).filter(|(_, case)| is_own(case));
        let all: Vec<&C> = own().map(|(_, case)| case).collect();
        if all.is_empty() {
            return Ok(());
        }
        emit(Event::Building { world_size });
        let began = Instant::now();
        let mut session =
            build(&all).with_context(|| format!("set-up of rank {rank} of {world_size}"))?;
        emit(Event::Built {
            world_size,
            slot,
            seconds: began.elapsed().as_secs_f64(),
        });
        for (index, case) in own() {
            emit(Event::Began { case: index });
            let fault = settings
                .fault
                .as_ref()
                .filter(|fault| fault.rank == rank && fault.case == case.to_string());
            let corrupts = fault.is_some_and(|fault| fault.kind == FaultKind::Corrupt);
            if let Some(fault) = fault.filter(|_| !corrupts) {
                suffer(fault.kind, rank);
            }
            let outcome = run_case(&mut session, index, case, corrupts)
                .with_context(|| format!("rank {rank} in {case}"));
            if outcome.is_err() {
                // Before the session ends, which waits for peers that may wait for this rank.
                emit(Event::last(&outcome));
                return outcome;
            }
        }
        Ok(())
    }
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
