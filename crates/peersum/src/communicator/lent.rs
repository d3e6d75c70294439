//! Memory of this rank that its peers may use.

use std::fmt::Display;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::device::Device;

/// Memory of this rank that its peers may use. Freed when dropped, but leaked as long as something
/// may use it that does not keep it alive.
///
/// What travels as a file descriptor stays the peer's until it unmaps it. What travels as a bare
/// address or a legacy IPC handle does not: it may be freed once every peer has let go of it.
pub struct LentMemory<D: Device> {
    // Taken in `drop` only.
    allocation: ManuallyDrop<D::Allocation>,
    /// Whether a peer knows the memory by its address or a legacy IPC handle.
    lent_by_address: bool,
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

    pub(crate) fn is_lent_by_address(&self) -> bool {
        self.lent_by_address
    }

    /// No peer uses the memory any more.
    pub fn peers_let_go(&self) {
        // Relaxed, here and below: whoever drops the memory last has synchronised with all other
        // owners.
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
