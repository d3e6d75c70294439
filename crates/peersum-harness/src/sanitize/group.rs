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
use peersum::cuda::{Cuda, launch_function};
use peersum::cudarc::driver::{CudaFunction, CudaStream};
use peersum::cudarc::nvrtc::Ptx;
use peersum::device::{Device, MemorySharing, StatusRecord};
use peersum::dispatch::{Plan, Route};
use peersum::{ArenaLayout, Scalar, StartEpochs, control_bytes, initial_control};
use peersum_artifact::{Algorithm, Dtype, Family, ModuleKey, WorldSize};
use peersum_kernels::abi::{self, PeersumParams};

use super::calls::{GroupCall, T};
use super::moves::{MOVES, kernel_of, move_params};
use super::rows::norm_params;
use crate::call::{Array, CallKind, RankCall, Role, Slot, stride};
use crate::data::Key;
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

const MAX_ELEMENTS: usize = 8192;
const UNIT_BYTES: usize = abi::PEERSUM_UNIT_BYTES as usize;
const TIMEOUT_NS: u64 = 20_000_000_000;

/// The parameters of all ranks. A kernel for fewer ranks reads the first ones.
#[repr(C)]
struct AllParams([PeersumParams; abi::PEERSUM_MAX_WORLD_SIZE as usize]);

struct Rank {
    arena: Guarded<Cuda>,
    symmetric: Guarded<Cuda>,
    /// One for each role.
    regions: Vec<Guarded<Cuda>>,
    status: StatusRecord,
}

impl Rank {
    fn memory(&self, array: &Array) -> &Guarded<Cuda> {
        match array.is_symmetric {
            true => &self.symmetric,
            false => &self.regions[array.role as usize],
        }
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
    device: Cuda,
    stream: Arc<CudaStream>,
    ranks: Vec<Rank>,
    layout: ArenaLayout,
    kernels: HashMap<Kernel, CudaFunction>,
    /// Whether a row may have a cluster.
    pub(super) has_clusters: bool,
}

/// A kernel: its family, the type of its module, and its algorithm.
type Kernel = (Family, Dtype, Algorithm);

/// Of two kernels of rows, one normalises what it has summed, the other what another has.
const FUSED: Kernel = (Family::Norm, T::DTYPE, Algorithm::OneShot);
const ROWS: Kernel = (Family::Norm, T::DTYPE, Algorithm::Rows);
/// The first of these with a cluster for each row.
const CLUSTERED: Kernel = (Family::Norm, T::DTYPE, Algorithm::Clustered);

fn kernel_of_route(route: Route) -> Kernel {
    (route.family(), T::DTYPE, route.algorithm())
}

impl Group {
    pub(super) fn new(
        args: &GroupArgs,
        stream: &Arc<CudaStream>,
        world_size: u32,
    ) -> Result<Group> {
        let device = <Cuda as Device>::open(stream)?;
        let layout = layout(world_size);
        let has_clusters = stream.context().compute_capability()? >= (9, 0);
        let kernels = Route::ALL.map(kernel_of_route).into_iter().chain(MOVES);
        let norms = [FUSED, ROWS].into_iter();
        let norms = norms.chain(has_clusters.then_some(CLUSTERED));
        let kernels = kernels.chain(norms).map(|kernel| {
            let function = function(args, stream, world_size, kernel)?;
            Ok((kernel, function))
        });
        let kernels = kernels.collect::<Result<_>>()?;
        let array = || memory(&device, stride(MAX_ELEMENTS * size_of::<T>()));
        let ranks = (0..world_size)
            .map(|_| {
                Ok(Rank {
                    arena: armed(&device, &layout)?,
                    symmetric: array()?,
                    regions: Role::ALL
                        .map(|_| array())
                        .into_iter()
                        .collect::<Result<_>>()?,
                    status: device.allocate_status()?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Group {
            device,
            stream: stream.clone(),
            ranks,
            layout,
            kernels,
            has_clusters,
        })
    }

    /// Makes one call and compares every bit.
    pub(super) fn check(&self, call: &GroupCall, seed: u64) -> Result<()> {
        let keys = Key::of_all(seed, self.ranks.len() as u32);
        let of_rank = |rank| call.of_rank(&keys, rank, seed);
        let calls: Vec<RankCall> = (0..keys.len() as u32).map(of_rank).collect();
        for (index, array) in arrays(&calls) {
            let memory = self.ranks[index].memory(array);
            memory.poison(&self.device)?;
            if let Some((first, values)) = &array.before {
                let start = self.slot(index, array).start + first * array.element_bytes;
                memory.write(&self.device, start, &values.bytes())?;
            }
        }
        self.launch_all(call, &calls)?;
        for (index, array) in arrays(&calls) {
            self.compare(index, array)
                .with_context(|| format!("the {}; seed {seed}", array.role))?;
        }
        Ok(())
    }

    fn launch_all(&self, call: &GroupCall, calls: &[RankCall]) -> Result<()> {
        let (plan, cluster) = (call.plan, call.cluster);
        let params = |own: usize| {
            let address = |role| self.address(own, &calls[own], role);
            let params = self.params(plan.route, calls, own);
            match calls[own].kind {
                CallKind::AllReduce => params,
                CallKind::Norm(kind) => norm_params(params, &kind, address),
                CallKind::Other(kind) => move_params(params, kind),
            }
        };
        let of_route = kernel_of_route(plan.route);
        match calls[0].kind {
            CallKind::Other(kind) => self.launch(kernel_of(kind), plan, 1, params),
            CallKind::AllReduce => self.launch(of_route, plan, 1, params),
            CallKind::Norm(_) if cluster > 1 => self.launch(CLUSTERED, plan, cluster, params),
            CallKind::Norm(_) if plan.route == Route::PushOneShot => {
                self.launch(FUSED, plan, 1, params)
            }
            CallKind::Norm(_) => {
                self.launch(of_route, plan, 1, params)?;
                let of_output = |own: usize| {
                    let params = params(own);
                    PeersumParams {
                        input: params.output,
                        ..params
                    }
                };
                self.launch(ROWS, plan, 1, of_output)
            }
        }
    }

    fn slot(&self, rank: usize, array: &Array) -> Slot {
        let base = self.ranks[rank].memory(array).base();
        array.slot(base, rank as u32, 0)
    }

    /// Where a rank's array of this role lies, if its call has one.
    fn address(&self, rank: usize, call: &RankCall, role: Role) -> Option<u64> {
        let array = call.array(role)?;
        Some(self.slot(rank, array).address())
    }

    /// Fails unless the rank's call has succeeded and its array is as expected.
    fn compare(&self, rank: usize, array: &Array) -> Result<()> {
        if let Some(failure) = self.ranks[rank].status.failure() {
            bail!("rank {rank} failed: {failure:?}");
        }
        let slot = self.slot(rank, array);
        let mut memory = vec![0; slot.guarded_bytes];
        // SAFETY: the slot lies within its memory.
        unsafe { self.device.read(slot.base, &mut memory)? };
        match slot.compare(&memory, &array.after.bytes(), array.element_bytes) {
            Some(wrong) => bail!("rank {rank}: {wrong}"),
            None => Ok(()),
        }
    }

    /// Launches a kernel for all ranks, in clusters of so many blocks, and waits for it.
    fn launch(
        &self,
        kernel: Kernel,
        plan: Plan,
        cluster: u32,
        params_of: impl Fn(usize) -> PeersumParams,
    ) -> Result<()> {
        let mut params = AllParams([PeersumParams::default(); 8]);
        for (index, params) in (0..self.ranks.len()).zip(&mut params.0) {
            *params = params_of(index);
        }
        let world_size = self.ranks.len() as u32;
        let function = &self.kernels[&kernel];
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

    /// What a call has of an all-reduce by this route.
    fn params(&self, route: Route, calls: &[RankCall], own: usize) -> PeersumParams {
        let mut arena = [0; abi::PEERSUM_MAX_WORLD_SIZE as usize];
        let mut source = arena;
        let count = self.ranks.len();
        for (index, peer) in self.ranks.iter().enumerate() {
            arena[(index + count - own) % count] = peer.arena.base();
            let mut arrays = calls[index].arrays.iter();
            source[index] = match arrays.find(|array| array.is_symmetric) {
                Some(array) => self.slot(index, array).address(),
                None => peer.arena.base(),
            };
        }
        let is_aligned = |address: &u64| address.is_multiple_of(UNIT_BYTES as u64);
        let mut flags = abi::PEERSUM_FLAG_ONE_DEVICE;
        if route.is_symmetric() && source[..count].iter().all(is_aligned) {
            flags |= abi::PEERSUM_FLAG_SOURCE_ALIGNED;
        }
        let (rank, call) = (&self.ranks[own], &calls[own]);
        let output = self.slot(own, call.output()).address();
        let bit = |set: bool, shift: u32| u64::from(set) << shift;
        let is_pull = route.family() == Family::Pull;
        PeersumParams {
            arena,
            source,
            input: self.address(own, call, Role::Input).unwrap_or(output),
            output,
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

/// All arrays of a call, each with its rank.
fn arrays(calls: &[RankCall]) -> impl Iterator<Item = (usize, &Array)> {
    let calls = calls.iter().enumerate();
    calls.flat_map(|(rank, call)| call.arrays.iter().map(move |array| (rank, array)))
}

fn function(
    args: &GroupArgs,
    stream: &Arc<CudaStream>,
    world_size: u32,
    (family, dtype, algorithm): Kernel,
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
