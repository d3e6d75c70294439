//! Ranks that are the rows of one grid: a group for tools that let only one kernel of a process run
//! at a time.
//!
//! The kernels are the shipped ones except for their entry points (`PEERSUM_ONE_LAUNCH`), which
//! take the parameters of all ranks. This file does by hand what a communicator does, following
//! `abi.h`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use half::bf16;
use peersum::cuda::{Cuda, launch_function};
use peersum::cudarc::driver::{CudaFunction, CudaStream};
use peersum::cudarc::nvrtc::Ptx;
use peersum::device::{Device, MemorySharing, StatusRecord};
use peersum::dispatch::{Plan, Route};
use peersum::{ArenaLayout, Scalar, StartEpochs, control_bytes, initial_control};
use peersum_artifact::{Algorithm, Dtype, Family, ModuleKey, WorldSize};
use peersum_kernels::abi::{self, PeersumParams};

use crate::data::{self, Key, bytes_of};
use crate::grid::calls::{Call, Place, stride};
use crate::grid::slot::Slot;
use crate::memory::Guarded;

/// Flags of `sanitize-group`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct GroupArgs {
    /// The modules, compiled from the sources of the build `one-launch`.
    #[arg(long, value_name = "DIR")]
    cubins: PathBuf,
    /// World sizes.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "2,3"
    )]
    pub(super) world_size: Vec<u32>,
    /// The seed of data and order.
    #[arg(long, default_value_t = 1)]
    pub(super) seed: u64,
}

/// The type of all calls. 16-bit elements give units with partial words and tails.
pub(super) type T = bf16;

/// The kernels of all-gather, reduce-scatter and broadcast: family, type of the module, algorithm.
pub(super) const MOVES: [(Family, Dtype, Algorithm); 3] = [
    (Family::Move, Dtype::U8, Algorithm::AllGather),
    (Family::Push, Dtype::Bf16, Algorithm::ReduceScatter),
    (Family::Move, Dtype::U8, Algorithm::Broadcast),
];

const MAX_ELEMENTS: usize = 8192;
const UNIT_BYTES: usize = abi::PEERSUM_UNIT_BYTES as usize;
const TIMEOUT_NS: u64 = 20_000_000_000;

/// The parameters of all ranks. A kernel for fewer ranks reads the first ones.
#[repr(C)]
struct AllParams([PeersumParams; abi::PEERSUM_MAX_WORLD_SIZE as usize]);

pub(super) struct Rank {
    arena: Guarded<Cuda>,
    symmetric: Guarded<Cuda>,
    input: Guarded<Cuda>,
    output: Guarded<Cuda>,
    pub(super) residual: Guarded<Cuda>,
    pub(super) weight: Guarded<Cuda>,
    pub(super) fp8_values: Guarded<Cuda>,
    pub(super) fp8_scales: Guarded<Cuda>,
    status: StatusRecord,
}

impl Rank {
    /// Memory that is read, and memory that is written.
    pub(super) fn arrays(&self) -> (&Guarded<Cuda>, &Guarded<Cuda>) {
        (&self.input, &self.output)
    }

    fn memory(&self, place: Place) -> &Guarded<Cuda> {
        match place {
            Place::Input => &self.input,
            Place::Output => &self.output,
            Place::Symmetric => &self.symmetric,
        }
    }

    pub(super) fn slot(&self, rank: usize, call: &Call, place: Place) -> Slot {
        let base = self.memory(place).base();
        call.slot(base, place, rank as u32, 0, size_of::<T>())
    }
}

/// Allocates plain memory, of which the tools watch every byte.
fn memory(device: &Cuda, bytes: usize) -> Result<Guarded<Cuda>> {
    Guarded::new(device, bytes, MemorySharing::LegacyIpc)
}

/// An arena in which every call fits.
fn layout(world_size: u32) -> ArenaLayout {
    let bytes = MAX_ELEMENTS * size_of::<T>();
    let grouped = |units: usize| units.next_multiple_of(abi::PEERSUM_SLOT_GROUP as usize);
    let (units, ranks) = (bytes.div_ceil(UNIT_BYTES), world_size as usize);
    let slots = ranks * grouped(units).max(2 * grouped(units.div_ceil(ranks)));
    ArenaLayout::new(world_size, bytes as u64, (slots * UNIT_BYTES) as u64, 0)
}

pub(super) struct Group {
    pub(super) device: Cuda,
    stream: Arc<CudaStream>,
    pub(super) ranks: Vec<Rank>,
    layout: ArenaLayout,
    /// The entry point of each route.
    pub(super) functions: HashMap<Route, CudaFunction>,
    /// The one-shot push that normalises, and the kernel that normalises behind another.
    pub(super) fused: CudaFunction,
    pub(super) rows: CudaFunction,
    /// The first of these with a cluster for each row, if the device has clusters.
    pub(super) clustered: Option<CudaFunction>,
    /// Those of [`MOVES`].
    pub(super) moves: Vec<CudaFunction>,
}

impl Group {
    pub(super) fn new(
        args: &GroupArgs,
        stream: &Arc<CudaStream>,
        world_size: u32,
    ) -> Result<Group> {
        let device = <Cuda as Device>::open(stream)?;
        let layout = layout(world_size);
        let functions = Route::ALL
            .into_iter()
            .map(|route| {
                let load = (route.family(), T::DTYPE, route.algorithm());
                Ok((route, function(args, stream, world_size, load)?))
            })
            .collect::<Result<HashMap<_, _>>>()?;
        let norm = |algorithm| {
            function(
                args,
                stream,
                world_size,
                (Family::Norm, T::DTYPE, algorithm),
            )
        };
        let has_clusters = stream.context().compute_capability()? >= (9, 0);
        let clustered = has_clusters.then(|| norm(Algorithm::Clustered));
        let array = stride(MAX_ELEMENTS, size_of::<T>());
        let ranks = (0..world_size)
            .map(|_| {
                Ok(Rank {
                    arena: armed(&device, &layout)?,
                    symmetric: memory(&device, array)?,
                    input: memory(&device, array)?,
                    output: memory(&device, array)?,
                    residual: memory(&device, array)?,
                    weight: memory(&device, array)?,
                    fp8_values: memory(&device, array)?,
                    fp8_scales: memory(&device, array)?,
                    status: device.allocate_status()?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Group {
            device,
            stream: stream.clone(),
            ranks,
            layout,
            functions,
            fused: norm(Algorithm::OneShot)?,
            rows: norm(Algorithm::Rows)?,
            clustered: clustered.transpose()?,
            moves: MOVES
                .into_iter()
                .map(|load| function(args, stream, world_size, load))
                .collect::<Result<_>>()?,
        })
    }

    /// Makes one call and compares every bit.
    pub(super) fn check(&self, plan: Plan, call: &Call, seed: u64) -> Result<()> {
        let keys = Key::of_all(seed, self.ranks.len() as u32);
        let expected: Vec<T> = data::expected(call.content, &keys, call.elements);
        self.write_inputs(call, &keys)?;
        let function = &self.functions[&plan.route];
        self.launch(function, plan, 1, |own| self.params(plan.route, call, own))?;
        for (index, rank) in self.ranks.iter().enumerate() {
            self.compare(index, rank.slot(index, call, call.target), &expected)
                .with_context(|| format!("seed {seed}"))?;
        }
        Ok(())
    }

    /// Poisons what the call reads and writes, and writes its inputs.
    pub(super) fn write_inputs(&self, call: &Call, keys: &[Key]) -> Result<()> {
        for ((index, rank), &key) in self.ranks.iter().enumerate().zip(keys) {
            let input: Vec<T> = data::input(call.content, key, call.elements);
            rank.memory(call.target).poison(&self.device)?;
            let source = rank.memory(call.source);
            source.poison(&self.device)?;
            let start = rank.slot(index, call, call.source).start;
            source.write(&self.device, start, bytes_of(&input))?;
        }
        Ok(())
    }

    /// Fails unless the rank's call has succeeded and its array in this slot is as expected.
    pub(super) fn compare<E: Scalar>(
        &self,
        index: usize,
        slot: Slot,
        expected: &[E],
    ) -> Result<()> {
        if let Some(failure) = self.ranks[index].status.failure() {
            bail!("rank {index} failed: {failure:?}");
        }
        let mut memory = vec![0; slot.guarded_bytes];
        // SAFETY: the slot lies within its memory.
        unsafe { self.device.read(slot.base, &mut memory)? };
        if let Some(wrong) = slot.compare(&memory, bytes_of(expected), size_of::<E>()) {
            bail!("rank {index}: {wrong}");
        }
        Ok(())
    }

    /// Launches an entry point for all ranks, in clusters of so many blocks, and waits for it.
    pub(super) fn launch(
        &self,
        function: &CudaFunction,
        plan: Plan,
        cluster: u32,
        params_of: impl Fn(usize) -> PeersumParams,
    ) -> Result<()> {
        let mut params = AllParams([PeersumParams::default(); 8]);
        for (index, params) in (0..self.ranks.len()).zip(&mut params.0) {
            *params = params_of(index);
        }
        let world_size = self.ranks.len() as u32;
        let (stream, function) = (self.stream.cu_stream(), function.cu_function());
        let grid = [plan.blocks, world_size, cluster];
        let threads = plan.threads + world_size;
        self.stream.context().bind_to_thread()?;
        // SAFETY: the parameters are those that the entry points of this build take; every address
        // in them is of an allocation of this group, which outlives the stream's work: the next
        // line waits for it.
        unsafe { launch_function(stream, function, grid, threads, false, &params)? };
        self.stream.synchronize()?;
        Ok(())
    }

    pub(super) fn params(&self, route: Route, call: &Call, own: usize) -> PeersumParams {
        let mut arena = [0; abi::PEERSUM_MAX_WORLD_SIZE as usize];
        let mut source = arena;
        let count = self.ranks.len();
        for (index, peer) in self.ranks.iter().enumerate() {
            arena[(index + count - own) % count] = peer.arena.base();
            source[index] = match route.is_symmetric() {
                true => peer.slot(index, call, Place::Symmetric).address(),
                false => peer.arena.base(),
            };
        }
        let is_aligned = |address: &u64| address.is_multiple_of(UNIT_BYTES as u64);
        let mut flags = abi::PEERSUM_FLAG_ONE_DEVICE;
        if route.is_symmetric() && source[..count].iter().all(is_aligned) {
            flags |= abi::PEERSUM_FLAG_SOURCE_ALIGNED;
        }
        let rank = &self.ranks[own];
        let bit = |set: bool, shift: u32| u64::from(set) << shift;
        let is_pull = route.family() == Family::Pull;
        PeersumParams {
            arena,
            source,
            input: rank.slot(own, call, call.source).address(),
            output: rank.slot(own, call, call.target).address(),
            elements: call.elements as u64,
            push_offset: self.layout.push_offset,
            push_half_bytes: self.layout.push_half_bytes,
            staging_offset: self.layout.staging_offset,
            staging_half_bytes: self.layout.staging_half_bytes,
            status: rank.status.device_address,
            timeout_ns: TIMEOUT_NS,
            header: bit(route.is_symmetric(), abi::PEERSUM_HEADER_SOURCE_SHIFT)
                | bit(is_pull, abi::PEERSUM_HEADER_FAMILY_SHIFT)
                | (route.algorithm() as u64) << abi::PEERSUM_HEADER_ALGORITHM_SHIFT
                | (T::DTYPE as u64) << abi::PEERSUM_HEADER_DTYPE_SHIFT
                | (call.elements * size_of::<T>()) as u64,
            detail: bit(route.is_symmetric(), abi::PEERSUM_DETAIL_BUFFER_SHIFT),
            rank: own as u32,
            flags,
            ..PeersumParams::default()
        }
    }
}

fn function(
    args: &GroupArgs,
    stream: &Arc<CudaStream>,
    world_size: u32,
    (family, dtype, algorithm): (Family, Dtype, Algorithm),
) -> Result<CudaFunction> {
    let context = stream.context();
    let (major, minor) = context.compute_capability()?;
    let key = ModuleKey {
        family,
        dtype,
        world_size: WorldSize::try_from(world_size)?,
    };
    let path = args
        .cubins
        .join(format!("{}.sm_{major}{minor}.cubin", key.name()));
    let cubin = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let module = context.load_module(Ptx::from_binary(cubin))?;
    Ok(module.load_function(&key.entry_point(algorithm))?)
}

/// An arena in its state before the first call. The staging area is not initialised, so that the
/// tools find reads that come before the data are staged.
fn armed(device: &Cuda, layout: &ArenaLayout) -> Result<Guarded<Cuda>> {
    let arena = memory(device, layout.total_bytes as usize)?;
    let control = initial_control(StartEpochs::default());
    let (push, words) = (layout.push_offset, 2 * layout.push_half_bytes as usize / 4);
    // SAFETY: the arena is as large as the layout says.
    unsafe {
        device.write(arena.base(), control_bytes(&control))?;
        device.fill(arena.base() + push, abi::PEERSUM_SLOT_EMPTY, words)?;
    }
    Ok(arena)
}
