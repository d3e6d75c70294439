//! Ranks that are the rows of one grid: a group for tools that let only one kernel of a process run
//! at a time.
//!
//! The kernels are the shipped ones except for their entry points (`PEERSUM_ONE_LAUNCH`), which
//! take the parameters of all ranks. This file does by hand what a communicator does, following
//! `abi.h`.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use half::bf16;
use peersum::Element;
use peersum::cuda::Cuda;
use peersum::cudarc::driver::{CudaFunction, CudaStream, DeviceRepr, LaunchConfig, PushKernelArg};
use peersum::cudarc::nvrtc::Ptx;
use peersum::device::{Device, MemorySharing, StatusRecord};
use peersum::dispatch::Route;
use peersum_artifact::{Family, ModuleKey, WorldSize};
use peersum_kernels::abi::{self, PeersumControl, PeersumParams};

use crate::data::{self, Content, Key, bytes_of};
use crate::memory::{GUARD_BYTES, Guarded};

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
    world_size: Vec<u32>,
    /// The seed of data and order.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// The type of all calls. 16-bit elements give units with partial words and tails.
type T = bf16;

const MAX_ELEMENTS: usize = 6000;
const UNIT_BYTES: usize = abi::PEERSUM_UNIT_BYTES as usize;
/// How often all cases run, each time in a new order.
const PASSES: usize = 2;
const TIMEOUT_NS: u64 = 20_000_000_000;

/// One call.
#[derive(Debug, Clone, Copy)]
struct Case {
    route: Route,
    elements: usize,
    /// Whether the ranks' arrays begin at elements that are aligned differently.
    misaligned: bool,
    blocks: u32,
    threads: u32,
    content: Content,
}

fn cases() -> Vec<Case> {
    let shapes = [
        (1, false, 1, 32),
        (37, true, 2, 32),
        (1000, false, 2, 64),
        (5003, true, 4, 96),
        (4096, false, 8, 32),
        (3001, false, 3, 160),
    ];
    let mut cases = Vec::new();
    for route in Route::ALL {
        for (index, (elements, misaligned, blocks, threads)) in shapes.into_iter().enumerate() {
            cases.push(Case {
                route,
                elements,
                misaligned,
                blocks,
                threads,
                content: [Content::Ordinary, Content::Special][index % 2],
            });
        }
    }
    cases
}

/// Runs every case on groups of each size and compares every bit.
pub(crate) fn run(args: &GroupArgs) -> Result<()> {
    let context = peersum::open_context(0)?;
    let stream = context.new_stream()?;
    let mut order = fastrand::Rng::with_seed(args.seed);
    for &world_size in &args.world_size {
        let group = Group::new(args, &stream, world_size)?;
        let mut calls = 0;
        for _ in 0..PASSES {
            let mut cases = cases();
            order.shuffle(&mut cases);
            for case in cases {
                group
                    .check(case, order.u64(..))
                    .with_context(|| format!("world size {world_size}, {case:?}"))?;
                calls += 1;
            }
        }
        println!(
            "world size {world_size}: {calls} calls, the result of every rank equal to the \
             reference bit for bit"
        );
    }
    Ok(())
}

/// The parameters of all ranks. A kernel for fewer ranks reads the first ones.
#[repr(C)]
struct AllParams([PeersumParams; abi::PEERSUM_MAX_WORLD_SIZE as usize]);

// SAFETY: integers only, in C's layout, as the entry points of this build take them.
unsafe impl DeviceRepr for AllParams {}

struct Rank {
    index: usize,
    arena: Guarded<Cuda>,
    symmetric: Guarded<Cuda>,
    input: Guarded<Cuda>,
    output: Guarded<Cuda>,
    status: StatusRecord,
}

impl Rank {
    /// Where the elements begin in each of the rank's arrays.
    fn offset(&self, case: Case) -> usize {
        let elements = if case.misaligned {
            (3 * self.index + 1) % 8
        } else {
            0
        };
        GUARD_BYTES + elements * size_of::<T>()
    }

    fn source(&self, case: Case) -> &Guarded<Cuda> {
        if case.route.is_symmetric() {
            &self.symmetric
        } else if case.content == Content::Special {
            // In place.
            &self.output
        } else {
            &self.input
        }
    }
}

/// Allocates plain memory, of which the tools watch every byte.
fn memory(device: &Cuda, bytes: usize) -> Result<Guarded<Cuda>> {
    Guarded::new(device, bytes, MemorySharing::LegacyIpc)
}

/// Where things lie in an arena.
struct Layout {
    push_offset: u64,
    push_half_bytes: u64,
    staging_offset: u64,
    staging_half_bytes: u64,
}

impl Layout {
    fn new(world_size: usize) -> Layout {
        let line = |bytes: usize| bytes.next_multiple_of(128) as u64;
        let units = (MAX_ELEMENTS * size_of::<T>()).div_ceil(UNIT_BYTES);
        let grouped = |units: usize| units.next_multiple_of(abi::PEERSUM_SLOT_GROUP as usize);
        let places = grouped(units).max(2 * grouped(units.div_ceil(world_size)));
        let push_offset = line(size_of::<PeersumControl>());
        // Whole slot groups of both halves.
        let both_halves = 2 * world_size * abi::PEERSUM_SLOT_GROUP as usize * UNIT_BYTES;
        let push_half_bytes =
            (places * world_size * UNIT_BYTES).next_multiple_of(both_halves) as u64;
        Layout {
            push_offset,
            push_half_bytes,
            staging_offset: push_offset + 2 * push_half_bytes,
            staging_half_bytes: line(units * UNIT_BYTES),
        }
    }

    fn bytes(&self) -> usize {
        (self.staging_offset + 2 * self.staging_half_bytes) as usize
    }
}

struct Group {
    device: Cuda,
    stream: Arc<CudaStream>,
    ranks: Vec<Rank>,
    layout: Layout,
    /// The entry point of each route.
    functions: Vec<(Route, CudaFunction)>,
}

impl Group {
    fn new(args: &GroupArgs, stream: &Arc<CudaStream>, world_size: u32) -> Result<Group> {
        let device = <Cuda as Device>::open(stream)?;
        let layout = Layout::new(world_size as usize);
        let functions = Route::ALL
            .into_iter()
            .map(|route| Ok((route, function(args, stream, world_size, route)?)))
            .collect::<Result<Vec<_>>>()?;
        let array = 2 * GUARD_BYTES + (MAX_ELEMENTS + 8) * size_of::<T>();
        let ranks = (0..world_size)
            .map(|index| {
                Ok(Rank {
                    index: index as usize,
                    arena: armed(&device, &layout)?,
                    symmetric: memory(&device, array)?,
                    input: memory(&device, array)?,
                    output: memory(&device, array)?,
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
        })
    }

    fn check(&self, case: Case, seed: u64) -> Result<()> {
        let world_size = self.ranks.len() as u32;
        let keys = Key::of_all(seed, world_size);
        let expected: Vec<T> = data::expected(case.content, &keys, case.elements);
        for (rank, &key) in self.ranks.iter().zip(&keys) {
            let input: Vec<T> = data::input(case.content, key, case.elements);
            rank.output.poison(&self.device)?;
            let source = rank.source(case);
            source.poison(&self.device)?;
            source.write(&self.device, rank.offset(case), bytes_of(&input))?;
        }
        self.launch(case)?;
        for rank in &self.ranks {
            let index = rank.index;
            if let Some(failure) = rank.status.failure() {
                anyhow::bail!("rank {index} failed: {failure:?}");
            }
            let result = match case.route {
                Route::SymmetricTwoShot => &rank.symmetric,
                _ => &rank.output,
            };
            let bytes = case.elements * size_of::<T>();
            let (actual, intact) = result.read(&self.device, rank.offset(case), bytes)?;
            ensure!(intact, "rank {index}: wrote outside its output");
            ensure!(
                actual == bytes_of(&expected),
                "rank {index}: not what the reference gives, seed {seed}"
            );
        }
        Ok(())
    }

    fn launch(&self, case: Case) -> Result<()> {
        let mut params = AllParams([PeersumParams::default(); 8]);
        for (rank, params) in self.ranks.iter().zip(&mut params.0) {
            *params = self.params(case, rank);
        }
        let (_, function) = self
            .functions
            .iter()
            .find(|(route, _)| *route == case.route)
            .context("a route without an entry point")?;
        let world_size = self.ranks.len() as u32;
        let mut launch = self.stream.launch_builder(function);
        launch.arg(&params);
        let shape = LaunchConfig {
            grid_dim: (case.blocks, world_size, 1),
            block_dim: (case.threads + world_size, 1, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: the parameters are those that the entry points of this build take; every address
        // in them is of an allocation of this group, which outlives the stream's work: the next
        // line waits for it.
        unsafe { launch.launch(shape)? };
        self.stream.synchronize()?;
        Ok(())
    }

    fn params(&self, case: Case, rank: &Rank) -> PeersumParams {
        let own = rank.index;
        let mut arena = [0; abi::PEERSUM_MAX_WORLD_SIZE as usize];
        let mut source = arena;
        let count = self.ranks.len();
        for (index, peer) in self.ranks.iter().enumerate() {
            arena[(index + count - own) % count] = peer.arena.base();
            source[index] = if case.route.is_symmetric() {
                peer.symmetric.base() + peer.offset(case) as u64
            } else {
                peer.arena.base()
            };
        }
        let is_aligned = |address: &u64| address.is_multiple_of(UNIT_BYTES as u64);
        let mut flags = abi::PEERSUM_FLAG_ONE_DEVICE;
        if case.route.is_symmetric() && source[..count].iter().all(is_aligned) {
            flags |= abi::PEERSUM_FLAG_SOURCE_ALIGNED;
        }
        let offset = rank.offset(case) as u64;
        let bit = |set: bool, shift: u32| u64::from(set) << shift;
        PeersumParams {
            arena,
            source,
            input: rank.source(case).base() + offset,
            output: rank.output.base() + offset,
            elements: case.elements as u64,
            push_offset: self.layout.push_offset,
            push_half_bytes: self.layout.push_half_bytes,
            staging_offset: self.layout.staging_offset,
            staging_half_bytes: self.layout.staging_half_bytes,
            status: rank.status.device_address,
            timeout_ns: TIMEOUT_NS,
            header: bit(case.route.is_symmetric(), abi::PEERSUM_HEADER_SOURCE_SHIFT)
                | bit(
                    case.route.family() == Family::Pull,
                    abi::PEERSUM_HEADER_FAMILY_SHIFT,
                )
                | (case.route.algorithm() as u64) << abi::PEERSUM_HEADER_ALGORITHM_SHIFT
                | (T::DTYPE as u64) << abi::PEERSUM_HEADER_DTYPE_SHIFT
                | (case.elements * size_of::<T>()) as u64,
            detail: bit(case.route.is_symmetric(), abi::PEERSUM_DETAIL_BUFFER_SHIFT),
            rank: own as u32,
            flags,
        }
    }
}

fn function(
    args: &GroupArgs,
    stream: &Arc<CudaStream>,
    world_size: u32,
    route: Route,
) -> Result<CudaFunction> {
    let context = stream.context();
    let (major, minor) = context.compute_capability()?;
    let key = ModuleKey {
        family: route.family(),
        dtype: T::DTYPE,
        world_size: WorldSize::try_from(world_size)?,
    };
    let path = args
        .cubins
        .join(format!("{}.sm_{major}{minor}.cubin", key.name()));
    let cubin = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let module = context.load_module(Ptx::from_binary(cubin))?;
    Ok(module.load_function(&key.entry_point(route.algorithm()))?)
}

/// An arena in its state before the first call. The staging area is not initialised, so that the
/// tools find reads that come before the data are staged.
fn armed(device: &Cuda, layout: &Layout) -> Result<Guarded<Cuda>> {
    const RING: u64 = abi::PEERSUM_HEADER_RING as u64;
    let arena = memory(device, layout.bytes())?;
    // SAFETY: a control block is integers only.
    let mut control: Box<PeersumControl> = Box::new(unsafe { std::mem::zeroed() });
    for block in &mut control.blocks {
        block.pull_epoch = 1;
    }
    for back in 1..=RING {
        let sequence = 1u64.wrapping_sub(back) & 0xFFFF;
        let word = sequence << abi::PEERSUM_HEADER_SEQUENCE_SHIFT;
        let slot = (sequence % RING) as usize;
        control.own_headers[slot] = word;
        control.headers[slot] = [word; abi::PEERSUM_MAX_WORLD_SIZE as usize];
    }
    let words = 2 * layout.push_half_bytes as usize / 4;
    // SAFETY: the arena is as large as the layout says, and a control block has no padding.
    unsafe {
        let bytes = std::slice::from_raw_parts(
            (&raw const *control).cast::<u8>(),
            size_of::<PeersumControl>(),
        );
        device.write(arena.base(), bytes)?;
        device.fill(
            arena.base() + layout.push_offset,
            abi::PEERSUM_SLOT_EMPTY,
            words,
        )?;
    }
    Ok(arena)
}
