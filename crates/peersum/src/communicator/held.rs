//! Buffers that a graph uses.

use std::ops::Deref;

use crate::device::AsViewMut;

/// A buffer that a graph uses: borrowed for as long as the graph lives, and still the program's to
/// fill and read between launches.
///
/// Work on the buffer is ordered with the graph's launches as with any call: in the stream. Read it
/// through `Deref`, and write it through [`Held::as_view_mut`]. There is no `&mut` of the buffer
/// itself: replacing the buffer would free memory that the graph writes.
///
/// ```compile_fail
/// # use peersum::{Held, cudarc::driver::CudaSlice};
/// fn replace(held: &mut Held<'_, CudaSlice<f32>>, other: CudaSlice<f32>) -> CudaSlice<f32> {
///     std::mem::replace(&mut **held, other)
/// }
/// ```
///
/// ```
/// # use std::sync::Arc;
/// # use peersum::{Held, cudarc::driver::{CudaSlice, CudaStream, DriverError}};
/// fn fill(
///     stream: &Arc<CudaStream>,
///     values: &[f32],
///     held: &mut Held<'_, CudaSlice<f32>>,
/// ) -> Result<(), DriverError> {
///     stream.memcpy_htod(values, &mut held.as_view_mut())
/// }
/// ```
pub struct Held<'a, B: ?Sized> {
    pub(super) buffer: &'a mut B,
}

impl<'a, B: ?Sized> Held<'a, B> {
    /// Lends a buffer to captures.
    pub fn new(buffer: &'a mut B) -> Self {
        Held { buffer }
    }
}

impl<B: ?Sized> Deref for Held<'_, B> {
    type Target = B;

    fn deref(&self) -> &B {
        self.buffer
    }
}

impl<B: AsViewMut + ?Sized> Held<'_, B> {
    /// All elements, to read and write.
    pub fn as_view_mut(&mut self) -> B::ViewMut<'_> {
        self.buffer.as_view_mut()
    }
}
