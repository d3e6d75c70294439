//! What ranks tell the runner: through a channel from a thread, as one JSON object a line from a
//! process.

use serde::{Deserialize, Serialize};

/// Something that happened on a rank.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Event {
    /// It joins a group of so many ranks.
    Building { world_size: u32 },
    /// It has joined it, and holds what its cases need. `slot` is that of its first group of this
    /// size.
    Built {
        world_size: u32,
        slot: usize,
        seconds: f64,
    },
    /// It begins a case, by its place in the plan.
    Began { case: usize },
    /// It has ended a case; each `Mismatch` came before.
    Ended { case: usize, spent: Spent },
    /// A result of a case that is not the reference's, as text for the user.
    Mismatch { case: usize, text: String },
    /// It cannot go on. It may say so again once it has given up what it holds.
    Failed { error: String },
    /// It has run everything.
    Done,
}

/// The calls of a case, and the time that they took.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Spent {
    pub(crate) calls: u64,
    /// From the first launch of each round to the end of the last, in seconds.
    pub(crate) run: f64,
    /// Data and comparison, in seconds.
    pub(crate) check: f64,
}

impl Event {
    /// The last event of a rank that has ended in this way.
    pub(crate) fn last(outcome: &anyhow::Result<()>) -> Event {
        match outcome {
            Ok(()) => Event::Done,
            Err(error) => Event::Failed {
                error: format!("{error:#}"),
            },
        }
    }
}
