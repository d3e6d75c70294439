//! What programs on the emulator reduce: memory of the host, with views that begin at any element.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Bound, Deref, Range, RangeBounds};
use std::ptr::{self, NonNull};
use std::sync::{Mutex, MutexGuard, PoisonError};

use peersum::device::{AsViewMut, Waits};
use peersum::{BufferError, DeviceBuffer, Input, Output, Scalar};

use crate::handles::Emulator;
use crate::stream::EmulatorStream;

/// As aligned as device memory, so that a view's offset alone decides its alignment.
const ALIGNMENT: usize = 256;

/// An array in memory that every emulated device of the process reaches; one that a symmetric
/// buffer dereferences to is memory of its device alone, as on a GPU. Whatever streams have used it
/// are waited for before the host reads, writes or frees it.
pub struct EmulatorBuffer<T: Scalar> {
    elements: NonNull<T>,
    len: usize,
    /// The stream that was given memory which something else owns; `None` for the buffer's own
    /// memory.
    adopted_on: Option<EmulatorStream>,
    /// The streams whose launches may still use the memory.
    streams: Mutex<Vec<EmulatorStream>>,
    marker: PhantomData<T>,
}

// SAFETY: the buffer owns its memory, and its elements are plain numbers; kernels that use it are
// waited for before the host does.
unsafe impl<T: Scalar> Send for EmulatorBuffer<T> {}

impl<T: Scalar> fmt::Debug for EmulatorBuffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "EmulatorBuffer<{}>({} at {:?})",
            std::any::type_name::<T>(),
            self.len,
            self.elements
        )
    }
}

impl<T: Scalar> EmulatorBuffer<T> {
    /// An array of `len` zeros.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let layout = Self::layout(len);
        // SAFETY: the layout is not of size 0.
        let memory = unsafe { alloc_zeroed(layout) };
        let Some(elements) = NonNull::new(memory.cast::<T>()) else {
            handle_alloc_error(layout)
        };
        Self {
            elements,
            len,
            adopted_on: None,
            streams: Mutex::default(),
            marker: PhantomData,
        }
    }

    /// A copy of `elements`.
    #[must_use]
    pub fn from_slice(elements: &[T]) -> Self {
        let mut buffer = Self::zeroed(elements.len());
        buffer.copy_from_slice(elements);
        buffer
    }

    /// A buffer on `stream` of memory that something else owns.
    ///
    /// # Safety
    /// `address` must be aligned to `T` and hold `len` elements until the buffer is gone.
    pub(crate) unsafe fn adopt(stream: EmulatorStream, address: u64, len: usize) -> Self {
        let elements = NonNull::new(address as *mut T).unwrap_or(NonNull::dangling());
        Self {
            elements,
            len,
            adopted_on: Some(stream),
            streams: Mutex::default(),
            marker: PhantomData,
        }
    }

    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the first element is, as kernels see it.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.elements.as_ptr() as u64
    }

    /// The elements, once the streams that used the buffer have passed what they had been given.
    #[must_use]
    pub fn to_vec(&self) -> Vec<T> {
        self.read(0..self.len)
    }

    /// Replaces all elements, once the streams that used the buffer have passed what they had been
    /// given.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    pub fn copy_from_slice(&mut self, elements: &[T]) {
        self.write(0..self.len, elements);
    }

    /// The elements of a range within the buffer, once it is not in use.
    fn read(&self, range: Range<usize>) -> Vec<T> {
        self.wait();
        // SAFETY: the elements are there, initialised, and no kernel uses them any more; writing
        // needs `&mut self`.
        unsafe { std::slice::from_raw_parts(self.elements.as_ptr().add(range.start), range.len()) }
            .to_vec()
    }

    /// Replaces the elements of a range within the buffer, once it is not in use.
    fn write(&mut self, range: Range<usize>, elements: &[T]) {
        assert_eq!(
            elements.len(),
            range.len(),
            "a buffer is replaced as a whole"
        );
        self.wait();
        // SAFETY: the elements are there and no kernel uses them any more; `elements` cannot
        // overlap memory that is borrowed mutably.
        unsafe {
            let first = self.elements.as_ptr().add(range.start);
            ptr::copy_nonoverlapping(elements.as_ptr(), first, elements.len());
        }
    }

    /// A part to read.
    ///
    /// # Panics
    ///
    /// If the range does not lie within the buffer.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> EmulatorView<'_, T> {
        let range = resolve(range, self.len);
        EmulatorPart {
            buffer: self,
            range,
        }
    }

    /// A part to read and write.
    ///
    /// # Panics
    ///
    /// If the range does not lie within the buffer.
    pub fn slice_mut(&mut self, range: impl RangeBounds<usize>) -> EmulatorViewMut<'_, T> {
        let range = resolve(range, self.len);
        EmulatorPart {
            buffer: self,
            range,
        }
    }

    /// The address of an element for a launch on `stream`, which is remembered.
    fn lend(&self, stream: &EmulatorStream, element: usize) -> u64 {
        let mut streams = self.streams();
        if streams.iter().all(|known| known.id() != stream.id()) {
            streams.push(stream.clone());
        }
        self.address() + (element * size_of::<T>()) as u64
    }

    fn wait(&self) {
        // A graph that was recorded with this buffer may be launched again, so a stream is never
        // forgotten.
        for stream in &*self.streams() {
            stream.synchronize();
        }
    }

    fn streams(&self) -> MutexGuard<'_, Vec<EmulatorStream>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn layout(len: usize) -> Layout {
        let bytes = len.checked_mul(size_of::<T>()).map(|bytes| bytes.max(1));
        #[expect(
            clippy::expect_used,
            reason = "as for a vector that is longer than an address space"
        )]
        bytes
            .and_then(|bytes| Layout::from_size_align(bytes, ALIGNMENT).ok())
            .expect("capacity overflow")
    }
}

/// A range within `len` elements.
fn resolve(range: impl RangeBounds<usize>, len: usize) -> Range<usize> {
    // An end that no number can name is beyond every buffer.
    let after = |index: usize| index.saturating_add(1);
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&before) => after(before),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&last) => after(last),
        Bound::Excluded(&end) => end,
        Bound::Unbounded => len,
    };
    assert!(
        start <= end && end <= len,
        "{start}..{end} is not within {len} elements"
    );
    start..end
}

impl<T: Scalar> Drop for EmulatorBuffer<T> {
    fn drop(&mut self) {
        if let Some(own) = &self.adopted_on {
            // Whoever owns the memory waits for this stream before it frees it.
            for stream in &*self.streams() {
                own.wait_for_work_of(stream);
            }
        } else {
            self.wait();
            // SAFETY: allocated with this layout, and no kernel uses it any more.
            unsafe { dealloc(self.elements.as_ptr().cast(), Self::layout(self.len)) };
        }
    }
}

/// A part of an [`EmulatorBuffer`], with the reference `B` by which it borrows it.
#[derive(Debug)]
pub struct EmulatorPart<B> {
    buffer: B,
    range: Range<usize>,
}

/// A part of an [`EmulatorBuffer`] to read.
pub type EmulatorView<'a, T> = EmulatorPart<&'a EmulatorBuffer<T>>;

/// A part of an [`EmulatorBuffer`] to read and write.
pub type EmulatorViewMut<'a, T> = EmulatorPart<&'a mut EmulatorBuffer<T>>;

impl<T: Scalar> EmulatorViewMut<'_, T> {
    /// The elements, once the streams that used the buffer have passed what they had been given.
    #[must_use]
    pub fn to_vec(&self) -> Vec<T> {
        self.buffer.read(self.range.clone())
    }

    /// Replaces all elements of the view, once the streams that used the buffer have passed what
    /// they had been given.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    pub fn copy_from_slice(&mut self, elements: &[T]) {
        self.buffer.write(self.range.clone(), elements);
    }

    /// A part of the view to read and write.
    ///
    /// # Panics
    ///
    /// If the range does not lie within the view.
    pub fn slice_mut(&mut self, range: impl RangeBounds<usize>) -> EmulatorViewMut<'_, T> {
        let Range { start, end } = resolve(range, self.range.len());
        EmulatorPart {
            range: self.range.start + start..self.range.start + end,
            buffer: self.buffer,
        }
    }
}

// SAFETY: the view borrows the buffer, and neither gives the borrow out nor owns anything.
unsafe impl<T: Scalar> AsViewMut for EmulatorBuffer<T> {
    type ViewMut<'v>
        = EmulatorViewMut<'v, T>
    where
        Self: 'v;

    fn as_view_mut(&mut self) -> EmulatorViewMut<'_, T> {
        self.slice_mut(..)
    }
}

// SAFETY: as above.
unsafe impl<T: Scalar> AsViewMut for EmulatorViewMut<'_, T> {
    type ViewMut<'v>
        = EmulatorViewMut<'v, T>
    where
        Self: 'v;

    fn as_view_mut(&mut self) -> EmulatorViewMut<'_, T> {
        self.slice_mut(..)
    }
}

impl<T: Scalar> DeviceBuffer<T, Emulator> for EmulatorBuffer<T> {
    fn len(&self) -> usize {
        self.len
    }

    fn check(&self, stream: &EmulatorStream) -> Result<Waits, BufferError> {
        let identity = |stream: &EmulatorStream| stream.device().identity.clone();
        match self.adopted_on.as_ref().map(identity) {
            Some(own) if own.uuid != identity(stream).uuid => Err(BufferError::OtherDevice {
                buffer: own.name,
                communicator: identity(stream).name,
            }),
            _ => Ok(Waits::Never),
        }
    }
}

impl<T: Scalar, B: Deref<Target = EmulatorBuffer<T>>> DeviceBuffer<T, Emulator>
    for EmulatorPart<B>
{
    fn len(&self) -> usize {
        self.range.len()
    }

    fn check(&self, stream: &EmulatorStream) -> Result<Waits, BufferError> {
        self.buffer.check(stream)
    }
}

// SAFETY: the address is aligned and valid for `len` elements; the stream is remembered, and waited
// for before the host uses or frees the memory.
unsafe impl<T: Scalar> Input<T, Emulator> for EmulatorBuffer<T> {
    fn with_input<R, E: From<BufferError>>(
        &self,
        stream: &EmulatorStream,
        launch: impl FnOnce(u64) -> Result<R, E>,
    ) -> Result<R, E> {
        launch(self.lend(stream, 0))
    }
}

// SAFETY: as above.
unsafe impl<T: Scalar> Output<T, Emulator> for EmulatorBuffer<T> {
    fn with_output<R, E: From<BufferError>>(
        &mut self,
        stream: &EmulatorStream,
        launch: impl FnOnce(u64) -> Result<R, E>,
    ) -> Result<R, E> {
        launch(self.lend(stream, 0))
    }
}

// SAFETY: as for the whole buffer, within which the range lies: a part is made of a reference to
// the buffer alone.
unsafe impl<T: Scalar, B: Deref<Target = EmulatorBuffer<T>>> Input<T, Emulator>
    for EmulatorPart<B>
{
    fn with_input<R, E: From<BufferError>>(
        &self,
        stream: &EmulatorStream,
        launch: impl FnOnce(u64) -> Result<R, E>,
    ) -> Result<R, E> {
        launch(self.buffer.lend(stream, self.range.start))
    }
}

// SAFETY: as for the whole buffer, within which the range lies.
unsafe impl<T: Scalar> Output<T, Emulator> for EmulatorViewMut<'_, T> {
    fn with_output<R, E: From<BufferError>>(
        &mut self,
        stream: &EmulatorStream,
        launch: impl FnOnce(u64) -> Result<R, E>,
    ) -> Result<R, E> {
        launch(self.buffer.lend(stream, self.range.start))
    }
}
