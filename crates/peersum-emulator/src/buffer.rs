//! What programs on the emulator reduce: memory of the host, with views that begin at any element.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Bound, Range, RangeBounds};
use std::ptr::{self, NonNull};
use std::sync::{Mutex, MutexGuard, PoisonError};

use peersum::{Element, Input, Output};

use crate::emulator::Emulator;
use crate::stream::EmulatorStream;

/// As aligned as device memory, so that a view's offset alone decides its alignment.
const ALIGNMENT: usize = 256;

/// An array on the emulated device. Whatever streams have used it are waited for before the host reads, writes or frees it.
pub struct EmulatorBuffer<T: Element> {
    elements: NonNull<T>,
    len: usize,
    /// Whether the memory is freed with the buffer.
    owned: bool,
    /// The streams whose launches may still use the memory.
    streams: Mutex<Vec<EmulatorStream>>,
    marker: PhantomData<T>,
}

// SAFETY: the buffer owns its memory, and its elements are plain numbers; kernels that use it are waited for before the host does.
unsafe impl<T: Element> Send for EmulatorBuffer<T> {}

impl<T: Element> fmt::Debug for EmulatorBuffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "EmulatorBuffer<{}>({} at {:?})",
            T::DTYPE,
            self.len,
            self.elements
        )
    }
}

impl<T: Element> EmulatorBuffer<T> {
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
            owned: true,
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

    /// A buffer of memory that something else owns.
    ///
    /// # Safety
    /// `address` must be aligned to `T` and hold `len` elements until the buffer is gone.
    pub(crate) unsafe fn adopt(address: u64, len: usize) -> Self {
        let elements = NonNull::new(address as *mut T).unwrap_or(NonNull::dangling());
        Self {
            elements,
            len,
            owned: false,
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
        self.wait();
        // SAFETY: `len` elements are there, initialised, and no kernel uses them any more; writing needs `&mut self`.
        unsafe { std::slice::from_raw_parts(self.elements.as_ptr(), self.len) }.to_vec()
    }

    /// Replaces all elements, once the streams that used the buffer have passed what they had been given.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    pub fn copy_from_slice(&mut self, elements: &[T]) {
        assert_eq!(elements.len(), self.len, "a buffer is replaced as a whole");
        self.wait();
        // SAFETY: `len` elements are there and no kernel uses them any more; `elements` cannot overlap memory that is borrowed mutably.
        unsafe { ptr::copy_nonoverlapping(elements.as_ptr(), self.elements.as_ptr(), self.len) };
    }

    /// A part to read.
    ///
    /// # Panics
    ///
    /// If the range does not lie within the buffer.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> EmulatorView<'_, T> {
        let range = self.resolve(range);
        EmulatorView {
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
        let range = self.resolve(range);
        EmulatorViewMut {
            buffer: self,
            range,
        }
    }

    fn resolve(&self, range: impl RangeBounds<usize>) -> Range<usize> {
        let start = match range.start_bound() {
            Bound::Included(&start) => start,
            Bound::Excluded(&before) => before + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&last) => last + 1,
            Bound::Excluded(&end) => end,
            Bound::Unbounded => self.len,
        };
        assert!(
            start <= end && end <= self.len,
            "{start}..{end} is not within a buffer of {} elements",
            self.len
        );
        start..end
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
        // A graph that was recorded with this buffer may be launched again, so a stream is never forgotten.
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

impl<T: Element> Drop for EmulatorBuffer<T> {
    fn drop(&mut self) {
        if self.owned {
            self.wait();
            // SAFETY: allocated with this layout, and no kernel uses it any more.
            unsafe { dealloc(self.elements.as_ptr().cast(), Self::layout(self.len)) };
        }
    }
}

/// A part of an [`EmulatorBuffer`] to read.
#[derive(Debug)]
pub struct EmulatorView<'a, T: Element> {
    buffer: &'a EmulatorBuffer<T>,
    range: Range<usize>,
}

/// A part of an [`EmulatorBuffer`] to read and write.
#[derive(Debug)]
pub struct EmulatorViewMut<'a, T: Element> {
    buffer: &'a mut EmulatorBuffer<T>,
    range: Range<usize>,
}

// SAFETY: the address is aligned and valid for `len` elements; the stream is remembered, and waited for before the host uses or frees
// the memory.
unsafe impl<T: Element> Input<T, Emulator> for EmulatorBuffer<T> {
    fn len(&self) -> usize {
        self.len
    }

    fn with_input<R>(&self, stream: &EmulatorStream, launch: impl FnOnce(u64) -> R) -> R {
        launch(self.lend(stream, 0))
    }
}

// SAFETY: as above.
unsafe impl<T: Element> Output<T, Emulator> for EmulatorBuffer<T> {
    fn len(&self) -> usize {
        self.len
    }

    fn with_output<R>(&mut self, stream: &EmulatorStream, launch: impl FnOnce(u64) -> R) -> R {
        launch(self.lend(stream, 0))
    }
}

// SAFETY: as for the whole buffer, within which the range lies.
unsafe impl<T: Element> Input<T, Emulator> for EmulatorView<'_, T> {
    fn len(&self) -> usize {
        self.range.len()
    }

    fn with_input<R>(&self, stream: &EmulatorStream, launch: impl FnOnce(u64) -> R) -> R {
        launch(self.buffer.lend(stream, self.range.start))
    }
}

// SAFETY: as for the whole buffer, within which the range lies.
unsafe impl<T: Element> Input<T, Emulator> for EmulatorViewMut<'_, T> {
    fn len(&self) -> usize {
        self.range.len()
    }

    fn with_input<R>(&self, stream: &EmulatorStream, launch: impl FnOnce(u64) -> R) -> R {
        launch(self.buffer.lend(stream, self.range.start))
    }
}

// SAFETY: as for the whole buffer, within which the range lies.
unsafe impl<T: Element> Output<T, Emulator> for EmulatorViewMut<'_, T> {
    fn len(&self) -> usize {
        self.range.len()
    }

    fn with_output<R>(&mut self, stream: &EmulatorStream, launch: impl FnOnce(u64) -> R) -> R {
        launch(self.buffer.lend(stream, self.range.start))
    }
}
