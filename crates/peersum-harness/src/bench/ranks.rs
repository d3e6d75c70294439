//! A group that is measured: what each of its ranks measures with.

use std::mem::ManuallyDrop;
use std::time::Duration;

use anyhow::Result;
use peersum::device::{Device, MemorySharing};
use peersum::dispatch::{Placement, Plan};
use peersum::loader::LoadPolicy;
use peersum::{Communicator, Element, Error, Output, SymmetricBuffer};

use super::report::Launch;
use super::timing::{Method, Timed, Timer, time_eager, time_replays};
use crate::data::{self, Content, Key, TestElement, bytes_of};
use crate::machine::{DeviceKind, DeviceOf};
use crate::ranks::{Member, PATIENCE, Peers, run_threads};

/// The pattern that inputs repeat, in bytes: making more random numbers than this would take longer
/// than measuring.
const PATTERN_BYTES: usize = 1 << 16;

/// Settings of a group that is measured.
#[derive(Debug, Clone)]
pub(crate) struct GroupSettings {
    pub(crate) world_size: u32,
    /// The largest message, in bytes.
    pub(crate) largest_bytes: usize,
    pub(crate) pdl: bool,
    pub(crate) load_policy: LoadPolicy,
    /// The largest grid; `None` leaves it to the dispatch table.
    pub(crate) max_blocks: Option<u32>,
    /// Tables instead of the shipped ones.
    pub(crate) tables: Option<String>,
    /// One half of the push slots, in bytes; `None` leaves it to the library.
    pub(crate) push_half_bytes: Option<usize>,
}

/// One rank with its communicator and memory.
pub(crate) struct Rank<'a, D: Device> {
    // Dropped first: its teardown waits for the stream, which uses what follows.
    pub(crate) communicator: Communicator<D>,
    memory: Memory<D>,
    device: D,
    timer: Box<dyn Timer>,
    pub(crate) peers: Peers<'a>,
}

/// One allocation for each place a message can be in, used for all sizes and types.
struct Memory<D: Device> {
    input: D::Allocation,
    output: D::Allocation,
    // Held for its memory; used through views.
    _symmetric: SymmetricBuffer<f32, D>,
    symmetric_address: u64,
    bytes: usize,
}

/// Runs `body` on every rank of a new group.
///
/// # Errors
/// As [`run_threads`]; building the group is part of it.
pub(crate) fn run_group<M: Timed, R: Send>(
    machine: &M,
    settings: &GroupSettings,
    body: impl Fn(&mut Rank<'_, DeviceOf<M>>) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    run_threads(settings.world_size, 1, |member| {
        let mut rank = join(machine, settings, member)?;
        body(&mut rank)
    })
}

/// How long a call may wait for a peer: many times what any takes.
pub(crate) fn call_timeout(device: DeviceKind) -> Duration {
    match device {
        // What a candidate costs that hangs.
        DeviceKind::Cuda => Duration::from_secs(2),
        // Its threads share few cores with all else that runs.
        DeviceKind::Emulator => Duration::from_secs(60),
    }
}

fn join<'a, M: Timed>(
    machine: &M,
    settings: &GroupSettings,
    mut member: Member<'a>,
) -> Result<Rank<'a, DeviceOf<M>>> {
    let stream = machine.stream(member.peers.rank())?;
    let device = <DeviceOf<M>>::open(&stream)?;
    let largest = settings.largest_bytes.max(1 << 20);
    let mut builder = Communicator::builder()
        .rendezvous(member.next_group()?)
        .load_policy(settings.load_policy.clone())
        .max_bytes(largest)
        .pdl(settings.pdl)
        .timeout(call_timeout(machine.kind()))
        .setup_timeout(PATIENCE);
    if let Some(max_blocks) = settings.max_blocks {
        builder = builder.max_blocks(max_blocks);
    }
    if let Some(tables) = &settings.tables {
        builder = builder.dispatch_tables(tables);
    }
    if let Some(bytes) = settings.push_half_bytes {
        builder = builder.push_half_bytes(bytes);
    }
    let mut communicator = builder.build(&stream)?;
    let bytes = settings.largest_bytes.next_multiple_of(16);
    let mut symmetric = communicator.symmetric_alloc::<f32>(bytes / size_of::<f32>())?;
    let symmetric_address =
        Output::<f32, DeviceOf<M>>::with_output(&mut symmetric.as_view_mut(), &stream, |address| {
            address
        });
    Ok(Rank {
        memory: Memory {
            input: device.allocate_shared(bytes, MemorySharing::Auto)?,
            output: device.allocate_shared(bytes, MemorySharing::Auto)?,
            _symmetric: symmetric,
            symmetric_address,
            bytes,
        },
        timer: machine.timer(&stream)?,
        communicator,
        device,
        peers: member.peers,
    })
}

impl<D: Device> Rank<'_, D> {
    /// Fills inputs with values of a type, the same in every run.
    pub(crate) fn fill<T: TestElement>(&mut self) -> Result<()> {
        let pattern_bytes = PATTERN_BYTES.min(self.memory.bytes);
        let key = Key::of(7, self.peers.rank());
        let pattern: Vec<T> = data::input(Content::Ordinary, key, pattern_bytes / size_of::<T>());
        let input = self.device.allocation_address(&self.memory.input);
        for address in [input, self.memory.symmetric_address] {
            let pattern = bytes_of(&pattern);
            // SAFETY: both places have `memory.bytes` bytes, at least those of the pattern.
            unsafe { self.device.write(address, pattern)? };
            let mut filled = pattern.len();
            while filled < self.memory.bytes && filled > 0 {
                let next = filled.min(self.memory.bytes - filled);
                // SAFETY: source and destination lie side by side in one allocation, which lives
                // until the stream is done.
                unsafe { self.device.copy(address + filled as u64, address, next)? };
                filled += next;
            }
        }
        self.device.synchronize()?;
        Ok(())
    }

    /// Times calls with `plan`, `None` for what the table says: microseconds a call of each replay
    /// of a graph, or of each batch of eager calls and of the host.
    pub(crate) fn time<T: Element>(
        &mut self,
        placement: Placement,
        bytes: usize,
        plan: Option<Plan>,
        launch: Launch,
        method: Method,
    ) -> Result<(Vec<f64>, Vec<f64>)> {
        let mut views = self.views::<T>(bytes);
        let communicator = &mut self.communicator;
        let (timer, peers) = (&mut *self.timer, self.peers);
        communicator.force_plan(plan)?;
        let times = match launch {
            Launch::Eager => time_eager(timer, peers, method, || {
                Ok(views.call(communicator, placement)?)
            })?,
            Launch::Graph => {
                communicator.capture_begin()?;
                let recorded =
                    (0..method.calls).try_for_each(|_| views.call(communicator, placement));
                // SAFETY: the memory behind the views is this rank's, and outlives the graph, which
                // is dropped at the end of this arm.
                let graph = unsafe { communicator.capture_end() };
                recorded?;
                let graph = graph?;
                let times = time_replays(timer, peers, method, || Ok(graph.launch(communicator)?))?;
                communicator.synchronize()?;
                (times, Vec::new())
            }
        };
        communicator.synchronize()?;
        communicator.force_plan(None)?;
        Ok(times)
    }

    /// As [`Rank::time`] of eager calls for ordinary input, without what a call adds to the launch
    /// of its kernel. `None` if the call takes several launches.
    pub(crate) fn time_bare<T: Element>(
        &mut self,
        bytes: usize,
        method: Method,
    ) -> Result<Option<(Vec<f64>, Vec<f64>)>> {
        let input = self.device.allocation_address(&self.memory.input);
        let output = self.device.allocation_address(&self.memory.output);
        let len = bytes.min(self.memory.bytes) / size_of::<T>();
        let times = {
            // SAFETY: both arrays hold so many elements and outlive the wait below; all ranks
            // measure the same, so they launch equally often.
            let launch = unsafe { self.communicator.bare_launch::<T>(input, output, len) };
            let Some(launch) = launch else {
                return Ok(None);
            };
            time_eager(&mut *self.timer, self.peers, method, || Ok(launch()?))?
        };
        self.communicator.synchronize()?;
        Ok(Some(times))
    }

    fn views<T: Element>(&self, bytes: usize) -> Views<T, D> {
        let len = bytes.min(self.memory.bytes) / size_of::<T>();
        let view = |address| {
            // SAFETY: each place has at least as many bytes, aligned for every type; the views are
            // dropped before it. The symmetric buffer itself is not used while a view of it exists.
            ManuallyDrop::new(unsafe { self.device.adopt(address, len) })
        };
        Views {
            input: view(self.device.allocation_address(&self.memory.input)),
            output: view(self.device.allocation_address(&self.memory.output)),
            symmetric: view(self.memory.symmetric_address),
        }
    }
}

/// A message in each of the places it can be in, as buffers that do not own their memory.
struct Views<T: Element, D: Device> {
    input: ManuallyDrop<D::Buffer<T>>,
    output: ManuallyDrop<D::Buffer<T>>,
    symmetric: ManuallyDrop<D::Buffer<T>>,
}

impl<T: Element, D: Device> Views<T, D> {
    fn call(
        &mut self,
        communicator: &mut Communicator<D>,
        placement: Placement,
    ) -> Result<(), Error> {
        match placement {
            Placement::Ordinary => communicator.all_reduce(&*self.input, &mut *self.output),
            Placement::Symmetric => communicator.all_reduce(&*self.symmetric, &mut *self.output),
            Placement::SymmetricInPlace => communicator.all_reduce_in_place(&mut *self.symmetric),
        }
    }
}

impl<T: Element, D: Device> Drop for Views<T, D> {
    fn drop(&mut self) {
        for view in [&mut self.input, &mut self.output, &mut self.symmetric] {
            // SAFETY: taken once, here.
            D::disown(unsafe { ManuallyDrop::take(view) });
        }
    }
}
