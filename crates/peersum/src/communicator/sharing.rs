//! Sharing memory between the ranks: arenas at set-up, symmetric buffers later.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::agreement::parse;
use super::links::{RANKS, SymmetricLink};
use super::symmetric::SymmetricRegion;
use super::{Communicator, SymmetricBuffer};
use crate::device::{Device, Export, Import, MemorySharing};
use crate::element::Element;
use crate::error::{Error, SymmetricPart};
use crate::rendezvous::Group;

/// How one rank's memory is reached; a file descriptor travels beside it.
#[derive(Debug, Serialize, Deserialize)]
struct SharedMemory {
    bytes: u64,
    legacy_ipc: Option<Vec<u8>>,
    /// Valid for ranks of the same process.
    address: Option<u64>,
}

/// This rank's memory and its peers', shared.
pub(crate) struct Shared<D: Device> {
    /// By rank, as this rank sees them.
    pub(crate) addresses: [u64; RANKS],
    pub(crate) mappings: Vec<D::Mapping>,
    /// Whether a peer uses this rank's memory without holding it: see [`Links::lent_by_address`].
    pub(crate) lent_by_address: bool,
}

/// Gives this rank's memory to all ranks and maps theirs. Returns every rank's address as this rank sees it.
pub(crate) fn share<D: Device>(
    device: &D,
    group: &mut Group,
    allocation: &D::Allocation,
    bytes: u64,
    label: &str,
    timeout: Duration,
) -> Result<Shared<D>, Error> {
    let own_rank = group.rank();
    let mut own = SharedMemory {
        bytes,
        legacy_ipc: None,
        address: None,
    };
    let mut descriptors: Vec<OwnedFd> = Vec::new();
    let ranks = 0..group.world_size();
    let (mut others_here, mut others_elsewhere) = (false, false);
    for rank in ranks.clone().filter(|rank| *rank != own_rank) {
        if group.is_same_process(rank) {
            others_here = true
        } else {
            others_elsewhere = true
        }
    }
    for same_process in [(true, others_here), (false, others_elsewhere)]
        .into_iter()
        .filter(|(_, any)| *any)
        .map(|(same, _)| same)
    {
        match device.export(allocation, same_process)? {
            Export::Fd(descriptor) => {
                descriptors.push(descriptor);
                // One descriptor serves both kinds of peer.
                break;
            }
            Export::LegacyIpc(handle) => own.legacy_ipc = Some(handle.to_vec()),
            Export::SameProcess(address) => own.address = Some(address),
        }
    }
    let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    let message = serde_json::to_vec(&own).unwrap_or_default();
    let received = group.all_gather_fds(label, &message, &borrowed, timeout)?;

    let lent_by_address = own.address.is_some() || own.legacy_ipc.is_some();
    let mut addresses = [0; RANKS];
    let mut mappings = Vec::new();
    for (rank, (message, descriptors)) in received.into_iter().enumerate() {
        if rank as u32 == own_rank {
            addresses[rank] = device.allocation_address(allocation);
            continue;
        }
        let theirs: SharedMemory = parse("memory", rank, &message)?;
        if theirs.bytes != bytes {
            return Err(Error::SetupMismatch {
                what: "the size of shared memory",
                rank: own_rank,
                value: bytes.to_string(),
                other_rank: rank as u32,
                other_value: theirs.bytes.to_string(),
            });
        }
        let same_process_address = theirs
            .address
            .filter(|_| group.is_same_process(rank as u32));
        let legacy_ipc = theirs
            .legacy_ipc
            .and_then(|handle| <[u8; 64]>::try_from(handle).ok());
        let import = match (descriptors.first(), same_process_address, legacy_ipc) {
            (Some(descriptor), _, _) => Import::Fd(descriptor.as_fd()),
            (None, Some(address), _) => Import::SameProcess(address),
            (None, None, Some(handle)) => Import::LegacyIpc(handle),
            (None, None, None) => {
                return Err(crate::device::DeviceError::CannotShare {
                    reason: format!("rank {rank} offered neither a file descriptor nor a legacy handle for its {label}"),
                }
                .into());
            }
        };
        let mapping = device.import(import, bytes as usize)?;
        addresses[rank] = device.mapping_address(&mapping);
        mappings.push(mapping);
    }
    Ok(Shared {
        addresses,
        mappings,
        lent_by_address,
    })
}

impl<D: Device> Communicator<D> {
    /// Allocates `len` elements on every rank that the peers' pull kernels read and write without staging. Collective: all ranks call it in the
    /// same order with the same length.
    ///
    /// Waits for the stream and for the other ranks. The memory is freed once the communicator and the buffer are both gone.
    ///
    /// # Errors
    /// [`Error::Device`] if memory is short or cannot be shared, [`Error::SetupMismatch`] if lengths differ, [`Error::Rendezvous`] if a rank does
    /// not call within the set-up timeout, [`Error::Failed`] if the communicator has failed.
    pub fn symmetric_alloc<T: Element>(
        &mut self,
        len: usize,
    ) -> Result<SymmetricBuffer<T, D>, Error> {
        self.synchronize()?;
        let sharing = self
            .links
            .as_ref()
            .map_or(MemorySharing::Auto, |links| links.sharing);
        // A buffer of no elements still has an address on every rank.
        let bytes = (len * size_of::<T>()).max(1).next_multiple_of(256);
        self.check_symmetric_limits(bytes as u64)?;
        let allocation = self.device.allocate_shared(bytes, sharing)?;
        let region = Arc::new(SymmetricRegion {
            address: self.device.allocation_address(&allocation),
            allocation,
        });
        if let (Some(links), Some(group)) = (&mut self.links, &mut self.group) {
            let Shared {
                addresses,
                mappings,
                lent_by_address,
            } = share(
                &self.device,
                group,
                &region.allocation,
                bytes as u64,
                "symmetric buffer",
                self.setup_timeout,
            )?;
            links.lent_by_address |= lent_by_address;
            links.symmetric.push(SymmetricLink {
                addresses,
                region: Arc::clone(&region),
                mappings,
                bytes: bytes as u64,
            });
        }
        // SAFETY: the region holds `bytes` bytes aligned to 256 for as long as the buffer lives, and the buffer disowns it.
        Ok(unsafe {
            SymmetricBuffer::new(Arc::clone(&region), self.device.adopt(region.address, len))
        })
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
