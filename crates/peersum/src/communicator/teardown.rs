//! The end of a communicator, and of the copy that a forked child has of it.

use std::mem::{forget, replace};
use std::time::Duration;

use super::connected::Connected;
use super::state::Communicator;
use crate::device::Device;

/// Maximum time that `drop` waits for the peers before it frees memory that they may still map.
const TEARDOWN_PATIENCE: Duration = Duration::from_secs(5);

/// Waits for the communicator's stream and then frees its memory. A capture that is open on the
/// stream is ended, whoever began it. If the stream cannot be waited for, because another thread
/// began the capture or the device has failed, the memory is leaked: a kernel may still use it. It
/// is also leaked if something else ended a capture of the communicator's calls and has the graph.
impl<D: Device> Drop for Communicator<D> {
    fn drop(&mut self) {
        if self.is_inherited() {
            self.leave_to_parent();
            return;
        }
        self.end_any_capture();
        #[cfg(feature = "nccl")]
        self.close_nccl();
        if self.connected.is_none() && self.alone.is_err() {
            // No kernel of this rank runs.
            return;
        }
        if let Err(reason) = self.finish_work() {
            let connected = self.connected.take();
            let bytes = connected.as_ref().map_or(0, Connected::memory_bytes);
            tracing::warn!(rank = self.rank, bytes, %reason, "device memory is leaked");
            // The peers' memory is still mapped here, so this rank does not meet them at the
            // barrier: they must not free what they lent.
            if let Some(connected) = connected {
                connected.leak();
            }
            self.leak_alone();
            return;
        }
        let Some(mut connected) = self.connected.take() else {
            return;
        };
        connected.close_mappings();
        // Peers may still run kernels that use this rank's memory. What they mapped from a file
        // descriptor stays alive until they unmap it, so this wait is not needed, and a failed
        // group skips it. What they know by its address must outlive their use of it.
        let lent_by_address = connected.lent_by_address();
        let patience = match lent_by_address {
            true => TEARDOWN_PATIENCE,
            false => TEARDOWN_PATIENCE.min(self.timeout),
        };
        let peers_are_done = match &mut self.group {
            Some(group) if self.handle.failure.get().is_none() || lent_by_address => {
                group.barrier("teardown", patience).is_ok()
            }
            _ => false,
        };
        if peers_are_done {
            connected.peers_let_go();
        }
    }
}

impl<D: Device> Communicator<D> {
    /// Waits until no kernel of this rank runs or can be launched. The error says why that cannot
    /// be.
    fn finish_work(&self) -> Result<(), String> {
        if self.lost_a_capture {
            let reason = "something else than the communicator ended a capture that has its calls, \
                          and may launch the graph";
            return Err(reason.to_owned());
        }
        // Every wait of a kernel is bounded, so this returns.
        let waited = self.device.synchronize();
        waited.map_err(|error| format!("the communicator's stream cannot be waited for: {error}"))
    }

    /// Leaks the modules of a rank without peers: a kernel may use them.
    fn leak_alone(&mut self) {
        forget(replace(&mut self.alone, Err(String::new())));
    }
}

/// A communicator in a child that fork made of its rank's process, without executing a program.
///
/// The child has a copy of everything. The GPU, the group and its peers are still the parent's: the
/// copy must neither wait for them, nor give anything back to them, nor tell them anything.
impl<D: Device> Communicator<D> {
    /// Whether the calling process is such a child.
    pub(super) fn is_inherited(&self) -> bool {
        self.process.is_some_and(|process| !process.is_current())
    }

    /// Leaks what the child has of the device. The group detects the fork on its own.
    pub(super) fn leave_to_parent(&mut self) {
        forget(self.connected.take());
        self.leak_alone();
        #[cfg(feature = "nccl")]
        forget(self.nccl.take());
        // The device has a handle of the stream, which must not be the last one.
        forget(self.device.stream().clone());
    }
}
