//! One communicator of a rank with its memory: the arrays of each round lie in it, one slot a layer
//! in a region for each role, every slot between guards.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use peersum::device::Device;
use peersum::loader::Place;
use peersum::{Communicator, Error, Graph, Output, Rendezvous, SymmetricBuffer};

use super::case::{GroupKind, Room};
use super::device_check::{self, DeviceCheck};
use super::settings::{GridKind, Settings};
use crate::call::{Array, RankCall, Role, Slot, Sum, Values, stride};
use crate::machine::{DeviceOf, Machine};
use crate::memory::{Guarded, POISON};

/// The largest grid of each of two communicators that share the devices, and under a sanitizer.
const FEW_BLOCKS: u32 = 8;

/// The calls of one round.
pub(super) struct Round {
    number: u32,
    pub(super) calls: Vec<RankCall>,
    /// Bytes from slot to slot.
    stride: usize,
}

impl Round {
    pub(super) fn new(number: u32, calls: Vec<RankCall>) -> Round {
        let most = calls.iter().map(RankCall::most_bytes).max().unwrap_or(0);
        Round {
            number,
            calls,
            stride: stride(most),
        }
    }

    /// The arrays of the calls of one communicator, each with the place of its call.
    fn arrays(&self, lane: usize) -> impl Iterator<Item = (usize, &Array)> {
        let calls = self.calls.iter().enumerate();
        let own = calls.filter(move |(_, call)| call.lane == lane);
        own.flat_map(|(layer, call)| call.arrays.iter().map(move |array| (layer, array)))
    }

    /// How a report names an array of a call.
    fn name(&self, layer: usize, role: Role) -> String {
        let label = &self.calls[layer].label;
        format!("round {}, layer {layer}{label}: {role}", self.number)
    }
}

/// The memory of one communicator's calls.
struct Memory<D: Device> {
    device: D,
    rank: u32,
    /// One for each role.
    regions: Vec<Guarded<D>>,
    /// Held for its memory; used by its address.
    _symmetric: Option<SymmetricBuffer<f32, D>>,
    symmetric_base: u64,
}

impl<D: Device> Memory<D> {
    /// The first byte of all slots that the array may have.
    fn base(&self, array: &Array) -> u64 {
        match array.is_symmetric {
            true => self.symmetric_base,
            false => self.regions[array.role as usize].base(),
        }
    }

    fn slot(&self, round: &Round, layer: usize, array: &Array) -> Slot {
        let base = self.base(array) + (layer * round.stride) as u64;
        array.slot(base, self.rank, layer)
    }
}

/// One communicator with its memory.
pub(super) struct Lane<D: Device> {
    // Dropped first: its teardown waits for the stream, which uses what follows.
    pub(super) communicator: Communicator<D>,
    check: Option<DeviceCheck>,
    /// The arrays that the device compares, by name, and what they must hold.
    pending: Vec<(String, Sum)>,
    memory: Memory<D>,
}

impl<D: Device> Lane<D> {
    /// Joins a group.
    pub(super) fn new<M: Machine>(
        machine: &M,
        settings: &Settings,
        rendezvous: Rendezvous,
        kind: GroupKind,
        room: Room,
    ) -> Result<Lane<DeviceOf<M>>> {
        let (rank, world_size) = (rendezvous.rank(), rendezvous.world_size());
        let stream = machine.stream(rank)?;
        let device = DeviceOf::<M>::open(&stream)?;
        let mut builder = settings.builder(rendezvous)?.max_bytes(room.max_bytes);
        if let Some(bytes) = room.push_half_bytes {
            builder = builder.push_half_bytes(bytes);
        }
        // The code that a sanitizer adds to a kernel needs registers, so fewer blocks fit than the
        // driver reports.
        let is_sanitized = kind == GroupKind::Sums && settings.grid == GridKind::Sanitizer;
        if kind == GroupKind::SumsOnTwo || is_sanitized {
            builder = builder.max_blocks(FEW_BLOCKS);
        }
        let mut communicator = builder.build(&stream)?;
        for report in communicator.load_reports() {
            let is_compiled = matches!(
                report.place,
                Place::Directory(_) | Place::EnvDirectory(_) | Place::Pack
            );
            ensure!(is_compiled, "{report}: a rank must compile nothing");
        }
        let bytes = room.region_bytes;
        let (mut symmetric, mut symmetric_base) = (None, 0);
        if kind.has_symmetric() {
            let buffer = communicator.symmetric_alloc::<f32>(bytes.div_ceil(size_of::<f32>()))?;
            let mut view = symmetric.insert(buffer).as_view_mut();
            symmetric_base = view.with_output(&stream, Ok::<_, Error>)?;
        }
        let mut check = None;
        if kind.is_sum() {
            check = machine.device_check(rank, &stream)?;
        }
        if let Some(check) = &mut check {
            // Of the sum, and of an input.
            for ranks in [world_size, 1] {
                device_check::prove(check, &device, ranks)
                    .context("the check on the GPU against peersum::reference")?;
            }
        }
        let region = |role| {
            let bytes = if kind.has(role) { bytes } else { 0 };
            Guarded::new(&device, bytes.max(1), settings.sharing())
        };
        Ok(Lane {
            memory: Memory {
                regions: Role::ALL.into_iter().map(region).collect::<Result<_>>()?,
                _symmetric: symmetric,
                symmetric_base,
                rank,
                device,
            },
            check,
            pending: Vec::new(),
            communicator,
        })
    }

    /// Whether results are compared on the device, and waited for once, at the end of a case.
    pub(super) fn checks_itself(&self) -> bool {
        self.check.is_some()
    }

    /// Poisons the arrays of the calls of communicator `lane` and what is around them, and writes
    /// what the calls read, on the stream.
    pub(super) fn prepare(&mut self, round: &Round, lane: usize) -> Result<()> {
        let (memory, words) = (&self.memory, round.calls.len() * round.stride / 4);
        let bases = round.arrays(lane).map(|(_, array)| memory.base(array));
        for base in bases.collect::<BTreeSet<u64>>() {
            let poison = u32::from_ne_bytes([POISON; 4]);
            // SAFETY: the slots of a round lie within the region, which outlives the stream's work.
            unsafe { memory.device.fill(base, poison, words)? };
        }
        for (layer, array) in round.arrays(lane) {
            let slot = memory.slot(round, layer, array);
            match (&array.before, &mut self.check) {
                (None, _) => {}
                (Some((_, Values::Sum(own))), Some(check)) => check.generate(own, &slot)?,
                (Some((first, values)), _) => {
                    let address = slot.address() + (first * array.element_bytes) as u64;
                    // SAFETY: the array lies within the region.
                    unsafe { memory.device.write(address, &values.bytes())? };
                }
            }
        }
        Ok(())
    }

    /// Makes one call.
    pub(super) fn launch(&mut self, round: &Round, layer: usize) -> Result<()> {
        let (call, memory) = (&round.calls[layer], &self.memory);
        let communicator = &mut self.communicator;
        communicator.force_plan(call.plan)?;
        let address = |array: &Array| memory.slot(round, layer, array).address();
        // SAFETY: the arrays lie within regions that outlive the stream's work.
        unsafe { call.launch(&memory.device, communicator, address)? };
        Ok(())
    }

    /// Captures all calls of a round.
    pub(super) fn capture(&mut self, round: &Round) -> Result<Graph<'static, D>> {
        self.communicator.capture_begin()?;
        let mut layers = 0..round.calls.len();
        let launched = layers.try_for_each(|layer| self.launch(round, layer));
        // SAFETY: the calls use regions of the lane, which outlives the graph: that lives as long
        // as its case.
        let graph = unsafe { self.communicator.capture_end() };
        launched?;
        Ok(graph?)
    }

    /// Compares the arrays of a call, also those that it does not write: on the host, or by
    /// enqueuing it on a device that does it itself. Returns what is wrong. On the host, `corrupts`
    /// changes a bit of the second element of each first, for tests.
    pub(super) fn compare(
        &mut self,
        round: &Round,
        layer: usize,
        corrupts: bool,
    ) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for array in &round.calls[layer].arrays {
            let slot = self.memory.slot(round, layer, array);
            let name = round.name(layer, array.role);
            if let (Some(check), Values::Sum(sum)) = (&mut self.check, &array.after) {
                check.check(sum, &slot, self.pending.len())?;
                self.pending.push((name, sum.clone()));
                continue;
            }
            let mut memory = vec![0; slot.guarded_bytes];
            // SAFETY: the slot lies within the region.
            unsafe { self.memory.device.read(slot.base, &mut memory)? };
            if corrupts {
                memory[slot.start + array.element_bytes] ^= 1;
            }
            let wrong = slot.compare(&memory, &array.after.bytes(), array.element_bytes);
            found.extend(wrong.map(|wrong| format!("{name}, {wrong}")));
        }
        Ok(found)
    }

    /// Waits for the calls and for what the device has compared. Returns what is wrong.
    pub(super) fn take(&mut self) -> Result<Vec<String>> {
        let pending = std::mem::take(&mut self.pending);
        let Some(check) = &mut self.check else {
            return Ok(Vec::new());
        };
        self.communicator.synchronize()?;
        let expected = |place: usize, index| pending[place].1.bits_at(index);
        let found = check.take(pending.len(), expected)?;
        let text = |(place, wrong): &(usize, _)| format!("{}, {wrong}", pending[*place].0);
        Ok(found.iter().map(text).collect())
    }
}
