//! A stream carries one communicator at a time.

use std::any::TypeId;
use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use crate::error::Error;

/// Streams that carry a communicator in this process.
static CLAIMED_STREAMS: Mutex<Option<HashSet<(TypeId, u64)>>> = Mutex::new(None);

/// A stream's claim by one communicator, given back when dropped.
#[derive(Debug)]
pub(super) struct StreamClaim(TypeId, u64);

impl StreamClaim {
    pub(super) fn new<D: 'static>(stream_id: u64) -> Result<StreamClaim, Error> {
        let claim = (TypeId::of::<D>(), stream_id);
        let mut claimed = CLAIMED_STREAMS
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if claimed.get_or_insert_default().insert(claim) {
            Ok(StreamClaim(claim.0, claim.1))
        } else {
            Err(Error::StreamTaken)
        }
    }
}

impl Drop for StreamClaim {
    fn drop(&mut self) {
        let mut claimed = CLAIMED_STREAMS
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(claimed) = claimed.as_mut() {
            claimed.remove(&(self.0, self.1));
        }
    }
}
