//! Sharing memory between the ranks: arenas at set-up, symmetric buffers later.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::agreement::{parse, require_equal};
use super::layout::RANKS;
use super::lent::LentMemory;
use crate::device::{Device, DeviceError, Export, Import};
use crate::error::Error;
use crate::rendezvous::{Group, MessageWithFd, RendezvousError};

/// What every rank tells the others of its memory.
#[derive(Debug, Default, Serialize, Deserialize)]
struct MemoryOffer {
    bytes: u64,
    /// Travels beside the rest.
    #[serde(skip)]
    descriptor: Option<OwnedFd>,
    legacy_ipc: Option<Vec<u8>>,
    /// Valid for ranks of the same process.
    address: Option<u64>,
    /// Why there is no memory.
    failure: Option<String>,
}

/// This rank's memory and its peers', shared.
pub struct SharedMemory<D: Device> {
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
) -> Result<SharedMemory<D>, Error> {
    let (offer, memory) = match own.and_then(|own| offer(device, group, own, bytes)) {
        Ok((offer, memory)) => (offer, Ok(memory)),
        Err(error) => {
            let failure = Some(error.to_string());
            let offer = MemoryOffer {
                failure,
                ..MemoryOffer::default()
            };
            (offer, Err(error))
        }
    };
    let message = serde_json::to_vec(&offer).unwrap_or_default();
    let descriptor = offer.descriptor.as_ref().map(AsFd::as_fd);
    let received = group.all_gather_fd(label, &message, descriptor, timeout)?;
    let memory = memory?;
    let agreed = agree(received);
    if agreed.is_err() {
        // Every rank finds the same error in the same messages, so none maps this rank's memory.
        memory.peers_let_go();
    }
    let imported = import(device, group, &memory, &agreed?, label);

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
        return Ok(SharedMemory {
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
) -> Result<(MemoryOffer, LentMemory<D>), Error> {
    let mut offer = MemoryOffer {
        bytes,
        ..MemoryOffer::default()
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
                offer.descriptor = Some(descriptor);
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
fn agree(received: Vec<MessageWithFd>) -> Result<Vec<MemoryOffer>, Error> {
    let mut offers = Vec::new();
    for (rank, (message, descriptor)) in (0..).zip(received) {
        let mut offer: MemoryOffer = parse("memory", rank, &message)?;
        offer.descriptor = descriptor;
        offers.push(offer);
    }
    for (rank, offer) in (0..).zip(&offers) {
        if let Some(reason) = offer.failure.clone() {
            return Err(RendezvousError::PeerFailed { rank, reason }.into());
        }
    }
    let size = |offer: &MemoryOffer| offer.bytes.to_string();
    require_equal("the size of shared memory", &offers, size)?;
    Ok(offers)
}

/// Every rank's address as this rank sees it, and the mappings of the peers' memory.
fn import<D: Device>(
    device: &D,
    group: &Group,
    memory: &LentMemory<D>,
    offers: &[MemoryOffer],
    label: &str,
) -> Result<([u64; RANKS], Vec<D::Mapping>), Error> {
    let mut addresses = [0; RANKS];
    let mut mappings = Vec::new();
    for (rank, theirs) in offers.iter().enumerate() {
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
        let import = match (&theirs.descriptor, same_process_address, legacy_ipc) {
            (Some(descriptor), _, _) => Import::Fd(descriptor.as_fd()),
            (None, Some(address), _) => Import::SameProcess(address),
            (None, None, Some(handle)) => Import::LegacyIpc(handle),
            (None, None, None) => {
                let reason = format!(
                    "rank {rank} offered no file descriptor and no legacy handle for its {label}"
                );
                return Err(DeviceError::cannot_share(reason).into());
            }
        };
        // The same on every rank, and this rank has allocated as much.
        let mapping = device.import(import, theirs.bytes as usize)?;
        addresses[rank] = device.mapping_address(&mapping);
        mappings.push(mapping);
    }
    Ok((addresses, mappings))
}
