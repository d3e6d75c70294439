//! Ranks that are set up by hand as `abi.h` says, and driven through the device seam alone: each is
//! a stream of this process.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod data;

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use peersum::Element;
use peersum::device::{Device, Export, Import, LaunchShape, MemorySharing, StatusRecord};
use peersum::loader::LoadPolicy;
use peersum::reference::all_reduce;
use peersum_artifact::{Algorithm, Family, ModuleKey, WorldSize};
use peersum_emulator::{
    Emulator, EmulatorAllocation, EmulatorBuffer, EmulatorDevice, EmulatorMapping, EmulatorOptions,
};
use peersum_kernels::abi::{
    PEERSUM_DETAIL_BUFFER_SHIFT, PEERSUM_FLAG_SOURCE_ALIGNED, PEERSUM_HEADER_ALGORITHM_SHIFT,
    PEERSUM_HEADER_DTYPE_SHIFT, PEERSUM_HEADER_FAMILY_SHIFT, PEERSUM_HEADER_RING,
    PEERSUM_HEADER_SEQUENCE_SHIFT, PEERSUM_HEADER_SOURCE_SHIFT, PEERSUM_MAX_WORLD_SIZE,
    PEERSUM_SLOT_EMPTY, PEERSUM_SLOT_GROUP, PEERSUM_UNIT_BYTES, PeersumControl, PeersumParams,
    PeersumStatus,
};

#[allow(unused_imports, reason = "each test binary uses its part")]
pub(crate) use data::{bits, from_bits, random, random_inputs, seeded};

/// Elements on either side of every output that must not change.
const GUARD: usize = 24;

/// One call that all ranks make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) family: Family,
    pub(crate) algorithm: Algorithm,
    pub(crate) symmetric: bool,
    pub(crate) in_place: bool,
    /// Whether the ranks' buffers begin at elements that are aligned differently.
    pub(crate) misaligned: bool,
    pub(crate) blocks: u32,
    pub(crate) threads: u32,
}

impl Call {
    /// An aligned call out of place.
    pub(crate) fn new(family: Family, algorithm: Algorithm, blocks: u32, threads: u32) -> Self {
        Self {
            family,
            algorithm,
            symmetric: false,
            in_place: false,
            misaligned: false,
            blocks,
            threads,
        }
    }
}

/// A call's header but for the sequence.
fn header<T: Element>(call: &Call, elements: usize) -> u64 {
    let bit = |set: bool, shift: u32| u64::from(set) << shift;
    bit(call.symmetric, PEERSUM_HEADER_SOURCE_SHIFT)
        | bit(call.family == Family::Pull, PEERSUM_HEADER_FAMILY_SHIFT)
        | bit(
            call.algorithm == Algorithm::TwoShot,
            PEERSUM_HEADER_ALGORITHM_SHIFT,
        )
        | (T::DTYPE as u64) << PEERSUM_HEADER_DTYPE_SHIFT
        | (elements * size_of::<T>()) as u64
}

/// Every algorithm with every source that it can have.
pub(crate) fn kinds() -> Vec<Call> {
    let mut calls = Vec::new();
    for &family in &[Family::Push, Family::Pull] {
        for &algorithm in &[Algorithm::OneShot, Algorithm::TwoShot] {
            calls.push(Call::new(family, algorithm, 2, 8));
            if family == Family::Pull {
                calls.push(Call {
                    symmetric: true,
                    ..Call::new(family, algorithm, 2, 8)
                });
            }
        }
    }
    calls
}

/// How a world is set up.
pub(crate) struct Setup {
    pub(crate) units: usize,
    pub(crate) push_epoch: u32,
    pub(crate) pull_epoch: u64,
    pub(crate) timeout: Duration,
    pub(crate) options: EmulatorOptions,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            units: 1100,
            push_epoch: 0,
            pull_epoch: 1,
            timeout: Duration::from_secs(60),
            options: EmulatorOptions::default(),
        }
    }
}

struct Layout {
    push_offset: u64,
    push_half_bytes: u64,
    staging_offset: u64,
    staging_half_bytes: u64,
    bytes: usize,
}

impl Layout {
    fn new(world_size: usize, units: usize) -> Self {
        let up = |bytes: usize| bytes.next_multiple_of(128) as u64;
        let unit = PEERSUM_UNIT_BYTES as usize;
        let push_offset = up(size_of::<PeersumControl>());
        let grouped = |units: usize| units.next_multiple_of(PEERSUM_SLOT_GROUP as usize);
        let places = grouped(units).max(2 * grouped(units.div_ceil(world_size)));
        // A pair has no slots for its own units.
        let sources = if world_size == 2 { 1 } else { world_size };
        let both_halves = 2 * sources * PEERSUM_SLOT_GROUP as usize * unit;
        let push_half_bytes = (places * sources * unit).next_multiple_of(both_halves) as u64;
        let staging_offset = push_offset + 2 * push_half_bytes;
        let staging_half_bytes = up(units * unit);
        let bytes = (staging_offset + 2 * staging_half_bytes) as usize;
        Self {
            push_offset,
            push_half_bytes,
            staging_offset,
            staging_half_bytes,
            bytes,
        }
    }
}

pub(crate) struct Rank {
    pub(crate) emulator: Emulator,
    pub(crate) status: StatusRecord,
    arena: Memory,
    symmetric: Memory,
}

/// Memory of a rank, or of a rank in another process.
enum Memory {
    Own(EmulatorAllocation),
    Mapped(EmulatorMapping),
}

impl Memory {
    fn address(&self, emulator: &Emulator) -> u64 {
        match self {
            Memory::Own(allocation) => emulator.allocation_address(allocation),
            Memory::Mapped(mapping) => emulator.mapping_address(mapping),
        }
    }

    fn export(&self, emulator: &Emulator) -> OwnedFd {
        let Memory::Own(allocation) = self else {
            panic!("only a rank's owner exports its memory")
        };
        match emulator.export(allocation, false).unwrap() {
            Export::Fd(fd) => fd,
            other => panic!("not a descriptor: {other:?}"),
        }
    }
}

/// A group of ranks.
pub(crate) struct World {
    pub(crate) ranks: Vec<Rank>,
    layout: Layout,
    timeout: Duration,
}

/// What one rank gives to and gets from a call.
pub(crate) struct Arrays<T: Element> {
    input: EmulatorBuffer<T>,
    output: EmulatorBuffer<T>,
    offset: usize,
    len: usize,
}

impl World {
    /// Ranks of this process.
    pub(crate) fn new(world_size: u32, setup: &Setup) -> Self {
        Self::build(world_size, setup, |emulator, layout, _| {
            let allocate = |bytes| {
                emulator
                    .allocate_shared(bytes, MemorySharing::Auto)
                    .unwrap()
            };
            let arena = allocate(layout.bytes);
            initialise(emulator, emulator.allocation_address(&arena), layout, setup);
            (
                Memory::Own(arena),
                Memory::Own(allocate(symmetric_bytes(setup))),
            )
        })
    }

    /// The same ranks as another process sees them, through the descriptors of [`World::export`].
    pub(crate) fn import(setup: &Setup, descriptors: &[(OwnedFd, OwnedFd)]) -> Self {
        Self::build(descriptors.len() as u32, setup, |emulator, layout, rank| {
            let map = |fd: &OwnedFd, bytes| {
                Memory::Mapped(emulator.import(Import::Fd(fd.as_fd()), bytes).unwrap())
            };
            let (arena, symmetric) = &descriptors[rank];
            (
                map(arena, layout.bytes),
                map(symmetric, symmetric_bytes(setup)),
            )
        })
    }

    /// Each rank's arena and symmetric buffer.
    pub(crate) fn export(&self) -> Vec<(OwnedFd, OwnedFd)> {
        let export = |rank: &Rank| {
            (
                rank.arena.export(&rank.emulator),
                rank.symmetric.export(&rank.emulator),
            )
        };
        self.ranks.iter().map(export).collect()
    }

    fn build(
        world_size: u32,
        setup: &Setup,
        memory: impl Fn(&Emulator, &Layout, usize) -> (Memory, Memory),
    ) -> Self {
        let layout = Layout::new(world_size as usize, setup.units);
        let ranks = (0..world_size)
            .map(|rank| {
                let stream = EmulatorDevice::with_options(rank, &setup.options)
                    .stream()
                    .unwrap();
                let emulator = Emulator::open(&stream).unwrap();
                let (arena, symmetric) = memory(&emulator, &layout, rank as usize);
                let status = emulator.allocate_status().unwrap();
                Rank {
                    emulator,
                    status,
                    arena,
                    symmetric,
                }
            })
            .collect();
        let world = Self {
            ranks,
            layout,
            timeout: setup.timeout,
        };
        world.synchronize();
        world
    }

    pub(crate) fn size(&self) -> usize {
        self.ranks.len()
    }

    pub(crate) fn synchronize(&self) {
        for rank in &self.ranks {
            rank.emulator.synchronize().unwrap();
        }
    }

    pub(crate) fn failure(&self, rank: usize) -> Option<PeersumStatus> {
        self.ranks[rank].status.failure()
    }

    pub(crate) fn key<T: Element>(&self, family: Family) -> ModuleKey {
        let world_size = WorldSize::try_from(self.size() as u32).unwrap();
        ModuleKey {
            family,
            dtype: T::DTYPE,
            world_size,
        }
    }

    fn symmetric_address<T>(&self, call: &Call, rank: usize) -> u64 {
        let rank_data = &self.ranks[rank];
        let base = rank_data.symmetric.address(&rank_data.emulator);
        let offset = GUARD + usize::from(call.misaligned) * (rank * 3 + 1) % 8;
        base + (offset * size_of::<T>()) as u64
    }

    /// The parameters of `rank`'s call.
    pub(crate) fn params<T: Element>(
        &self,
        call: &Call,
        rank: usize,
        arrays: &Arrays<T>,
    ) -> PeersumParams {
        let mut arena = [0; PEERSUM_MAX_WORLD_SIZE as usize];
        let mut source = [0; PEERSUM_MAX_WORLD_SIZE as usize];
        for (index, peer) in self.ranks.iter().enumerate() {
            let address = peer.arena.address(&peer.emulator);
            arena[(index + self.size() - rank) % self.size()] = address;
            source[index] = if call.symmetric {
                self.symmetric_address::<T>(call, index)
            } else {
                address
            };
        }
        let unit = u64::from(PEERSUM_UNIT_BYTES);
        let is_source_aligned = source.iter().all(|address| address.is_multiple_of(unit));
        let at =
            |buffer: &EmulatorBuffer<T>| buffer.address() + (arrays.offset * size_of::<T>()) as u64;
        let output = at(&arrays.output);
        PeersumParams {
            arena,
            source,
            flags: if is_source_aligned {
                PEERSUM_FLAG_SOURCE_ALIGNED
            } else {
                0
            },
            input: if call.in_place {
                output
            } else {
                at(&arrays.input)
            },
            output,
            elements: arrays.len as u64,
            push_offset: self.layout.push_offset,
            push_half_bytes: self.layout.push_half_bytes,
            staging_offset: self.layout.staging_offset,
            staging_half_bytes: self.layout.staging_half_bytes,
            status: self.ranks[rank].status.device_address,
            timeout_ns: self.timeout.as_nanos() as u64,
            rank: rank as u32,
            header: header::<T>(call, arrays.len),
            // The first buffer. That the ranks' parts of it are aligned differently is not told.
            detail: u64::from(call.symmetric) << PEERSUM_DETAIL_BUFFER_SHIFT,
            ..PeersumParams::default()
        }
    }

    /// Where `rank`'s input and output of a call lie: filled with `input`, and with a pattern that
    /// no result has.
    pub(crate) fn arrays<T: Element>(&self, call: &Call, rank: usize, input: &[T]) -> Arrays<T> {
        let len = input.len();
        let offset = GUARD
            + if call.misaligned {
                (rank * 5 + 1) % 8
            } else {
                GUARD.next_multiple_of(8) - GUARD
            };
        let mut with_guards = vec![guard::<T>(); offset + len + GUARD];
        let empty = EmulatorBuffer::from_slice(&with_guards);
        with_guards[offset..offset + len].copy_from_slice(input);
        let filled = EmulatorBuffer::from_slice(&with_guards);
        let (input, output) = if call.in_place {
            (empty, filled)
        } else {
            (filled, empty)
        };
        Arrays {
            input,
            output,
            offset,
            len,
        }
    }

    /// Enqueues `rank`'s part of a call. A symmetric input is written by the stream beforehand.
    pub(crate) fn launch<T: Element>(&self, call: &Call, rank: usize, arrays: &Arrays<T>) {
        let emulator = &self.ranks[rank].emulator;
        let keys = [self.key::<T>(call.family)];
        let modules = emulator.load(&LoadPolicy::default(), &keys).unwrap();
        let (module, _) = &modules[0];
        let params = self.params(call, rank, arrays);
        let shape = LaunchShape {
            blocks: call.blocks,
            threads: call.threads,
            cluster: 1,
            pdl: true,
        };
        // SAFETY: the addresses are those of this world and of `arrays`, which their owner keeps
        // until the stream is done.
        unsafe {
            if call.symmetric {
                let bytes = arrays.len * size_of::<T>();
                emulator
                    .copy(params.source[rank], params.input, bytes)
                    .unwrap();
            }
            emulator
                .launch(module, call.algorithm, shape, &params)
                .unwrap();
            if call.symmetric && call.algorithm == Algorithm::TwoShot {
                let bytes = arrays.len * size_of::<T>();
                emulator
                    .copy(params.output, params.source[rank], bytes)
                    .unwrap();
            }
        }
    }

    /// Enqueues a call on every rank.
    pub(crate) fn start<T: Element>(&self, call: &Call, inputs: &[Vec<T>]) -> Vec<Arrays<T>> {
        (0..self.size())
            .map(|rank| {
                let arrays = self.arrays(call, rank, &inputs[rank]);
                self.launch(call, rank, &arrays);
                arrays
            })
            .collect()
    }

    /// Waits for all ranks and checks that none failed and that each has the reference's bits.
    pub(crate) fn assert_reduced<T: Element>(
        &self,
        call: &Call,
        inputs: &[Vec<T>],
        arrays: &[Arrays<T>],
    ) {
        self.synchronize();
        for (rank, arrays) in arrays.iter().enumerate() {
            if let Err(found) = self.check(rank, inputs, arrays) {
                panic!(
                    "rank {rank}, {} {} elements, {call:?}: {found}",
                    inputs[0].len(),
                    T::DTYPE
                );
            }
        }
    }

    /// Whether `rank` did not fail, has the reference's bits and wrote nothing else, once its
    /// stream is done.
    pub(crate) fn check<T: Element>(
        &self,
        rank: usize,
        inputs: &[Vec<T>],
        arrays: &Arrays<T>,
    ) -> Result<(), String> {
        self.ranks[rank].emulator.synchronize().unwrap();
        if let Some(failure) = self.failure(rank) {
            return Err(format!("{failure:?}"));
        }
        let slices: Vec<&[T]> = inputs.iter().map(Vec::as_slice).collect();
        let expected = bits(&all_reduce(&slices));
        let found = bits(&arrays.result());
        if let Some(at) = (0..expected.len()).find(|&index| found[index] != expected[index]) {
            return Err(format!(
                "element {at} is {:#x}, not {:#x}",
                found[at], expected[at]
            ));
        }
        arrays.assert_guards();
        Ok(())
    }
}

impl<T: Element> Arrays<T> {
    pub(crate) fn result(&self) -> Vec<T> {
        self.output.to_vec()[self.offset..self.offset + self.len].to_vec()
    }

    /// Gives the next launch of a recorded call another input.
    pub(crate) fn replace_input(&mut self, input: &[T]) {
        let mut with_guards = self.input.to_vec();
        with_guards[self.offset..self.offset + self.len].copy_from_slice(input);
        self.input.copy_from_slice(&with_guards);
    }

    pub(crate) fn assert_guards(&self) {
        for buffer in [&self.input, &self.output] {
            let all = bits(&buffer.to_vec());
            let outside = all[..self.offset]
                .iter()
                .chain(&all[self.offset + self.len..]);
            let untouched = bits(&[guard::<T>()])[0];
            assert!(
                outside.into_iter().all(|&element| element == untouched),
                "written beside the array"
            );
        }
    }

    pub(crate) fn assert_all_nan(&self) {
        let nan = bits(&[T::CANONICAL_NAN])[0];
        for (index, element) in bits(&self.result()).into_iter().enumerate() {
            assert_eq!(element, nan, "element {index} of {} is not NaN", self.len);
        }
        self.assert_guards();
    }
}

fn guard<T: Element>() -> T {
    from_bits(0x5A5A_5A5A)
}

fn symmetric_bytes(setup: &Setup) -> usize {
    (setup.units + 16) * PEERSUM_UNIT_BYTES as usize
}

fn initialise(emulator: &Emulator, arena: u64, layout: &Layout, setup: &Setup) {
    // SAFETY: a control block is integers only.
    let mut control: Box<PeersumControl> = Box::new(unsafe { std::mem::zeroed() });
    for block in &mut control.blocks {
        block.push_epoch = setup.push_epoch;
        block.pull_epoch = setup.pull_epoch;
    }
    let next = u64::from(setup.push_epoch).wrapping_add(setup.pull_epoch);
    for back in 1..=u64::from(PEERSUM_HEADER_RING) {
        let sequence = next.wrapping_sub(back) & 0xFFFF;
        let slot = (sequence % u64::from(PEERSUM_HEADER_RING)) as usize;
        let word = sequence << PEERSUM_HEADER_SEQUENCE_SHIFT;
        control.own_headers[slot] = word;
        control.headers[slot] = [word; PEERSUM_MAX_WORLD_SIZE as usize];
    }
    // SAFETY: as above; the arena is as large as the layout says.
    unsafe {
        let bytes = std::slice::from_raw_parts(
            (&raw const *control).cast::<u8>(),
            size_of::<PeersumControl>(),
        );
        emulator.write(arena, bytes).unwrap();
        let words = 2 * layout.push_half_bytes as usize / 4;
        emulator
            .fill(arena + layout.push_offset, PEERSUM_SLOT_EMPTY, words)
            .unwrap();
    }
}

/// Runs `$body` with `$T` as each element type.
#[macro_export]
macro_rules! for_each_dtype {
    ($T:ident => $body:expr) => {{
        {
            type $T = half::f16;
            $body;
        }
        {
            type $T = half::bf16;
            $body;
        }
        {
            type $T = f32;
            $body;
        }
    }};
}

/// How long `work` takes.
pub(crate) fn timed(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}
