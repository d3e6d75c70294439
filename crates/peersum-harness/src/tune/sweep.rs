//! What the ranks of one group do: try every candidate briefly, then the fast ones properly.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::Result;
use half::bf16;
use peersum::device::Device;
use peersum::dispatch::{Placement, Plan, Route, Topology};
use peersum_artifact::{Arch, Dtype};
use peersum_kernels::abi::PEERSUM_MAX_THREADS;

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

    /// The shapes to try for rows, the largest first.
    pub(super) fn of_rows(self, max_blocks: u32) -> Vec<(u32, u32)> {
        let (mut blocks, mut threads) = (self.blocks.to_vec(), self.threads.to_vec());
        blocks.retain(|&blocks| blocks < max_blocks);
        blocks.push(max_blocks);
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
        let (mut blocks, mut threads) = (self.blocks.to_vec(), self.threads.to_vec());
        blocks.retain(|&blocks| blocks < max_blocks);
        blocks.push(max_blocks);
        let least = self.threads.iter().copied().min().unwrap_or(0);
        threads.retain(|&threads| threads == least || u64::from(threads) < 2 * places);
        let with_threads = |&blocks| threads.iter().map(move |&threads| (blocks, threads));
        blocks.iter().flat_map(with_threads).collect()
    }
}

/// How many plans for each kind of input enter the second pass, in addition to that of the base
/// table.
pub(super) const FINALISTS: usize = 3;

/// A gain over the plan of the base table below this is noise, and the base table's plan stays.
pub(super) const LEAST_GAIN: f64 = 0.01;

/// Calls above this size take so long that fewer of them are timed.
const LARGE_BYTES: u64 = 1 << 20;
const CALLS_WHEN_LARGE: u32 = 10;

/// A plan for a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) bytes: u64,
    pub(super) plan: Plan,
}

/// A plan with its times: medians by type, in microseconds.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Measured {
    pub(super) plan: Plan,
    pub(super) us: Vec<f64>,
}

/// The result for one size and kind of input.
#[derive(Debug)]
pub(super) struct Tuned {
    pub(super) bytes: u64,
    pub(super) placement: Placement,
    pub(super) base: Measured,
    pub(super) best: Measured,
}

/// The results that survive the failure of a group. Rank 0 writes them.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// The devices' architecture, once a group was formed.
    pub(super) arch: Option<Arch>,
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
    pub(super) sizes: Vec<u64>,
    pub(super) deadline: Instant,
    /// Of the second pass.
    pub(super) method: Method,
    /// Not to be tried again.
    pub(super) failed: Vec<Candidate>,
    pub(super) progress: Mutex<Progress>,
}

impl Sweep<'_> {
    /// Sweeps the sizes until the time is up. All ranks make the same decisions, from rank 0's
    /// clock and from times that they exchange.
    pub(super) fn run<D: Device>(&self, rank: &mut Rank<'_, D>) -> Result<()> {
        rank.fill::<bf16>()?;
        let arch = rank.communicator.identity().arch;
        self.note(rank, |progress| progress.arch = arch);
        for (index, &bytes) in self.sizes.iter().enumerate() {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let share = left / (self.sizes.len() - index) as u32;
            let until = Instant::now() + share.mul_f64(0.6);
            if is_over(rank, left.is_zero())? {
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
        let mut brief = Method {
            warm_up: 1,
            replays: 3.min(self.method.replays),
            ..self.method
        };
        if bytes > LARGE_BYTES {
            brief.calls = CALLS_WHEN_LARGE.min(brief.calls);
        }
        let mut tried = Vec::new();
        for plan in self.plans(rank, bytes) {
            let candidate = Candidate { bytes, plan };
            tried.push(self.time(rank, candidate, own_placement(plan.route), brief)?);
            if is_over(rank, Instant::now() >= until)? {
                break;
            }
        }
        let mut all = Vec::new();
        for placement in Placement::ALL {
            let base_plan = self.base_plan(rank, placement, bytes);
            let mut timed = Vec::new();
            for plan in finalists(&tried, placement, base_plan) {
                let candidate = Candidate { bytes, plan };
                if !self.failed.contains(&candidate) {
                    self.check(rank, candidate, placement)?;
                    timed.push(self.time(rank, candidate, placement, self.method)?);
                }
            }
            // If the plan of the base table fails, any other plan replaces it.
            let Some(best) = winner(&timed, base_plan) else {
                continue;
            };
            let of_base = timed.iter().find(|measured| measured.plan == base_plan);
            all.push(Tuned {
                bytes,
                placement,
                base: Measured {
                    plan: base_plan,
                    us: of_base.unwrap_or(best).us.clone(),
                },
                best: best.clone(),
            });
        }
        Ok(all)
    }

    /// The plans to try for a size. Those of the base table come first, since time may run out.
    fn plans<D: Device>(&self, rank: &Rank<'_, D>, bytes: u64) -> Vec<Plan> {
        let communicator = &rank.communicator;
        let (world_size, max_blocks) = (communicator.world_size(), communicator.max_blocks());
        let base_plan = |placement| self.base_plan(rank, placement, bytes);
        let mut plans = Vec::from(Placement::ALL.map(base_plan));
        let by_route = Route::ALL.map(|route| {
            let places = route.places(bytes, world_size);
            let shapes = self.shapes.for_places(places, max_blocks);
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

    /// Fails unless calls of a candidate give the reference's bits: one that does not must not get
    /// into a table.
    fn check<D: Device>(
        &self,
        rank: &mut Rank<'_, D>,
        candidate: Candidate,
        placement: Placement,
    ) -> Result<()> {
        self.note(rank, |progress| progress.trying = Some(candidate));
        let Candidate { bytes, plan } = candidate;
        for dtype in self.dtypes {
            with_element!(
                dtype, T => rank.check::<T>(placement, bytes as usize, Some(plan))?
            );
        }
        Ok(())
    }

    /// The medians of a candidate, the same on all ranks.
    fn time<D: Device>(
        &self,
        rank: &mut Rank<'_, D>,
        candidate: Candidate,
        placement: Placement,
        method: Method,
    ) -> Result<Measured> {
        self.note(rank, |progress| progress.trying = Some(candidate));
        let Candidate { bytes, plan } = candidate;
        let mut us = Vec::new();
        for dtype in self.dtypes {
            let times = with_element!(
                dtype, T => rank.time::<T>(placement, bytes as usize, Some(plan), method)?
            );
            us.push(rounded(median(&times.shortest())));
        }
        Ok(Measured { plan, us })
    }

    fn note<D: Device>(&self, rank: &Rank<'_, D>, change: impl FnOnce(&mut Progress)) {
        if rank.stopwatch.peers.rank() == 0 {
            change(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }
}

impl Measured {
    /// Over the types, which count alike.
    fn mean(&self) -> f64 {
        geometric_mean(&self.us)
    }
}

/// The plans that go into the second pass: the base's, and the fastest of those that serve the
/// placement.
fn finalists(tried: &[Measured], placement: Placement, base_plan: Plan) -> Vec<Plan> {
    let mut fastest: Vec<&Measured> = tried
        .iter()
        .filter(|tried| tried.plan.route.serves(placement) && tried.plan != base_plan)
        .collect();
    fastest.sort_by(|a, b| a.mean().total_cmp(&b.mean()));
    let fastest = fastest.iter().take(FINALISTS).map(|tried| tried.plan);
    std::iter::once(base_plan).chain(fastest).collect()
}

/// The fastest, or the base if nothing gains enough over it.
fn winner(timed: &[Measured], base_plan: Plan) -> Option<&Measured> {
    let best = timed.iter().min_by(|a, b| a.mean().total_cmp(&b.mean()))?;
    let base = timed.iter().find(|timed| timed.plan == base_plan);
    let kept = base.filter(|base| best.mean() > base.mean() * (1.0 - LEAST_GAIN));
    Some(kept.unwrap_or(best))
}

/// Whether `own` is true on rank 0.
pub(super) fn is_over<D: Device>(rank: &Rank<'_, D>, own: bool) -> Result<bool> {
    Ok(rank.stopwatch.peers.gather(own)?[0])
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

    fn measured(plan: Plan, us: impl Into<Vec<f64>>) -> Measured {
        let us = us.into();
        Measured { plan, us }
    }

    #[test]
    fn the_base_stays_unless_something_gains_a_hundredth() {
        let base = plan(Route::PushOneShot, 1);
        let other = plan(Route::PushOneShot, 2);
        let won = |us: f64| {
            let timed = [measured(base, [10.0]), measured(other, [us])];
            winner(&timed, base).unwrap().plan
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
        let timed = [measured(base, [10.0, 100.0]), measured(other, [8.0, 110.0])];
        assert_eq!(winner(&timed, base).unwrap().plan, other);
    }

    #[test]
    fn only_plans_that_serve_the_input_are_finalists_and_the_base_is_always_one() {
        let base = plan(Route::PushOneShot, 1);
        let tried = [
            measured(plan(Route::SymmetricTwoShot, 4), [1.0]),
            measured(plan(Route::SymmetricOneShot, 4), [2.0]),
            measured(plan(Route::PullOneShot, 4), [3.0]),
            measured(base, [9.0]),
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
