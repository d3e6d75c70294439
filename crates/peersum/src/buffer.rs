//! What an all-reduce reads and writes: cudarc's slices and views, the emulator's buffers.

use cudarc::driver::{DevicePtr, DevicePtrMut};

use crate::cuda::Cuda;
use crate::device::Device;
use crate::element::Element;

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

    /// Calls `launch` with the address of the first element as the device sees it.
    fn with_output<R>(&mut self, stream: &D::Stream, launch: impl FnOnce(u64) -> R) -> R;
}

// SAFETY: cudarc's `device_ptr` makes the stream wait for the slice's last write, returns an address that is valid for
// `len()` elements, and its guard, held across `launch`, records the read; freeing is ordered behind both.
unsafe impl<T: Element, P: DevicePtr<T>> Input<T, Cuda> for P {
    fn len(&self) -> usize {
        cudarc::driver::DeviceSlice::len(self)
    }

    fn with_input<R>(&self, stream: &<Cuda as Device>::Stream, launch: impl FnOnce(u64) -> R) -> R {
        let (address, _guard) = self.device_ptr(stream);
        launch(address)
    }
}

// SAFETY: as above, with `device_ptr_mut` waiting for reads as well.
unsafe impl<T: Element, P: DevicePtrMut<T>> Output<T, Cuda> for P {
    fn len(&self) -> usize {
        cudarc::driver::DeviceSlice::len(self)
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
