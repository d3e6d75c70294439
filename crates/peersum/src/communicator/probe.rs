//! The co-residency probe: where ranks share a device, their largest grids must run at once.

use std::time::Duration;

use peersum_artifact::Dtype;
use peersum_kernels::abi;

use super::prepared::Call;
use super::state::Communicator;
use crate::device::Device;
use crate::dispatch::{LaunchLimits, Plan, Route};
use crate::error::Error;
use crate::operation::Operation;

/// How long the probe's blocks wait for those of the other ranks.
const PROBE_PATIENCE: Duration = Duration::from_secs(1);

/// The memory that the probe needs, in bytes: a unit for each thread, so that no block is without
/// work.
pub(super) fn probe_bytes(limits: &LaunchLimits) -> u64 {
    let plan = probe_plan(limits);
    u64::from(plan.blocks) * u64::from(plan.threads) * u64::from(abi::PEERSUM_UNIT_BYTES)
}

/// As many blocks as any call may have, as large as a seat allows. A pull call waits block by
/// block, so each block of each rank must run.
fn probe_plan(limits: &LaunchLimits) -> Plan {
    let route = Route::PullOneShot;
    Plan {
        route,
        blocks: limits.blocks(),
        threads: limits.threads(route.family(), route.algorithm()),
    }
}

impl<D: Device> Communicator<D> {
    /// If ranks share a device, makes one call with the largest grid that any call may have. If the
    /// ranks' blocks cannot run at the same time, it times out.
    pub(super) fn probe_co_residency(&mut self) -> Result<(), Error> {
        let connected = self.connected.as_ref();
        let Some(connected) = connected.filter(|own| own.layout.has_probe()) else {
            return Ok(());
        };
        let address = connected.arena.addresses[self.rank as usize] + connected.layout.probe_offset;
        let plan = probe_plan(&connected.limits);
        let most = connected.layout.capacity_units(plan.route) * u64::from(abi::PEERSUM_UNIT_BYTES);
        let bytes = probe_bytes(&connected.limits).min(most);
        let call = Call {
            dtype: Dtype::F32,
            input: address,
            output: address,
            elements: bytes / Dtype::F32.size_bytes() as u64,
            operation: Operation::AllReduce,
        };
        let timeout = self.replace_timeout(PROBE_PATIENCE);
        self.forced = Some(plan);
        let outcome = self.enqueue(call).and_then(|()| self.synchronize());
        self.forced = None;
        self.replace_timeout(timeout);
        match outcome {
            // The reason is a rank that does not run, not the device.
            Err(Error::Failed(failure)) if failure.names_absent() => Err(failure.into()),
            Err(Error::Failed(_)) => Err(Error::NotCoResident {
                device: self.identity.name.clone(),
                waited: PROBE_PATIENCE,
            }),
            other => other,
        }
    }

    fn replace_timeout(&mut self, timeout: Duration) -> Duration {
        if let Some(connected) = &mut self.connected {
            connected.params.timeout_ns = nanoseconds(timeout);
        }
        std::mem::replace(&mut self.timeout, timeout)
    }
}

/// A duration in the device's unit. It holds 584 years; longer durations are cut to that.
pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
