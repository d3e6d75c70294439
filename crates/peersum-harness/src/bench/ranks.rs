//! Ranks as threads of this process, and what each of them measures with.

use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use peersum::device::{Device, DeviceStream, MemorySharing};
use peersum::dispatch::{Placement, Plan};
use peersum::{Communicator, Element, Error, Output, Rendezvous, SymmetricBuffer};

use super::machine::{Build, Machine};
use super::meeting::Meeting;
use super::timing::{Method, Together, time_eager, time_replays};
use crate::data::{self, Content};

/// The longest that a rank waits for the others outside calls.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The pattern that inputs repeat, in bytes: making more random numbers than this would take longer than measuring.
const PATTERN_BYTES: usize = 1 << 16;

/// Runs `body` on `ranks` threads. The first failure of any rank ends the waits of the others, and is what this returns.
///
/// # Errors
/// The failure of the rank that failed first, with its number.
pub(crate) fn run_threads<R: Send>(
    ranks: u32,
    body: impl Fn(u32, &Meeting) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let meeting = Meeting::new(ranks, PATIENCE);
    let (meeting, body) = (&meeting, &body);
    let outcomes: Vec<Result<R, String>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..ranks)
            .map(|rank| {
                scope.spawn(move || {
                    // A rank that panics must not keep the others waiting either.
                    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        body(rank, meeting)
                    }));
                    outcome
                        .unwrap_or_else(|_| Err(anyhow!("it panicked")))
                        .map_err(|error| meeting.abandon(format!("rank {rank}: {error:#}")))
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err("a rank panicked".to_owned()))
            })
            .collect()
    });
    outcomes
        .into_iter()
        .collect::<Result<Vec<R>, String>>()
        .map_err(|reason| anyhow!(reason))
}

/// Settings of a group that is measured.
#[derive(Debug, Clone)]
pub(crate) struct GroupSettings {
    pub(crate) world_size: u32,
    /// The largest message, in bytes.
    pub(crate) largest_bytes: usize,
    pub(crate) pdl: bool,
    pub(crate) build: Build,
    /// How long a call may wait.
    pub(crate) timeout: Duration,
    /// The largest grid; `None` leaves it to the dispatch table.
    pub(crate) max_blocks: Option<u32>,
    /// Tables instead of the shipped ones.
    pub(crate) tables: Option<String>,
    /// One half of the push slots, in bytes; `None` leaves it to the library.
    pub(crate) push_half_bytes: Option<usize>,
}

/// One rank with its communicator and memory.
pub(crate) struct Rank<'a, M: Machine> {
    // Dropped first: its teardown waits for the stream, which uses what follows.
    pub(crate) communicator: Communicator<<M::Stream as DeviceStream>::Device>,
    memory: Memory<<M::Stream as DeviceStream>::Device>,
    device: <M::Stream as DeviceStream>::Device,
    timer: M::Timer,
    meeting: &'a Meeting,
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
pub(crate) fn run_group<M: Machine, R: Send>(
    machine: &M,
    settings: &GroupSettings,
    body: impl Fn(&mut Rank<'_, M>) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let rendezvous: Vec<_> = Rendezvous::threads(settings.world_size)
        .into_iter()
        .map(|rendezvous| std::sync::Mutex::new(Some(rendezvous)))
        .collect();
    run_threads(settings.world_size, |rank, meeting| {
        let rendezvous = rendezvous
            .get(rank as usize)
            .and_then(|place| {
                place
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner)
                    .take()
            })
            .context("a rank joins once")?;
        let mut rank = Rank::join(machine, settings, rank, rendezvous, meeting)?;
        body(&mut rank)
    })
}

impl<'a, M: Machine> Rank<'a, M> {
    fn join(
        machine: &M,
        settings: &GroupSettings,
        rank: u32,
        rendezvous: Rendezvous,
        meeting: &'a Meeting,
    ) -> Result<Self> {
        let stream = machine.stream(rank)?;
        let device = <M::Stream as DeviceStream>::Device::open(&stream)?;
        let largest = settings.largest_bytes.max(1 << 20);
        let mut builder = Communicator::builder()
            .rendezvous(rendezvous)
            .load_policy(machine.load_policy(settings.build)?)
            .max_bytes(largest)
            .pdl(settings.pdl)
            .timeout(settings.timeout)
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
        let symmetric_address = Output::<f32, <M::Stream as DeviceStream>::Device>::with_output(
            &mut symmetric.as_view_mut(),
            &stream,
            |address| address,
        );
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
            meeting,
        })
    }

    pub(crate) fn number(&self) -> u32 {
        self.communicator.rank()
    }

    pub(crate) fn meeting(&self) -> &'a Meeting {
        self.meeting
    }

    /// Fills inputs with values of a type, the same in every run.
    pub(crate) fn fill<T: Element>(&mut self) -> Result<()>
    where
        T::Bits: TryFrom<u32>,
    {
        let pattern_bytes = PATTERN_BYTES.min(self.memory.bytes);
        let pattern: Vec<T> = data::input(
            7,
            self.communicator.rank(),
            pattern_bytes / size_of::<T>(),
            Content::Ordinary,
        );
        let input = self.device.allocation_address(&self.memory.input);
        for address in [input, self.memory.symmetric_address] {
            // SAFETY: elements are plain data; both places have `memory.bytes` bytes, at least those of the pattern.
            unsafe {
                let bytes =
                    std::slice::from_raw_parts(pattern.as_ptr().cast(), size_of_val(&*pattern));
                self.device.write(address, bytes)?;
            }
            let mut filled = size_of_val(&*pattern);
            while filled < self.memory.bytes && filled > 0 {
                let next = filled.min(self.memory.bytes - filled);
                // SAFETY: source and destination lie side by side in one allocation, which lives until the stream is done.
                unsafe { self.device.copy(address + filled as u64, address, next)? };
                filled += next;
            }
        }
        self.device.synchronize()?;
        Ok(())
    }

    /// Replays of a graph of calls with `plan`, `None` for what the table says: microseconds a call for each.
    pub(crate) fn time_graph<T: Element>(
        &mut self,
        placement: Placement,
        bytes: usize,
        plan: Option<Plan>,
        method: Method,
    ) -> Result<Vec<f64>> {
        let mut views = self.views::<T>(bytes);
        let communicator = &mut self.communicator;
        communicator.force_plan(plan)?;
        communicator.capture_begin()?;
        let recorded = (0..method.calls).try_for_each(|_| views.call(communicator, placement));
        // SAFETY: the memory behind the views is this rank's, and outlives the graph, which is dropped here.
        let graph = unsafe { communicator.capture_end() };
        recorded?;
        let graph = graph?;
        let together = Together {
            meeting: self.meeting,
            rank: communicator.rank(),
        };
        let times = time_replays(&mut self.timer, together, method, || {
            Ok(graph.launch(communicator)?)
        })?;
        communicator.synchronize()?;
        communicator.force_plan(None)?;
        Ok(times)
    }

    /// Batches of eager calls: microseconds a call by the device's clock, and of the host.
    pub(crate) fn time_eager<T: Element>(
        &mut self,
        placement: Placement,
        bytes: usize,
        plan: Option<Plan>,
        method: Method,
    ) -> Result<(Vec<f64>, Vec<f64>)> {
        let mut views = self.views::<T>(bytes);
        let communicator = &mut self.communicator;
        communicator.force_plan(plan)?;
        let together = Together {
            meeting: self.meeting,
            rank: communicator.rank(),
        };
        let times = time_eager(&mut self.timer, together, method, || {
            Ok(views.call(communicator, placement)?)
        })?;
        communicator.synchronize()?;
        communicator.force_plan(None)?;
        Ok(times)
    }

    /// As [`Rank::time_eager`] for ordinary input, without what a call adds to the launch of its
    /// kernel. `None` if the call takes several launches.
    pub(crate) fn time_bare<T: Element>(
        &mut self,
        bytes: usize,
        method: Method,
    ) -> Result<Option<(Vec<f64>, Vec<f64>)>> {
        let together = Together {
            meeting: self.meeting,
            rank: self.number(),
        };
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
            time_eager(&mut self.timer, together, method, || Ok(launch()?))?
        };
        self.communicator.synchronize()?;
        Ok(Some(times))
    }

    fn views<T: Element>(&self, bytes: usize) -> Views<T, <M::Stream as DeviceStream>::Device> {
        let len = bytes.min(self.memory.bytes) / size_of::<T>();
        let view = |address| {
            // SAFETY: each place has at least as many bytes, aligned for every type; the views are dropped before it. The symmetric buffer
            // itself is not used while a view of it exists.
            View(ManuallyDrop::new(unsafe {
                self.device.adopt(address, len)
            }))
        };
        Views {
            input: view(self.device.allocation_address(&self.memory.input)),
            output: view(self.device.allocation_address(&self.memory.output)),
            symmetric: view(self.memory.symmetric_address),
        }
    }
}

/// A message in each of the places it can be in.
struct Views<T: Element, D: Device> {
    input: View<T, D>,
    output: View<T, D>,
    symmetric: View<T, D>,
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

/// Memory of somebody else as a device's buffer.
struct View<T: Element, D: Device>(ManuallyDrop<D::Buffer<T>>);

impl<T: Element, D: Device> Deref for View<T, D> {
    type Target = D::Buffer<T>;

    fn deref(&self) -> &D::Buffer<T> {
        &self.0
    }
}

impl<T: Element, D: Device> DerefMut for View<T, D> {
    fn deref_mut(&mut self) -> &mut D::Buffer<T> {
        &mut self.0
    }
}

impl<T: Element, D: Device> Drop for View<T, D> {
    fn drop(&mut self) {
        // SAFETY: taken once, here.
        D::disown(unsafe { ManuallyDrop::take(&mut self.0) });
    }
}
