//! Which bursts there are: ranks enter each in order, until the time is up.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// The minimum number of bursts, also on a slow machine.
const LEAST_BURSTS: usize = 8;

/// The bursts that the ranks of a soak share.
pub(super) struct Turns {
    ends: Instant,
    /// Bursts that at least one rank has entered.
    entered: Mutex<usize>,
}

impl Turns {
    pub(super) fn new(ends: Instant) -> Self {
        Turns {
            ends,
            entered: Mutex::new(0),
        }
    }

    /// Whether a rank may enter a burst. Ranks ask for each in order, and the first one that asks
    /// for a new one when the time is up ends the soak for all.
    pub(super) fn enter(&self, burst: usize) -> bool {
        let mut entered = self.entered.lock().unwrap_or_else(PoisonError::into_inner);
        if burst >= *entered && (burst < LEAST_BURSTS || Instant::now() < self.ends) {
            *entered = burst + 1;
        }
        burst < *entered
    }

    pub(super) fn count(&self) -> usize {
        *self.entered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
