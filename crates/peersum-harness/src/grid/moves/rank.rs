//! One rank of a group that makes calls of all-gather, reduce-scatter and broadcast.

use std::time::Instant;

use anyhow::Result;
use peersum::device::Device;
use peersum::dispatch::{Plan, Route};
use peersum::{Communicator, Element, Graph, Rendezvous, Scalar};

use super::super::calls::{Extent, LAYERS, Place, stride};
use super::super::case::Mode;
use super::super::event::{Event, Spent};
use super::super::settings::Settings;
use super::super::slot::Slot;
use super::cases::{MoveCase, grid};
use super::data::arrays_of;
use crate::data::{Key, case_seed, with_element, with_scalar};
use crate::machine::{DeviceKind, DeviceOf, Machine};
use crate::memory::{Guarded, POISON, lend};
use crate::operation::Operation;

/// One rank with its memory: a slot for each call of a round, between guards.
pub(crate) struct MoveRank<D: Device> {
    // Dropped first: its teardown waits for the stream, which uses what follows.
    communicator: Communicator<D>,
    device: D,
    kind: DeviceKind,
    /// Of the data, together with the name of the configuration.
    pub(crate) seed: u64,
    /// Whether a test asked for a wrong result in this case.
    pub(crate) corrupts: bool,
    input: Guarded<D>,
    output: Guarded<D>,
}

/// The arrays of one call of this rank.
struct Arrays {
    /// `None`: the call works in place.
    input: Option<Slot>,
    output: Slot,
    /// What the rank has.
    own: Vec<u8>,
    /// What the output must hold.
    expected: Vec<u8>,
}

impl<D: Device> MoveRank<D> {
    /// Joins the group and allocates what the largest of `cases` needs.
    pub(crate) fn new<M: Machine>(
        machine: &M,
        settings: &Settings,
        rendezvous: Rendezvous,
        cases: &[&MoveCase],
    ) -> Result<MoveRank<DeviceOf<M>>> {
        let stream = machine.stream(rendezvous.rank())?;
        let device = DeviceOf::<M>::open(&stream)?;
        let sharing = settings.sharing();
        let longest = grid(settings.grid).longest_bytes();
        let world_size = rendezvous.world_size() as usize;
        let communicator = settings
            .builder(rendezvous)?
            .max_bytes(longest)
            // Slots for a fraction of the longest chunk, whatever cases are selected: calls that
            // go in pieces are tested too, and a case that is run again goes in the same pieces.
            .push_half_bytes(longest * world_size / 4)
            .build(&stream)?;
        let bytes = cases.iter().map(|case| LAYERS * slot_stride(case)).max();
        let memory = || Guarded::new(&device, bytes.unwrap_or(0), sharing);
        Ok(MoveRank {
            input: memory()?,
            output: memory()?,
            communicator,
            device,
            kind: machine.kind(),
            seed: settings.seed,
            corrupts: false,
        })
    }

    /// Runs one configuration and tells `emit` how it went. `meet` waits for the other ranks of
    /// this process.
    pub(crate) fn run_case(
        &mut self,
        index: usize,
        case: &MoveCase,
        meet: &dyn Fn(),
        emit: &dyn Fn(Event),
    ) -> Result<()> {
        let mut spent = Spent::default();
        let mut graph = None;
        for round in 0..case.rounds {
            let began = Instant::now();
            let calls = self.prepare(case, round)?;
            spent.check += began.elapsed().as_secs_f64();

            let began = Instant::now();
            self.make_calls(case, &calls, &mut graph, meet)?;
            spent.run += began.elapsed().as_secs_f64();
            spent.calls += LAYERS as u64;

            let began = Instant::now();
            for (layer, arrays) in calls.iter().enumerate() {
                let corrupts = self.corrupts && (round, layer) == (1, 2);
                for wrong in self.compare(case, arrays, corrupts)? {
                    let text = self.mismatch(case, round, layer, &wrong);
                    emit(Event::Mismatch { case: index, text });
                }
            }
            spent.check += began.elapsed().as_secs_f64();
        }
        if graph.is_some() {
            // As before the launch of a graph.
            meet();
        }
        emit(Event::Ended { case: index, spent });
        Ok(())
    }

    fn mismatch(&self, case: &MoveCase, round: u32, layer: usize, wrong: &str) -> String {
        let root = match case.op {
            Operation::Broadcast => format!(" from rank {}", case.root(layer)),
            _ => String::new(),
        };
        format!(
            "mismatch on rank {} of {}: {case}, round {round}, layer {layer}{root}: {wrong}; \
             seed {}",
            self.communicator.rank(),
            case.world_size,
            self.seed
        )
    }

    /// Poisons all that the calls of a round can write, and writes what they read.
    fn prepare(&self, case: &MoveCase, round: u32) -> Result<Vec<Arrays>> {
        let words = LAYERS * slot_stride(case) / 4;
        for memory in [&self.input, &self.output] {
            // SAFETY: the slots of a round lie within the allocation.
            unsafe {
                self.device
                    .fill(memory.base(), u32::from_ne_bytes([POISON; 4]), words)?
            };
        }
        (0..LAYERS)
            .map(|layer| self.write_arrays(case, round, layer))
            .collect()
    }

    fn write_arrays(&self, case: &MoveCase, round: u32, layer: usize) -> Result<Arrays> {
        let rank = self.communicator.rank();
        let seed = case_seed(self.seed, &case.to_string());
        let key = |rank| Key::new(seed, round, layer as u32, rank);
        let keys: Vec<Key> = (0..case.world_size).map(key).collect();
        let (own, expected) = arrays_of(case, &keys, rank, layer);
        let is_in_place = case.is_in_place(rank, layer);

        let whole = case.elements * case.world_size as usize;
        let (read, written) = match case.op {
            Operation::AllGather => (case.elements, whole),
            Operation::ReduceScatter if is_in_place => (whole, whole),
            Operation::ReduceScatter => (whole, case.elements),
            _ => (case.elements, case.elements),
        };
        let slot = |memory: &Guarded<D>, place, elements| {
            let extent = Extent {
                elements,
                unaligned: case.variant.is_unaligned(),
            };
            let base = memory.base() + (layer * slot_stride(case)) as u64;
            extent.slot(base, place, rank, layer, case.dtype.size_bytes())
        };
        let input = (!is_in_place).then(|| slot(&self.input, Place::Input, read));
        let output = slot(&self.output, Place::Output, written);
        let source = match (input, case.op) {
            (Some(input), _) => Some(input.address()),
            (None, Operation::AllGather) => {
                Some(output.address() + u64::from(rank) * case.chunk_bytes() as u64)
            }
            // Whatever others hold is overwritten, so it stays poison.
            (None, Operation::Broadcast) if case.root(layer) != rank => None,
            (None, _) => Some(output.address()),
        };
        if let Some(source) = source {
            // SAFETY: the array lies within a slot.
            unsafe { self.device.write(source, &own)? };
        }
        Ok(Arrays {
            input,
            output,
            own,
            expected,
        })
    }

    /// Makes the calls of a round, one after the other or as a graph, and waits for their end.
    fn make_calls(
        &mut self,
        case: &MoveCase,
        calls: &[Arrays],
        graph: &mut Option<Graph<'static, D>>,
        meet: &dyn Fn(),
    ) -> Result<()> {
        if case.mode == Mode::Eager {
            self.launch(case, calls)?;
            return Ok(self.communicator.synchronize()?);
        }
        let graph = match graph {
            Some(graph) => graph,
            none => {
                self.communicator.capture_begin()?;
                let launched = self.launch(case, calls);
                // SAFETY: the calls use memory of this rank, which outlives the graph.
                let captured = unsafe { self.communicator.capture_end() };
                launched?;
                let graph = none.insert(captured?);
                // The driver may wait for the device while it makes a graph or frees one, and so
                // for kernels of other ranks of this process on the same device, which wait for
                // this rank.
                meet();
                graph
            }
        };
        graph.launch(&mut self.communicator)?;
        Ok(self.communicator.synchronize()?)
    }

    fn launch(&mut self, case: &MoveCase, calls: &[Arrays]) -> Result<()> {
        for (layer, arrays) in calls.iter().enumerate() {
            let plan = plan(self.kind, case.shape + layer);
            self.communicator.force_plan(plan)?;
            match case.op {
                Operation::ReduceScatter => {
                    with_element!(case.dtype, T => self.scatter::<T>(case, arrays)?);
                }
                _ => with_scalar!(case.dtype, T => self.move_one::<T>(case, arrays, layer)?),
            }
        }
        Ok(())
    }

    fn scatter<T: Element>(&mut self, case: &MoveCase, arrays: &Arrays) -> Result<()> {
        let (device, communicator) = (&self.device, &mut self.communicator);
        let whole = case.elements * case.world_size as usize;
        let output = arrays.output.address();
        // SAFETY: the slots lie within memory that outlives the stream's work.
        let called = unsafe {
            match arrays.input.map(|slot| slot.address()) {
                None => lend::<T, D, _, _>(device, output, whole, |buffer| {
                    communicator.reduce_scatter_in_place(buffer)
                }),
                Some(input) => lend::<T, D, _, _>(device, output, case.elements, |output| {
                    lend::<T, D, _, _>(device, input, whole, |input| {
                        communicator.reduce_scatter(&*input, output)
                    })
                }),
            }
        };
        Ok(called?)
    }

    fn move_one<T: Scalar>(
        &mut self,
        case: &MoveCase,
        arrays: &Arrays,
        layer: usize,
    ) -> Result<()> {
        let (device, communicator) = (&self.device, &mut self.communicator);
        let whole = case.elements * case.world_size as usize;
        let output = arrays.output.address();
        // SAFETY: as in `scatter`.
        let called = unsafe {
            match (case.op, arrays.input.map(|slot| slot.address())) {
                (Operation::Broadcast, _) => {
                    lend::<T, D, _, _>(device, output, case.elements, |buffer| {
                        communicator.broadcast(buffer, case.root(layer))
                    })
                }
                (_, None) => lend::<T, D, _, _>(device, output, whole, |buffer| {
                    communicator.all_gather_in_place(buffer)
                }),
                (_, Some(input)) => lend::<T, D, _, _>(device, output, whole, |output| {
                    lend::<T, D, _, _>(device, input, case.elements, |input| {
                        communicator.all_gather(&*input, output)
                    })
                }),
            }
        };
        Ok(called?)
    }

    /// What is wrong with the output, and with the input, which no call writes to.
    fn compare(&self, case: &MoveCase, arrays: &Arrays, corrupts: bool) -> Result<Vec<String>> {
        let element_bytes = case.dtype.size_bytes();
        let input = arrays.input.as_ref();
        let input = input.map(|slot| ("input", slot, &arrays.own, false));
        let output = ("output", &arrays.output, &arrays.expected, corrupts);
        let mut wrong = Vec::new();
        for (name, slot, expected, corrupts) in input.into_iter().chain([output]) {
            let mut memory = vec![0; slot.guarded_bytes];
            // SAFETY: the slot lies within memory of this rank.
            unsafe { self.device.read(slot.base, &mut memory)? };
            if corrupts {
                // The second element.
                memory[slot.start + element_bytes] ^= 1;
            }
            let found = slot.compare(&memory, expected, element_bytes);
            wrong.extend(found.map(|found| format!("{name}, {found}")));
        }
        Ok(wrong)
    }
}

/// Bytes from the slot of one call to that of the next.
fn slot_stride(case: &MoveCase) -> usize {
    let element_bytes = case.dtype.size_bytes();
    stride(case.most_bytes() / element_bytes, element_bytes)
}

/// The launch shape of a call: another one in every call, and that of the table among them.
fn plan(kind: DeviceKind, turn: usize) -> Option<Plan> {
    let shape = match kind {
        DeviceKind::Emulator => Some([(2, 8), (1, 12), (3, 9), (2, 17)][turn % 4]),
        DeviceKind::Cuda => [
            Some((132, 512)),
            Some((16, 256)),
            Some((7, 96)),
            Some((1, 512)),
            None,
        ][turn % 5],
    };
    shape.map(|(blocks, threads)| Plan {
        // Any but those of symmetric buffers: these calls take its shape alone.
        route: Route::PushOneShot,
        blocks,
        threads,
    })
}
