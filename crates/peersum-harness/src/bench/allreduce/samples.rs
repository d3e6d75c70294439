//! What the ranks of one group measure for a report's cells.

use anyhow::{Context, Result};
use half::{bf16, f16};
use peersum::Element;
use peersum::dispatch::{Placement, Plan, Route, Topology};
use peersum_artifact::Dtype;

use super::BenchArgs;
use crate::bench::candidates::{candidates, own_placement};
use crate::bench::machine::{Build, Machine, link_of};
use crate::bench::nccl;
use crate::bench::ranks::{GroupSettings, Rank, run_group};
use crate::bench::report::{Cell, Launch, Limits, System};
use crate::bench::timing::{Spread, median, rounded, shortest};

/// A measurement that is not finished: more rounds may add to it.
#[derive(Clone)]
pub(super) struct Sample {
    cell: Cell,
    /// Microseconds a call of each replay; the host's likewise.
    times: Vec<f64>,
    host: Vec<f64>,
}

impl Sample {
    /// The cell, with the limit of its call if that was measured.
    pub(super) fn finish(self, limits: &[Limits]) -> Cell {
        Cell {
            us: Spread::of(&self.times),
            host_us: (!self.host.is_empty()).then(|| rounded(median(&self.host))),
            ..self.cell
        }
        .finish(limits)
    }

    /// What was measured of NCCL.
    pub(super) fn of_nccl(world_size: u32, measured: nccl::Measured) -> Sample {
        Sample {
            cell: Cell {
                system: measured.system,
                build: Build::Shipped,
                world_size,
                link: Topology::Peer,
                dtype: measured.dtype,
                bytes: measured.bytes as u64,
                launch: measured.launch,
                pdl: false,
                placement: None,
                plan: None,
                from_table: false,
                us: Spread::of(&[]),
                host_us: None,
                algorithm_gb_s: 0.0,
                bus_gb_s: 0.0,
                limit_us: None,
            },
            times: measured.times,
            host: measured.host,
        }
    }
}

/// Adds the times of another round to those of the same measurement.
pub(super) fn add(samples: &mut Vec<Sample>, measured: Vec<Sample>) {
    for sample in measured {
        let same = samples.iter_mut().find(|other| {
            let (a, b) = (&other.cell, &sample.cell);
            a.is_same_call(b)
                && (a.system, a.build, a.pdl, a.placement, a.plan, a.from_table)
                    == (b.system, b.build, b.pdl, b.placement, b.plan, b.from_table)
        });
        match same {
            Some(other) => {
                other.times.extend(sample.times);
                other.host.extend(sample.host);
            }
            None => samples.push(sample),
        }
    }
}

/// Measures one group, and merges what its ranks have measured.
pub(super) fn measure_group<M: Machine>(
    args: &BenchArgs,
    machine: &M,
    routes: &[Route],
    settings: &GroupSettings,
) -> Result<Vec<Sample>> {
    let link = link_of(args.device, machine, settings.world_size);
    let ranks = run_group(machine, settings, |rank: &mut Rank<'_, M>| {
        let mut samples = Vec::new();
        for &dtype in &args.dtype {
            match dtype {
                Dtype::F16 => {
                    measure_type::<f16, M>(args, routes, settings, link, rank, &mut samples)?
                }
                Dtype::Bf16 => {
                    measure_type::<bf16, M>(args, routes, settings, link, rank, &mut samples)?
                }
                Dtype::F32 => {
                    measure_type::<f32, M>(args, routes, settings, link, rank, &mut samples)?
                }
            }
        }
        Ok(samples)
    })?;
    let mut ranks = ranks.into_iter();
    let first = ranks.next().context("a group without ranks")?;
    let others: Vec<Vec<Sample>> = ranks.collect();
    Ok(first
        .into_iter()
        .enumerate()
        .map(|(index, mut sample)| {
            let mut times = vec![std::mem::take(&mut sample.times)];
            for other in others.iter().filter_map(|rank| rank.get(index)) {
                times.push(other.times.clone());
                sample.host.extend(&other.host);
            }
            sample.times = shortest(&times);
            sample
        })
        .collect())
}

fn measure_type<T: Element, M: Machine>(
    args: &BenchArgs,
    routes: &[Route],
    settings: &GroupSettings,
    link: Topology,
    rank: &mut Rank<'_, M>,
    samples: &mut Vec<Sample>,
) -> Result<()>
where
    T::Bits: TryFrom<u32>,
{
    rank.fill::<T>()?;
    let world_size = settings.world_size;
    for &bytes in &args.bytes {
        let mut plans: Vec<(Placement, Option<Plan>)> = Vec::new();
        if args.algo.iter().any(|name| name == "best") {
            plans.extend(Placement::ALL.map(|placement| (placement, None)));
        }
        for &route in routes {
            let launched = |plan| rank.communicator.launched(plan, bytes as u64);
            let shapes = candidates(route, &args.shapes, bytes as u64, world_size, launched);
            plans.extend(
                shapes
                    .into_iter()
                    .map(|plan| (own_placement(route), Some(plan))),
            );
        }
        for (placement, plan) in plans {
            let from_table = plan.is_none();
            let chosen = plan.unwrap_or_else(|| rank.communicator.plan(placement, bytes as u64));
            for &launch in args.method.launches() {
                let (times, host) = match launch {
                    Launch::Graph => (
                        rank.time_graph::<T>(placement, bytes, plan, args.method())?,
                        Vec::new(),
                    ),
                    Launch::Eager => rank.time_eager::<T>(placement, bytes, plan, args.method())?,
                };
                let cell = Cell {
                    system: System::Peersum,
                    build: settings.build,
                    world_size,
                    link,
                    dtype: T::DTYPE,
                    bytes: bytes as u64,
                    launch,
                    pdl: settings.pdl,
                    placement: Some(placement),
                    plan: Some(rank.communicator.launched(chosen, bytes as u64)),
                    from_table,
                    us: Spread::of(&[]),
                    host_us: None,
                    algorithm_gb_s: 0.0,
                    bus_gb_s: 0.0,
                    limit_us: None,
                };
                samples.push(Sample { cell, times, host });
            }
        }
    }
    Ok(())
}
