//! The launches that are worth a measurement.

use peersum::dispatch::{Placement, Plan, Route};

/// Shapes with more units per thread than this are not tried if there is a larger grid to try.
const MAX_UNITS_PER_THREAD: u64 = 24;

/// The kind of input that a route is measured with.
pub(crate) fn own_placement(route: Route) -> Placement {
    match route {
        Route::SymmetricOneShot => Placement::Symmetric,
        Route::SymmetricTwoShot => Placement::SymmetricInPlace,
        _ => Placement::Ordinary,
    }
}

/// The different launches that these shapes give for a call. Shapes with unneeded blocks give the
/// same launch as those without. `launched` returns the launch of a plan.
pub(crate) fn candidates(
    route: Route,
    shapes: &[(u32, u32)],
    bytes: u64,
    world_size: u32,
    launched: impl Fn(Plan) -> Plan,
) -> Vec<Plan> {
    let places = route.places(bytes, world_size);
    let threads_of = |plan: &Plan| u64::from(plan.blocks * plan.threads);
    let mut plans: Vec<Plan> = Vec::new();
    for &(blocks, threads) in shapes {
        let plan = Plan {
            route,
            blocks,
            threads,
        };
        let plan = launched(plan);
        if !plans.contains(&plan) {
            plans.push(plan);
        }
    }
    let most = plans.iter().map(threads_of).max().unwrap_or(0);
    plans.retain(|plan| {
        let threads = threads_of(plan);
        threads == most || places / threads.max(1) <= MAX_UNITS_PER_THREAD
    });
    plans
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No block without one of so many places.
    fn within(places: u32) -> impl Fn(Plan) -> Plan {
        move |plan| Plan {
            blocks: plan.blocks.min(places.div_ceil(plan.threads)),
            ..plan
        }
    }

    #[test]
    fn equal_launches_are_measured_once_and_small_grids_only_where_they_can_win() {
        let shapes = [(1, 256), (2, 256), (2, 128), (64, 128), (132, 512)];
        // 256 units: one block of 256 threads, two of 128 (twice the same), one of 512.
        let small = candidates(Route::PushOneShot, &shapes, 4096, 2, within(256));
        let grids: Vec<_> = small
            .iter()
            .map(|plan| (plan.blocks, plan.threads))
            .collect();
        assert_eq!(grids, [(1, 256), (2, 128), (1, 512)]);
        // 1 MiB: 65536 units; a grid of 256 threads would leave 256 units a thread.
        let large = candidates(Route::PushOneShot, &shapes, 1 << 20, 2, within(65536));
        let grids: Vec<_> = large
            .iter()
            .map(|plan| (plan.blocks, plan.threads))
            .collect();
        assert_eq!(grids, [(64, 128), (128, 512)]);
    }
}
