//! One run, as the referee and its ranks know it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::scenario::{Phase, Scenario};
use super::words::Place;
use crate::machine::DeviceKind;

/// One run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) device: DeviceKind,
    pub(crate) scenario: Scenario,
    pub(crate) deadlines: Deadlines,
    pub(crate) planted: Planted,
}

/// The deadlines that the ranks are given.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Deadlines {
    /// Of a call.
    pub(crate) call: Duration,
    /// Of set-up, in the phases that end in it.
    pub(crate) set_up: Duration,
    /// How much later than its deadline a survivor may report.
    pub(crate) grace: Duration,
    /// For steps without a deadline of their own: starting, joining, ending.
    pub(crate) patience: Duration,
}

/// What tests ask for.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, clap::Args)]
pub(crate) struct Planted {
    /// All ranks on one emulated device.
    #[arg(long, hide = true)]
    pub(crate) one_device: bool,
    /// A fault to plant in the survivors, which must be found.
    #[arg(long, value_enum, hide = true)]
    pub(crate) plant: Option<Plant>,
}

/// A fault planted in a survivor, which the referee must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Plant {
    /// It never reports the outcome of its communicator.
    Hang,
    /// It keeps shared memory.
    Leak,
    /// It changes a result before the check.
    Corrupt,
    /// It leaves a file where the ranks meet.
    Litter,
}

impl Run {
    /// The deadline of what the survivors do in the phase.
    pub(super) fn deadline(&self) -> Duration {
        match self.scenario.phase {
            Phase::Rendezvous | Phase::SetUp => self.deadlines.set_up,
            // Teardown waits no longer than a call.
            _ => self.deadlines.call,
        }
    }

    /// A rank among the survivors; `None` for the victim.
    pub(super) fn survivor(&self, rank: u32) -> Option<u32> {
        let victim = self.scenario.victim;
        (rank != victim).then(|| rank - u32::from(rank > victim))
    }

    /// Whether a rank is a survivor with this fault.
    pub(super) fn has(&self, plant: Plant, rank: u32) -> bool {
        rank != self.scenario.victim && self.planted.plant == Some(plant)
    }

    /// The place where a rank waits for the referee.
    pub(super) fn held_at(&self, rank: u32) -> Option<Place> {
        let is_held = match self.scenario.phase {
            Phase::BeforeFirstCall => true,
            Phase::InsideCall | Phase::GraphReplay => false,
            Phase::Rendezvous | Phase::SetUp | Phase::Teardown => rank == self.scenario.held,
        };
        is_held.then(|| self.scenario.place())
    }
}
