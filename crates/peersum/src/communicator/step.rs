//! How far a rank has come in set-up, as a tracing event tells it.

use std::fmt::Debug;

use serde::{Deserialize, Serialize};
use tracing::field::Field;

/// What a rank has done last in set-up. After each step it waits for the other ranks.
///
/// For a program that tests what happens to a rank at each of them.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SetupStep {
    /// The ranks have met.
    Joined,
    /// The modules are loaded.
    Loaded,
    /// The rank's own memory is ready for its peers.
    Armed,
    /// The peers' memory is mapped.
    Mapped,
}

impl SetupStep {
    /// All, in order.
    pub const ALL: [SetupStep; 4] = [Self::Joined, Self::Loaded, Self::Armed, Self::Mapped];

    /// Tells the subscribers of this crate's events.
    pub(super) fn reached(self, rank: u32) {
        tracing::debug!(rank, setup_step = self as u64, "set-up: {self:?}");
    }

    /// The step that an event of this crate tells of, if it tells of one.
    pub fn of(event: &tracing::Event<'_>) -> Option<SetupStep> {
        let mut found = None;
        event.record(&mut |field: &Field, value: &dyn Debug| {
            if field.name() == "setup_step" {
                let number = format!("{value:?}");
                let mut all = SetupStep::ALL.into_iter();
                found = all.find(|step| (*step as u64).to_string() == number);
            }
        });
        found
    }
}
