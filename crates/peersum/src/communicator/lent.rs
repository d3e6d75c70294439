//! Memory of this rank that its peers may use.

use std::fmt::Display;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::device::Device;

/// Memory of this rank that its peers may use. Dropping it frees it, unless something may still use
/// it that does not keep it alive: then it is leaked.
///
/// Memory that travels as a file descriptor stays alive until the peer unmaps it. Memory that
/// travels as a bare address or a legacy IPC handle does not: it may be freed only once no peer
/// uses it any more.
pub struct LentMemory<D: Device> {
    // Taken in `drop` only.
    allocation: ManuallyDrop<D::Allocation>,
    /// Whether a peer knows the memory by its address or a legacy IPC handle.
    pub(crate) lent_by_address: bool,
    /// Whether the memory must not be freed.
    must_stay: AtomicBool,
}

impl<D: Device> LentMemory<D> {
    pub(crate) fn new(allocation: D::Allocation, lent_by_address: bool) -> Self {
        LentMemory {
            allocation: ManuallyDrop::new(allocation),
            lent_by_address,
            must_stay: AtomicBool::new(lent_by_address),
        }
    }

    pub(crate) fn allocation(&self) -> &D::Allocation {
        &self.allocation
    }

    /// No peer uses the memory any more.
    pub fn peers_let_go(&self) {
        // Relaxed, here and below: the last owner that drops the memory has synchronised with all
        // others.
        self.must_stay.store(false, Ordering::Relaxed);
    }

    /// This rank itself may still use the memory, and cannot wait for it.
    pub(crate) fn keep(&self, reason: &dyn Display) {
        tracing::warn!(%reason, "the stream that uses shared memory cannot be waited for");
        self.must_stay.store(true, Ordering::Relaxed);
    }
}

impl<D: Device> Drop for LentMemory<D> {
    fn drop(&mut self) {
        if *self.must_stay.get_mut() {
            tracing::warn!("device memory is leaked: work that may use it has not ended");
            return;
        }
        // SAFETY: the allocation is not used again: this is its only take, in drop.
        unsafe { ManuallyDrop::drop(&mut self.allocation) };
    }
}
