//! The ways to carry out calls that a sweep tries.

use std::fmt;

use anyhow::Result;
use peersum::device::Device;
use peersum::dispatch::{FusedShape, Placement, Plan, Route, Topology};
use peersum_artifact::Dtype;
use peersum_kernels::abi::PEERSUM_MAX_THREADS;

use crate::bench::call::MeasuredCall;
use crate::bench::candidates::{candidates, own_placement};
use crate::bench::rank_calls::Launched;
use crate::bench::ranks::Rank;
use crate::data::with_element;
use crate::operation::Operation;
use crate::table::grid_text;

/// Messages above this size are large.
pub(super) const LARGE_BYTES: u64 = 1 << 20;

/// The calls of one size: of each type, with each hidden size of which it is whole rows.
pub(super) type SizedCalls = [(Dtype, MeasuredCall)];

/// How calls are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Without RMSNorm, by this plan.
    Plan(Plan),
    /// With RMSNorm, as the tables before say: fused in this shape, or not.
    ByTable(Option<FusedShape>),
    Fused(FusedShape),
    Unfused,
}

impl Way {
    /// A call that is carried out in this way.
    pub(super) fn of(self, call: MeasuredCall, placement: Placement) -> MeasuredCall {
        let (plan, fuses) = match self {
            Way::Plan(plan) => (Some(plan), None),
            Way::ByTable(_) => (None, None),
            Way::Fused(shape) => (Some(plan_of(shape)), Some(true)),
            Way::Unfused => (None, Some(false)),
        };
        MeasuredCall {
            placement,
            plan,
            fuses,
            ..call
        }
    }

    /// The algorithm of what is tried.
    pub(super) fn route(self) -> Route {
        match self {
            Way::Plan(plan) => plan.route,
            // The fused kernel reads every kind of input in the same way.
            _ => Route::PushOneShot,
        }
    }

    /// The shape in which calls are fused.
    pub(super) fn fused(self) -> Option<FusedShape> {
        match self {
            Way::ByTable(shape) => shape,
            Way::Fused(shape) => Some(shape),
            Way::Plan(_) | Way::Unfused => None,
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (*self, self.fused()) {
            (Way::Plan(plan), _) => write!(f, "{} {}", plan.route.name(), grid_text(plan)),
            (_, Some(shape)) => write!(f, "fused, at most {}", grid_text(plan_of(shape))),
            (_, None) => f.write_str("unfused"),
        }
    }
}

fn plan_of(shape: FusedShape) -> Plan {
    Plan {
        route: Route::PushOneShot,
        blocks: shape.blocks,
        threads: shape.threads,
    }
}

/// The grids that are tried.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shapes {
    /// A group's largest grid is added.
    blocks: &'static [u32],
    threads: &'static [u32],
    /// The largest block of the fused kernel, which is cut to what the kernel allows.
    most_threads: u32,
    /// The largest grid of the group. `None` is the default of the library.
    pub(super) max_blocks: Option<u32>,
}

impl Shapes {
    pub(super) fn of(link: Topology) -> Shapes {
        match link {
            // An emulated thread is a thread of the host.
            Topology::Emulator => Shapes {
                blocks: &[1],
                threads: &[8, 16],
                most_threads: 16,
                max_blocks: Some(2),
            },
            Topology::Shared | Topology::Peer => Shapes {
                blocks: &[1, 2, 4, 8, 16, 24, 32, 48, 64, 96],
                // Each of the last three is the largest block that fits for some kernel: with the
                // warp for signals they have 8, 12 and 16 warps, and registers are allocated to
                // four warps at a time.
                threads: &[32, 64, 128, 256, 384, 224, 352, 480],
                most_threads: PEERSUM_MAX_THREADS,
                max_blocks: None,
            },
        }
    }

    fn blocks(self, max_blocks: u32) -> Vec<u32> {
        let blocks = self.blocks.iter().copied();
        let smaller = blocks.filter(|&blocks| blocks < max_blocks);
        smaller.chain([max_blocks]).collect()
    }

    /// The shapes to try for rows, the largest first.
    fn of_rows(self, max_blocks: u32) -> Vec<(u32, u32)> {
        let (mut blocks, mut threads) = (self.blocks(max_blocks), self.threads.to_vec());
        threads.push(self.most_threads);
        for list in [&mut blocks, &mut threads] {
            list.sort_unstable_by(|a, b| b.cmp(a));
            list.dedup();
        }
        let with_blocks = |&threads| blocks.iter().map(move |&blocks| (blocks, threads));
        threads.iter().flat_map(with_blocks).collect()
    }

    /// The shapes to try for a call with `places` units to share out. Threads without a unit only
    /// make a block larger.
    fn for_places(self, places: u64, max_blocks: u32) -> Vec<(u32, u32)> {
        let (blocks, mut threads) = (self.blocks(max_blocks), self.threads.to_vec());
        let least = self.threads.iter().copied().min().unwrap_or(0);
        threads.retain(|&threads| threads == least || u64::from(threads) < 2 * places);
        let with_threads = |&blocks| threads.iter().map(move |&threads| (blocks, threads));
        blocks.iter().flat_map(with_threads).collect()
    }

    /// The ways to try for calls of a size. Those of the base table come first, since time may run
    /// out.
    pub(super) fn ways<D: Device>(
        self,
        rank: &mut Rank<'_, D>,
        bytes: u64,
        calls: &SizedCalls,
    ) -> Result<Vec<Way>> {
        match have_rows(calls) {
            true => self.ways_of_rows(rank, calls),
            false => Ok(self.ways_of_sums(rank, bytes)),
        }
    }

    fn ways_of_sums<D: Device>(self, rank: &Rank<'_, D>, bytes: u64) -> Vec<Way> {
        let communicator = &rank.communicator;
        let (world_size, max_blocks) = (communicator.world_size(), communicator.max_blocks());
        let base_plan = |placement| base_plan(rank, placement, bytes);
        let mut plans = Vec::from(Placement::ALL.map(base_plan));
        let by_route = Route::ALL.map(|route| {
            let places = route.places(bytes, world_size);
            let shapes = self.for_places(places, max_blocks);
            let launched = |plan| communicator.launched(plan, bytes);
            let mut plans = candidates(route, &shapes, bytes, world_size, launched);
            // For large messages large grids win, and one block never does.
            if bytes > LARGE_BYTES {
                plans.reverse();
            }
            plans
        });
        // One of each algorithm in turn, likewise.
        let most = by_route.iter().map(Vec::len).max().unwrap_or(0);
        for at in 0..most {
            plans.extend(by_route.iter().filter_map(|plans| plans.get(at).copied()));
        }
        let mut ways = Vec::new();
        for way in plans.into_iter().map(Way::Plan) {
            if !ways.contains(&way) {
                ways.push(way);
            }
        }
        ways
    }

    /// The shapes that differ in a launch of any of these calls. The first is the largest, which
    /// leaves the shape to the library.
    fn ways_of_rows<D: Device>(
        self,
        rank: &mut Rank<'_, D>,
        calls: &SizedCalls,
    ) -> Result<Vec<Way>> {
        let max_blocks = rank.communicator.max_blocks();
        let (mut seen, mut ways) = (Vec::new(), Vec::new());
        for (blocks, threads) in self.of_rows(max_blocks) {
            let way = Way::Fused(FusedShape { blocks, threads });
            // A row that the slots do not hold is not fused in any shape.
            if let Some(launches) = fused_launches(rank, way, Placement::Ordinary, calls)?
                && !seen.contains(&launches)
            {
                seen.push(launches);
                ways.push(way);
            }
        }
        Ok(ways)
    }
}

fn have_rows(calls: &SizedCalls) -> bool {
    let mut calls = calls.iter();
    calls.any(|(_, call)| call.operation == Operation::RmsNorm)
}

/// The launches of the fused kernel, if all calls are fused.
fn fused_launches<D: Device>(
    rank: &mut Rank<'_, D>,
    way: Way,
    placement: Placement,
    calls: &SizedCalls,
) -> Result<Option<Vec<Plan>>> {
    let mut launches = Vec::new();
    for &(dtype, call) in calls {
        let call = way.of(call, placement);
        let communicator = &mut rank.communicator;
        let launched = with_element!(dtype, T => Launched::of::<T, D>(communicator, &call)?);
        launches.push(launched.plan.filter(|_| launched.is_fused));
    }
    Ok(launches.into_iter().collect())
}

/// What the tables before say of the calls of a size, of which `ways` are tried.
pub(super) fn base_way<D: Device>(
    rank: &mut Rank<'_, D>,
    placement: Placement,
    bytes: u64,
    calls: &SizedCalls,
    ways: &[Way],
) -> Result<Way> {
    if !have_rows(calls) {
        return Ok(Way::Plan(base_plan(rank, placement, bytes)));
    }
    let launches = fused_launches(rank, Way::ByTable(None), placement, calls)?;
    let row = rank
        .communicator
        .dispatch_table()
        .rms_norm
        .row(placement, bytes);
    let shape = row.and_then(|row| row.fused);
    let largest = ways.first().and_then(|way| way.fused());
    Ok(Way::ByTable(
        shape.or(largest).filter(|_| launches.is_some()),
    ))
}

fn base_plan<D: Device>(rank: &Rank<'_, D>, placement: Placement, bytes: u64) -> Plan {
    let communicator = &rank.communicator;
    communicator.launched(communicator.plan(placement, bytes), bytes)
}

/// The kind of input that a way is tried with.
pub(super) fn tried_placement(way: Way) -> Placement {
    own_placement(way.route())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_block_is_tried_that_has_more_threads_than_twice_the_places() {
        let shapes = Shapes::of(Topology::Shared);
        assert_eq!(
            shapes.for_places(40, 2),
            [(1, 32), (1, 64), (2, 32), (2, 64)]
        );
        assert_eq!(shapes.for_places(1, 1), [(1, 32)]);
        assert_eq!(shapes.for_places(1 << 20, 132).len(), 11 * 8);
    }
}
