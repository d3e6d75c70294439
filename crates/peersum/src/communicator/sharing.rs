//! Sharing memory between the ranks: arenas at set-up, symmetric buffers later.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::agreement::parse;
use super::lent::LentMemory;
use super::links::{RANKS, SymmetricLink};
use super::symmetric::SymmetricRegion;
use super::{Communicator, SymmetricBuffer};
use crate::device::{Device, Export, Import, MemorySharing};
use crate::element::Element;
use crate::error::{Error, SymmetricPart};
use crate::rendezvous::{Group, MessageWithFds, RendezvousError};

/// What every rank tells the others of its memory; a file descriptor travels beside it.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Offer {
    bytes: u64,
    legacy_ipc: Option<Vec<u8>>,
    /// Valid for ranks of the same process.
    address: Option<u64>,
    /// Why there is no memory.
    failure: Option<String>,
}

/// This rank's memory and its peers', shared.
pub struct Shared<D: Device> {
    /// This rank's.
    pub memory: LentMemory<D>,
    /// By rank, as this rank sees them.
    pub addresses: [u64; RANKS],
    /// Of the peers' memory.
    pub mappings: Vec<D::Mapping>,
}

/// Gives this rank's memory to all ranks and maps theirs. Collective.
///
/// Every rank succeeds or every rank gets an error: the error of a rank that has no memory (`own`)
/// or cannot map a peer's is told to the others. Memory is freed only once no peer maps it any
/// more; if that cannot be known, because the group broke, memory that is lent by address is
/// leaked.
pub fn share<D: Device>(
    device: &D,
    group: &mut Group,
    own: Result<D::Allocation, Error>,
    bytes: u64,
    label: &str,
    timeout: Duration,
) -> Result<Shared<D>, Error> {
    let mut descriptors = Vec::new();
    let own = own.and_then(|allocation| offer(device, group, allocation, bytes, &mut descriptors));
    let message = match &own {
        Ok((offer, _)) => serde_json::to_vec(offer),
        Err(error) => serde_json::to_vec(&Offer {
            failure: Some(error.to_string()),
            ..Offer::default()
        }),
    }
    .unwrap_or_default();
    let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    let received = group.all_gather_fds(label, &message, &borrowed, timeout)?;
    let (_, memory) = own?;
    let agreed = agree(&received);
    if agreed.is_err() {
        // Every rank finds the same error in the same messages, so none maps this rank's memory.
        memory.peers_let_go();
    }
    let imported = import(device, group, &memory, &agreed?, &received, label);

    // A rank that cannot map a peer's memory must not leave the others with a buffer that it lacks.
    let outcome = match &imported {
        Ok(_) => String::new(),
        Err(error) => error.to_string(),
    };
    let outcomes = group.all_gather(&format!("{label}, mapped"), outcome.as_bytes(), timeout)?;
    let failed = (0..)
        .zip(&outcomes)
        .find(|(_, outcome)| !outcome.is_empty());
    let Some((rank, reason)) = failed else {
        let (addresses, mappings) = imported?;
        return Ok(Shared {
            memory,
            addresses,
            mappings,
        });
    };
    // Unmaps what this rank mapped.
    let own_error = imported.err();
    if group
        .barrier(&format!("{label}, unmapped"), timeout)
        .is_ok()
    {
        memory.peers_let_go();
    }
    let reason = String::from_utf8_lossy(reason).into_owned();
    Err(own_error.unwrap_or_else(|| RendezvousError::PeerFailed { rank, reason }.into()))
}

/// What to tell the peers of this rank's memory.
fn offer<D: Device>(
    device: &D,
    group: &Group,
    allocation: D::Allocation,
    bytes: u64,
    descriptors: &mut Vec<OwnedFd>,
) -> Result<(Offer, LentMemory<D>), Error> {
    let mut offer = Offer {
        bytes,
        ..Offer::default()
    };
    let (here, elsewhere): (Vec<u32>, Vec<u32>) = (0..group.world_size())
        .filter(|rank| *rank != group.rank())
        .partition(|rank| group.is_same_process(*rank));
    for (same_process, peers) in [(true, here), (false, elsewhere)] {
        if peers.is_empty() {
            continue;
        }
        match device.export(&allocation, same_process)? {
            Export::Fd(descriptor) => {
                descriptors.push(descriptor);
                // One descriptor serves both kinds of peer.
                break;
            }
            Export::LegacyIpc(handle) => offer.legacy_ipc = Some(handle.to_vec()),
            Export::SameProcess(address) => offer.address = Some(address),
        }
    }
    let lent_by_address = offer.address.is_some() || offer.legacy_ipc.is_some();
    Ok((offer, LentMemory::new(allocation, lent_by_address)))
}

/// All offers, if every rank has memory, of one size. Every rank computes the same.
fn agree(received: &[MessageWithFds]) -> Result<Vec<Offer>, Error> {
    let offers = received
        .iter()
        .enumerate()
        .map(|(rank, (message, _))| parse("memory", rank, message))
        .collect::<Result<Vec<Offer>, Error>>()?;
    for (rank, offer) in (0..).zip(&offers) {
        if let Some(reason) = offer.failure.clone() {
            return Err(RendezvousError::PeerFailed { rank, reason }.into());
        }
    }
    let size = |rank: usize| offers.get(rank).map_or(0, |offer| offer.bytes);
    match (0..offers.len()).find(|rank| size(*rank) != size(0)) {
        None => Ok(offers),
        Some(other) => Err(Error::SetupMismatch {
            what: "the size of shared memory",
            rank: 0,
            value: size(0).to_string(),
            other_rank: other as u32,
            other_value: size(other).to_string(),
        }),
    }
}

/// Every rank's address as this rank sees it, and the mappings of the peers' memory.
fn import<D: Device>(
    device: &D,
    group: &Group,
    memory: &LentMemory<D>,
    offers: &[Offer],
    received: &[MessageWithFds],
    label: &str,
) -> Result<([u64; RANKS], Vec<D::Mapping>), Error> {
    let mut addresses = [0; RANKS];
    let mut mappings = Vec::new();
    for (rank, (theirs, (_, descriptors))) in offers.iter().zip(received).enumerate() {
        if rank as u32 == group.rank() {
            addresses[rank] = device.allocation_address(memory.allocation());
            continue;
        }
        let same_process_address = theirs
            .address
            .filter(|_| group.is_same_process(rank as u32));
        let legacy_ipc = theirs
            .legacy_ipc
            .as_deref()
            .and_then(|handle| <[u8; 64]>::try_from(handle).ok());
        let import = match (descriptors.first(), same_process_address, legacy_ipc) {
            (Some(descriptor), _, _) => Import::Fd(descriptor.as_fd()),
            (None, Some(address), _) => Import::SameProcess(address),
            (None, None, Some(handle)) => Import::LegacyIpc(handle),
            (None, None, None) => {
                return Err(crate::device::DeviceError::CannotShare {
                    reason: format!(
                        "rank {rank} offered no file descriptor and no legacy handle for its \
                         {label}"
                    ),
                }
                .into());
            }
        };
        // The same on every rank, and this rank has allocated as much.
        let mapping = device.import(import, theirs.bytes as usize)?;
        addresses[rank] = device.mapping_address(&mapping);
        mappings.push(mapping);
    }
    Ok((addresses, mappings))
}

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
            .links
            .as_ref()
            .map_or(MemorySharing::Auto, |links| links.sharing);
        // A handle to the stream that may outlive the communicator.
        let device = D::open(self.device.stream())?;
        // Neither is returned at once: the other ranks are told.
        let bytes = symmetric_bytes::<T>(len);
        let own_bytes = *bytes.as_ref().unwrap_or(&0);
        let own = bytes.and_then(|bytes| {
            self.check_symmetric_limits(bytes as u64)?;
            Ok(self.device.allocate_shared(bytes, sharing)?)
        });
        let (Some(links), Some(group)) = (&mut self.links, &mut self.group) else {
            let region = SymmetricRegion::new(LentMemory::new(own?, false), device);
            return Ok(self.adopt(Arc::new(region), len));
        };
        let bytes = own_bytes as u64;
        let Shared {
            memory,
            addresses,
            mappings,
        } = share(
            &self.device,
            group,
            own,
            bytes,
            "symmetric buffer",
            self.setup_timeout,
        )?;
        let region = Arc::new(SymmetricRegion::new(memory, device));
        links.symmetric.push(SymmetricLink {
            addresses,
            region: Arc::clone(&region),
            mappings,
            bytes,
        });
        Ok(self.adopt(region, len))
    }

    fn adopt<T: Element>(
        &self,
        region: Arc<SymmetricRegion<D>>,
        len: usize,
    ) -> SymmetricBuffer<T, D> {
        let address = self.device.allocation_address(region.memory.allocation());
        // SAFETY: the region was allocated with `symmetric_bytes::<T>(len)` bytes, aligned to 256.
        // It lives as long as the buffer, and the buffer disowns it.
        unsafe { SymmetricBuffer::new(region, self.device.adopt(address, len)) }
    }

    /// A call must be able to tell the peers which part of which buffer it uses.
    fn check_symmetric_limits(&self, bytes: u64) -> Result<(), Error> {
        let refuse = |reason| {
            Err(Error::InvalidSetting {
                setting: "symmetric_alloc",
                reason,
            })
        };
        if bytes > SymmetricPart::MAX_BUFFER_BYTES {
            return refuse(format!(
                "{bytes} bytes; a symmetric buffer has at most {}",
                SymmetricPart::MAX_BUFFER_BYTES
            ));
        }
        let buffers = self.links.as_ref().map_or(0, |links| links.symmetric.len());
        if buffers >= SymmetricPart::MAX_BUFFERS {
            return refuse(format!(
                "this communicator has {buffers} symmetric buffers, the most that it can have; \
                 allocate a large one and use parts of it"
            ));
        }
        Ok(())
    }
}
