//! The calls of a group that is one grid.

use anyhow::{Context, Result};
use peersum::dispatch::{Plan, Route};

use super::group::{Group, GroupArgs};
use super::{moves, rows};
use crate::grid::calls::Call;
use crate::grid::case::Variant;

/// How often all calls are made, each time in a new order.
const PASSES: usize = 2;

/// A call of each variant by each route, each of another size and shape.
fn calls() -> Vec<(Plan, Call)> {
    let shapes = [
        (1, Variant::Aligned, 1, 32),
        (37, Variant::Unaligned, 2, 32),
        (1000, Variant::InPlace, 2, 64),
        (5003, Variant::UnalignedInPlace, 4, 96),
        (4096, Variant::Special, 8, 32),
        (3001, Variant::SpecialUnaligned, 3, 160),
    ];
    let call = |route, (elements, variant, blocks, threads)| {
        let plan = Plan {
            route,
            blocks,
            threads,
        };
        (plan, Call::new(route, plan, elements, variant))
    };
    let of_route = |route| shapes.map(|shape| call(route, shape));
    Route::ALL.into_iter().flat_map(of_route).collect()
}

/// Makes every call in groups of each size and compares every bit.
pub(crate) fn run(args: &GroupArgs) -> Result<()> {
    let context = peersum::open_context(0)?;
    let stream = context.new_stream()?;
    let mut order = fastrand::Rng::with_seed(args.seed);
    for &world_size in &args.world_size {
        let group = Group::new(args, &stream, world_size)?;
        let mut count = 0;
        for _ in 0..PASSES {
            let mut calls = calls();
            order.shuffle(&mut calls);
            for (plan, call) in calls {
                group
                    .check(plan, &call, order.u64(..))
                    .with_context(|| format!("world size {world_size}, {call:?}"))?;
                count += 1;
            }
            let mut calls = moves::calls(world_size);
            order.shuffle(&mut calls);
            for moved in calls {
                group
                    .check_move(&moved, order.u64(..))
                    .with_context(|| format!("world size {world_size}, {moved:?}"))?;
                count += 1;
            }
            let mut calls = rows::calls(group.clustered.is_some());
            order.shuffle(&mut calls);
            for rows in calls {
                group
                    .check_rows(&rows, order.u64(..))
                    .with_context(|| format!("world size {world_size}, {rows:?}"))?;
                count += 1;
            }
        }
        println!(
            "world size {world_size}: {count} calls, the result of every rank equal to the \
             reference bit for bit"
        );
    }
    Ok(())
}
