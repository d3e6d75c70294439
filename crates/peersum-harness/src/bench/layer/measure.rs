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
use crate::bench::nccl::{self, Nccl};
use crate::bench::ranks::{builder, run_ranks};
use crate::bench::report::System;
use crate::bench::timing::{Method, Spread, Stopwatch, Times};
use crate::machine::{DeviceKind, Gpus};

/// What one group measures.
pub(super) struct Group<'a> {
    pub(super) load_policy: &'a LoadPolicy,
    pub(super) shape: Shape,
    pub(super) rows: &'a [u32],
    /// The calls of each are the layers.
    pub(super) methods: &'a [Method],
    pub(super) pdl: bool,
}

/// What follows the product of each layer.
enum Operation<'a> {
    Peersum(Box<Communicator<Cuda>>),
    Nccl(nccl::Communicator<'a>),
}

/// One rank.
struct Rank<'a> {
    stack: Stack,
    stopwatch: Stopwatch<'a, Cuda>,
}

/// Measures a group: with NCCL if it is given, else with peersum.
///
/// # Errors
/// The group cannot be built, a call failed, or peersum's results are not those of all ranks.
pub(super) fn measure_group(
    gpus: &Gpus,
    group: &Group<'_>,
    nccl: Option<&Nccl>,
) -> Result<Vec<Cell>> {
    let nccl = nccl.map(|nccl| nccl.group(group.shape.world_size));
    let nccl = nccl.transpose()?;
    run_ranks(gpus, group.shape.world_size, |stopwatch, rendezvous| {
        let rank = stopwatch.peers.rank();
        // Before the communicator: operations of cuBLAS that affect the whole device must not
        // coincide with another rank's calls.
        let stack = Stack::new(stopwatch.device.stream(), rank, group.shape)?;
        let rank = Rank { stack, stopwatch };
        // Dropped first: its teardown waits for the stream, which uses the rest.
        let mut operation = match &nccl {
            Some(nccl) => Operation::Nccl(nccl.join(&rank.stopwatch)?),
            None => {
                // With the default buffer sizes, as in most engines.
                let builder = builder(DeviceKind::Cuda, rendezvous, group.load_policy, group.pdl);
                Operation::Peersum(Box::new(builder.build(rank.stopwatch.device.stream())?))
            }
        };
        rank.measure(group, &mut operation)
    })
}

impl Operation<'_> {
    fn enqueue(&mut self, sums: &mut CudaSlice<bf16>, stream: &Arc<CudaStream>) -> Result<()> {
        match self {
            Operation::Peersum(communicator) => Ok(communicator.all_reduce_in_place(sums)?),
            Operation::Nccl(communicator) => {
                let (elements, address) = (sums.len(), sums.device_ptr_mut(stream).0);
                // SAFETY: the slice has so many elements and is freed in the order of the stream,
                // which is the communicator's.
                unsafe { communicator.all_reduce(address, address, elements, Dtype::Bf16) }
            }
        }
    }

    /// Waits for all that was enqueued, and reports what failed.
    fn synchronize(&mut self, device: &Cuda) -> Result<()> {
        match self {
            Operation::Peersum(communicator) => communicator.synchronize()?,
            Operation::Nccl(_) => device.synchronize()?,
        }
        Ok(())
    }

    fn system(&self) -> System {
        match self {
            Operation::Peersum(_) => System::Peersum,
            Operation::Nccl(_) => System::Nccl,
        }
    }

    /// The plan of the dispatch table for a layer's message.
    fn plan(&self, bytes: u64) -> Option<Plan> {
        match self {
            Operation::Peersum(communicator) => {
                let plan = communicator.plan(Placement::Ordinary, bytes);
                Some(communicator.launched(plan, bytes))
            }
            Operation::Nccl(_) => None,
        }
    }
}

impl Rank<'_> {
    fn measure(&self, group: &Group<'_>, operation: &mut Operation<'_>) -> Result<Vec<Cell>> {
        let mut cells = Vec::new();
        for &rows in group.rows {
            let mut activations = self.stack.activations(rows)?;
            self.warm_up(&mut activations, operation)?;
            let bytes = group.shape.message_bytes(rows) as u64;
            for &method in group.methods {
                let without = self.time(&mut activations, method, None)?;
                let with = self
                    .time_with(&mut activations, method, operation)
                    .with_context(|| format!("{rows} rows, {}", method.launch.name()))?;
                // Without an all-reduce no rank waits for another, so a step takes as long as its
                // slowest rank.
                let (without_us, with_us) =
                    (Spread::of(&without.longest()), Spread::of(&with.shortest()));
                cells.push(Cell {
                    system: operation.system(),
                    hidden: group.shape.hidden,
                    rows,
                    bytes,
                    launch: method.launch,
                    plan: operation.plan(bytes),
                    without_us,
                    with_us,
                    adds_us: adds_us(without_us, with_us),
                });
            }
        }
        Ok(cells)
    }

    /// Does what happens once per process or size and is not allowed in a capture: cuBLAS loads its
    /// kernels, NCCL connects.
    fn warm_up(&self, activations: &mut Activations, operation: &mut Operation<'_>) -> Result<()> {
        let device = &self.stopwatch.device;
        for layer in 0..self.stack.shape().layers {
            self.stack.enqueue(activations, layer)?;
        }
        device.synchronize()?;
        // No rank may call while another still loads: loading may wait for all work of the device.
        self.stopwatch.peers.meet()?;
        if operation.system() == System::Nccl {
            let output = self.stack.enqueue(activations, 0)?;
            operation.enqueue(output, device.stream())?;
            operation.synchronize(device)?;
        }
        Ok(())
    }

    /// Times layers with the operation. peersum's result is checked.
    fn time_with(
        &self,
        activations: &mut Activations,
        method: Method,
        operation: &mut Operation<'_>,
    ) -> Result<Times> {
        let times = self.time(activations, method, Some(&mut *operation))?;
        if operation.system() == System::Peersum {
            self.stack.poison(activations)?;
            let once = Method {
                warm_up: 0,
                replays: 1,
                ..method
            };
            self.time(activations, once, Some(&mut *operation))?;
            operation.synchronize(&self.stopwatch.device)?;
            self.check(activations)?;
        }
        Ok(times)
    }

    /// Times layers, each followed by the operation if there is one.
    fn time(
        &self,
        activations: &mut Activations,
        method: Method,
        mut operation: Option<&mut Operation<'_>>,
    ) -> Result<Times> {
        let stream = self.stopwatch.device.stream();
        // SAFETY: stack and activations outlive this call, at whose end the stream has passed them.
        unsafe {
            self.stopwatch.time(method, |layer| {
                let output = self.stack.enqueue(activations, layer)?;
                match &mut operation {
                    Some(operation) => operation.enqueue(output, stream),
                    None => Ok(()),
                }
            })
        }
    }

    /// Fails unless the last layer's output is the same on every rank, bit for bit, and made of
    /// numbers.
    fn check(&self, activations: &Activations) -> Result<()> {
        let output = self.stack.read(activations)?;
        let bits: Vec<u16> = output.iter().map(|value| value.to_bits()).collect();
        let all = self.stopwatch.peers.gather(Arc::new(bits))?;
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
}
