//! What the ranks of one group measure for a report's cells.

use anyhow::Result;
use peersum::device::Device;
use peersum::dispatch::{Placement, Plan, Topology};

use super::arguments::BenchArgs;
use crate::bench::build::Build;
use crate::bench::candidates::{candidates, own_placement};
use crate::bench::ranks::{GroupSettings, Rank, run_group};
use crate::bench::report::{Call, Sample, System};
use crate::bench::timing::{Launch, Timed};
use crate::data::{TestElement, with_element};

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
        Ok(samples)
    })
}

struct Group<'a> {
    args: &'a BenchArgs,
    build: Build,
    settings: &'a GroupSettings,
    link: Topology,
}

impl Group<'_> {
    fn measure<T: TestElement, D: Device>(
        &self,
        rank: &mut Rank<'_, D>,
        samples: &mut Vec<Sample>,
    ) -> Result<()> {
        let args = self.args;
        rank.fill::<T>()?;
        for &bytes in &args.call.bytes {
            for (placement, plan) in self.plans(rank, bytes as u64) {
                let from_table = plan.is_none();
                let chosen =
                    plan.unwrap_or_else(|| rank.communicator.plan(placement, bytes as u64));
                for &launch in &args.method {
                    let method = args.call.method(launch);
                    let call = Call {
                        system: System::Peersum,
                        build: self.build,
                        world_size: self.settings.world_size,
                        link: self.link,
                        dtype: T::DTYPE,
                        bytes: bytes as u64,
                        launch,
                        pdl: self.settings.pdl,
                        placement: Some(placement),
                        plan: Some(rank.communicator.launched(chosen, bytes as u64)),
                        from_table,
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
        if args.algo.iter().any(|name| name == "best") {
            plans.extend(Placement::ALL.map(|placement| (placement, None)));
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
