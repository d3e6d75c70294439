//! What the ranks of one group measure for a report's cells.

use anyhow::Result;
use peersum::device::Device;
use peersum::dispatch::{Placement, Plan, Route, Topology};

use super::arguments::BenchArgs;
use crate::bench::build::Build;
use crate::bench::call::MeasuredCall;
use crate::bench::candidates::{candidates, own_placement};
use crate::bench::rank_calls::Launched;
use crate::bench::ranks::{GroupSettings, Rank, run_group};
use crate::bench::report::{Call, Norm, Sample, System};
use crate::bench::timing::{Launch, Timed};
use crate::data::{TestElement, with_element};
use crate::operation::Operation;

/// One group.
struct Group<'a> {
    args: &'a BenchArgs,
    build: Build,
    settings: &'a GroupSettings,
    link: Topology,
}

/// Measures one group: all-reduces, then the calls of `--op`, if those are others.
pub(super) fn measure_group<M: Timed>(
    args: &BenchArgs,
    machine: &M,
    build: Build,
    settings: &GroupSettings,
) -> Result<Vec<Sample>> {
    let group = Group {
        args,
        build,
        settings,
        link: machine.link(settings.world_size),
    };
    let mut operations = vec![Operation::AllReduce, args.op];
    operations.dedup();
    run_group(machine, settings, |rank| {
        let mut samples = Vec::new();
        for &operation in &operations {
            for &dtype in &args.dtype {
                samples.extend(with_element!(dtype, T => group.measure::<T, _>(rank, operation)?));
            }
        }
        Ok(samples)
    })
}

impl Group<'_> {
    /// Each call is checked before it is timed.
    fn measure<T: TestElement, D: Device>(
        &self,
        rank: &mut Rank<'_, D>,
        operation: Operation,
    ) -> Result<Vec<Sample>> {
        let (args, settings) = (self.args, self.settings);
        let mut samples = Vec::new();
        for measured in self.calls::<T, D>(rank, operation)? {
            let launched = Launched::of::<T, D>(&mut rank.communicator, &measured)?;
            // Where no row fits the slots, the fused kernel is not what would be measured.
            if measured.fuses == Some(true) && !launched.is_fused {
                continue;
            }
            let norm = (operation == Operation::RmsNorm).then(|| Norm {
                rows: measured.rows::<T>(),
                hidden: measured.hidden,
                output: measured.output,
                is_fused: launched.is_fused,
            });
            for &launch in &args.method {
                let method = args.call.method(launch);
                let call = Call {
                    build: self.build,
                    pdl: settings.pdl,
                    placement: Some(measured.placement),
                    plan: launched.plan,
                    from_table: launched.by_table,
                    norm,
                    ..Call::new(
                        (System::Peersum, settings.world_size, self.link),
                        (operation, T::DTYPE, measured.bytes),
                        launch,
                    )
                };
                rank.check::<T>(&measured, launch)?;
                samples.push(Sample::new(call, rank.time::<T>(&measured, method)?));
                let is_plain = measured == MeasuredCall::new(Operation::AllReduce, measured.bytes);
                if is_plain
                    && launch == Launch::Eager
                    && let Some(times) = rank.time_bare::<T>(measured.bytes, method)?
                {
                    let system = System::BareLaunch;
                    samples.push(Sample::new(Call { system, ..call }, times));
                }
            }
        }
        Ok(samples)
    }

    /// What is measured of one operation and type.
    fn calls<T: TestElement, D: Device>(
        &self,
        rank: &mut Rank<'_, D>,
        operation: Operation,
    ) -> Result<Vec<MeasuredCall>> {
        let args = self.args;
        // Beside other calls the all-reduce of the table is enough.
        let is_beside = operation != args.op;
        let has_placements = args.op.all_reduces();
        let ways: &[Option<bool>] = match operation {
            Operation::RmsNorm => &[Some(true), Some(false)],
            _ => &[None],
        };
        let mut calls = Vec::new();
        for message in self.messages::<T>(operation) {
            if is_beside || args.measures_best() {
                let placements = Placement::ALL.into_iter();
                for placement in placements.take(if has_placements { 3 } else { 1 }) {
                    calls.extend(ways.iter().map(|&fuses| MeasuredCall {
                        placement,
                        fuses,
                        ..message
                    }));
                }
            }
            if !is_beside {
                for route in args.routes() {
                    calls.extend(self.forced::<T, D>(rank, message, route)?);
                }
            }
        }
        // FP8 has no call out of place.
        calls.retain(|call| call.placement != Placement::Symmetric || !call.output.has_fp8());
        Ok(calls)
    }

    /// The messages of one operation and type.
    fn messages<T: TestElement>(&self, operation: Operation) -> Vec<MeasuredCall> {
        let (args, world_size) = (self.args, self.settings.world_size);
        match operation {
            Operation::RmsNorm => args.rows_calls(size_of::<T>()).collect(),
            _ => {
                let bytes = args.bytes(T::DTYPE).into_iter();
                let call = |bytes| match (operation, args.op) {
                    // As much to each peer by a one-shot push.
                    (Operation::AllReduce, Operation::AllGather) => {
                        let gather = MeasuredCall::new(Operation::AllGather, bytes);
                        MeasuredCall::new(operation, gather.sent_bytes(world_size))
                    }
                    _ => MeasuredCall::new(operation, bytes),
                };
                bytes.map(call).collect()
            }
        }
    }

    /// A call by one algorithm, with each of the different launches that the shapes give.
    fn forced<T: TestElement, D: Device>(
        &self,
        rank: &mut Rank<'_, D>,
        message: MeasuredCall,
        route: Route,
    ) -> Result<Vec<MeasuredCall>> {
        let (shapes, world_size) = (&self.args.shapes, self.settings.world_size);
        let operation = message.operation;
        if !operation.all_reduces() && route != Route::PushOneShot {
            return Ok(Vec::new());
        }
        let mut calls = Vec::new();
        if operation == Operation::RmsNorm && route == Route::PushOneShot {
            for &(blocks, threads) in shapes {
                let plan = Plan {
                    route,
                    blocks,
                    threads,
                };
                let mut call = MeasuredCall {
                    plan: Some(plan),
                    fuses: Some(true),
                    ..message
                };
                call.plan = Launched::of::<T, D>(&mut rank.communicator, &call)?.plan;
                if !calls.contains(&call) {
                    calls.push(call);
                }
            }
        }
        let sent = message.sent_bytes(world_size) as u64;
        let launched = |plan| rank.communicator.launched(plan, sent);
        let plans = candidates(route, shapes, sent, world_size, launched);
        calls.extend(plans.into_iter().map(|plan| MeasuredCall {
            placement: own_placement(route),
            plan: Some(plan),
            fuses: (operation == Operation::RmsNorm).then_some(false),
            ..message
        }));
        Ok(calls)
    }
}
