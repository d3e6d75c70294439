//! What other threads can do with a rank: read its status and end its waits.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use crate::device::StatusRecord;
use crate::error::Error;
use crate::failure::Failure;

/// Reads the status of one rank and ends its waits, from any thread. Takes no lock and never waits.
///
/// It may outlive the communicator, whose last status it then keeps.
#[derive(Clone)]
pub struct AbortHandle {
    pub(super) rank: u32,
    /// The first failure that was looked up.
    pub(super) failure: Arc<OnceLock<Failure>>,
    /// `None` for a rank that has no kernels of peersum.
    pub(super) status: Option<StatusRecord>,
}

impl AbortHandle {
    /// Ends the waits of this rank within milliseconds; its calls then fail with
    /// [`Failure::Aborted`], and so do its peers'. The communicator is poisoned for good.
    pub fn abort(&self) {
        if let Some(status) = &self.status {
            // Relaxed: the word carries nothing but itself.
            status.abort_word().store(1, Ordering::Relaxed);
        }
    }

    /// A failure that is known so far, as [`Communicator::status`](crate::Communicator::status)
    /// says. For watchdog threads: it does not wait for a thread that is in
    /// [`Communicator::synchronize`](crate::Communicator::synchronize), and asks no driver.
    ///
    /// # Errors
    /// [`Error::Failed`] with the reason, as far as it is known.
    pub fn status(&self) -> Result<(), Error> {
        if let Some(failure) = self.failure.get() {
            return Err(failure.clone().into());
        }
        let Some(status) = &self.status else {
            return Ok(());
        };
        if let Some(record) = status.failure() {
            return Err(Failure::from_status(&record).into());
        }
        // Relaxed: the word carries nothing but itself.
        if status.abort_word().load(Ordering::Relaxed) != 0 {
            return Err(Failure::AbortedIdle { rank: self.rank }.into());
        }
        Ok(())
    }
}
