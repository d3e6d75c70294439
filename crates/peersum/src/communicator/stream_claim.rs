//! A stream carries at most one communicator at a time.

use std::any::TypeId;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::Error;

/// A stream: the type of its device, and its number among the streams of that type.
type StreamKey = (TypeId, u64);

/// Streams that carry a communicator in this process.
static CLAIMED: Mutex<Vec<StreamKey>> = Mutex::new(Vec::new());

fn claimed() -> MutexGuard<'static, Vec<StreamKey>> {
    CLAIMED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stream's claim by one communicator, given back when dropped.
#[derive(Debug)]
pub(super) struct StreamClaim(StreamKey);

impl StreamClaim {
    pub(super) fn new<D: 'static>(stream_id: u64) -> Result<StreamClaim, Error> {
        let key = (TypeId::of::<D>(), stream_id);
        let mut claimed = claimed();
        if claimed.contains(&key) {
            return Err(Error::StreamTaken);
        }
        claimed.push(key);
        Ok(StreamClaim(key))
    }
}

impl Drop for StreamClaim {
    fn drop(&mut self) {
        claimed().retain(|key| *key != self.0);
    }
}
