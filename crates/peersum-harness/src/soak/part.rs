//! A part of a soak: the bursts of its calls, and what they have found.

use std::cell::RefCell;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::grid::case::Case;
use crate::grid::event::Event;
use crate::grid::session::Session;
use crate::grid::settings::Settings;
use crate::machine::{DeviceOf, Machine};
use crate::ranks::run_threads;

/// The minimum number of bursts, also on a slow machine.
const LEAST_BURSTS: usize = 8;
/// Mismatches that are printed; all are counted.
const PRINTED: usize = 10;

/// The soak of one world size, which its ranks share.
pub(super) struct Soak {
    pub(super) settings: Settings,
    pub(super) world_size: u32,
    /// For tests: whether results are made wrong before they are compared.
    pub(super) corrupt: bool,
}

/// What bursts have found.
#[derive(Default)]
pub(super) struct Found {
    /// Calls of each rank.
    pub(super) calls: u64,
    pub(super) mismatches: u64,
    /// A line for each of the first of them.
    pub(super) first: Vec<String>,
}

impl Found {
    pub(super) fn add(&mut self, mismatches: impl IntoIterator<Item = String>) {
        for mismatch in mismatches {
            self.mismatches += 1;
            if self.first.len() < PRINTED {
                self.first.push(mismatch);
            }
        }
    }
}

/// The part, which the ranks of one world size share.
pub(super) struct Part {
    seed: u64,
    ends: Instant,
    /// Bursts that at least one rank has entered.
    entered: Mutex<usize>,
    found: Mutex<Found>,
}

impl Part {
    pub(super) fn new(seed: u64, ends: Instant) -> Self {
        Part {
            seed,
            ends,
            entered: Mutex::default(),
            found: Mutex::default(),
        }
    }

    /// All bursts of one rank: `run` gets the number of each and its seed.
    pub(super) fn bursts(
        &self,
        rank: u32,
        mut run: impl FnMut(usize, u64) -> Result<Found>,
    ) -> Result<()> {
        for burst in (0..).take_while(|burst| self.enter(*burst)) {
            let seed = self.seed.wrapping_add(burst as u64);
            let of_burst = run(burst, seed).with_context(|| format!("seed {seed}"))?;
            let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
            found.calls += if rank == 0 { of_burst.calls } else { 0 };
            found.add(
                of_burst
                    .first
                    .iter()
                    .map(|line| format!("seed {seed}, rank {rank}, {line}")),
            );
            // Those that the burst itself has only counted.
            found.mismatches += of_burst.mismatches - of_burst.first.len() as u64;
        }
        Ok(())
    }

    /// The bursts of all ranks, each a configuration of the grid. `draw` makes it from the
    /// settings, which hold the seed of the burst. No case is larger than `largest`.
    pub(super) fn run_cases<M: Machine>(
        &self,
        machine: &M,
        soak: &Soak,
        largest: &Case,
        draw: impl Fn(&Settings, u32) -> Case + Sync,
    ) -> Result<()> {
        let (settings, world_size) = (&soak.settings, soak.world_size);
        run_threads(world_size, 1, |mut member| {
            let rank = member.peers.rank();
            let mut join = |_, _| member.next_group();
            let mut session =
                Session::<DeviceOf<M>>::new(machine, settings, &[largest], rank, &mut join)?;
            session.corrupts = soak.corrupt && rank == 0;
            let meet = || drop(member.peers.meet());
            meet();
            self.bursts(rank, |burst, seed| {
                session.settings.seed = seed;
                let case = draw(&session.settings, world_size);
                let found = RefCell::new(Found::default());
                let emit = |event| match event {
                    Event::Ended { spent, .. } => found.borrow_mut().calls += spent.calls,
                    Event::Mismatch { text, .. } => {
                        found.borrow_mut().add([format!("{}: {text}", case.name)]);
                    }
                    _ => {}
                };
                let ran = session.run_case(burst, &case, &meet, &emit);
                ran.with_context(|| case.name.clone())?;
                Ok(found.into_inner())
            })
        })?;
        Ok(())
    }

    /// Whether a rank may enter a burst. Ranks ask for each in order, and the first one that asks
    /// for a new one when the time is up ends the part for all.
    fn enter(&self, burst: usize) -> bool {
        let mut entered = self.entered.lock().unwrap_or_else(PoisonError::into_inner);
        if burst >= *entered && (burst < LEAST_BURSTS || Instant::now() < self.ends) {
            *entered = burst + 1;
        }
        burst < *entered
    }

    pub(super) fn into_found(self) -> Found {
        let found = self.found.into_inner();
        found.unwrap_or_else(PoisonError::into_inner)
    }
}
