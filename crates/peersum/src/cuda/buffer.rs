//! cudarc's slices and views as what a call reads and writes.

use cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, CudaViewMut, DevicePtr, DevicePtrMut, DeviceSlice,
};
use std::sync::Arc;

use super::device::Cuda;
use crate::device::{AsViewMut, BufferError, DeviceBuffer, Input, Output};
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
// across `launch`, records the read; freeing is ordered behind both.
unsafe impl<T: Scalar, P: DevicePtr<T>> Input<T, Cuda> for P {
    fn with_input<R>(&self, stream: &Arc<CudaStream>, launch: impl FnOnce(u64) -> R) -> R {
        let (address, _guard) = self.device_ptr(stream);
        launch(address)
    }
}

// SAFETY: as above, with `device_ptr_mut` waiting for reads as well.
unsafe impl<T: Scalar, P: DevicePtrMut<T>> Output<T, Cuda> for P {
    fn with_output<R>(&mut self, stream: &Arc<CudaStream>, launch: impl FnOnce(u64) -> R) -> R {
        let (address, _guard) = self.device_ptr_mut(stream);
        launch(address)
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
