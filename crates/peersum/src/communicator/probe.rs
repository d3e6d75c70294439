//! The co-residency probe: where ranks share a device, their largest grids must run at once.

use std::time::Duration;

use peersum_artifact::Dtype;
use peersum_kernels::abi;

use super::{Call, Communicator};
use crate::device::Device;
use crate::dispatch::{Plan, Route};
use crate::error::Error;

/// How long the probe's blocks wait for those of the other ranks.
const PROBE_PATIENCE: Duration = Duration::from_secs(1);

/// The memory that the probe of a grid needs, in bytes: a unit for each thread, so that no block is without work.
pub(super) fn probe_bytes(blocks: u32, threads: u32) -> u64 {
    u64::from(blocks) * u64::from(threads) * u64::from(abi::PEERSUM_UNIT_BYTES)
}

impl<D: Device> Communicator<D> {
    /// Meets all ranks once with the largest grid that any call may have: a pull call waits block by block, so that each block of each rank
    /// must run. Blocks that cannot run at once time out.
    pub(super) fn probe_co_residency(&mut self) -> Result<(), Error> {
        let Some(links) = &self.links else {
            return Ok(());
        };
        let address = links.own_control() + links.layout.probe_offset;
        let plan = Plan {
            route: Route::PullOneShot,
            blocks: links.max_blocks,
            threads: self.table.max_threads(),
        };
        let most = links.layout.capacity_units(plan.route, self.world_size)
            * u64::from(abi::PEERSUM_UNIT_BYTES);
        let bytes = probe_bytes(plan.blocks, plan.threads).min(most);
        let call = Call {
            dtype: Dtype::F32,
            input: address,
            output: address,
            elements: bytes / Dtype::F32.size_bytes() as u64,
        };
        let timeout = self.replace_timeout(PROBE_PATIENCE);
        self.forced = Some(plan);
        let outcome = self.enqueue(call).and_then(|()| self.synchronize());
        self.forced = None;
        self.replace_timeout(timeout);
        match outcome {
            // A rank that does not run is why, not the device.
            Err(Error::Failed(failure)) if failure.names_absent() => Err(failure.into()),
            Err(Error::Failed(_)) => Err(Error::NotCoResident {
                device: self.identity.name.clone(),
                waited: PROBE_PATIENCE,
            }),
            other => other,
        }
    }

    fn replace_timeout(&mut self, timeout: Duration) -> Duration {
        if let Some(links) = &mut self.links {
            links.params.timeout_ns = nanoseconds(timeout);
        }
        std::mem::replace(&mut self.timeout, timeout)
    }
}

/// A duration as the device counts it; more than 584 years are as good as for ever.
pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
