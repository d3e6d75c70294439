//! What carries out an all-reduce of a given size.

use peersum_artifact::Family;
use peersum_kernels::abi;

use super::state::Communicator;
use crate::device::Device;
use crate::dispatch::{Placement, Plan, Route};

/// What must fit into the push slots for a larger call to go through them in pieces. One launch for
/// each piece then costs little compared to the bytes. With less, a call that does not fit is
/// staged and pulled, which takes any size up to `max_bytes` in one launch.
const LEAST_PUSH_PIECE_BYTES: u64 = 1 << 20;

/// What carries out an all-reduce. See [`Communicator::path`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CallPath {
    /// Nothing: the call has no element.
    Nothing,
    /// A copy, for the sum over one rank is its input.
    Copy,
    /// peersum's kernels, by the [`plan`](Communicator::plan).
    Kernels,
    /// NCCL, which the builder was told to use for such all-reduces. Outside the numeric contract.
    Nccl,
}

impl<D: Device> Communicator<D> {
    /// What carries out an all-reduce of `bytes` bytes. The same on every rank.
    pub fn path(&self, bytes: usize) -> CallPath {
        if bytes == 0 {
            return CallPath::Nothing;
        }
        #[cfg(feature = "nccl")]
        if self.nccl_for(bytes as u64).is_some() {
            return CallPath::Nccl;
        }
        match self.connected {
            Some(_) => CallPath::Kernels,
            None => CallPath::Copy,
        }
    }

    /// The algorithm and the largest grid of a call of `bytes` bytes through peersum's kernels,
    /// whose buffers are as `placement` says: what the
    /// [`dispatch_table`](Communicator::dispatch_table) says, except where the push slots are too
    /// small for it. Such a call takes the table's route in pieces if at least a megabyte fits into
    /// the slots, and otherwise a staged pull. The same on every rank.
    pub fn plan(&self, placement: Placement, bytes: u64) -> Plan {
        let plan = self.table.plan(placement, bytes);
        let Some(connected) = &self.connected else {
            return plan;
        };
        let unit = u64::from(abi::PEERSUM_UNIT_BYTES);
        let capacity = connected.layout.capacity_units(plan.route);
        let is_push = plan.route.family() == Family::Push;
        if is_push && bytes.div_ceil(unit) > capacity && capacity * unit < LEAST_PUSH_PIECE_BYTES {
            return Plan {
                route: Route::PullTwoShot,
                ..plan
            };
        }
        plan
    }

    /// What a call of `bytes` bytes by `plan` launches: no block without a unit, and no more and no
    /// larger blocks than this communicator's share of a GPU allows. (A call in several pieces does
    /// so for each.) The same on every rank.
    pub fn launched(&self, plan: Plan, bytes: u64) -> Plan {
        self.connected.as_ref().map_or(plan, |connected| {
            connected.limits.launched(plan, bytes, self.world_size)
        })
    }
}
