//! Allocating symmetric buffers, together with the other ranks.

use std::sync::Arc;

use super::connected::SymmetricMapping;
use super::lent::LentMemory;
use super::sharing::share;
use super::state::Communicator;
use super::symmetric::{SymmetricBuffer, SymmetricRegion};
use crate::call_signature::SymmetricPart;
use crate::device::{Device, MemorySharing};
use crate::element::Element;
use crate::error::Error;

/// The bytes behind a symmetric buffer of `len` elements.
fn symmetric_bytes<T: Element>(len: usize) -> Result<usize, Error> {
    len.checked_mul(size_of::<T>())
        // A buffer of no elements still has an address on every rank.
        .and_then(|bytes| bytes.max(1).checked_next_multiple_of(256))
        .filter(|bytes| isize::try_from(*bytes).is_ok())
        .ok_or(Error::TooLong {
            elements: len,
            element_bytes: size_of::<T>(),
        })
}

impl<D: Device> Communicator<D> {
    /// Allocates `len` elements on every rank that the peers' pull kernels read and write without
    /// staging. Collective: all ranks call it in the same order with the same length.
    ///
    /// Waits for the stream and for the other ranks. The memory is freed once the communicator and
    /// the buffer are both gone. If one rank fails, all do, and the communicator stays usable.
    ///
    /// # Errors
    /// [`Error::Device`] if memory is short or cannot be shared, [`Error::SetupMismatch`] if
    /// lengths differ, [`Error::TooLong`] for a length that no memory has, [`Error::Rendezvous`] if
    /// another rank fails or does not call within the set-up timeout, [`Error::Failed`] if the
    /// communicator has failed.
    pub fn symmetric_alloc<T: Element>(
        &mut self,
        len: usize,
    ) -> Result<SymmetricBuffer<T, D>, Error> {
        self.synchronize()?;
        let sharing = self
            .connected
            .as_ref()
            .map_or(MemorySharing::Auto, |connected| connected.sharing);
        // A handle to the stream that may outlive the communicator.
        let device = D::open(self.device.stream())?;
        // Errors are not returned at once: the other ranks must learn of them first.
        let bytes = symmetric_bytes::<T>(len);
        let own_bytes = *bytes.as_ref().unwrap_or(&0) as u64;
        let own = bytes.and_then(|bytes| {
            self.check_symmetric_limits(bytes as u64)?;
            let own = self.device.allocate_shared(bytes, sharing)?;
            Ok((self.adopt::<T>(&own, len)?, own))
        });
        let (mut buffer, own) = match own {
            Ok((buffer, own)) => (Some(buffer), Ok(own)),
            Err(error) => (None, Err(error)),
        };
        let region = self.share_symmetric(own, own_bytes, device);
        let region = region.inspect_err(|_| {
            // Nothing has used it.
            let _ = buffer.take().map(D::disown);
        })?;
        let buffer = match buffer {
            Some(buffer) => buffer,
            None => self.adopt(region.memory.allocation(), len)?,
        };
        // SAFETY: the buffer was adopted from the memory of this region.
        Ok(unsafe { SymmetricBuffer::new(region, buffer) })
    }

    /// Gives this rank's memory to the other ranks, if there are any, and maps theirs.
    fn share_symmetric(
        &mut self,
        own: Result<D::Allocation, Error>,
        bytes: u64,
        device: D,
    ) -> Result<Arc<SymmetricRegion<D>>, Error> {
        let (Some(connected), Some(group)) = (&mut self.connected, &mut self.group) else {
            let memory = LentMemory::new(own?, false);
            return Ok(Arc::new(SymmetricRegion::new(memory, device)));
        };
        let (label, timeout) = ("symmetric buffer", self.setup_timeout);
        let shared = share(&self.device, group, own, bytes, label, timeout)?;
        let region = Arc::new(SymmetricRegion::new(shared.memory, device));
        connected.symmetric.push(SymmetricMapping {
            addresses: shared.addresses,
            region: Arc::clone(&region),
            mappings: shared.mappings,
            bytes,
        });
        Ok(region)
    }

    fn adopt<T: Element>(&self, own: &D::Allocation, len: usize) -> Result<D::Buffer<T>, Error> {
        let address = self.device.allocation_address(own);
        // SAFETY: the memory was allocated with `symmetric_bytes::<T>(len)` bytes, aligned to 256.
        // It lives as long as the symmetric buffer that the result goes into, which disowns it.
        Ok(unsafe { self.device.adopt(address, len) }?)
    }

    /// A call must be able to tell the peers which part of which buffer it uses.
    fn check_symmetric_limits(&self, bytes: u64) -> Result<(), Error> {
        let refuse = |reason: String| Err(Error::invalid("symmetric_alloc", reason));
        if bytes > SymmetricPart::MAX_BUFFER_BYTES {
            return refuse(format!(
                "{bytes} bytes; a symmetric buffer has at most {}",
                SymmetricPart::MAX_BUFFER_BYTES
            ));
        }
        let buffers = self
            .connected
            .as_ref()
            .map_or(0, |connected| connected.symmetric.len());
        if buffers >= SymmetricPart::MAX_BUFFERS {
            return refuse(format!(
                "this communicator has {buffers} symmetric buffers, the most that it can have; \
                 allocate a large one and use parts of it"
            ));
        }
        Ok(())
    }
}
