//! What ranks tell the runner: through a channel from a thread, as one JSON object a line from a
//! process.

use serde::{Deserialize, Serialize};

use super::case::{Case, Work};
use super::slot::Wrong;
use crate::names::name_of;

/// Something that happened on a rank.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Event {
    /// It joins a group of so many ranks.
    Building { world_size: u32 },
    /// It has joined it with so many communicators, and holds what its cases need.
    Built {
        world_size: u32,
        lanes: usize,
        seconds: f64,
    },
    /// It begins a case, by its place in the plan.
    Began { case: usize },
    /// It has ended a case; `Mismatch`es came before.
    Ended { case: usize, spent: Spent },
    /// A result that is not the reference's.
    Mismatch(Mismatch),
    /// It cannot go on.
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

/// A result that is not the reference's, as far as a rank knows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Mismatch {
    /// The case's place in the plan.
    pub(crate) case: usize,
    pub(crate) rank: u32,
    pub(crate) round: u32,
    pub(crate) layer: usize,
    /// The route, or `table` where the dispatch table chose it.
    pub(crate) algorithm: String,
    pub(crate) elements: usize,
    pub(crate) wrong: Wrong,
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

impl Mismatch {
    /// All of it as text for the user. `case` is its case.
    pub(crate) fn describe(&self, case: &Case, seed: u64) -> String {
        let mode = match case.work {
            Work::Uniform { mode, variant, .. } => {
                format!("{}, {}", name_of(&mode), name_of(&variant))
            }
            Work::Adversarial(kind) => format!("eager, adversarial {}", name_of(&kind)),
        };
        format!(
            "mismatch on rank {} of {}: {} {}, {} elements, {mode}, round {}, layer {}: {}; \
             seed {seed}",
            self.rank,
            case.world_size,
            self.algorithm,
            case.dtype,
            self.elements,
            self.round,
            self.layer,
            self.wrong
        )
    }
}
