//! Symmetric buffers: memory of every rank that the peers' kernels read and write directly.

use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use crate::device::Device;
use crate::element::Element;

/// This rank's memory behind a symmetric buffer. Freed when the communicator and the buffer are both gone: a late owner of a two-shot
/// call may still write into it after this rank has left the call.
pub(crate) struct SymmetricRegion<D: Device> {
    pub(crate) allocation: D::Allocation,
    pub(crate) address: u64,
}

/// `len` elements on every rank of a communicator, which its pull kernels read without staging.
///
/// Made by [`Communicator::symmetric_alloc`](crate::Communicator::symmetric_alloc). It dereferences to the device's own kind of buffer (a
/// `CudaSlice` on CUDA), so that other kernels and copies use this rank's part like any memory, and so do calls:
/// `communicator.all_reduce(&*symmetric, &mut output)`, or `all_reduce_in_place(&mut *symmetric)`, also with a view of a part. All ranks
/// must use the same part of the same buffer in the same call. Contents are undefined at first.
pub struct SymmetricBuffer<T: Element, D: Device> {
    // Taken in `drop` only.
    buffer: ManuallyDrop<D::Buffer<T>>,
    // Dropped after it: the memory behind `buffer`.
    _region: Arc<SymmetricRegion<D>>,
}

impl<T: Element, D: Device> SymmetricBuffer<T, D> {
    /// # Safety
    /// `buffer` must have been adopted from `region`.
    pub(super) unsafe fn new(region: Arc<SymmetricRegion<D>>, buffer: D::Buffer<T>) -> Self {
        SymmetricBuffer {
            buffer: ManuallyDrop::new(buffer),
            _region: region,
        }
    }
}

impl<T: Element, D: Device> Deref for SymmetricBuffer<T, D> {
    type Target = D::Buffer<T>;

    fn deref(&self) -> &D::Buffer<T> {
        &self.buffer
    }
}

impl<T: Element, D: Device> DerefMut for SymmetricBuffer<T, D> {
    fn deref_mut(&mut self) -> &mut D::Buffer<T> {
        &mut self.buffer
    }
}

impl<T: Element, D: Device> Drop for SymmetricBuffer<T, D> {
    fn drop(&mut self) {
        // SAFETY: `buffer` is not used again: this is its only take, in drop.
        D::disown(unsafe { ManuallyDrop::take(&mut self.buffer) });
    }
}
