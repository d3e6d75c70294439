//! The record in which the device tells why a rank failed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use peersum_kernels::abi::PeersumStatus;

/// A status record in host memory that the device maps. The memory outlives every clone.
#[derive(Clone)]
pub struct StatusRecord {
    /// The record's address as the device sees it.
    pub device_address: u64,
    /// The record as the host sees it.
    pub host: Arc<dyn StatusMemory>,
}

/// Host memory that holds one [`PeersumStatus`], zeroed at first.
///
/// # Safety
/// What `as_ptr` returns is aligned and valid for reads and writes as long as `self` lives, the
/// same each time, and written by nothing but the device and the helpers of [`StatusRecord`].
pub unsafe trait StatusMemory: Send + Sync {
    /// The record. It stays valid as long as `self` does. The device writes it at any time, so it
    /// is read only through the helpers of [`StatusRecord`].
    fn as_ptr(&self) -> *mut PeersumStatus;
}

impl StatusRecord {
    /// The abort word. Storing 1 ends every wait of this rank.
    pub fn abort_word(&self) -> &AtomicU32 {
        // SAFETY: `as_ptr` is valid and aligned for as long as `self.host` lives, which `&self`
        // covers; host and device access the word as a 32-bit atomic only.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.host.as_ptr()).abort) }
    }

    /// The device's record of a failure, once it is complete.
    pub fn failure(&self) -> Option<PeersumStatus> {
        // SAFETY: as in `abort_word`, for the `valid` word.
        let valid = unsafe { AtomicU32::from_ptr(&raw mut (*self.host.as_ptr()).valid) };
        // Acquire pairs with the device's release of `valid`: the fields are written before it and
        // never again.
        if valid.load(Ordering::Acquire) == 0 {
            return None;
        }
        // SAFETY: the record is complete (see above) and, but for the abort word, immutable from
        // now on. Another thread may store the abort word meanwhile, so the copy is volatile; a
        // PeersumStatus has no invalid bit patterns.
        Some(unsafe { std::ptr::read_volatile(self.host.as_ptr()) })
    }
}
