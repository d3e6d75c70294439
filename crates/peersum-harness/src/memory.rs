//! Device memory for tests, allocated through the device seam, with guard bytes around each array.

use anyhow::{Result, ensure};
use half::bf16;
use peersum::device::{Device, MemorySharing};
use peersum::{DeviceBuffer, Error, Output, Scalar, SymmetricBuffer};

use crate::data::bytes_of;

/// Bytes before and behind an array that must stay as they were.
pub(crate) const GUARD_BYTES: usize = 64;

/// What memory holds before a test writes to it: not the canonical NaN of any type, and rare in
/// test data.
pub(crate) const POISON: u8 = 0xA5;

/// Device memory in which one array lies, with poison around it.
pub(crate) struct Guarded<D: Device> {
    // Dropped after every use of `base`: tests synchronise before they drop memory.
    _allocation: D::Allocation,
    base: u64,
    bytes: usize,
}

impl<D: Device> Guarded<D> {
    /// Allocates at least `bytes` bytes and does not initialise them.
    pub(crate) fn new(device: &D, bytes: usize, sharing: MemorySharing) -> Result<Self> {
        let bytes = bytes.next_multiple_of(16);
        let allocation = device.allocate_shared(bytes, sharing)?;
        Ok(Guarded {
            base: device.allocation_address(&allocation),
            _allocation: allocation,
            bytes,
        })
    }

    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    /// Fills all of it with poison.
    pub(crate) fn poison(&self, device: &D) -> Result<()> {
        // SAFETY: the range is the allocation.
        unsafe { device.fill(self.base, u32::from_ne_bytes([POISON; 4]), self.bytes / 4)? };
        Ok(())
    }

    /// Writes an array that begins at `offset`.
    pub(crate) fn write(&self, device: &D, offset: usize, array: &[u8]) -> Result<()> {
        assert!(offset + array.len() <= self.bytes, "an array within memory");
        // SAFETY: the range lies within the allocation.
        unsafe { device.write(self.base + offset as u64, array)? };
        Ok(())
    }
}

/// An array in memory of its own.
pub(crate) struct TestBuffer<D: Device> {
    memory: Memory<D>,
    bytes: usize,
}

enum Memory<D: Device> {
    Guarded(Guarded<D>),
    /// Without guards. Held for its memory; used by its address.
    Symmetric {
        _buffer: SymmetricBuffer<bf16, D>,
        address: u64,
    },
}

impl<D: Device> TestBuffer<D> {
    /// `len` elements. Everything is poisoned.
    pub(crate) fn new<T: Scalar>(device: &D, len: usize) -> Result<Self> {
        let bytes = len * size_of::<T>();
        let memory = Guarded::new(device, 2 * GUARD_BYTES + bytes, MemorySharing::Auto)?;
        memory.poison(device)?;
        let memory = Memory::Guarded(memory);
        Ok(TestBuffer { memory, bytes })
    }

    /// The first `len` elements of a symmetric buffer.
    pub(crate) fn symmetric(
        device: &D,
        mut buffer: SymmetricBuffer<bf16, D>,
        len: usize,
    ) -> Result<Self> {
        ensure!(len <= buffer.len(), "a symmetric buffer that is too small");
        let address = {
            let mut view = buffer.as_view_mut();
            view.with_output(device.stream(), Ok::<_, Error>)?
        };
        Ok(TestBuffer {
            memory: Memory::Symmetric {
                _buffer: buffer,
                address,
            },
            bytes: len * size_of::<bf16>(),
        })
    }

    /// The address of the first element.
    pub(crate) fn address(&self) -> u64 {
        match &self.memory {
            Memory::Guarded(memory) => memory.base + GUARD_BYTES as u64,
            Memory::Symmetric { address, .. } => *address,
        }
    }

    /// Poisons the elements and what is around them. A symmetric buffer stays as it is.
    pub(crate) fn poison(&self, device: &D) -> Result<()> {
        match &self.memory {
            Memory::Guarded(memory) => memory.poison(device),
            Memory::Symmetric { .. } => Ok(()),
        }
    }

    /// Writes all elements.
    pub(crate) fn write<T: Scalar>(&self, device: &D, values: &[T]) -> Result<()> {
        assert_eq!(
            size_of_val(values),
            self.bytes,
            "a test writes whole buffers"
        );
        // SAFETY: the memory holds so many bytes.
        unsafe { device.write(self.address(), bytes_of(values))? };
        Ok(())
    }

    /// Reads all elements. Also returns whether the guards are untouched.
    pub(crate) fn read<T: Scalar>(&self, device: &D) -> Result<(Vec<T>, bool)> {
        let (base, guard, all) = match &self.memory {
            Memory::Guarded(memory) => (memory.base, GUARD_BYTES, memory.bytes),
            Memory::Symmetric { address, .. } => (*address, 0, self.bytes),
        };
        let mut memory = vec![0; all];
        // SAFETY: the range is the allocation, or lies within the symmetric buffer.
        unsafe { device.read(base, &mut memory)? };
        let behind = memory.split_off(guard + self.bytes);
        let array = memory.split_off(guard);
        let intact = memory.iter().chain(&behind).all(|byte| *byte == POISON);
        Ok((elements_of(&array), intact))
    }

    /// Passes the buffer to `call` in the form that the communicator takes.
    pub(crate) fn with<T: Scalar, R, E: From<Error>>(
        &self,
        device: &D,
        call: impl FnOnce(&mut D::Buffer<T>) -> Result<R, E>,
    ) -> Result<R, E> {
        // SAFETY: the memory has so many elements, and tests synchronise before they drop it.
        unsafe { lend(device, self.address(), self.bytes / size_of::<T>(), call) }
    }
}

/// Passes memory to `call` as a buffer in the form that the communicator takes.
///
/// # Safety
/// `address` is aligned to `T` and holds `len` elements until the stream has passed all that `call`
/// enqueues.
pub(crate) unsafe fn lend<T: Scalar, D: Device, R, E: From<Error>>(
    device: &D,
    address: u64,
    len: usize,
    call: impl FnOnce(&mut D::Buffer<T>) -> Result<R, E>,
) -> Result<R, E> {
    // SAFETY: the memory is the caller's promise; the adopted buffer is disowned below.
    let mut buffer = unsafe { device.adopt(address, len) }.map_err(Error::from)?;
    let result = call(&mut buffer);
    let disowned = D::disown(buffer).map_err(Error::from);
    let result = result?;
    disowned?;
    Ok(result)
}

/// Fills memory with repetitions of a pattern.
///
/// # Safety
/// `address` is memory of the device with at least `bytes` bytes.
pub(crate) unsafe fn write_repeated<T: Scalar, D: Device>(
    device: &D,
    address: u64,
    bytes: usize,
    pattern: &[T],
) -> Result<()> {
    let pattern = bytes_of(pattern);
    for at in (0..bytes).step_by(pattern.len()) {
        let part = &pattern[..pattern.len().min(bytes - at)];
        // SAFETY: the caller's promise.
        unsafe { device.write(address + at as u64, part)? };
    }
    Ok(())
}

/// Elements, as memory holds them.
pub(crate) fn elements_of<T: Scalar>(bytes: &[u8]) -> Vec<T> {
    let chunks = bytes.chunks_exact(size_of::<T>());
    // SAFETY: any bytes are a valid element; the source has its size.
    let read = |chunk: &[u8]| unsafe { chunk.as_ptr().cast::<T>().read_unaligned() };
    chunks.map(read).collect()
}

/// Says which element of an array of `T` is wrong first, if any.
pub(crate) fn difference<T>(found: &[u8], expected: &[u8], name: &str) -> Option<String> {
    let elements = |bytes| <[u8]>::chunks_exact(bytes, size_of::<T>());
    let mut pairs = elements(found).zip(elements(expected)).enumerate();
    let (index, (found, expected)) = pairs.find(|(_, (found, expected))| found != expected)?;
    let number = |bytes: &[u8]| {
        let digits = bytes.iter().rev().map(|byte| format!("{byte:02x}"));
        digits.collect::<String>()
    };
    let (found, expected) = (number(found), number(expected));
    Some(format!(
        "{name}, element {index}: 0x{found}, not 0x{expected}"
    ))
}
