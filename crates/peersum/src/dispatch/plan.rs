//! How a call is carried out: its route, its grid, and what the choice depends on.

use peersum_artifact::{Algorithm, Family};
use peersum_kernels::abi;
use serde::{Deserialize, Serialize};

/// How a call is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// One-shot push: every rank stores all its data to every peer.
    PushOneShot,
    /// Two-shot push: to the owner of each chunk, who reduces and sends to all.
    PushTwoShot,
    /// One-shot pull of a staged copy.
    PullOneShot,
    /// Two-shot pull of a staged copy.
    PullTwoShot,
    /// One-shot pull of symmetric buffers, out of place.
    SymmetricOneShot,
    /// Two-shot pull of symmetric buffers, in place.
    SymmetricTwoShot,
}

impl Route {
    /// Every route.
    pub const ALL: [Route; 6] = [
        Route::PushOneShot,
        Route::PushTwoShot,
        Route::PullOneShot,
        Route::PullTwoShot,
        Route::SymmetricOneShot,
        Route::SymmetricTwoShot,
    ];

    /// Its name in tables, flags and reports.
    pub fn name(self) -> &'static str {
        match self {
            Route::PushOneShot => "push_one_shot",
            Route::PushTwoShot => "push_two_shot",
            Route::PullOneShot => "pull_one_shot",
            Route::PullTwoShot => "pull_two_shot",
            Route::SymmetricOneShot => "symmetric_one_shot",
            Route::SymmetricTwoShot => "symmetric_two_shot",
        }
    }

    /// The kernel family.
    pub fn family(self) -> Family {
        match self {
            Route::PushOneShot | Route::PushTwoShot => Family::Push,
            _ => Family::Pull,
        }
    }

    /// The algorithm within the family.
    pub fn algorithm(self) -> Algorithm {
        match self {
            Route::PushOneShot | Route::PullOneShot | Route::SymmetricOneShot => Algorithm::OneShot,
            _ => Algorithm::TwoShot,
        }
    }

    /// What the threads of a call share out among them: the units of the message, or for two-shot
    /// algorithms those of one rank's chunk.
    #[doc(hidden)]
    pub fn places(self, bytes: u64, world_size: u32) -> u64 {
        let units = bytes.div_ceil(u64::from(abi::PEERSUM_UNIT_BYTES));
        match self.algorithm() {
            Algorithm::TwoShot => units.div_ceil(u64::from(world_size)),
            _ => units,
        }
    }

    /// Whether a call with this placement can take the route.
    pub fn serves(self, placement: Placement) -> bool {
        match self {
            Route::SymmetricOneShot => placement == Placement::Symmetric,
            Route::SymmetricTwoShot => placement == Placement::SymmetricInPlace,
            _ => true,
        }
    }

    /// Whether peers read the caller's symmetric buffer itself.
    pub fn is_symmetric(self) -> bool {
        matches!(self, Route::SymmetricOneShot | Route::SymmetricTwoShot)
    }
}

/// Route and shape of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Plan {
    /// The route.
    pub route: Route,
    /// The grid. A communicator launches no more than its [`LaunchLimits`](super::LaunchLimits)
    /// allow.
    pub blocks: u32,
    /// Threads of a block that handle units; limited in the same way.
    pub threads: u32,
}

impl Plan {
    /// What keeps the kernels from running in this shape.
    pub(crate) fn check_shape(self, topology: Topology) -> Result<(), String> {
        let Plan {
            blocks, threads, ..
        } = self;
        if !(1..=abi::PEERSUM_MAX_BLOCKS).contains(&blocks)
            || !(abi::PEERSUM_MIN_THREADS..=abi::PEERSUM_MAX_THREADS).contains(&threads)
        {
            return Err(format!(
                "{blocks} blocks of {threads} threads are outside 1..={} and {}..={}",
                abi::PEERSUM_MAX_BLOCKS,
                abi::PEERSUM_MIN_THREADS,
                abi::PEERSUM_MAX_THREADS
            ));
        }
        // An emulated thread is a warp of its own.
        if topology != Topology::Emulator && !threads.is_multiple_of(abi::PEERSUM_WARP_THREADS) {
            return Err(format!(
                "{threads} threads a block are no multiple of {}",
                abi::PEERSUM_WARP_THREADS
            ));
        }
        Ok(())
    }
}

/// The kind of source and destination that a call has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// Memory that peers do not map.
    Ordinary,
    /// The input is symmetric, the output is other memory.
    Symmetric,
    /// Input and output are the same symmetric memory.
    SymmetricInPlace,
}

impl Placement {
    /// Every placement.
    pub const ALL: [Placement; 3] = [
        Placement::Ordinary,
        Placement::Symmetric,
        Placement::SymmetricInPlace,
    ];

    /// Its name in a table file.
    pub fn name(self) -> &'static str {
        match self {
            Placement::Ordinary => "ordinary",
            Placement::Symmetric => "symmetric",
            Placement::SymmetricInPlace => "symmetric_in_place",
        }
    }
}

/// How the ranks of a group lie on devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Topology {
    /// At least two ranks share a device.
    Shared,
    /// Every rank has a device of its own.
    Peer,
    /// The ranks are emulated.
    Emulator,
}
