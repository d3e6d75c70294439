//! What an all-reduce reads and writes: cudarc's slices and views, the emulator's buffers.

use cudarc::driver::{CudaSlice, CudaStream, CudaViewMut, DevicePtr, DevicePtrMut, DeviceSlice};

use crate::cuda::Cuda;
use crate::device::Device;
use crate::element::Element;

/// Why a call does not take a buffer. Nothing was launched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BufferError {
    /// The memory belongs to another device, or to another context of the same device.
    #[error(
        "the buffer is memory of {buffer}, but the communicator's stream is one of {communicator}; \
         allocate the buffer in the context of the communicator's stream"
    )]
    OtherDevice {
        /// Where the memory is.
        buffer: String,
        /// Where the communicator's stream is.
        communicator: String,
    },
}

/// Device memory that an all-reduce reads: everything of cudarc that is a [`DevicePtr`], [`SymmetricBuffer`](crate::SymmetricBuffer)'s
/// slices among them.
///
/// # Safety
/// The address that `with_input` passes on must be aligned to `T` and readable by the device for `len()` elements by everything that
/// `launch` enqueues on `stream`; whatever orders that against earlier and later work on the memory is held until `launch` has
/// returned.
pub unsafe trait Input<T: Element, D: Device> {
    /// The number of elements.
    fn len(&self) -> usize;

    /// Whether there is no element.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fails for a buffer that a call on `stream` cannot take, because it is memory of another
    /// device. Enqueues nothing. The default takes every buffer.
    ///
    /// # Errors
    /// [`BufferError`].
    fn check(&self, stream: &D::Stream) -> Result<(), BufferError> {
        let _ = stream;
        Ok(())
    }

    /// Calls `launch` with the address of the first element as the device sees it.
    fn with_input<R>(&self, stream: &D::Stream, launch: impl FnOnce(u64) -> R) -> R;
}

/// Device memory that an all-reduce writes: everything of cudarc that is a [`DevicePtrMut`],
/// [`SymmetricBuffer`](crate::SymmetricBuffer)'s slices among them.
///
/// # Safety
/// As for [`Input`], for writing and reading.
pub unsafe trait Output<T: Element, D: Device> {
    /// The number of elements.
    fn len(&self) -> usize;

    /// Whether there is no element.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// As [`Input::check`].
    ///
    /// # Errors
    /// [`BufferError`].
    fn check(&self, stream: &D::Stream) -> Result<(), BufferError> {
        let _ = stream;
        Ok(())
    }

    /// Calls `launch` with the address of the first element as the device sees it.
    fn with_output<R>(&mut self, stream: &D::Stream, launch: impl FnOnce(u64) -> R) -> R;
}

// SAFETY: `DevicePtr` is a safe trait, but whoever implements it promises cudarc, whose own
// launches and copies rely on it, what is needed here: `device_ptr` makes the stream wait for the
// slice's last write, returns an address that is valid for `len()` elements, and its guard, held
// across `launch`, records the read; freeing is ordered behind both.
unsafe impl<T: Element, P: DevicePtr<T>> Input<T, Cuda> for P {
    fn len(&self) -> usize {
        DeviceSlice::len(self)
    }

    fn check(&self, stream: &<Cuda as Device>::Stream) -> Result<(), BufferError> {
        check_slice(DeviceSlice::stream(self), stream)
    }

    fn with_input<R>(&self, stream: &<Cuda as Device>::Stream, launch: impl FnOnce(u64) -> R) -> R {
        let (address, _guard) = self.device_ptr(stream);
        launch(address)
    }
}

// SAFETY: as above, with `device_ptr_mut` waiting for reads as well.
unsafe impl<T: Element, P: DevicePtrMut<T>> Output<T, Cuda> for P {
    fn len(&self) -> usize {
        DeviceSlice::len(self)
    }

    fn check(&self, stream: &<Cuda as Device>::Stream) -> Result<(), BufferError> {
        check_slice(DeviceSlice::stream(self), stream)
    }

    fn with_output<R>(
        &mut self,
        stream: &<Cuda as Device>::Stream,
        launch: impl FnOnce(u64) -> R,
    ) -> R {
        let (address, _guard) = self.device_ptr_mut(stream);
        launch(address)
    }
}

/// Whether a call on `stream` can take memory that was allocated on the stream `owner`.
fn check_slice(owner: &CudaStream, stream: &CudaStream) -> Result<(), BufferError> {
    let (owner, context) = (owner.context(), stream.context());
    // Handles and not devices: memory of another context of the same device is not mapped in this
    // one. Two `CudaContext`s of a device's primary context have the same handle.
    if owner.cu_ctx() != context.cu_ctx() {
        let name = |context: &cudarc::driver::CudaContext| {
            format!("GPU {} (context {:p})", context.ordinal(), context.cu_ctx())
        };
        return Err(BufferError::OtherDevice {
            buffer: name(owner),
            communicator: name(context),
        });
    }
    Ok(())
}

/// A buffer that lends all its elements as a view.
///
/// A view owns no memory. So it can be handed out where a `&mut` of the buffer itself cannot,
/// because `std::mem::swap` through that would free memory that something else still uses.
///
/// # Safety
/// Nothing that safe code can do with the view moves, frees or replaces the buffer's memory.
pub unsafe trait AsViewMut {
    /// The view.
    type ViewMut<'v>
    where
        Self: 'v;

    /// All elements, to read and write.
    fn as_view_mut(&mut self) -> Self::ViewMut<'_>;
}

// SAFETY: a `CudaViewMut` borrows the slice and owns nothing.
unsafe impl<T: Element> AsViewMut for CudaSlice<T> {
    type ViewMut<'v>
        = CudaViewMut<'v, T>
    where
        Self: 'v;

    fn as_view_mut(&mut self) -> CudaViewMut<'_, T> {
        CudaSlice::as_view_mut(self)
    }
}

// SAFETY: as above.
unsafe impl<T: Element> AsViewMut for CudaViewMut<'_, T> {
    type ViewMut<'v>
        = CudaViewMut<'v, T>
    where
        Self: 'v;

    fn as_view_mut(&mut self) -> CudaViewMut<'_, T> {
        self.slice_mut(..)
    }
}
