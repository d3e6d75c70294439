//! Streams that cannot carry a communicator, and the order between two streams.

use std::sync::Arc;

use cudarc::driver::CudaStream;
use cudarc::driver::sys::{self, CUevent_flags, CUevent_wait_flags};

use super::device::{Cuda, STREAM_LEGACY, STREAM_PER_THREAD};
use super::driver::{bind, check, describe, returned};
use super::owned::Owned;
use super::pending::SetAside;
use crate::device::{DeviceError, DeviceStream};

impl DeviceStream for Arc<CudaStream> {
    type Device = Cuda;

    fn stand_in(&self) -> Result<Option<Self>, DeviceError> {
        if !matches!(
            self.cu_stream().addr(),
            0 | STREAM_LEGACY | STREAM_PER_THREAD
        ) {
            return Ok(None);
        }
        let context = self.context();
        let mut errors = SetAside::of([context, context]);
        let ((), _) = errors.undisturbed(|| ());
        // The lock of the errors is released first: when cudarc creates a context's first stream,
        // it waits for the device's kernels, and they may wait for a call that needs the lock.
        // Tried twice, because the first error may be one that another thread has left. The stream
        // is non-blocking: not ordered with the legacy stream by itself.
        let stream = context.new_stream().or_else(|_| context.new_stream());
        let stream =
            stream.map_err(|error| DeviceError::driver("cuStreamCreate", describe(error.0)))?;
        Ok(Some(stream))
    }

    fn wait_for(&self, other: &Self) -> Result<(), DeviceError> {
        bind(self.context())?;
        // SAFETY: the place is one handle.
        let event = returned("cuEventCreate", std::ptr::null_mut(), |event| unsafe {
            sys::cuEventCreate(event, CUevent_flags::CU_EVENT_DISABLE_TIMING as u32)
        })?;
        let event = Owned::new(self.context(), event, "cuEventDestroy", |event| {
            // SAFETY: the event is live and destroyed once; the driver keeps it until what waits
            // for it has passed.
            unsafe { sys::cuEventDestroy_v2(event) }
        });
        // SAFETY: both streams and the event are live and of one context.
        check("cuEventRecord", unsafe {
            sys::cuEventRecord(event.handle(), other.cu_stream())
        })?;
        let flags = CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT as u32;
        // SAFETY: as above.
        check("cuStreamWaitEvent", unsafe {
            sys::cuStreamWaitEvent(self.cu_stream(), event.handle(), flags)
        })
    }
}
