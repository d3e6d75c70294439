//! All-gathers, reduce-scatters and broadcasts: what ranks pass in, and what they must receive.

use std::fmt;

use half::bf16;
use peersum::{Operation, reference};
use serde::{Deserialize, Serialize};

use crate::data::{self, Content, Key};
use crate::memory::elements_of;

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

    /// What each rank passes in. `content` is that of what is summed.
    pub(crate) fn inputs(
        self,
        content: Content,
        seed: u64,
        world_size: u32,
        elements: usize,
    ) -> Vec<Vec<bf16>> {
        let (sent, _) = self.lengths(elements, world_size);
        let keys = Key::of_all(seed, world_size).into_iter();
        keys.map(|key| match self {
            Collective::ReduceScatter => data::input(content, key, sent),
            _ => elements_of(&data::moved(key.with_runs_of_marks(), 2 * sent)),
        })
        .collect()
    }

    /// What `rank` must receive.
    pub(crate) fn expected(self, inputs: &[Vec<bf16>], rank: u32) -> Vec<bf16> {
        let inputs: Vec<&[bf16]> = inputs.iter().map(Vec::as_slice).collect();
        match self {
            Collective::AllGather => reference::all_gather(&inputs),
            Collective::ReduceScatter => reference::reduce_scatter(&inputs, rank as usize),
            Collective::Broadcast { root } => reference::broadcast(&inputs, root as usize),
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
