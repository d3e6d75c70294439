//! What the ranks of one group measure of calls with RMSNorm.

use anyhow::{Context, Result};
use peersum::device::Device;
use peersum::dispatch::{Placement, Plan, Route};

use super::group::Group;
use crate::bench::candidates::{candidates, own_placement};
use crate::bench::norm::{NormCall, NormRank, Way};
use crate::bench::report::{Call, Norm, Sample};
use crate::data::TestElement;
use crate::norm_output::NormOutput;

/// One way to carry out a call.
struct Candidate {
    call: NormCall,
    /// What is launched of the fused kernel, or of the all-reduce.
    plan: Plan,
    is_fused: bool,
    from_table: bool,
}

/// Measures every shape and output that the flags name. Each call is checked before it is timed.
pub(super) fn measure<T: TestElement, D: Device>(
    group: &Group<'_>,
    rank: &mut NormRank<'_, '_, D>,
    samples: &mut Vec<Sample>,
) -> Result<()> {
    let args = group.args;
    for &hidden in &args.hidden {
        for &rows in &args.rows {
            for &output in &args.output {
                measure_rows::<T, D>(group, rank, (rows, hidden, output), samples)?;
            }
        }
    }
    Ok(())
}

fn measure_rows<T: TestElement, D: Device>(
    group: &Group<'_>,
    rank: &mut NormRank<'_, '_, D>,
    (rows, hidden, output): (u32, u32, NormOutput),
    samples: &mut Vec<Sample>,
) -> Result<()> {
    let args = group.args;
    let expected = rank.expected::<T>(rows, hidden, output);
    let bytes = (rows * hidden) as usize * size_of::<T>();
    for candidate in candidates_of::<T, D>(group, rank, (rows, hidden, output))? {
        let norm = Norm {
            rows,
            hidden,
            output,
            is_fused: candidate.is_fused,
        };
        for &launch in &args.method {
            let call = Call {
                placement: Some(candidate.call.placement),
                plan: Some(candidate.plan),
                from_table: candidate.from_table,
                norm: Some(norm),
                ..group.call::<T>(bytes, launch)
            };
            let checked = rank.check(candidate.call, launch, &expected);
            checked.with_context(|| format!("{:?}", candidate.call))?;
            let times = rank.time::<T>(candidate.call, args.call.method(launch))?;
            samples.push(Sample::new(call, times));
        }
    }
    Ok(())
}

/// What is measured of one shape.
fn candidates_of<T: TestElement, D: Device>(
    group: &Group<'_>,
    rank: &mut NormRank<'_, '_, D>,
    (rows, hidden, output): (u32, u32, NormOutput),
) -> Result<Vec<Candidate>> {
    let args = group.args;
    let bytes = u64::from(rows) * u64::from(hidden) * size_of::<T>() as u64;
    let mut all = Vec::new();
    let mut add = |rank: &mut NormRank<'_, '_, D>, placement, way| -> Result<()> {
        // FP8 has no call out of place.
        if placement == Placement::Symmetric && output.has_fp8() {
            return Ok(());
        }
        let call = NormCall {
            placement,
            rows,
            hidden,
            output,
            way,
        };
        let communicator = &rank.rank.communicator;
        let by_table = communicator.fused_launch::<T>(placement, rows, hidden);
        let from_table = match way {
            Way::Fused => by_table.is_some(),
            Way::Unfused => by_table.is_none(),
            Way::Table => true,
            Way::FusedAs(_) | Way::UnfusedAs(_) => false,
        };
        let reduced = match way {
            Way::UnfusedAs(plan) => plan,
            _ => communicator.plan(placement, bytes),
        };
        let reduced = communicator.launched(reduced, bytes);
        let fused = rank.fused_launch::<T>(call)?;
        // Where no row fits the slots, the fused kernel is not what would be measured.
        if way.fuses() == Some(true) && fused.is_none() {
            return Ok(());
        }
        all.push(Candidate {
            call,
            plan: fused.unwrap_or(reduced),
            is_fused: fused.is_some(),
            from_table,
        });
        Ok(())
    };
    if args.measures_best() {
        for placement in Placement::ALL {
            add(rank, placement, Way::Fused)?;
            add(rank, placement, Way::Unfused)?;
        }
    }
    for route in args.routes() {
        let placement = own_placement(route);
        if route == Route::PushOneShot {
            for plan in fused_shapes::<T, D>(group, rank, rows, hidden)? {
                add(rank, placement, Way::FusedAs(plan))?;
            }
        }
        let communicator = &rank.rank.communicator;
        let launched = |plan| communicator.launched(plan, bytes);
        let world_size = group.settings.world_size;
        for plan in candidates(route, &args.shapes, bytes, world_size, launched) {
            add(rank, placement, Way::UnfusedAs(plan))?;
        }
    }
    Ok(all)
}

/// The different launches of the fused kernel that the shapes give.
fn fused_shapes<T: TestElement, D: Device>(
    group: &Group<'_>,
    rank: &mut NormRank<'_, '_, D>,
    rows: u32,
    hidden: u32,
) -> Result<Vec<Plan>> {
    let mut launches = Vec::new();
    for &(blocks, threads) in &group.args.shapes {
        let call = NormCall {
            placement: Placement::Ordinary,
            rows,
            hidden,
            output: NormOutput::Same,
            way: Way::FusedAs(Plan {
                route: Route::PushOneShot,
                blocks,
                threads,
            }),
        };
        if let Some(launch) = rank.fused_launch::<T>(call)?
            && !launches.contains(&launch)
        {
            launches.push(launch);
        }
    }
    Ok(launches)
}
