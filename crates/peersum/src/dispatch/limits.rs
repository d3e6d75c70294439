//! The largest launches that a rank may make.

use peersum_artifact::{Algorithm, Family, WorldSize};
use serde::{Deserialize, Serialize};

use super::plan::Plan;

const FAMILIES: usize = Family::ALL.len();
const ALGORITHMS: usize = Algorithm::ALL.len();

/// Blocks that a cluster can have.
pub(crate) const CLUSTER_SIZES: [u32; 3] = [2, 4, 8];

/// The largest launches that a communicator makes on any rank: its share of a device. All ranks
/// agree on them at set-up, because a call has the same grid on every rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchLimits {
    blocks: u32,
    /// By family and algorithm.
    threads: [[u32; ALGORITHMS]; FAMILIES],
    /// By [`CLUSTER_SIZES`].
    clusters: [u32; CLUSTER_SIZES.len()],
}

impl LaunchLimits {
    /// At most `blocks` blocks, and at most `threads` threads a block of each kernel for groups of
    /// this size.
    ///
    /// # Errors
    /// Whatever `threads` returns.
    pub(crate) fn try_new<E>(
        blocks: u32,
        world_size: WorldSize,
        mut threads: impl FnMut(Family, Algorithm) -> Result<u32, E>,
    ) -> Result<Self, E> {
        let mut limits = LaunchLimits {
            blocks,
            threads: [[0; ALGORITHMS]; FAMILIES],
            clusters: [0; CLUSTER_SIZES.len()],
        };
        for &family in Family::ALL {
            for &algorithm in family.algorithms(world_size) {
                limits.threads[family as usize][algorithm as usize] = threads(family, algorithm)?;
            }
        }
        Ok(limits)
    }

    /// The largest grid.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// The largest block of a kernel, in threads that handle units.
    #[must_use]
    pub fn threads(&self, family: Family, algorithm: Algorithm) -> u32 {
        self.threads[family as usize][algorithm as usize]
    }

    /// How many clusters of `size` blocks run at once, wherever other blocks run.
    #[must_use]
    pub fn clusters_at_once(&self, size: u32) -> u32 {
        let mut clusters = CLUSTER_SIZES.iter().zip(self.clusters);
        let found = clusters.find(|(known, _)| **known == size);
        found.map_or(0, |(_, clusters)| clusters)
    }

    /// The most clusters of `size` blocks that a call with RMSNorm has. More than run at once: the
    /// running ones of a rank must outnumber those that do not run yet on all other ranks together.
    /// Then one of them runs on every rank, and makes room when it ends. Clusters of more than two
    /// blocks have at most half of all blocks: with more of them a call takes longer.
    #[must_use]
    pub fn clusters(&self, size: u32, world_size: u32) -> u32 {
        let at_once = self.clusters_at_once(size);
        let peers = world_size.saturating_sub(1).max(1);
        let waiting = at_once.div_ceil(peers).saturating_sub(1);
        let blocks = if size > 2 {
            self.blocks / 2
        } else {
            self.blocks
        };
        (at_once + waiting).min(blocks / size)
    }

    pub(crate) fn with_blocks(self, blocks: u32) -> Self {
        LaunchLimits { blocks, ..self }
    }

    /// The same, with as many clusters of each size.
    pub(crate) fn with_clusters(self, clusters: [u32; CLUSTER_SIZES.len()]) -> Self {
        LaunchLimits { clusters, ..self }
    }

    /// The lesser of both, limit by limit.
    pub(crate) fn min(mut self, other: &LaunchLimits) -> Self {
        self.blocks = self.blocks.min(other.blocks);
        let own = self.threads.iter_mut().flatten();
        for (own, other) in own.zip(other.threads.iter().flatten()) {
            *own = (*own).min(*other);
        }
        for (own, other) in self.clusters.iter_mut().zip(other.clusters) {
            *own = (*own).min(other);
        }
        self
    }

    /// What is launched of a plan. If its blocks are too large, smaller ones take their place, and
    /// more of them, so that the plan keeps as many threads as the limits allow.
    pub(crate) fn apply(&self, plan: Plan) -> Plan {
        let (blocks, threads) = self.fit(plan.route.family(), plan.route.algorithm(), plan);
        Plan {
            blocks,
            threads,
            ..plan
        }
    }

    /// The blocks of a kernel, and the threads of each, in the place of those of a plan.
    fn fit(&self, family: Family, algorithm: Algorithm, plan: Plan) -> (u32, u32) {
        let threads = plan.threads.min(self.threads(family, algorithm)).max(1);
        let all = u64::from(plan.blocks) * u64::from(plan.threads);
        let blocks = all.div_ceil(u64::from(threads));
        (blocks.min(u64::from(self.blocks)).max(1) as u32, threads)
    }

    /// The same for a kernel that no route names, without blocks that have none of its `units`.
    pub(crate) fn fit_units(
        &self,
        family: Family,
        algorithm: Algorithm,
        plan: Plan,
        units: u64,
    ) -> (u32, u32) {
        let (blocks, threads) = self.fit(family, algorithm, plan);
        let useful = units.div_ceil(u64::from(threads)).max(1);
        (useful.min(u64::from(blocks)) as u32, threads)
    }

    /// What a call of `bytes` bytes launches of a plan: within the limits, and no block without a
    /// unit, which would only lengthen the launch. A function of the bytes, as the grid must be.
    pub(crate) fn launched(&self, plan: Plan, bytes: u64, world_size: u32) -> Plan {
        let (family, algorithm) = (plan.route.family(), plan.route.algorithm());
        let places = plan.route.places(bytes, world_size);
        let (blocks, threads) = self.fit_units(family, algorithm, plan, places);
        Plan {
            blocks,
            threads,
            ..plan
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::Route;

    /// Those of one rank with a GPU of 132 multiprocessors, in a group of two.
    fn limits() -> LaunchLimits {
        let threads = |family, algorithm| {
            Ok::<_, ()>(match (family, algorithm) {
                (Family::Push, _) => 480,
                (Family::Pull, Algorithm::OneShot) => 352,
                (Family::Pull, _) => 224,
                (Family::Norm | Family::Move, _) => 320,
            })
        };
        LaunchLimits::try_new(132, WorldSize::MIN, threads).unwrap()
    }

    fn applied(route: Route, blocks: u32, threads: u32) -> (u32, u32) {
        let plan = limits().apply(Plan {
            route,
            blocks,
            threads,
        });
        (plan.blocks, plan.threads)
    }

    #[test]
    fn a_plan_within_the_limits_stays_and_a_larger_one_keeps_its_threads_if_there_is_room() {
        assert_eq!(applied(Route::PushOneShot, 4, 64), (4, 64));
        assert_eq!(applied(Route::PushOneShot, 132, 480), (132, 480));
        // 32,768 threads before, 33,120 after.
        assert_eq!(applied(Route::PushTwoShot, 64, 512), (69, 480));
        assert_eq!(applied(Route::SymmetricOneShot, 64, 512), (94, 352));
        // No room: the grid is as large as it may be.
        assert_eq!(applied(Route::PushOneShot, 132, 512), (132, 480));
        assert_eq!(applied(Route::PullTwoShot, 132, 512), (132, 224));
        assert_eq!(applied(Route::PushOneShot, 256, 32), (132, 32));
    }

    #[test]
    fn a_call_launches_no_block_without_a_unit_and_no_more_than_the_limit() {
        let launched = |route, bytes| {
            let plan = Plan {
                route,
                blocks: 64,
                threads: 128,
            };
            limits().with_blocks(33).launched(plan, bytes, 4).blocks
        };
        // 256 units; two-shot at four ranks: 64 places.
        assert_eq!(launched(Route::PushOneShot, 4096), 2);
        assert_eq!(launched(Route::PushTwoShot, 4096), 1);
        assert_eq!(launched(Route::PushOneShot, 4), 1);
        assert_eq!(launched(Route::PushOneShot, 1 << 20), 33);
    }

    #[test]
    fn running_clusters_outnumber_those_that_wait_on_all_peers_within_the_blocks() {
        let limits = limits().with_clusters([60, 24, 6]);
        let most = |world_size| [2, 4, 8].map(|size| limits.clusters(size, world_size));
        assert_eq!(most(2), [66, 16, 8]);
        assert_eq!(most(3), [66, 16, 8]);
        assert_eq!(most(8), [66, 16, 6]);
        for world_size in 2..=8 {
            for at_once in 0..=60 {
                let limits = limits.with_clusters([at_once; 3]);
                let waiting = limits.clusters(2, world_size).saturating_sub(at_once);
                let is_least = at_once == 0 && waiting == 0;
                assert!(is_least || at_once > waiting * (world_size - 1));
            }
        }
    }

    #[test]
    fn ranks_agree_on_the_least_of_each_limit() {
        let other = LaunchLimits::try_new(66, WorldSize::MIN, |_, _| Ok::<_, ()>(256)).unwrap();
        let other = other.with_clusters([27, 7, 0]);
        let agreed = limits().with_clusters([20, 10, 1]).min(&other);
        let at_once = [2, 4, 8].map(|size| agreed.clusters_at_once(size));
        assert_eq!(at_once, [20, 7, 0]);
        assert_eq!(agreed, other.min(&limits().with_clusters([20, 10, 1])));
        assert_eq!(agreed.blocks(), 66);
        assert_eq!(agreed.threads(Family::Push, Algorithm::OneShot), 256);
        assert_eq!(agreed.threads(Family::Pull, Algorithm::TwoShot), 224);
    }
}
