//! A communicator in a child that fork made of its rank's process, without executing a program.
//!
//! The child has a copy of everything. The GPU, the group and its peers are still the parent's: the
//! copy must neither wait for them, nor give anything back to them, nor tell them anything.

use std::mem::forget;

use super::Communicator;
use crate::device::Device;

impl<D: Device> Communicator<D> {
    /// Whether the calling process is such a child.
    pub(super) fn is_inherited(&self) -> bool {
        self.process.is_some_and(|process| !process.is_current())
    }

    /// Keeps for ever what the child has of the device. The group knows by itself what to do.
    pub(super) fn leave_to_parent(&mut self) {
        forget(self.links.take());
        #[cfg(feature = "nccl")]
        forget(self.nccl.take());
        // The device has a handle of the stream, which must not be the last one.
        forget(self.device.stream().clone());
    }
}
