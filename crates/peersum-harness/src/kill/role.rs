//! What the referee asks of a process that is a rank.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::scenario::{Phase, Scenario};
use super::words::Place;
use crate::machine::DeviceKind;

/// The part that the referee assigns to a process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Role {
    pub(crate) device: DeviceKind,
    /// Where the ranks meet.
    pub(crate) directory: PathBuf,
    pub(crate) rank: u32,
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

impl Deadlines {
    pub(super) fn of(&self, phase: Phase) -> Duration {
        match phase {
            Phase::Rendezvous | Phase::SetUp => self.set_up,
            // Teardown waits no longer than a call.
            _ => self.call,
        }
    }
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

impl Role {
    /// Its rank among the survivors, and their number; `None` for the victim.
    pub(super) fn survivor(&self) -> Option<(u32, u32)> {
        let Scenario {
            victim, world_size, ..
        } = self.scenario;
        (self.rank != victim).then(|| (self.rank - u32::from(self.rank > victim), world_size - 1))
    }

    /// Whether the rank is a survivor with this fault.
    pub(super) fn has(&self, plant: Plant) -> bool {
        self.survivor().is_some() && self.planted.plant == Some(plant)
    }
}

/// The place where a rank waits for the referee.
pub(super) fn held_at(scenario: &Scenario, rank: u32) -> Option<Place> {
    let place = match scenario.phase {
        Phase::Rendezvous => Place::Joining,
        Phase::SetUp => Place::SetUp(scenario.step),
        Phase::BeforeFirstCall => return Some(Place::Built),
        Phase::InsideCall | Phase::GraphReplay => return None,
        Phase::Teardown => Place::Leaving,
    };
    (rank == scenario.held).then_some(place)
}
