//! Symmetric buffers: memory of every rank that the peers' kernels read and write directly.

use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::sync::Arc;

use super::lent::LentMemory;
use crate::device::AsViewMut;
use crate::device::Device;
use crate::element::Element;

/// This rank's memory behind a symmetric buffer. Freed when the communicator and the buffer are
/// both gone: a late owner of a two-shot call may still write into it after this rank has left the
/// call.
pub(crate) struct SymmetricRegion<D: Device> {
    pub(crate) memory: LentMemory<D>,
    /// A handle of its own to the communicator's stream, which may outlive the communicator.
    device: D,
}

impl<D: Device> SymmetricRegion<D> {
    pub(crate) fn new(memory: LentMemory<D>, device: D) -> Self {
        SymmetricRegion { memory, device }
    }
}

impl<D: Device> Drop for SymmetricRegion<D> {
    fn drop(&mut self) {
        // Calls on the buffer and work of the program may still be in the stream. (What uses it on
        // other streams is waited for by this one, see `Device::disown`.) Freeing does not wait by
        // itself.
        if let Err(error) = self.device.synchronize() {
            self.memory.keep(&error);
        }
    }
}

/// `len` elements on every rank of a communicator, which its pull kernels read without staging.
///
/// Made by [`Communicator::symmetric_alloc`](crate::Communicator::symmetric_alloc). It dereferences
/// to the device's own kind of buffer (a `&CudaSlice` on CUDA) for whatever reads it, and lends a
/// view for whatever writes it: `communicator.all_reduce(&*symmetric, &mut output)`,
/// `communicator.all_reduce_in_place(&mut symmetric.as_view_mut())`,
/// `stream.memcpy_htod(&values, &mut symmetric.as_view_mut())`. A part is a view of the view. All
/// ranks must use the same part of the same buffer in the same call, and either all in place or
/// none. Contents are undefined at first.
///
/// There is no `&mut` of the buffer itself: exchanging it for another would free shared memory as
/// if it were the other's.
///
/// ```compile_fail
/// # use peersum::{Cuda, SymmetricBuffer};
/// fn exchange(a: &mut SymmetricBuffer<f32, Cuda>, b: &mut SymmetricBuffer<f32, Cuda>) {
///     std::mem::swap(&mut **a, &mut **b);
/// }
/// ```
///
/// ```
/// # use peersum::{Cuda, SymmetricBuffer};
/// fn exchange(a: &mut SymmetricBuffer<f32, Cuda>, b: &mut SymmetricBuffer<f32, Cuda>) {
///     // The owners change places, with all they own.
///     std::mem::swap(a, b);
///     // Only these two variables do.
///     let (mut a, mut b) = (a.as_view_mut(), b.as_view_mut());
///     std::mem::swap(&mut a, &mut b);
/// }
/// ```
///
/// When it is dropped last, after its communicator, it waits for the communicator's stream. If that
/// stream cannot be waited for, because it records or has failed, the memory is leaked. If cudarc's
/// event tracking is off, work on other streams is the program's to wait for, as with any
/// `CudaSlice`.
pub struct SymmetricBuffer<T: Element, D: Device> {
    // Taken in `drop` only.
    buffer: ManuallyDrop<D::Buffer<T>>,
    // Dropped after it: the memory behind `buffer`.
    region: Arc<SymmetricRegion<D>>,
}

impl<T: Element, D: Device> SymmetricBuffer<T, D> {
    /// # Safety
    /// `buffer` must have been adopted from `region`.
    pub(super) unsafe fn new(region: Arc<SymmetricRegion<D>>, buffer: D::Buffer<T>) -> Self {
        SymmetricBuffer {
            buffer: ManuallyDrop::new(buffer),
            region,
        }
    }

    /// All elements, to read and write.
    pub fn as_view_mut(&mut self) -> D::ViewMut<'_, T> {
        AsViewMut::as_view_mut(&mut *self.buffer)
    }
}

impl<T: Element, D: Device> Deref for SymmetricBuffer<T, D> {
    type Target = D::Buffer<T>;

    fn deref(&self) -> &D::Buffer<T> {
        &self.buffer
    }
}

impl<T: Element, D: Device> Drop for SymmetricBuffer<T, D> {
    fn drop(&mut self) {
        // SAFETY: `buffer` is not used again: this is its only take, in drop.
        let disowned = D::disown(unsafe { ManuallyDrop::take(&mut self.buffer) });
        if let Err(error) = disowned {
            tracing::warn!(%error, "a symmetric buffer is leaked: work on it may go on");
            std::mem::forget(Arc::clone(&self.region));
        }
    }
}
