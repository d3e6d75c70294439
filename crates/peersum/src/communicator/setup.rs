//! From settings to a communicator: meet, compare, allocate, share, arm, meet again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use peersum_artifact::{ModuleKey, WorldSize};
use peersum_kernels::abi::{self, PeersumParams};

use super::agreement::{exchange_hellos, exchange_seating};
use super::builder::{CommunicatorBuilder, StreamClaim};
use super::layout::{ArenaLayout, StartEpochs, control_bytes, initial_control};
use super::links::{Links, RANKS};
use super::modules::Modules;
use super::probe::{nanoseconds, probe_bytes};
use super::sharing::{Shared, share};
use super::step::SetupStep;
use super::{Communicator, processes, seats};
use crate::device::{Device, DeviceIdentity, DeviceStream};
use crate::dispatch::{DispatchTable, Link};
use crate::error::Error;
use crate::loader::{LoadPolicy, LoadReport};
use crate::rendezvous::{Group, ProcessId};

/// Communicators of this process so far.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// The largest `max_bytes` and `push_half_bytes`: units of 16 bytes are counted in 31 bits. An
/// arena of both then has a size that every 64-bit type holds.
const MOST_BYTES: u64 = (32 << 30) - 1;

/// A communicator that knows its own device and no other rank yet.
pub(super) fn unconnected<D: Device>(
    builder: &CommunicatorBuilder,
    device: D,
    identity: DeviceIdentity,
    table: DispatchTable,
    claim: StreamClaim,
    rank: u32,
    world_size: u32,
) -> Communicator<D> {
    Communicator {
        links: None,
        #[cfg(feature = "nccl")]
        nccl: None,
        device,
        group: None,
        process: ProcessId::current().ok(),
        rank,
        world_size,
        id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
        identity,
        table,
        forced: None,
        pdl: builder.pdl,
        timeout: builder.timeout,
        setup_timeout: builder.setup_timeout,
        failure: Arc::default(),
        capturing: false,
        allow_outside_capture: builder.allow_outside_capture,
        _stream_claim: claim,
        not_sync: std::marker::PhantomData,
    }
}

pub(super) fn build<S: DeviceStream>(
    mut builder: CommunicatorBuilder,
    stream: &S,
) -> Result<Communicator<S::Device>, Error> {
    #[cfg(feature = "nccl")]
    if let Some(across_hosts) = builder
        .above_range
        .as_ref()
        .and_then(|nccl| nccl.spanning())
    {
        return super::nccl_path::build_across_hosts(builder, across_hosts, stream);
    }
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
    let (max_bytes, push_half_bytes) = (builder.max_bytes, builder.push_half_bytes_or_default());
    if !(1..=MOST_BYTES).contains(&max_bytes) {
        return Err(Error::InvalidSetting {
            setting: "max_bytes",
            reason: format!("{max_bytes} bytes; from 1 byte to less than 32 GiB are possible"),
        });
    }
    if push_half_bytes > MOST_BYTES {
        return Err(Error::InvalidSetting {
            setting: "push_half_bytes",
            reason: format!("{push_half_bytes} bytes; less than 32 GiB are possible"),
        });
    }
    let device = S::Device::open(stream)?;
    let claim = StreamClaim::new::<S::Device>(device.stream_id())?;
    let identity = device.identity()?;
    let mut group = rendezvous.join(builder.setup_timeout)?;
    SetupStep::Joined.reached(rank);
    match connect(&builder, &device, &identity, &mut group, world_size) {
        Ok((links, table)) => {
            let mut communicator =
                unconnected(&builder, device, identity, table, claim, rank, world_size);
            communicator.links = links;
            communicator.group = Some(group);
            if communicator
                .links
                .as_ref()
                .is_some_and(|links| links.shares_device)
            {
                communicator.probe_co_residency()?;
            }
            #[cfg(feature = "nccl")]
            communicator.connect_nccl(&builder)?;
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
    #[cfg(feature = "nccl")]
    builder.refuse_nccl_on_shared_devices(shares_device)?;
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
    SetupStep::Loaded.reached(group.rank());
    let place = seats::Place {
        device: identity,
        group: hellos.first().map_or(0, |hello| hello.token),
        ranks: ranks_on_device,
    };
    let limits = seats::thread_limits(device, &modules, abi::PEERSUM_MAX_BLOCKS)?;
    let blocks = match builder.max_blocks {
        Some(blocks) => blocks.clamp(1, place.most()),
        None => table.largest_grid(&limits).min(place.default_share()),
    };
    let seats = place.reserve(blocks)?;
    let own_limits = limits.with_blocks(blocks);
    let limits = exchange_seating(group, &table, own_limits, builder.setup_timeout)?;
    seats.shrink_to(limits.blocks());

    let probe = if shares_device {
        probe_bytes(&limits)
    } else {
        0
    };
    let layout = ArenaLayout::new(
        world_size,
        builder.max_bytes,
        builder.push_half_bytes_or_default(),
        probe,
    );
    let bytes = usize::try_from(layout.total_bytes).map_err(|_| Error::InvalidSetting {
        setting: "max_bytes",
        reason: format!(
            "an arena of {} bytes is larger than an address space",
            layout.total_bytes
        ),
    })?;
    let arena = device.allocate_shared(bytes, builder.sharing)?;
    arm(
        device,
        device.allocation_address(&arena),
        &layout,
        builder.start,
    )?;
    SetupStep::Armed.reached(group.rank());
    // Whatever fails from here on leaks the arena if peers may use it by its address.
    let Shared {
        memory: arena,
        addresses,
        mappings,
    } = share(
        device,
        group,
        Ok(arena),
        layout.total_bytes,
        "arena",
        builder.setup_timeout,
    )?;
    // The last thing that can fail on this rank alone: behind the barrier the peers use the arena.
    let status = device.allocate_status()?;
    SetupStep::Mapped.reached(group.rank());
    // Slots are armed before the first peer stores to them.
    let processes = processes::meet(group, "armed", builder.setup_timeout)?;

    // The device's scope holds the threads of one process.
    let is_one_device =
        ranks_on_device == world_size && (0..world_size).all(|rank| group.is_same_process(rank));
    let params = PeersumParams {
        arena: rotated(&addresses, group.rank(), group.world_size()),
        source: addresses,
        push_offset: layout.push_offset,
        push_half_bytes: layout.push_half_bytes,
        staging_offset: layout.staging_offset,
        staging_half_bytes: layout.staging_half_bytes,
        status: status.device_address,
        timeout_ns: nanoseconds(builder.timeout),
        rank: group.rank(),
        flags: if is_one_device {
            abi::PEERSUM_FLAG_ONE_DEVICE
        } else {
            0
        },
        ..PeersumParams::default()
    };
    let links = Links {
        modules,
        reports,
        layout,
        params,
        arenas: addresses,
        status,
        limits,
        shares_device,
        sharing: builder.sharing,
        symmetric: Vec::new(),
        mappings,
        processes,
        arena,
        _seats: seats,
    };
    Ok((Some(links), table))
}

/// The addresses of rank, rank + 1, ... and around, as [`PeersumParams::arena`] has them.
fn rotated(addresses: &[u64; RANKS], rank: u32, world_size: u32) -> [u64; RANKS] {
    std::array::from_fn(|step| {
        let step = step as u32;
        if step < world_size {
            addresses[((rank + step) % world_size) as usize % RANKS]
        } else {
            0
        }
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
