//! What the ranks of one group measure for a report's cells.

use anyhow::Result;
use peersum::device::Device;
use peersum::dispatch::{Placement, Plan};

use super::arguments::BenchArgs;
use super::collectives;
use super::group::Group;
use super::norms;
use crate::bench::build::Build;
use crate::bench::candidates::{candidates, own_placement};
use crate::bench::norm::NormRank;
use crate::bench::ranks::{GroupSettings, Rank, run_group};
use crate::bench::report::{Call, Sample, System};
use crate::bench::timing::{Launch, Timed};
use crate::data::{TestElement, with_element};
use crate::operation::Operation;

/// Measures one group.
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
    run_group(machine, settings, |rank| {
        let mut samples = Vec::new();
        for &dtype in &args.dtype {
            with_element!(dtype, T => group.measure::<T, _>(rank, &mut samples)?);
        }
        if !args.op.all_reduces() {
            for &dtype in &args.dtype {
                with_element!(
                    dtype, T => collectives::measure::<T, _>(&group, rank, &mut samples)?
                );
            }
        }
        if args.op == Operation::RmsNorm {
            let rank = &mut NormRank::new(rank)?;
            for &dtype in &args.dtype {
                with_element!(
                    dtype, T => norms::measure::<T, _>(&group, rank, &mut samples)?
                );
            }
        }
        Ok(samples)
    })
}

impl Group<'_> {
    fn measure<T: TestElement, D: Device>(
        &self,
        rank: &mut Rank<'_, D>,
        samples: &mut Vec<Sample>,
    ) -> Result<()> {
        let args = self.args;
        rank.fill::<T>()?;
        for bytes in args.compared_bytes(T::DTYPE, self.settings.world_size) {
            for (placement, plan) in self.plans(rank, bytes as u64) {
                let from_table = plan.is_none();
                let chosen =
                    plan.unwrap_or_else(|| rank.communicator.plan(placement, bytes as u64));
                rank.check::<T>(placement, bytes, plan)?;
                for &launch in &args.method {
                    let method = args.call.method(launch);
                    let call = Call {
                        placement: Some(placement),
                        plan: Some(rank.communicator.launched(chosen, bytes as u64)),
                        from_table,
                        ..self.call::<T>(bytes, launch)
                    };
                    let times = rank.time::<T>(placement, bytes, plan, method)?;
                    samples.push(Sample::new(call, times));
                    let is_plain = from_table && placement == Placement::Ordinary;
                    if is_plain
                        && launch == Launch::Eager
                        && let Some(times) = rank.time_bare::<T>(bytes, method)?
                    {
                        let system = System::BareLaunch;
                        samples.push(Sample::new(Call { system, ..call }, times));
                    }
                }
            }
        }
        Ok(())
    }

    /// What is measured of one size. `None` is the dispatch table's plan.
    fn plans<D: Device>(&self, rank: &Rank<'_, D>, bytes: u64) -> Vec<(Placement, Option<Plan>)> {
        let args = self.args;
        let mut plans: Vec<(Placement, Option<Plan>)> = Vec::new();
        // Beside other calls the all-reduce of the table is enough.
        if !args.op.all_reduces() {
            return vec![(Placement::Ordinary, None)];
        }
        if args.measures_best() || args.op == Operation::RmsNorm {
            plans.extend(Placement::ALL.map(|placement| (placement, None)));
        }
        if args.op == Operation::RmsNorm {
            return plans;
        }
        for route in args.routes() {
            let launched = |plan| rank.communicator.launched(plan, bytes);
            let world_size = self.settings.world_size;
            let forced = candidates(route, &args.shapes, bytes, world_size, launched);
            let forced = forced.into_iter().map(Some);
            plans.extend(forced.map(|plan| (own_placement(route), plan)));
        }
        plans
    }
}
