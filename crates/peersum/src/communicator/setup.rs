//! From settings to a communicator: meet, compare, allocate, share, arm, meet again.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use peersum_artifact::{Algorithm, Digest, ModuleKey, WorldSize};
use peersum_kernels::abi::{self, PeersumParams};
use serde::{Deserialize, Serialize};

use super::builder::{CommunicatorBuilder, StreamClaim};
use super::layout::{ArenaLayout, StartEpochs, control_bytes, initial_control};
use super::links::{Links, Modules, SymmetricLink};
use super::probe::{nanoseconds, probe_bytes};
use super::symmetric::SymmetricRegion;
use super::{Communicator, SymmetricBuffer, seats};
use crate::device::{Device, DeviceIdentity, DeviceStream, Export, Import, MemorySharing};
use crate::dispatch::{DispatchTable, Link};
use crate::element::Element;
use crate::error::Error;
use crate::loader::{LoadPolicy, LoadReport};
use crate::rendezvous::Group;

const RANKS: usize = abi::PEERSUM_MAX_WORLD_SIZE as usize;

/// Communicators of this process so far.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// What every rank tells the others first. All but the last four fields must be equal.
#[derive(Debug, Serialize, Deserialize)]
struct Hello {
    version: String,
    abi_version: u32,
    kernel_sources: String,
    max_bytes: u64,
    push_half_bytes: u64,
    tables: String,
    start_epochs: (u32, u64),
    identity: DeviceIdentity,
    is_emulated: bool,
    /// Rank 0's tells the ranks of this group apart from those of others in the same process.
    token: u64,
    setup_timeout: Duration,
}

/// What every rank tells the others once it knows its modules.
#[derive(Debug, Serialize, Deserialize)]
struct Seating {
    table_digest: String,
    max_blocks: u32,
}

/// How one rank's memory is reached; a file descriptor travels beside it.
#[derive(Debug, Serialize, Deserialize)]
struct SharedMemory {
    bytes: u64,
    legacy_ipc: Option<Vec<u8>>,
    /// Valid for ranks of the same process.
    address: Option<u64>,
}

pub(super) fn build<S: DeviceStream>(
    mut builder: CommunicatorBuilder,
    stream: &S,
) -> Result<Communicator<S::Device>, Error> {
    let rendezvous = builder.rendezvous.take().ok_or_else(|| Error::InvalidSetting {
        setting: "rendezvous",
        reason: "every rank needs one; `Rendezvous::from_env()` reads what torchrun, mpirun and srun set".to_owned(),
    })?;
    let (rank, world_size) = (rendezvous.rank(), rendezvous.world_size());
    if !(1..=abi::PEERSUM_MAX_WORLD_SIZE).contains(&world_size) {
        return Err(Error::InvalidSetting {
            setting: "world size",
            reason: format!(
                "{world_size} ranks; 1 to {} are possible",
                abi::PEERSUM_MAX_WORLD_SIZE
            ),
        });
    }
    if builder.max_bytes == 0 || builder.max_bytes >> 35 != 0 {
        return Err(Error::InvalidSetting {
            setting: "max_bytes",
            reason: format!("{} bytes; 1 byte to 32 GiB are possible", builder.max_bytes),
        });
    }
    let device = S::Device::open(stream)?;
    let claim = StreamClaim::new::<S::Device>(device.stream_id())?;
    let identity = device.identity()?;
    let mut group = rendezvous.join(builder.setup_timeout)?;
    match connect(&builder, &device, &identity, &mut group, world_size) {
        Ok((links, table)) => {
            let mut communicator = Communicator {
                links,
                device,
                group: Some(group),
                rank,
                world_size,
                id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
                identity,
                table,
                forced: None,
                pdl: builder.pdl,
                timeout: builder.timeout,
                setup_timeout: builder.setup_timeout,
                failure: None,
                capturing: false,
                _stream_claim: claim,
                not_sync: std::marker::PhantomData,
            };
            if communicator
                .links
                .as_ref()
                .is_some_and(|links| links.shares_device)
            {
                communicator.probe_co_residency()?;
            }
            Ok(communicator)
        }
        Err(error) => {
            // The others learn why at once, instead of waiting for their deadline.
            group.abandon(&error.to_string());
            Err(error)
        }
    }
}

type Connected<D> = (Option<Links<D>>, DispatchTable);

fn connect<D: Device>(
    builder: &CommunicatorBuilder,
    device: &D,
    identity: &DeviceIdentity,
    group: &mut Group,
    world_size: u32,
) -> Result<Connected<D>, Error> {
    let hellos = exchange_hellos(builder, identity, group)?;
    let uuids = || hellos.iter().map(|hello| hello.identity.uuid);
    let ranks_on_device = uuids().filter(|uuid| *uuid == identity.uuid).count() as u32;
    let shares_device = uuids()
        .enumerate()
        .any(|(a, uuid)| uuids().skip(a + 1).any(|other| other == uuid));
    let link = match (hellos.iter().any(|hello| hello.is_emulated), shares_device) {
        (true, _) => Link::Emulator,
        (false, true) => Link::Shared,
        (false, false) => Link::Peer,
    };
    // A table for one architecture serves a group of that architecture alone.
    let arch = identity.arch.filter(|arch| {
        hellos
            .iter()
            .all(|hello| hello.identity.arch == Some(*arch))
    });
    let arch = arch.map(|(major, minor)| format!("sm_{major}{minor}"));
    // A group of one launches nothing; any table will do.
    let table_size = world_size.max(2);
    let table = match &builder.tables {
        Some(text) => DispatchTable::choose(text, arch.as_deref(), table_size, link)?,
        None => DispatchTable::shipped(arch.as_deref(), table_size, link)?,
    };
    if world_size == 1 {
        return Ok((None, table));
    }

    let (modules, reports) = load_modules(builder, device, world_size)?;
    let capacity = capacity_blocks(device, identity, &modules, table.max_threads())?;
    let token = hellos.first().map_or(0, |hello| hello.token);
    let largest = seats::largest_grid(
        identity.uuid,
        token,
        &identity.name,
        capacity,
        ranks_on_device,
    )?;
    let wanted = builder
        .max_blocks
        .unwrap_or_else(|| table.max_blocks())
        .clamp(1, abi::PEERSUM_MAX_BLOCKS);
    let max_blocks = exchange_seating(group, &table, wanted.min(largest), builder.setup_timeout)?;
    let seats = seats::reserve(identity.uuid, token, max_blocks);

    let probe = if shares_device {
        probe_bytes(max_blocks, table.max_threads())
    } else {
        0
    };
    let layout = ArenaLayout::new(
        builder.max_bytes,
        builder.push_half_bytes_or_default(),
        probe,
    );
    let arena = device.allocate_shared(layout.total_bytes as usize, builder.sharing)?;
    arm(
        device,
        device.allocation_address(&arena),
        &layout,
        builder.start,
    )?;
    let Shared {
        addresses,
        mappings,
        lent_by_address,
    } = share(
        device,
        group,
        &arena,
        layout.total_bytes,
        "arena",
        builder.setup_timeout,
    )?;
    // The last thing that can fail on this rank alone: behind the barrier the peers use the arena.
    let status = device.allocate_status()?;
    // Slots are armed before the first peer stores to them.
    group.barrier("armed", builder.setup_timeout)?;

    let params = PeersumParams {
        arena: addresses,
        push_offset: layout.push_offset,
        push_half_bytes: layout.push_half_bytes,
        staging_offset: layout.staging_offset,
        staging_half_bytes: layout.staging_half_bytes,
        status: status.device_address,
        timeout_ns: nanoseconds(builder.timeout),
        rank: group.rank(),
        ..PeersumParams::default()
    };
    let links = Links {
        modules,
        reports,
        layout,
        params,
        status,
        max_blocks,
        shares_device,
        sharing: builder.sharing,
        symmetric: Vec::new(),
        mappings,
        lent_by_address,
        arena,
        _seats: seats,
    };
    Ok((Some(links), table))
}

fn exchange_hellos(
    builder: &CommunicatorBuilder,
    identity: &DeviceIdentity,
    group: &mut Group,
) -> Result<Vec<Hello>, Error> {
    let StartEpochs { push, pull } = builder.start;
    let sources: String = peersum_kernels::SOURCES
        .iter()
        .map(|source| format!("{}\0{}\0", source.path, source.text))
        .collect();
    let own = Hello {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        abi_version: abi::PEERSUM_ABI_VERSION,
        kernel_sources: Digest::of(sources.as_bytes()).to_string(),
        max_bytes: builder.max_bytes,
        push_half_bytes: builder.push_half_bytes_or_default(),
        tables: builder
            .tables
            .as_ref()
            .map_or("shipped".to_owned(), |text| {
                Digest::of(text.as_bytes()).to_string()
            }),
        start_epochs: (push, pull),
        identity: identity.clone(),
        is_emulated: identity.arch.is_none(),
        token: unique_token(group),
        setup_timeout: builder.setup_timeout,
    };
    let hellos: Vec<Hello> = gather(group, "hello", &own, builder.setup_timeout)?;
    require_equal("version", &hellos, |hello| hello.version.clone())?;
    require_equal("ABI version", &hellos, |hello| {
        hello.abi_version.to_string()
    })?;
    require_equal("kernel sources", &hellos, |hello| {
        hello.kernel_sources.clone()
    })?;
    require_equal("max_bytes", &hellos, |hello| hello.max_bytes.to_string())?;
    require_equal("push_half_bytes", &hellos, |hello| {
        hello.push_half_bytes.to_string()
    })?;
    require_equal("dispatch tables", &hellos, |hello| hello.tables.clone())?;
    require_equal("start epochs", &hellos, |hello| {
        format!("{:?}", hello.start_epochs)
    })?;
    require_equal("device kind", &hellos, |hello| {
        if hello.is_emulated {
            "emulator"
        } else {
            "CUDA"
        }
        .to_owned()
    })?;
    Ok(hellos)
}

/// Compares a value over all ranks; every rank computes the same error from the same messages.
fn require_equal<T>(
    what: &'static str,
    messages: &[T],
    value: impl Fn(&T) -> String,
) -> Result<(), Error> {
    let mut values = messages.iter().map(value);
    let Some(first) = values.next() else {
        return Ok(());
    };
    match values.enumerate().find(|(_, other)| *other != first) {
        None => Ok(()),
        Some((index, other_value)) => Err(Error::SetupMismatch {
            what,
            rank: 0,
            value: first,
            other_rank: index as u32 + 1,
            other_value,
        }),
    }
}

fn exchange_seating(
    group: &mut Group,
    table: &DispatchTable,
    max_blocks: u32,
    timeout: Duration,
) -> Result<u32, Error> {
    let own = Seating {
        table_digest: table.digest().to_string(),
        max_blocks,
    };
    let seating: Vec<Seating> = gather(group, "seating", &own, timeout)?;
    require_equal("dispatch table", &seating, |seating| {
        seating.table_digest.clone()
    })?;
    Ok(seating
        .iter()
        .map(|seating| seating.max_blocks)
        .min()
        .unwrap_or(max_blocks))
}

/// Different for every group that this process ever takes part in.
fn unique_token(group: &Group) -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let text = format!(
        "{:?} {}",
        group.peers(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    );
    let digest = Digest::of(text.as_bytes()).to_string();
    u64::from_str_radix(&digest[..16], 16).unwrap_or_default()
}

fn gather<T: Serialize + serde::de::DeserializeOwned>(
    group: &mut Group,
    label: &'static str,
    own: &T,
    timeout: Duration,
) -> Result<Vec<T>, Error> {
    let message = serde_json::to_vec(own).unwrap_or_default();
    let messages = group.all_gather(label, &message, timeout)?;
    messages
        .iter()
        .enumerate()
        .map(|(rank, message)| parse(label, rank, message))
        .collect()
}

/// A message that does not parse comes from another version: that is what differs.
fn parse<T: serde::de::DeserializeOwned>(
    label: &'static str,
    rank: usize,
    message: &[u8],
) -> Result<T, Error> {
    serde_json::from_slice(message).map_err(|error| Error::SetupMismatch {
        what: "the set-up protocol",
        rank: rank as u32,
        value: format!("a {label} message that this version cannot read ({error})"),
        other_rank: rank as u32,
        other_value: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

fn load_modules<D: Device>(
    builder: &CommunicatorBuilder,
    device: &D,
    world_size: u32,
) -> Result<(Modules<D>, Vec<LoadReport>), Error> {
    let policy = match &builder.load_policy {
        Some(policy) => policy.clone(),
        None => LoadPolicy::from_env().map_err(|error| Error::InvalidSetting {
            setting: "environment",
            reason: error.to_string(),
        })?,
    };
    let world_size = WorldSize::try_from(world_size).map_err(|error| Error::InvalidSetting {
        setting: "world size",
        reason: error.to_string(),
    })?;
    let mut modules = Vec::new();
    let mut reports = Vec::new();
    for (family, dtype) in Modules::<D>::keys() {
        let (module, report) = device.load(
            &policy,
            ModuleKey {
                family,
                dtype,
                world_size,
            },
        )?;
        tracing::debug!(%report, "loaded");
        modules.push(module);
        reports.push(report);
    }
    Ok((Modules::new(modules), reports))
}

/// How many of the largest blocks of any kernel the device runs at once.
fn capacity_blocks<D: Device>(
    device: &D,
    identity: &DeviceIdentity,
    modules: &Modules<D>,
    threads: u32,
) -> Result<u32, Error> {
    let mut least = u32::MAX;
    for module in modules.iter() {
        for &algorithm in Algorithm::ALL {
            least = least.min(device.blocks_per_multiprocessor(module, algorithm, threads)?);
        }
    }
    Ok(identity.multiprocessors.saturating_mul(least))
}

/// Brings an arena into the state before the first call, and waits for it.
fn arm<D: Device>(
    device: &D,
    arena: u64,
    layout: &ArenaLayout,
    start: StartEpochs,
) -> Result<(), Error> {
    let words = (layout.total_bytes - layout.push_offset) as usize / 4;
    let push_words = (2 * layout.push_half_bytes) as usize / 4;
    // SAFETY: the ranges lie in the arena, `layout.total_bytes` long, which the caller holds; the last call waits for the stream.
    unsafe {
        device.write(arena, control_bytes(&initial_control(start)))?;
        device.fill(
            arena + layout.push_offset,
            abi::PEERSUM_SLOT_EMPTY,
            push_words,
        )?;
        // Staging is overwritten before it is read; zeros keep what a fault may expose free of other programs' data.
        device.fill(arena + layout.staging_offset, 0, words - push_words)?;
    }
    device.synchronize()?;
    Ok(())
}

/// This rank's memory and its peers', shared.
struct Shared<D: Device> {
    /// By rank, as this rank sees them.
    addresses: [u64; RANKS],
    mappings: Vec<D::Mapping>,
    /// Whether a peer uses this rank's memory without holding it: see [`Links::lent_by_address`].
    lent_by_address: bool,
}

/// Gives this rank's memory to all ranks and maps theirs. Returns every rank's address as this rank sees it.
fn share<D: Device>(
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
}
