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
use crate::device::{
    AsViewMut, BufferError, DeviceBuffer, DeviceStream, Input, Output, Recording, Waits,
};
use crate::element::Scalar;

impl<T: Scalar, P: DeviceSlice<T>> DeviceBuffer<T, Cuda> for P {
    fn len(&self) -> usize {
        DeviceSlice::len(self)
    }

    fn check(&self, stream: &Arc<CudaStream>) -> Result<Waits, BufferError> {
        let (owner, context) = (DeviceSlice::stream(self).context(), stream.context());
        // Handles and not devices: memory of another context of the same device is not mapped in
        // this one. Two `CudaContext`s of a device's primary context have the same handle.
        if owner.cu_ctx() == context.cu_ctx() {
            let waits = is_managed(owner, context) || needs_explicit_order(owner, context);
            return Ok(if waits { Waits::Possible } else { Waits::Never });
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
// only if the wait was enqueued. Where cudarc makes no waits, `order` does, or the program
// has switched them off by an unsafe function and orders its streams itself.
unsafe impl<T: Scalar, P: DevicePtr<T>> Input<T, Cuda> for P {
    fn with_input<R, E: From<BufferError>>(
        &self,
        stream: &Arc<CudaStream>,
        launch: impl FnOnce(u64) -> Result<R, E>,
    ) -> Result<R, E> {
        launch_with(&mut &*self, owner_of, stream, launch, |slice, stream| {
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
        launch_with(self, Self::stream, stream, launch, |slice, stream| {
            slice.device_ptr_mut(stream)
        })
    }
}

/// The stream of a slice that a call only borrows.
fn owner_of<'s, T, P: DeviceSlice<T>>(slice: &'s &P) -> &'s Arc<CudaStream> {
    slice.stream()
}

/// Launches with the address that `pointer` gives, in the order that it makes between the slice's
/// stream, `owner`, and that of the call.
fn launch_with<S, R, E: From<BufferError>>(
    slice: &mut S,
    owner: impl Fn(&S) -> &Arc<CudaStream>,
    stream: &Arc<CudaStream>,
    launch: impl FnOnce(u64) -> Result<R, E>,
    pointer: impl for<'p> Fn(&'p mut S, &'p Arc<CudaStream>) -> (u64, SyncOnDrop<'p>),
) -> Result<R, E> {
    // A clone costs every call something, and few need one.
    let (owner, context) = (owner(slice), stream.context());
    let other = needs_explicit_order(owner.context(), context).then(|| Arc::clone(owner));
    if let Some(other) = &other {
        order(stream, other)?;
    }
    let launched = if is_managed(owner.context(), context) {
        let owner = Arc::clone(owner.context());
        let mut errors = SetAside::of([context, &owner]);
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
    // The slice is freed in the order of its own stream. Also if the launch failed: a part of it
    // may have been enqueued.
    let ordered = other.map_or(Ok(()), |other| order(&other, stream));
    let launched = launched?;
    ordered?;
    Ok(launched)
}

/// Whether cudarc makes waits or records for a call. If not, it can leave no error in a context.
fn is_managed(owner: &CudaContext, context: &CudaContext) -> bool {
    [owner, context]
        .into_iter()
        .any(CudaContext::is_managing_stream_synchronization)
}

/// Whether cudarc makes no order between the slice's stream and that of the call although events
/// are tracked: a `CudaContext` from which only the default stream was made does not expect other
/// streams, but the stream of the call is of another `CudaContext` of the same context.
fn needs_explicit_order(owner: &CudaContext, context: &CudaContext) -> bool {
    owner.is_event_tracking()
        && !owner.is_managing_stream_synchronization()
        && !std::ptr::eq(owner, context)
}

/// Makes `second` wait for what `first` has been given so far.
fn order(second: &Arc<CudaStream>, first: &Arc<CudaStream>) -> Result<(), BufferError> {
    let ordered = second.wait_for(first);
    ordered.map_err(|error| BufferError::Unordered {
        message: error.to_string(),
    })
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
