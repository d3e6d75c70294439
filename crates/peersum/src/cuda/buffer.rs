//! cudarc's slices and views as what a call reads and writes.

use cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, CudaViewMut, DevicePtr, DevicePtrMut, DeviceSlice,
    DriverError, SyncOnDrop,
};
use std::sync::Arc;

use super::device::Cuda;
use super::driver::{bind, describe};
use super::graph;
use super::pending::SetAside;
use crate::device::{AsViewMut, BufferError, DeviceBuffer, DeviceStream, Input, Output, Recording};
use crate::element::Scalar;

impl<T: Scalar, P: DeviceSlice<T>> DeviceBuffer<T, Cuda> for P {
    fn len(&self) -> usize {
        DeviceSlice::len(self)
    }

    fn check(&self, stream: &Arc<CudaStream>) -> Result<(), BufferError> {
        let (owner, context) = (DeviceSlice::stream(self).context(), stream.context());
        // Handles and not devices: memory of another context of the same device is not mapped in
        // this one. Two `CudaContext`s of a device's primary context have the same handle.
        if owner.cu_ctx() == context.cu_ctx() {
            return Ok(());
        }
        let name = |context: &CudaContext| {
            format!("GPU {} (context {:p})", context.ordinal(), context.cu_ctx())
        };
        Err(BufferError::OtherDevice {
            buffer: name(owner),
            communicator: name(context),
        })
    }
}

// SAFETY: `DevicePtr` is a safe trait, but whoever implements it promises cudarc, whose own
// launches and copies rely on it, what is needed here: `device_ptr` makes the stream wait for the
// slice's last write, returns an address that is valid for `len()` elements, and its guard, held
// across `launch`, records the read; freeing is ordered behind both. `launch_in_order` launches
// only if the wait was enqueued. Where cudarc makes no waits, `ExplicitOrder` does, or the program
// has switched them off by an unsafe function and orders its streams itself.
unsafe impl<T: Scalar, P: DevicePtr<T>> Input<T, Cuda> for P {
    fn with_input<R, E: From<BufferError>>(
        &self,
        stream: &Arc<CudaStream>,
        launch: impl FnOnce(u64) -> Result<R, E>,
    ) -> Result<R, E> {
        let owner = Arc::clone(DeviceSlice::stream(self));
        launch_with(&mut &*self, &owner, stream, launch, |slice, stream| {
            slice.device_ptr(stream)
        })
    }
}

// SAFETY: as above, with `device_ptr_mut` waiting for reads as well.
unsafe impl<T: Scalar, P: DevicePtrMut<T>> Output<T, Cuda> for P {
    fn with_output<R, E: From<BufferError>>(
        &mut self,
        stream: &Arc<CudaStream>,
        launch: impl FnOnce(u64) -> Result<R, E>,
    ) -> Result<R, E> {
        let owner = Arc::clone(DeviceSlice::stream(self));
        launch_with(self, &owner, stream, launch, |slice, stream| {
            slice.device_ptr_mut(stream)
        })
    }
}

/// Launches with the address that `pointer` gives, in the order that it makes between the stream of
/// a slice, `owner`, and that of the call.
fn launch_with<S, R, E: From<BufferError>>(
    slice: &mut S,
    owner: &Arc<CudaStream>,
    stream: &Arc<CudaStream>,
    launch: impl FnOnce(u64) -> Result<R, E>,
    pointer: impl for<'p> Fn(&'p mut S, &'p Arc<CudaStream>) -> (u64, SyncOnDrop<'p>),
) -> Result<R, E> {
    let order = ExplicitOrder::begin(owner, stream)?;
    let launched = if is_managed(owner, stream) {
        let mut errors = SetAside::of([stream.context(), owner.context()]);
        launch_in_order(&mut errors, || pointer(slice, stream), launch)
            .or_else(|(_, launch)| {
                // The first error may be that of another thread of the program.
                launch_in_order(&mut errors, || pointer(slice, stream), launch)
            })
            .unwrap_or_else(|(error, _)| Err(refusal(stream, error).into()))
    } else {
        let (address, _guard) = pointer(slice, stream);
        launch(address)
    };
    // Also if the launch failed: a part of it may have been enqueued.
    let ended = order.end();
    let launched = launched?;
    ended?;
    Ok(launched)
}

/// Whether cudarc makes waits or records for a call. If not, it can leave no error in a context.
fn is_managed(owner: &CudaStream, stream: &CudaStream) -> bool {
    let mut contexts = [owner, stream].into_iter().map(CudaStream::context);
    contexts.any(|context| context.is_managing_stream_synchronization())
}

/// The order of a call with the stream of a slice, made by peersum, if cudarc makes none although
/// events are tracked: a `CudaContext` from which only the default stream was made does not expect
/// other streams, but the stream of the call is of another `CudaContext` of the same context.
struct ExplicitOrder<'s>(Option<[&'s Arc<CudaStream>; 2]>);

impl<'s> ExplicitOrder<'s> {
    /// Makes the call's stream wait for the slice's.
    fn begin(owner: &'s Arc<CudaStream>, stream: &'s Arc<CudaStream>) -> Result<Self, BufferError> {
        let context = owner.context();
        let is_missing = context.is_event_tracking()
            && !context.is_managing_stream_synchronization()
            && !Arc::ptr_eq(context, stream.context());
        let order = ExplicitOrder(is_missing.then_some([stream, owner]));
        order.wait()?;
        Ok(order)
    }

    /// Makes the slice's stream, in whose order the slice is freed, wait for the call.
    fn end(self) -> Result<(), BufferError> {
        ExplicitOrder(self.0.map(|[stream, owner]| [owner, stream])).wait()
    }

    fn wait(&self) -> Result<(), BufferError> {
        let Some([second, first]) = self.0 else {
            return Ok(());
        };
        let waited = second.wait_for(first);
        waited.map_err(|error| BufferError::Unordered {
            message: error.to_string(),
        })
    }
}

/// Launches between the waits that `pointer` enqueues and the record that its guard enqueues. If
/// the waits fail, nothing is launched, and `launch` is given back.
fn launch_in_order<'p, R, L: FnOnce(u64) -> R>(
    errors: &mut SetAside<'_>,
    pointer: impl FnOnce() -> (u64, SyncOnDrop<'p>),
    launch: L,
) -> Result<R, (DriverError, L)> {
    let ((address, guard), waited) = errors.undisturbed(pointer);
    if let Err(error) = waited {
        // There is nothing to record.
        std::mem::forget(guard);
        return Err((error, launch));
    }
    let launched = launch(address);
    let ((), recorded) = errors.undisturbed(|| drop(guard));
    if let Err(error) = recorded {
        // As after every launch of cudarc's own, the program is told by its next call of cudarc.
        errors.keep(error);
    }
    Ok(launched)
}

/// Why nothing was launched on a stream that could not be made to wait.
fn refusal(stream: &CudaStream, error: DriverError) -> BufferError {
    let recording = bind(stream.context()).and_then(|()| graph::recording(stream));
    match recording {
        Ok(Recording::Spoilt) => BufferError::SpoiltCapture,
        _ => BufferError::Unordered {
            message: describe(error.0),
        },
    }
}

// SAFETY: a `CudaViewMut` borrows the slice and owns nothing.
unsafe impl<T: Scalar> AsViewMut for CudaSlice<T> {
    type ViewMut<'v>
        = CudaViewMut<'v, T>
    where
        Self: 'v;

    fn as_view_mut(&mut self) -> CudaViewMut<'_, T> {
        CudaSlice::as_view_mut(self)
    }
}

// SAFETY: as above.
unsafe impl<T: Scalar> AsViewMut for CudaViewMut<'_, T> {
    type ViewMut<'v>
        = CudaViewMut<'v, T>
    where
        Self: 'v;

    fn as_view_mut(&mut self) -> CudaViewMut<'_, T> {
        self.slice_mut(..)
    }
}
