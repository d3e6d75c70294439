//! All-gathers, reduce-scatters and broadcasts.

use std::fmt;

use peersum::Operation;
use serde::{Deserialize, Serialize};

/// A call that is no all-reduce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Collective {
    AllGather,
    ReduceScatter,
    Broadcast { root: u32 },
}

impl Collective {
    /// One of them at random.
    pub(crate) fn any(rng: &mut fastrand::Rng, world_size: u32) -> Collective {
        let root = rng.u32(..world_size);
        match rng.u8(..3) {
            0 => Collective::AllGather,
            1 => Collective::ReduceScatter,
            _ => Collective::Broadcast { root },
        }
    }

    /// The same among fewer ranks.
    pub(crate) fn of(self, world_size: u32) -> Collective {
        match self {
            Collective::Broadcast { root } => Collective::Broadcast {
                root: root % world_size,
            },
            other => other,
        }
    }

    /// The elements that a rank passes in and those that it receives, if its message or its chunk
    /// has `elements`.
    pub(crate) fn lengths(self, elements: usize, world_size: u32) -> (usize, usize) {
        let all = elements * world_size as usize;
        match self {
            Collective::AllGather => (elements, all),
            Collective::ReduceScatter => (all, elements),
            Collective::Broadcast { .. } => (elements, elements),
        }
    }

    pub(crate) fn operation(self) -> Operation {
        match self {
            Collective::AllGather => Operation::AllGather,
            Collective::ReduceScatter => Operation::ReduceScatter,
            Collective::Broadcast { root } => Operation::Broadcast { root },
        }
    }
}

impl fmt::Display for Collective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.operation())
    }
}
