//! What the ranks of one group do: try every candidate briefly, then the fast ones properly.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::Result;
use half::bf16;
use peersum::device::Device;
use peersum::dispatch::{Placement, Plan, Route, Topology};
use peersum_artifact::{Arch, Dtype};

use crate::bench::candidates::{candidates, own_placement};
use crate::bench::ranks::Rank;
use crate::bench::timing::{Method, median, rounded};
use crate::data::with_element;

/// The grids that are tried.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shapes {
    /// A group's largest grid is added.
    blocks: &'static [u32],
    threads: &'static [u32],
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
                max_blocks: Some(2),
            },
            Topology::Shared | Topology::Peer => Shapes {
                blocks: &[1, 2, 4, 8, 16, 24, 32, 48, 64, 96],
                // Each of the last three is the largest block that fits for some kernel: with the
                // warp for signals they have 8, 12 and 16 warps, and registers are allocated to
                // four warps at a time.
                threads: &[32, 64, 128, 256, 384, 224, 352, 480],
                max_blocks: None,
            },
        }
    }

    /// The shapes to try for a call with `places` units to share out. Threads without a unit only
    /// make a block larger.
    fn for_places(self, places: u64, max_blocks: u32) -> Vec<(u32, u32)> {
        let least = self.threads.iter().copied().min().unwrap_or(0);
        let threads = self
            .threads
            .iter()
            .copied()
            .filter(|&threads| threads == least || u64::from(threads) < 2 * places);
        let blocks = self.blocks.iter().copied();
        let blocks = blocks
            .filter(|&blocks| blocks < max_blocks)
            .chain([max_blocks]);
        blocks
            .flat_map(|blocks| threads.clone().map(move |threads| (blocks, threads)))
            .collect()
    }
}

/// How many plans for each kind of input enter the second pass, in addition to that of the base
/// table.
const FINALISTS: usize = 3;

/// A gain over the plan of the base table below this is noise, and the base table's plan stays.
const LEAST_GAIN: f64 = 0.01;

/// Calls above this size take so long that fewer of them are timed.
const LARGE_BYTES: u64 = 1 << 20;
const CALLS_WHEN_LARGE: u32 = 10;

/// A plan for a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) bytes: u64,
    pub(super) plan: Plan,
}

/// The result for one size and kind of input. Times are medians by type, in microseconds.
#[derive(Debug, Clone)]
pub(super) struct Tuned {
    pub(super) bytes: u64,
    pub(super) placement: Placement,
    pub(super) base_plan: Plan,
    pub(super) base_us: Vec<f64>,
    pub(super) plan: Plan,
    pub(super) us: Vec<f64>,
}

/// The results that survive the failure of a group. Rank 0 writes them.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// The devices' architecture, once a group was formed.
    pub(super) arch: Option<Option<Arch>>,
    /// What is being measured.
    pub(super) trying: Option<Candidate>,
    pub(super) failed: Vec<Candidate>,
    /// Whole sizes only.
    pub(super) tuned: Vec<Tuned>,
}

/// The work of one group.
pub(super) struct Sweep<'a> {
    pub(super) shapes: Shapes,
    pub(super) dtypes: &'a [Dtype],
    pub(super) sizes: &'a [u64],
    pub(super) deadline: Instant,
    /// Of the second pass.
    pub(super) method: Method,
    /// Not to be tried again.
    pub(super) failed: &'a [Candidate],
    pub(super) progress: &'a Mutex<Progress>,
}

impl Sweep<'_> {
    /// Sweeps the sizes until the time is up. All ranks make the same decisions, from rank 0's
    /// clock and from times that they exchange.
    pub(super) fn run<D: Device>(&self, rank: &mut Rank<'_, D>) -> Result<()> {
        rank.fill::<bf16>()?;
        let arch = rank.communicator.identity().cubin_arch();
        self.note(rank, |progress| progress.arch = Some(arch));
        for (index, &bytes) in self.sizes.iter().enumerate() {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let share = left / (self.sizes.len() - index) as u32;
            let until = Instant::now() + share.mul_f64(0.6);
            if self.is_over(rank, left.is_zero())? {
                break;
            }
            let tuned = self.tune_size(rank, bytes, until)?;
            self.note(rank, |progress| {
                progress.trying = None;
                progress.tuned.extend(tuned);
            });
        }
        Ok(())
    }

    fn tune_size<D: Device>(
        &self,
        rank: &mut Rank<'_, D>,
        bytes: u64,
        until: Instant,
    ) -> Result<Vec<Tuned>> {
        let brief = Method {
            calls: if bytes > LARGE_BYTES {
                CALLS_WHEN_LARGE.min(self.method.calls)
            } else {
                self.method.calls
            },
            warm_up: 1,
            replays: 3.min(self.method.replays),
            ..self.method
        };
        let mut tried: Vec<(Plan, f64)> = Vec::new();
        for plan in self.plans(rank, bytes) {
            let candidate = Candidate { bytes, plan };
            let placement = own_placement(plan.route);
            let times = self.time(rank, candidate, placement, brief)?;
            tried.push((plan, geometric_mean(&times)));
            if self.is_over(rank, Instant::now() >= until)? {
                break;
            }
        }
        let mut all = Vec::new();
        for placement in Placement::ALL {
            let base_plan = self.base_plan(rank, placement, bytes);
            let finalists = finalists(&tried, placement, base_plan);
            let mut timed: Vec<(Plan, Vec<f64>)> = Vec::new();
            for plan in finalists {
                let candidate = Candidate { bytes, plan };
                if self.failed.contains(&candidate) {
                    continue;
                }
                timed.push((plan, self.time(rank, candidate, placement, self.method)?));
            }
            // If the plan of the base table fails, any other plan replaces it.
            let Some(best) = winner(&timed, base_plan) else {
                continue;
            };
            let of_base = timed.iter().find(|(plan, _)| *plan == base_plan);
            all.push(Tuned {
                bytes,
                placement,
                base_plan,
                base_us: of_base.map_or_else(|| best.1.clone(), |(_, us)| us.clone()),
                plan: best.0,
                us: best.1.clone(),
            });
        }
        Ok(all)
    }

    /// The plans to try for a size. Those of the base table come first, since time may run out.
    fn plans<D: Device>(&self, rank: &Rank<'_, D>, bytes: u64) -> Vec<Plan> {
        let (world_size, max_blocks) = (
            rank.communicator.world_size(),
            rank.communicator.max_blocks(),
        );
        let mut plans: Vec<Plan> = Placement::ALL
            .iter()
            .map(|placement| self.base_plan(rank, *placement, bytes))
            .collect();
        let by_route = Route::ALL.map(|route| {
            let places = route.places(bytes, world_size);
            let shapes = self.shapes.for_places(places, max_blocks);
            let launched = |plan| rank.communicator.launched(plan, bytes);
            let mut plans = candidates(route, &shapes, bytes, world_size, launched);
            // For large messages large grids win, and one block never does.
            if bytes > LARGE_BYTES {
                plans.reverse();
            }
            plans
        });
        // One of each algorithm in turn, likewise.
        let most = by_route.iter().map(Vec::len).max().unwrap_or(0);
        plans.extend((0..most).flat_map(|at| {
            by_route
                .iter()
                .filter_map(move |plans| plans.get(at).copied())
        }));
        let mut seen = Vec::new();
        plans.retain(|plan| {
            let is_new = !seen.contains(plan);
            seen.push(*plan);
            is_new && !self.failed.contains(&Candidate { bytes, plan: *plan })
        });
        plans
    }

    fn base_plan<D: Device>(&self, rank: &Rank<'_, D>, placement: Placement, bytes: u64) -> Plan {
        let communicator = &rank.communicator;
        communicator.launched(communicator.plan(placement, bytes), bytes)
    }

    /// The median of each type, the same on all ranks.
    fn time<D: Device>(
        &self,
        rank: &mut Rank<'_, D>,
        candidate: Candidate,
        placement: Placement,
        method: Method,
    ) -> Result<Vec<f64>> {
        self.note(rank, |progress| progress.trying = Some(candidate));
        let (bytes, plan) = (candidate.bytes as usize, Some(candidate.plan));
        self.dtypes
            .iter()
            .map(|dtype| {
                let times = with_element!(
                    dtype, T => rank.time::<T>(placement, bytes, plan, method)?
                );
                Ok(rounded(median(&times.shortest())))
            })
            .collect()
    }

    /// Whether `own` is true on rank 0.
    fn is_over<D: Device>(&self, rank: &Rank<'_, D>, own: bool) -> Result<bool> {
        let all = rank.stopwatch.peers.gather(own)?;
        Ok(all.first().copied().unwrap_or(true))
    }

    fn note<D: Device>(&self, rank: &Rank<'_, D>, change: impl FnOnce(&mut Progress)) {
        if rank.stopwatch.peers.rank() == 0 {
            change(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }
}

/// The plans that go into the second pass: the base's, and the fastest of those that serve the
/// placement.
fn finalists(tried: &[(Plan, f64)], placement: Placement, base_plan: Plan) -> Vec<Plan> {
    let mut fastest: Vec<&(Plan, f64)> = tried
        .iter()
        .filter(|(plan, _)| plan.route.serves(placement) && *plan != base_plan)
        .collect();
    fastest.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut plans = vec![base_plan];
    plans.extend(fastest.iter().take(FINALISTS).map(|(plan, _)| *plan));
    plans
}

/// The fastest by geometric mean over the types, or the base if nothing gains enough over it.
fn winner(timed: &[(Plan, Vec<f64>)], base_plan: Plan) -> Option<&(Plan, Vec<f64>)> {
    let best = timed
        .iter()
        .min_by(|a, b| geometric_mean(&a.1).total_cmp(&geometric_mean(&b.1)))?;
    let base = timed.iter().find(|(plan, _)| *plan == base_plan);
    Some(match base {
        Some(base) if geometric_mean(&best.1) > geometric_mean(&base.1) * (1.0 - LEAST_GAIN) => {
            base
        }
        _ => best,
    })
}

pub(super) fn geometric_mean(values: &[f64]) -> f64 {
    if values.is_empty() {
        return f64::INFINITY;
    }
    let logarithms = values.iter().map(|value| value.ln()).sum::<f64>();
    (logarithms / values.len() as f64).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(route: Route, blocks: u32) -> Plan {
        Plan {
            route,
            blocks,
            threads: 64,
        }
    }

    #[test]
    fn the_base_stays_unless_something_gains_a_hundredth() {
        let base = plan(Route::PushOneShot, 1);
        let other = plan(Route::PushOneShot, 2);
        let won = |us: f64| {
            let timed = [(base, vec![10.0]), (other, vec![us])];
            winner(&timed, base).unwrap().0
        };
        assert_eq!(won(9.95), base);
        assert_eq!(won(9.85), other);
        assert_eq!(won(11.0), base);
        assert!(winner(&[], base).is_none());
    }

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

    #[test]
    fn the_types_count_alike() {
        let base = plan(Route::PushOneShot, 1);
        let other = plan(Route::PushOneShot, 2);
        // A fifth faster in one type, and slower by a tenth in the other.
        let timed = [(base, vec![10.0, 100.0]), (other, vec![8.0, 110.0])];
        assert_eq!(winner(&timed, base).unwrap().0, other);
    }

    #[test]
    fn only_plans_that_serve_the_input_are_finalists_and_the_base_is_always_one() {
        let base = plan(Route::PushOneShot, 1);
        let tried: Vec<(Plan, f64)> = vec![
            (plan(Route::SymmetricTwoShot, 4), 1.0),
            (plan(Route::SymmetricOneShot, 4), 2.0),
            (plan(Route::PullOneShot, 4), 3.0),
            (base, 9.0),
        ];
        assert_eq!(
            finalists(&tried, Placement::Ordinary, base),
            [base, plan(Route::PullOneShot, 4)]
        );
        assert_eq!(
            finalists(&tried, Placement::Symmetric, base),
            [
                base,
                plan(Route::SymmetricOneShot, 4),
                plan(Route::PullOneShot, 4)
            ]
        );
    }
}
