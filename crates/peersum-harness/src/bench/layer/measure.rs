//! What the ranks of one group measure of a decode step: the products alone, and with sums and
//! norms.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use half::bf16;
use peersum::cudarc::driver::CudaView;
use peersum::device::Device;
use peersum::loader::LoadPolicy;
use peersum::{Communicator, Cuda, Rendezvous, RmsNorm};
use peersum_artifact::Dtype;

use super::arguments::LayerArgs;
use super::decoder::{Activations, Decoder, Sums};
use super::model::{Model, Shape};
use super::report::{Cell, Way};
use crate::bench::call::MeasuredCall;
use crate::bench::nccl::{self, Nccl};
use crate::bench::rank_calls::Launched;
use crate::bench::ranks::{builder, run_ranks};
use crate::bench::timing::{Method, Spread, Stopwatch, Times};
use crate::machine::{DeviceKind, Gpus};
use crate::operation::Operation;

/// What one group measures.
pub(super) struct Group<'a> {
    pub(super) args: &'a LayerArgs,
    pub(super) load_policy: &'a LoadPolicy,
    pub(super) model: Model,
    pub(super) shape: Shape,
    pub(super) world_size: u32,
}

/// What sums and normalises.
struct SumAndNorm<'a> {
    /// NCCL sums. Else peersum does, in the call that normalises.
    nccl: Option<nccl::Communicator<'a>>,
    /// Of a group of one, if NCCL sums.
    communicator: Communicator<Cuda>,
}

/// One rank.
struct Rank<'a> {
    decoder: Decoder,
    stopwatch: Stopwatch<'a, Cuda>,
}

/// Measures a group: with NCCL if it is given, else with peersum, unfused and fused.
///
/// # Errors
/// The group cannot be built, a call failed, or peersum's results are not the same on all ranks
/// and in both ways.
pub(super) fn measure_group(
    gpus: &Gpus,
    group: &Group<'_>,
    nccl: Option<&Nccl>,
) -> Result<Vec<Cell>> {
    let id = nccl.map(Nccl::group).transpose()?;
    run_ranks(gpus, group.world_size, |stopwatch, rendezvous| {
        let rank = stopwatch.peers.rank();
        let stream = stopwatch.device.stream();
        // Before the communicator: operations of cuBLAS that affect the whole device must not
        // coincide with another rank's calls.
        let decoder = Decoder::new(stream, rank, group.shape)?;
        let (nccl, rendezvous) = match nccl.zip(id) {
            Some((nccl, id)) => {
                let alone = Rendezvous::threads(1).pop().context("a group of one")?;
                (Some(nccl.join((id, group.world_size), &stopwatch)?), alone)
            }
            None => (None, rendezvous),
        };
        let builder = builder(
            DeviceKind::Cuda,
            rendezvous,
            group.load_policy,
            group.args.pdl,
        );
        // Dropped first: its teardown waits for the stream, which uses the rest.
        let mut operation = SumAndNorm {
            nccl,
            communicator: builder.build(stream)?,
        };
        let rank = Rank { decoder, stopwatch };
        let measured = rank.measure(group, &mut operation);
        drop(operation);
        measured
    })
}

impl SumAndNorm<'_> {
    fn enqueue(&mut self, sums: &mut Sums, gamma: CudaView<'_, bf16>) -> Result<()> {
        let norm = RmsNorm {
            weight: &gamma,
            epsilon: 1e-5,
            weight_offset: 0.0,
        };
        let communicator = &mut self.communicator;
        if let Some(nccl) = &self.nccl {
            let (elements, partial) = sums.place(communicator.stream());
            let operation = Operation::AllReduce;
            // SAFETY: the slice has so many elements and is freed in the order of the stream, which
            // is the communicator's.
            unsafe { nccl.call(operation, [partial, partial], elements, Dtype::Bf16)? };
        }
        let Sums {
            partial,
            residual,
            normalised,
        } = sums;
        Ok(communicator.all_reduce_add_rms_norm(&*partial, residual, &norm, normalised)?)
    }

    /// What peersum launches in this way, if it sums.
    fn launched(&mut self, shape: Shape, rows: u32, way: Way) -> Result<Launched> {
        if self.nccl.is_some() {
            return Ok(Launched::default());
        }
        let call = MeasuredCall {
            fuses: way.fuses(),
            ..MeasuredCall::of_rows(rows, shape.hidden, size_of::<bf16>())
        };
        Launched::of::<bf16, _>(&mut self.communicator, &call)
    }

    fn ways(&self) -> &'static [Way] {
        match self.nccl {
            None => &[Way::PeersumUnfused, Way::PeersumFused],
            Some(_) => &[Way::NcclAndNorm],
        }
    }
}

impl Rank<'_> {
    fn measure(&self, group: &Group<'_>, operation: &mut SumAndNorm<'_>) -> Result<Vec<Cell>> {
        let mut cells = Vec::new();
        for &rows in &group.args.rows {
            let mut activations = self.decoder.activations(rows)?;
            self.warm_up(&mut activations, operation)?;
            for &launch in &group.args.method {
                // A call is a step.
                let method = group.args.run.method(launch, 1);
                let without = self.time(&mut activations, method, None)?;
                // Without sums no rank waits for another, so a step takes as long as its slowest.
                let products_us = Spread::of(&without.longest());
                let mut left: Option<Vec<u16>> = None;
                for &way in operation.ways() {
                    let launched = operation.launched(group.shape, rows, way)?;
                    // As when a row does not fit the slots: there is no such way.
                    if way == Way::PeersumFused && !launched.is_fused {
                        continue;
                    }
                    let timed = self.time_way(&mut activations, method, way, operation);
                    let what = || format!("{rows} rows, {}, {way:?}", method.launch.name());
                    let (times, bits) = timed.with_context(what)?;
                    let is_same = left.as_ref().is_none_or(|left| *left == bits);
                    ensure!(is_same, "{}: not the bits of the unfused step", what());
                    left = Some(bits);
                    cells.push(Cell {
                        model: group.model,
                        way,
                        rows,
                        bytes: group.shape.message_bytes(rows),
                        launch: method.launch,
                        plan: launched.plan,
                        is_fused: launched.is_fused,
                        from_table: launched.by_table,
                        products_us,
                        step_us: Spread::of(&times.shortest()),
                    });
                }
            }
        }
        Ok(cells)
    }

    /// Does what happens once per process or size and is not allowed in a capture: cuBLAS loads its
    /// kernels, NCCL connects.
    fn warm_up(&self, activations: &mut Activations, operation: &mut SumAndNorm<'_>) -> Result<()> {
        let device = &self.stopwatch.device;
        self.decoder.enqueue(activations, |_, _| Ok(()))?;
        device.synchronize()?;
        // No rank may call while another still loads: loading may wait for all work of the device.
        self.stopwatch.peers.meet()?;
        if operation.nccl.is_some() {
            self.decoder
                .enqueue(activations, |sums, gamma| operation.enqueue(sums, gamma))?;
            operation.communicator.synchronize()?;
        }
        Ok(())
    }

    /// Times steps, and returns the bits that one leaves in poisoned memory.
    fn time_way(
        &self,
        activations: &mut Activations,
        method: Method,
        way: Way,
        operation: &mut SumAndNorm<'_>,
    ) -> Result<(Times, Vec<u16>)> {
        operation.communicator.force_fused(way.fuses());
        self.decoder.poison(activations)?;
        let once = Method {
            warm_up: 0,
            replays: 1,
            ..method
        };
        self.time(activations, once, Some(&mut *operation))?;
        operation.communicator.synchronize()?;
        let bits = self.check(activations)?;
        let times = self.time(activations, method, Some(&mut *operation))?;
        operation.communicator.synchronize()?;
        operation.communicator.force_fused(None);
        Ok((times, bits))
    }

    /// Times steps, with sums and norms if there is an operation.
    fn time(
        &self,
        activations: &mut Activations,
        method: Method,
        mut operation: Option<&mut SumAndNorm<'_>>,
    ) -> Result<Times> {
        // SAFETY: decoder and activations outlive this call, at whose end the stream has passed
        // them.
        unsafe {
            self.stopwatch.time(method, |_| {
                self.decoder
                    .enqueue(activations, |sums, gamma| match &mut operation {
                        Some(operation) => operation.enqueue(sums, gamma),
                        None => Ok(()),
                    })
            })
        }
    }

    /// The bits that a step has left. Fails unless they are the same on every rank, and numbers.
    fn check(&self, activations: &Activations) -> Result<Vec<u16>> {
        let output = self.decoder.read(activations)?;
        let bits: Vec<u16> = output.iter().map(|value| value.to_bits()).collect();
        let all = self.stopwatch.peers.gather(Arc::new(bits.clone()))?;
        ensure!(
            output.iter().all(|value| value.is_finite()),
            "a step leaves values that are not finite"
        );
        let differs = all.iter().position(|other| **other != bits);
        ensure!(
            differs.is_none(),
            "this rank and rank {} are left with different values",
            differs.unwrap_or(0)
        );
        Ok(bits)
    }
}
