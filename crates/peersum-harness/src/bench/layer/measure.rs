//! What the ranks of one group measure: the same layers without an all-reduce and with one, in
//! turn.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use half::bf16;
use peersum::cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut};
use peersum::device::Device;
use peersum::dispatch::{Placement, Plan};
use peersum::loader::LoadPolicy;
use peersum::{Communicator, Cuda};
use peersum_artifact::Dtype;

use super::report::{Cell, adds_us};
use super::stack::{Activations, Shape, Stack};
use crate::bench::nccl::OwnedCommunicator;
use crate::bench::ranks::call_timeout;
use crate::bench::report::{Launch, System};
use crate::bench::timing::{EventTimer, Method, Spread, longest, shortest, time_replays};
use crate::machine::{Gpus, Machine};
use crate::ranks::{PATIENCE, Peers, run_threads};

/// What one group measures.
pub(super) struct Group<'a> {
    pub(super) load_policy: &'a LoadPolicy,
    pub(super) shape: Shape,
    pub(super) rows: &'a [u32],
    pub(super) launches: &'a [Launch],
    /// Its calls are the layers.
    pub(super) method: Method,
    pub(super) pdl: bool,
}

/// The all-reduce that is measured.
enum AllReduce<'a> {
    Peersum(Box<Communicator<Cuda>>),
    Nccl(&'a OwnedCommunicator<'a>),
}

/// One rank.
struct Rank<'a> {
    // Dropped first: its teardown waits for the stream, which uses what follows.
    all_reduce: AllReduce<'a>,
    stack: Stack,
    device: Cuda,
    timer: EventTimer,
    peers: Peers<'a>,
}

/// Measures a group: with NCCL's communicators if there are some, else with peersum's.
///
/// # Errors
/// The group cannot be built, a call failed, or peersum's results are not those of all ranks.
pub(super) fn measure_group(
    gpus: &Gpus,
    group: &Group<'_>,
    nccl: Option<&[OwnedCommunicator<'_>]>,
) -> Result<Vec<Cell>> {
    let world_size = group.shape.world_size;
    let ranks = run_threads(world_size, 1, |mut member| {
        let rank = member.peers.rank();
        let stream = gpus.stream(rank)?;
        // Before the communicator: operations of cuBLAS that affect the whole device must not
        // coincide with another rank's calls.
        let stack = Stack::new(&stream, rank, group.shape)?;
        let all_reduce = match nccl {
            Some(communicators) => AllReduce::Nccl(
                communicators
                    .get(rank as usize)
                    .context("a communicator for each rank")?,
            ),
            None => {
                // With the default buffer sizes, as in most engines.
                let communicator = Communicator::builder()
                    .rendezvous(member.next_group()?)
                    .load_policy(group.load_policy.clone())
                    .pdl(group.pdl)
                    .timeout(call_timeout(gpus.kind()))
                    .setup_timeout(PATIENCE)
                    .build(&stream)?;
                AllReduce::Peersum(Box::new(communicator))
            }
        };
        let mut this = Rank {
            all_reduce,
            stack,
            device: Cuda::open(&stream)?,
            timer: EventTimer::new(&stream)?,
            peers: member.peers,
        };
        this.measure(group)
    })?;
    // All ranks compute the same result from the times of all.
    ranks.into_iter().next().context("a group without ranks")
}

impl Rank<'_> {
    fn measure(&mut self, group: &Group<'_>) -> Result<Vec<Cell>> {
        let mut cells = Vec::new();
        for &rows in group.rows {
            let mut activations = self.stack.activations(rows)?;
            self.warm_up(&mut activations)?;
            for &launch in group.launches {
                let without =
                    self.time_plain(&mut activations, launch, group.method, |_| Ok(()))?;
                let with = self
                    .time_with(&mut activations, launch, group.method)
                    .with_context(|| format!("{rows} rows, {}", launch.name()))?;
                let without = self.peers.gather(without)?;
                let with = self.peers.gather(with)?;
                // Without an all-reduce no rank waits for another, so a step takes as long as its
                // slowest rank.
                let (without, with) =
                    (Spread::of(&longest(&without)), Spread::of(&shortest(&with)));
                cells.push(Cell {
                    system: match self.all_reduce {
                        AllReduce::Peersum(_) => System::Peersum,
                        AllReduce::Nccl(_) => System::Nccl,
                    },
                    hidden: group.shape.hidden,
                    rows,
                    bytes: group.shape.message_bytes(rows) as u64,
                    launch,
                    plan: self.plan(rows),
                    without_us: without,
                    with_us: with,
                    adds_us: adds_us(without, with),
                });
            }
        }
        Ok(cells)
    }

    /// Does what happens once per process or size and is not allowed in a capture: cuBLAS loads its
    /// kernels, NCCL connects.
    fn warm_up(&self, activations: &mut Activations) -> Result<()> {
        let stream = self.stack.stream();
        self.stack.enqueue(activations, |_| Ok(()))?;
        stream.synchronize()?;
        // No rank may call while another still loads: loading may wait for all work of the device.
        self.peers.meet()?;
        if let AllReduce::Nccl(communicator) = self.all_reduce {
            self.stack
                .enqueue(activations, |sums| sum_by_nccl(communicator, sums, stream))?;
            stream.synchronize()?;
        }
        Ok(())
    }

    /// Microseconds a layer of each replay, each layer summed by this group's all-reduce.
    fn time_with(
        &mut self,
        activations: &mut Activations,
        launch: Launch,
        method: Method,
    ) -> Result<Vec<f64>> {
        let stream = Arc::clone(self.stack.stream());
        match &mut self.all_reduce {
            AllReduce::Nccl(communicator) => {
                let communicator = *communicator;
                self.time_plain(activations, launch, method, |sums| {
                    sum_by_nccl(communicator, sums, &stream)
                })
            }
            AllReduce::Peersum(communicator) => {
                let stack = &self.stack;
                let graph = match launch {
                    Launch::Eager => None,
                    Launch::Graph => {
                        communicator.capture_begin()?;
                        let recorded = stack.enqueue(activations, |sums| {
                            Ok(communicator.all_reduce_in_place(sums)?)
                        });
                        // SAFETY: stack and activations outlive the graph, which is dropped here.
                        let graph = unsafe { communicator.capture_end() };
                        recorded?;
                        Some(graph?)
                    }
                };
                let mut replay = |activations: &mut Activations| match &graph {
                    Some(graph) => Ok(graph.launch(communicator)?),
                    None => stack.enqueue(activations, |sums| {
                        Ok(communicator.all_reduce_in_place(sums)?)
                    }),
                };
                let times =
                    time_replays(&mut self.timer, self.peers, method, || replay(activations))?;
                stack.poison(activations)?;
                replay(activations)?;
                communicator.synchronize()?;
                self.check(activations)?;
                Ok(times)
            }
        }
    }

    /// The same with the work that `all_reduce` enqueues.
    fn time_plain(
        &mut self,
        activations: &mut Activations,
        launch: Launch,
        method: Method,
        mut all_reduce: impl FnMut(&mut CudaSlice<bf16>) -> Result<()>,
    ) -> Result<Vec<f64>> {
        let (stack, device) = (&self.stack, &self.device);
        let graph = match launch {
            Launch::Eager => None,
            Launch::Graph => {
                device.capture_begin()?;
                let recorded = stack.enqueue(activations, &mut all_reduce);
                // End the capture in any case, so that the stream is usable again.
                let graph = device.capture_end();
                recorded?;
                Some(graph?)
            }
        };
        time_replays(&mut self.timer, self.peers, method, || match &graph {
            // SAFETY: stack and activations outlive the graph, which is dropped here.
            Some(graph) => Ok(unsafe { device.launch_graph(graph) }?),
            None => stack.enqueue(activations, &mut all_reduce),
        })
    }

    /// Fails unless the last layer's output is the same on every rank, bit for bit, and made of
    /// numbers.
    fn check(&self, activations: &Activations) -> Result<()> {
        let output = self.stack.read(activations)?;
        let bits: Vec<u16> = output.iter().map(|value| value.to_bits()).collect();
        let all = self.peers.gather(Arc::new(bits))?;
        ensure!(
            output.iter().all(|value| value.is_finite())
                && output.iter().any(|value| *value != bf16::ZERO),
            "the last layer's output is not made of numbers, or of zeros alone"
        );
        let differs = all.iter().position(|other| all.first() != Some(other));
        ensure!(
            differs.is_none(),
            "the last layer's outputs of ranks 0 and {} differ",
            differs.unwrap_or(0)
        );
        Ok(())
    }

    /// The plan of the dispatch table for a layer's message.
    fn plan(&self, rows: u32) -> Option<Plan> {
        let AllReduce::Peersum(communicator) = &self.all_reduce else {
            return None;
        };
        let shape = self.stack.shape();
        let bytes = shape.message_bytes(rows) as u64;
        let plan = communicator.plan(Placement::Ordinary, bytes);
        Some(communicator.launched(plan, bytes))
    }
}

fn sum_by_nccl(
    communicator: &OwnedCommunicator<'_>,
    sums: &mut CudaSlice<bf16>,
    stream: &Arc<CudaStream>,
) -> Result<()> {
    let elements = sums.len();
    let address = sums.device_ptr_mut(stream).0;
    // SAFETY: the slice has so many elements and is freed in the order of the stream, which is of
    // this rank's device; the communicator is that of the thread's rank.
    unsafe { communicator.all_reduce(address, address, elements, Dtype::Bf16, stream) }
}
