//! What the ranks of one group do: try every way briefly, then the fast ones properly.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::Result;
use peersum::device::Device;
use peersum::dispatch::Placement;
use peersum_artifact::{Arch, Dtype};

use super::ways::{LARGE_BYTES, Shapes, SizedCalls, Way, base_way, tried_placement};
use crate::bench::call::MeasuredCall;
use crate::bench::ranks::Rank;
use crate::bench::timing::{Method, median, rounded};
use crate::data::with_element;
use crate::operation::Operation;

/// How many ways for each kind of input enter the second pass, in addition to that of the base
/// table.
const FINALISTS: usize = 3;

/// A gain over the base table below this is noise, and the base table's row stays.
const LEAST_GAIN: f64 = 0.01;

/// Of calls above [`LARGE_BYTES`], which take so long that fewer of them are timed.
const CALLS_WHEN_LARGE: u32 = 10;

/// A way for a size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub(super) bytes: u64,
    pub(super) way: Way,
}

/// A way with its times: medians by type and hidden size, in microseconds.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Measured {
    pub(super) way: Way,
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
    pub(super) operation: Operation,
    pub(super) dtypes: &'a [Dtype],
    /// Of calls with RMSNorm.
    pub(super) hidden: &'a [u32],
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

    /// The calls of a size.
    fn calls(&self, bytes: u64) -> Vec<(Dtype, MeasuredCall)> {
        let mut calls = Vec::new();
        for &dtype in self.dtypes {
            if self.operation == Operation::AllReduce {
                let call = MeasuredCall::new(Operation::AllReduce, bytes as usize);
                calls.push((dtype, call));
                continue;
            }
            for &hidden in self.hidden {
                let call = MeasuredCall::of_rows(1, hidden, dtype.size_bytes());
                let row_bytes = call.bytes as u64;
                if bytes >= row_bytes && bytes.is_multiple_of(row_bytes) {
                    let bytes = bytes as usize;
                    calls.push((dtype, MeasuredCall { bytes, ..call }));
                }
            }
        }
        calls
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
        let calls = &self.calls(bytes);
        if calls.is_empty() {
            return Ok(Vec::new());
        }
        let ways = self.shapes.ways(rank, bytes, calls)?;
        let mut tried = Vec::new();
        for &way in &ways {
            let candidate = Candidate { bytes, way };
            if self.failed.contains(&candidate) {
                continue;
            }
            tried.push(self.time(rank, candidate, calls, tried_placement(way), brief)?);
            if is_over(rank, Instant::now() >= until)? {
                break;
            }
        }
        let mut all = Vec::new();
        for placement in Placement::ALL {
            let base = base_way(rank, placement, bytes, calls, &ways)?;
            let mut timed = Vec::new();
            for way in finalists(&tried, placement, base) {
                let candidate = Candidate { bytes, way };
                if !self.failed.contains(&candidate) {
                    self.check(rank, candidate, calls, placement)?;
                    timed.push(self.time(rank, candidate, calls, placement, self.method)?);
                }
            }
            // If the way of the base table fails, any other way replaces it.
            let Some(best) = winner(&timed, base) else {
                continue;
            };
            let of_base = timed.iter().find(|measured| measured.way == base);
            all.push(Tuned {
                bytes,
                placement,
                base: Measured {
                    way: base,
                    us: of_base.unwrap_or(best).us.clone(),
                },
                best: best.clone(),
            });
        }
        Ok(all)
    }

    /// Fails unless calls of a candidate give the reference's bits: one that does not must not get
    /// into a table.
    fn check<D: Device>(
        &self,
        rank: &mut Rank<'_, D>,
        candidate: Candidate,
        calls: &SizedCalls,
        placement: Placement,
    ) -> Result<()> {
        self.note(rank, |progress| progress.trying = Some(candidate));
        for &(dtype, call) in calls {
            let call = candidate.way.of(call, placement);
            with_element!(dtype, T => rank.check::<T>(&call, self.method.launch)?);
        }
        Ok(())
    }

    /// The medians of a candidate, the same on all ranks.
    fn time<D: Device>(
        &self,
        rank: &mut Rank<'_, D>,
        candidate: Candidate,
        calls: &SizedCalls,
        placement: Placement,
        method: Method,
    ) -> Result<Measured> {
        self.note(rank, |progress| progress.trying = Some(candidate));
        let Candidate { way, .. } = candidate;
        let mut us = Vec::new();
        for &(dtype, call) in calls {
            let call = way.of(call, placement);
            let times = with_element!(dtype, T => rank.time::<T>(&call, method)?);
            us.push(rounded(median(&times.shortest())));
        }
        Ok(Measured { way, us })
    }

    fn note<D: Device>(&self, rank: &Rank<'_, D>, change: impl FnOnce(&mut Progress)) {
        if rank.stopwatch.peers.rank() == 0 {
            change(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }
}

impl Measured {
    /// Over the types and hidden sizes, which count alike.
    pub(super) fn mean(&self) -> f64 {
        geometric_mean(&self.us)
    }
}

/// The ways that go into the second pass: the base's, and the fastest of those that serve the
/// placement.
fn finalists(tried: &[Measured], placement: Placement, base: Way) -> Vec<Way> {
    let mut fastest: Vec<&Measured> = tried
        .iter()
        .filter(|tried| tried.way.route().serves(placement) && tried.way != base)
        .collect();
    fastest.sort_by(|a, b| a.mean().total_cmp(&b.mean()));
    let fastest = fastest.iter().take(FINALISTS).map(|tried| tried.way);
    let unfused = matches!(base, Way::ByTable(Some(_))).then_some(Way::Unfused);
    let first = [base].into_iter().chain(unfused);
    first.chain(fastest).collect()
}

/// The fastest, or the base if nothing gains enough over it.
fn winner(timed: &[Measured], base: Way) -> Option<&Measured> {
    let best = timed.iter().min_by(|a, b| a.mean().total_cmp(&b.mean()))?;
    let base = timed.iter().find(|timed| timed.way == base);
    let kept = base.filter(|base| best.mean() > base.mean() * (1.0 - LEAST_GAIN));
    Some(kept.unwrap_or(best))
}

/// Whether `own` is true on rank 0.
fn is_over<D: Device>(rank: &Rank<'_, D>, own: bool) -> Result<bool> {
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
    use peersum::dispatch::{FusedShape, Plan, Route, Topology};

    use super::*;
    use crate::bench::timing::Launch;

    fn plan(route: Route, blocks: u32) -> Way {
        Way::Plan(Plan {
            route,
            blocks,
            threads: 64,
        })
    }

    fn measured(way: Way, us: impl Into<Vec<f64>>) -> Measured {
        let us = us.into();
        Measured { way, us }
    }

    #[test]
    fn the_base_stays_unless_something_gains_a_hundredth() {
        let base = plan(Route::PushOneShot, 1);
        let other = plan(Route::PushOneShot, 2);
        let won = |us: f64| {
            let timed = [measured(base, [10.0]), measured(other, [us])];
            winner(&timed, base).unwrap().way
        };
        assert_eq!(won(9.95), base);
        assert_eq!(won(9.85), other);
        assert_eq!(won(11.0), base);
        assert!(winner(&[], base).is_none());
    }

    #[test]
    fn the_types_count_alike() {
        let base = plan(Route::PushOneShot, 1);
        let other = plan(Route::PushOneShot, 2);
        // A fifth faster in one type, and slower by a tenth in the other.
        let timed = [measured(base, [10.0, 100.0]), measured(other, [8.0, 110.0])];
        assert_eq!(winner(&timed, base).unwrap().way, other);
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

    #[test]
    fn of_rows_that_the_table_fuses_the_unfused_way_is_a_finalist_too() {
        let [narrow, wide] = [32, 64].map(|threads| FusedShape { blocks: 1, threads });
        let tried = [measured(Way::Fused(narrow), [1.0])];
        let finalists = |base| finalists(&tried, Placement::Symmetric, base);
        let fused = Way::ByTable(Some(wide));
        let all = [fused, Way::Unfused, Way::Fused(narrow)];
        assert_eq!(finalists(fused), all);
        let unfused = Way::ByTable(None);
        assert_eq!(finalists(unfused), [unfused, Way::Fused(narrow)]);
    }

    #[test]
    fn a_size_has_the_hidden_sizes_of_which_it_is_whole_rows() {
        let sweep = Sweep {
            shapes: Shapes::of(Topology::Peer),
            operation: Operation::RmsNorm,
            dtypes: &[Dtype::Bf16, Dtype::F32],
            hidden: &[4096, 8192, 5120],
            sizes: Vec::new(),
            deadline: Instant::now(),
            method: Method {
                launch: Launch::Graph,
                calls: 1,
                warm_up: 0,
                replays: 1,
            },
            failed: Vec::new(),
            progress: Mutex::default(),
        };
        let rows = |bytes| {
            let calls = sweep.calls(bytes).into_iter();
            calls
                .map(|(dtype, call)| (dtype, call.hidden))
                .collect::<Vec<_>>()
        };
        assert_eq!(rows(4096), []);
        assert_eq!(rows(8192), [(Dtype::Bf16, 4096)]);
        let both = [(Dtype::Bf16, 4096), (Dtype::Bf16, 8192), (Dtype::F32, 4096)];
        assert_eq!(rows(16384), both);
    }
}
