//! Makes every call of a group that is one grid.

use anyhow::{Context, Result};

use super::calls::{moves, rows, sums};
use super::group::{Group, GroupArgs};

/// How often all calls are made, each time in a new order.
const PASSES: usize = 2;

/// Makes every call in groups of each size and compares every bit.
pub(crate) fn run(args: &GroupArgs) -> Result<()> {
    let context = peersum::open_context(0)?;
    let stream = context.new_stream()?;
    let mut order = fastrand::Rng::with_seed(args.seed);
    for &world_size in &args.world_size {
        let group = Group::new(args, &stream, world_size)?;
        let mut count = 0;
        for _ in 0..PASSES {
            let rows = rows(group.has_clusters);
            for mut calls in [sums(), moves(world_size), rows] {
                order.shuffle(&mut calls);
                for call in calls {
                    group
                        .check(&call, order.u64(..))
                        .with_context(|| format!("world size {world_size}, {call:?}"))?;
                    count += 1;
                }
            }
        }
        println!(
            "world size {world_size}: {count} calls, the result of every rank equal to the \
             reference bit for bit"
        );
    }
    Ok(())
}
