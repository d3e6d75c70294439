//! From settings to a communicator: meet, load, allocate, arm, share, meet again.

use std::collections::BTreeSet;

use peersum_artifact::WorldSize;
use peersum_kernels::abi::{self, PeersumParams};

use super::agreement::{agree_on_limits, exchange_settings};
use super::alone::Alone;
use super::builder::CommunicatorBuilder;
use super::connected::Connected;
use super::layout::{ArenaLayout, RANKS, StartEpochs, control_bytes, initial_control};
use super::modules::Modules;
use super::occupancy::{GroupOnDevice, Occupancy, cluster_limits, thread_limits};
use super::probe::{nanoseconds, probe_bytes};
use super::processes;
use super::sharing::share;
use super::state::Communicator;
use super::step::SetupStep;
use super::stream_claim::StreamClaim;
use crate::cuda::Cuda;
use crate::device::{Device, DeviceIdentity, DeviceStream};
use crate::dispatch::{DispatchTable, DispatchTables, LaunchLimits, Topology};
use crate::error::Error;
use crate::loader::{LoadPolicy, LoadReport};
use crate::rendezvous::Group;

/// The largest `max_bytes` and `push_half_bytes`: units of 16 bytes are counted in 31 bits. An
/// arena of both then has a size that every 64-bit type holds.
const MOST_BYTES: u64 = (32 << 30) - 1;

impl Communicator<Cuda> {
    /// Starts the settings of a communicator. The device is that of the stream that
    /// [`CommunicatorBuilder::build`] is given.
    pub fn builder() -> CommunicatorBuilder {
        CommunicatorBuilder::new()
    }
}

impl CommunicatorBuilder {
    /// Meets the other ranks, loads every module, allocates and shares all memory. Collective:
    /// every rank calls it.
    ///
    /// `stream` is this communicator's alone among communicators, and not the legacy default
    /// stream; other work of the program may use it. If a process has several communicators on a
    /// device, or several ranks, set `CUDA_DEVICE_MAX_CONNECTIONS` before its CUDA context is
    /// created, to the number of streams that it uses on that device or more (32 is the most): see
    /// the [environment](crate#environment). Every later call is enqueued on it. Nothing is
    /// allocated after this but by [`Communicator::symmetric_alloc`].
    ///
    /// # Errors
    /// [`Error::Rendezvous`] if a rank does not arrive or is lost, [`Error::SetupMismatch`] on
    /// every rank if settings differ, [`Error::Device`] if a library, a module or memory is not
    /// available, [`Error::NotCoResident`] for ranks that share a device, [`Error::DeviceFull`] for
    /// communicators that do, [`Error::StreamTaken`], [`Error::InvalidSetting`], [`Error::Table`].
    pub fn build<S: DeviceStream>(mut self, stream: &S) -> Result<Communicator<S::Device>, Error> {
        #[cfg(feature = "nccl")]
        if let Some(across_hosts) = self.above_range.as_ref().and_then(|nccl| nccl.across_hosts) {
            return super::nccl_path::build_across_hosts(self, across_hosts, stream);
        }
        let rendezvous = self.rendezvous.take().ok_or_else(|| {
            Error::invalid(
                "rendezvous",
                "every rank needs one; `Rendezvous::from_env()` reads what torchrun, mpirun and \
                 srun set",
            )
        })?;
        self.check_settings()?;
        let device = S::Device::open(stream)?;
        let claim = StreamClaim::new::<S::Device>(device.stream_id())?;
        let identity = device.identity()?;
        let (rank, world_size) = (rendezvous.rank(), rendezvous.world_size());
        let mut group = rendezvous.join(self.setup_timeout)?;
        SetupStep::Joined.reached(rank);
        let setup = Setup {
            builder: &self,
            device: &device,
            identity: &identity,
            group: &mut group,
        };
        let (resources, table) = match setup.connect() {
            Ok(connected) => connected,
            Err(error) => {
                // The others learn why at once, instead of waiting for their deadline.
                group.abandon(&error.to_string());
                return Err(error);
            }
        };
        let mut communicator =
            Communicator::unconnected(&self, device, identity, table, claim, rank, world_size);
        match resources {
            RankResources::Connected(connected) => {
                communicator.handle.status = Some(connected.status.clone());
                communicator.connected = Some(*connected);
            }
            RankResources::Alone(alone) => communicator.alone = alone,
        }
        communicator.group = Some(group);
        communicator.probe_co_residency()?;
        #[cfg(feature = "nccl")]
        communicator.connect_nccl(&self)?;
        Ok(communicator)
    }

    fn check_settings(&self) -> Result<(), Error> {
        let (max_bytes, push_half) = (self.max_bytes, self.push_half_bytes_or_default());
        if !(1..=MOST_BYTES).contains(&max_bytes) {
            let reason = format!("{max_bytes} bytes; from 1 byte to less than 32 GiB are possible");
            return Err(Error::invalid("max_bytes", reason));
        }
        if push_half > MOST_BYTES {
            let reason = format!("{push_half} bytes; less than 32 GiB are possible");
            return Err(Error::invalid("push_half_bytes", reason));
        }
        Ok(())
    }

    /// Loads every module for groups of this size.
    fn load_modules<D: Device>(
        &self,
        device: &D,
        world_size: WorldSize,
    ) -> Result<(Modules<D>, Vec<LoadReport>), Error> {
        let policy = match &self.load_policy {
            Some(policy) => policy.clone(),
            None => LoadPolicy::from_env()
                .map_err(|error| Error::invalid("environment", error.to_string()))?,
        };
        let keys: Vec<_> = Modules::<D>::keys(world_size).collect();
        let loaded = device.load(&policy, &keys)?;
        let (modules, reports): (_, Vec<LoadReport>) = loaded.into_iter().unzip();
        for report in &reports {
            tracing::debug!(%report, "loaded");
        }
        Ok((Modules::new(world_size, modules), reports))
    }

    /// What a rank needs that exchanges nothing by peersum's kernels, or why there is none: such a
    /// rank can do without, as long as it normalises nothing.
    pub(super) fn load_alone<D: Device>(
        &self,
        device: &D,
        identity: &DeviceIdentity,
    ) -> Result<Alone<D>, String> {
        self.try_load_alone(device, identity)
            .map_err(|error| error.to_string())
    }

    fn try_load_alone<D: Device>(
        &self,
        device: &D,
        identity: &DeviceIdentity,
    ) -> Result<Alone<D>, Error> {
        let (modules, reports) = self.load_modules(device, WorldSize::ONE)?;
        let own = GroupOnDevice {
            device: identity,
            group: 0,
            ranks: 1,
        };
        // Its blocks wait for nobody, so they need no seats.
        let blocks = self.max_blocks.unwrap_or_else(|| own.default_share());
        let limits = thread_limits(device, &modules, blocks.clamp(1, own.most()))?;
        Ok(Alone {
            modules,
            limits,
            reports,
        })
    }
}

/// What a rank holds once it is set up.
enum RankResources<D: Device> {
    Connected(Box<Connected<D>>),
    Alone(Result<Alone<D>, String>),
}

/// What a rank has while it is set up.
struct Setup<'a, D: Device> {
    builder: &'a CommunicatorBuilder,
    device: &'a D,
    identity: &'a DeviceIdentity,
    group: &'a mut Group,
}

/// What a rank knows once all ranks have told their settings.
struct Meeting<'a> {
    table: DispatchTable,
    on_device: GroupOnDevice<'a>,
    /// Whether any two ranks of the group use the same device.
    shares_device: bool,
}

impl<'a, D: Device> Setup<'a, D> {
    /// What this rank then holds, and the table that the ranks agree on.
    fn connect(mut self) -> Result<(RankResources<D>, DispatchTable), Error> {
        let (builder, device) = (self.builder, self.device);
        let timeout = builder.setup_timeout;
        let met = self.meet()?;
        let (rank, world_size) = (self.group.rank(), self.group.world_size());
        if world_size == 1 {
            let alone = builder.load_alone(device, self.identity);
            return Ok((RankResources::Alone(alone), met.table));
        }
        let size = WorldSize::try_from(world_size)
            .map_err(|error| Error::invalid("world size", error.to_string()))?;
        let (modules, reports) = builder.load_modules(device, size)?;
        SetupStep::Loaded.reached(rank);
        let (limits, occupancy) = self.occupy(&modules, &met)?;

        let probe = match met.shares_device {
            true => probe_bytes(&limits),
            false => 0,
        };
        let (layout, arena) = self.allocate(probe)?;
        let address = device.allocation_address(&arena);
        arm(device, address, &layout, builder.start)?;
        SetupStep::Armed.reached(rank);
        // A failure from here on leaks the arena if peers may use it by its address.
        let bytes = layout.total_bytes;
        let arena = share(device, self.group, Ok(arena), bytes, "arena", timeout)?;
        // The last thing that can fail on this rank alone: behind the barrier the peers use the
        // arena.
        let status = device.allocate_status()?;
        SetupStep::Mapped.reached(rank);
        // Slots are armed before the first peer stores to them.
        let processes = processes::meet(self.group, "armed", timeout)?;

        // The device's scope holds the threads of one process.
        let is_one_device = met.on_device.ranks == world_size
            && (0..world_size).all(|rank| self.group.is_same_process(rank));
        let params = PeersumParams {
            arena: rotated(&arena.addresses, rank, world_size),
            source: arena.addresses,
            push_offset: layout.push_offset,
            push_half_bytes: layout.push_half_bytes,
            staging_offset: layout.staging_offset,
            staging_half_bytes: layout.staging_half_bytes,
            status: status.device_address,
            timeout_ns: nanoseconds(builder.timeout),
            rank,
            flags: match is_one_device {
                true => abi::PEERSUM_FLAG_ONE_DEVICE,
                false => 0,
            },
            ..PeersumParams::default()
        };
        let connected = Connected {
            modules,
            reports,
            layout,
            params,
            arena,
            status,
            limits,
            sharing: builder.sharing,
            symmetric: Vec::new(),
            processes,
            _occupancy: occupancy,
        };
        Ok((RankResources::Connected(Box::new(connected)), met.table))
    }

    /// Compares the settings of all ranks, and chooses the dispatch table for what they run on.
    fn meet(&mut self) -> Result<Meeting<'a>, Error> {
        let identity = self.identity;
        let ranks = exchange_settings(self.builder, identity, self.group)?;
        let uuids = || ranks.iter().map(|rank| rank.device.uuid);
        let devices: BTreeSet<[u8; 16]> = uuids().collect();
        let shares_device = devices.len() < ranks.len();
        #[cfg(feature = "nccl")]
        self.builder.refuse_nccl_on_shared_devices(shares_device)?;
        let topology = match shares_device {
            _ if identity.is_emulated() => Topology::Emulator,
            true => Topology::Shared,
            false => Topology::Peer,
        };
        // A table for one architecture serves a group of that architecture alone.
        let is_everywhere = ranks.iter().all(|rank| rank.device.arch == identity.arch);
        let arch = identity.arch.filter(|_| is_everywhere);
        let tables = match &self.builder.tables {
            Some(text) => DispatchTables::parse(text)?,
            None => DispatchTables::shipped()?,
        };
        // A group of one launches nothing; any table will do.
        let table_size = self.group.world_size().max(2);
        Ok(Meeting {
            table: tables.choose(arch, table_size, topology)?,
            on_device: GroupOnDevice {
                device: identity,
                group: ranks.first().map_or(0, |rank| rank.token),
                ranks: uuids().filter(|uuid| *uuid == identity.uuid).count() as u32,
            },
            shares_device,
        })
    }

    /// The largest launches that all ranks can make, and this rank's seats for them on its device.
    fn occupy(
        &mut self,
        modules: &Modules<D>,
        met: &Meeting<'_>,
    ) -> Result<(LaunchLimits, Occupancy), Error> {
        let own = &met.on_device;
        let limits = thread_limits(self.device, modules, abi::PEERSUM_MAX_BLOCKS)?;
        let blocks = match self.builder.max_blocks {
            Some(blocks) => blocks.clamp(1, own.most()),
            None => met.table.largest_grid(&limits).min(own.default_share()),
        };
        let occupancy = own.reserve(blocks)?;
        let limits = cluster_limits(self.device, modules, limits.with_blocks(blocks))?;
        let timeout = self.builder.setup_timeout;
        let limits = agree_on_limits(self.group, &met.table, limits, timeout)?;
        occupancy.shrink_to(limits.blocks());
        Ok((limits, occupancy))
    }

    /// This rank's arena, and where things lie in it.
    fn allocate(&self, probe_bytes: u64) -> Result<(ArenaLayout, D::Allocation), Error> {
        let layout = ArenaLayout::new(
            self.group.world_size(),
            self.builder.max_bytes,
            self.builder.push_half_bytes_or_default(),
            probe_bytes,
        );
        // More than an address space is refused as more memory than there is.
        let bytes = usize::try_from(layout.total_bytes).unwrap_or(usize::MAX);
        let arena = self.device.allocate_shared(bytes, self.builder.sharing)?;
        Ok((layout, arena))
    }
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
    let slots = arena + layout.push_offset;
    // SAFETY: the ranges lie in the arena, `layout.total_bytes` long, which the caller holds; the
    // last call waits for the stream.
    unsafe {
        device.write(arena, control_bytes(&initial_control(start)))?;
        device.fill(slots, abi::PEERSUM_SLOT_EMPTY, push_words)?;
        // Staging is overwritten before it is read; zeros keep what a fault may expose free of
        // other programs' data.
        device.fill(arena + layout.staging_offset, 0, words - push_words)?;
    }
    device.synchronize()?;
    Ok(())
}

/// The addresses of rank, rank + 1, ... and around, as [`PeersumParams::arena`] has them.
fn rotated(addresses: &[u64; RANKS], rank: u32, world_size: u32) -> [u64; RANKS] {
    std::array::from_fn(|step| match step as u32 {
        step if step < world_size => addresses[((rank + step) % world_size) as usize % RANKS],
        _ => 0,
    })
}
