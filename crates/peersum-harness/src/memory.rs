//! Device memory for tests, the same way on every device: allocated through the seam, used at any element offset.

use std::marker::PhantomData;

use anyhow::Result;
use peersum::Element;
use peersum::device::{Device, MemorySharing};

/// Elements of device memory between two guard zones, at an offset of the test's choice.
pub(crate) struct TestBuffer<T: Element, D: Device> {
    // Dropped after every use of `address`: the test synchronises before it drops buffers.
    _allocation: D::Allocation,
    base: u64,
    bytes: usize,
    offset_elements: usize,
    len: usize,
    element: PhantomData<T>,
}

/// Bytes before and behind the elements that must stay as they were.
const GUARD_BYTES: usize = 64;

/// What memory holds before a test writes to it: a NaN in no type's canonical form.
const POISON: u8 = 0xA5;

impl<T: Element, D: Device> TestBuffer<T, D> {
    /// `len` elements that start `offset_elements` elements behind an aligned address. Everything is poisoned.
    pub(crate) fn new(device: &D, len: usize, offset_elements: usize) -> Result<Self> {
        let bytes =
            (2 * GUARD_BYTES + (offset_elements + len) * size_of::<T>()).next_multiple_of(16);
        let allocation = device.allocate_shared(bytes, MemorySharing::Auto)?;
        let base = device.allocation_address(&allocation);
        let buffer = TestBuffer {
            _allocation: allocation,
            base,
            bytes,
            offset_elements,
            len,
            element: PhantomData,
        };
        buffer.poison(device)?;
        Ok(buffer)
    }

    /// Fills the whole of it, guards included, with a pattern.
    pub(crate) fn poison(&self, device: &D) -> Result<()> {
        // SAFETY: the range is this buffer's allocation.
        unsafe { device.fill(self.base, u32::from_ne_bytes([POISON; 4]), self.bytes / 4)? };
        Ok(())
    }

    fn start(&self) -> usize {
        GUARD_BYTES + self.offset_elements * size_of::<T>()
    }

    /// The address of the first element.
    pub(crate) fn address(&self) -> u64 {
        self.base + self.start() as u64
    }

    /// Writes all elements.
    pub(crate) fn write(&self, device: &D, values: &[T]) -> Result<()> {
        assert_eq!(values.len(), self.len, "a test writes whole buffers");
        // SAFETY: elements are plain data; the destination is this buffer's.
        unsafe {
            device.write(
                self.address(),
                std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)),
            )?
        };
        Ok(())
    }

    /// Reads all elements, and says whether the guards are untouched.
    pub(crate) fn read(&self, device: &D) -> Result<(Vec<T>, bool)> {
        let mut bytes = vec![0; self.bytes];
        // SAFETY: the range is this buffer's allocation.
        unsafe { device.read(self.base, &mut bytes)? };
        let (start, end) = (self.start(), self.start() + self.len * size_of::<T>());
        let values = bytes[start..end]
            .chunks_exact(size_of::<T>())
            // SAFETY: any bytes are a valid element; the source has its size.
            .map(|chunk| unsafe { chunk.as_ptr().cast::<T>().read_unaligned() })
            .collect();
        let guards_hold = bytes[..start]
            .iter()
            .chain(&bytes[end..])
            .all(|&byte| byte == POISON);
        Ok((values, guards_hold))
    }

    /// The buffer as a call takes it.
    pub(crate) fn with<R>(&self, device: &D, call: impl FnOnce(&mut D::Buffer<T>) -> R) -> R {
        // SAFETY: the allocation outlives the adopted buffer, which is disowned below, and tests synchronise before they drop it.
        let mut buffer = unsafe { device.adopt(self.address(), self.len) };
        let result = call(&mut buffer);
        D::disown(buffer);
        result
    }
}
