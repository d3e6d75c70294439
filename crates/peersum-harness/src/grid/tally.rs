//! The results of a run: the state of each case, and totals.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::case::Case;
use super::event::{Event, Mismatch};
use super::settings::Settings;

/// The most mismatches that are kept and shown; all are counted.
const MISMATCHES_KEPT: usize = 50;

/// How a case stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "status", content = "reason")]
pub(crate) enum CaseStatus {
    /// Every rank has the reference's bits in every call.
    Passed,
    /// A result differs, or a rank failed.
    Failed(String),
    /// It did not run to its end, which does not count as passed.
    Skipped(String),
}

#[derive(Debug, Default, Clone)]
struct CaseTally {
    began: bool,
    ranks_ended: u32,
    calls: u64,
    mismatches: u64,
    run: f64,
    check: f64,
}

/// Seconds by phase. Set-up, run and check are those of the slowest rank of each group, case by
/// case.
#[derive(Debug, Default, Clone, Copy, Serialize)]
pub(crate) struct Seconds {
    pub(crate) precompile: Option<f64>,
    pub(crate) set_up: f64,
    pub(crate) run: f64,
    pub(crate) check: f64,
    pub(crate) total: f64,
}

/// A group of cases that are reported together.
#[derive(Debug, Clone)]
pub(crate) struct GroupLine {
    pub(crate) name: String,
    pub(crate) configurations: usize,
    pub(crate) calls: u64,
    pub(crate) mismatches: u64,
    pub(crate) seconds: f64,
}

/// Everything that the runner knows of a run.
pub(crate) struct Tally<'a> {
    settings: &'a Settings,
    cases: &'a [Case],
    tallies: Vec<CaseTally>,
    /// Cases of a group that not all ranks have ended.
    open_in_group: BTreeMap<String, usize>,
    set_up: BTreeMap<(u32, usize), f64>,
    lanes: Vec<usize>,
    rank_world: Vec<u32>,
    current: Vec<Option<usize>>,
    mismatches: Vec<Mismatch>,
    failure: Option<String>,
    failed_case: Option<usize>,
}

impl<'a> Tally<'a> {
    pub(crate) fn new(settings: &'a Settings, cases: &'a [Case], ranks: u32) -> Tally<'a> {
        let mut open_in_group = BTreeMap::new();
        for case in cases {
            *open_in_group.entry(case.group()).or_insert(0) += 1;
        }
        Tally {
            settings,
            cases,
            tallies: vec![CaseTally::default(); cases.len()],
            open_in_group,
            set_up: BTreeMap::new(),
            lanes: vec![0; ranks as usize],
            rank_world: vec![0; ranks as usize],
            current: vec![None; ranks as usize],
            mismatches: Vec::new(),
            failure: None,
            failed_case: None,
        }
    }

    /// Records an event. Returns a group's line when its last case has ended.
    pub(crate) fn take(&mut self, rank: u32, event: &Event) -> Option<GroupLine> {
        let at = rank as usize;
        match event {
            Event::Building { world_size, lanes } => {
                self.lanes[at] = *lanes;
                self.rank_world[at] = *world_size;
                self.current[at] = None;
            }
            Event::Built { seconds } => {
                // The last rank to join does not wait for the others, so the shortest time is that
                // of set-up itself.
                let shortest = self
                    .set_up
                    .entry((self.rank_world[at], self.lanes[at]))
                    .or_insert(f64::MAX);
                *shortest = shortest.min(*seconds);
            }
            Event::Began { case } => {
                self.current[at] = Some(*case);
                if let Some(tally) = self.tallies.get_mut(*case) {
                    tally.began = true;
                }
            }
            Event::Ended {
                case,
                calls,
                run_seconds,
                check_seconds,
            } => {
                let tally = self.tallies.get_mut(*case)?;
                tally.ranks_ended += 1;
                // Every rank makes the same calls, so they are counted once per group.
                tally.calls = *calls;
                tally.run = tally.run.max(*run_seconds);
                tally.check = tally.check.max(*check_seconds);
                let case = self.cases.get(*case)?;
                if tally.ranks_ended == case.world_size {
                    return self.close(case);
                }
            }
            Event::Mismatch(mismatch) => {
                if let Some(tally) = self.tallies.get_mut(mismatch.case) {
                    tally.mismatches += 1;
                }
                if self.mismatches.len() < MISMATCHES_KEPT {
                    self.mismatches.push(mismatch.clone());
                }
            }
            Event::Failed { .. } | Event::Done => {}
        }
        None
    }

    fn close(&mut self, case: &Case) -> Option<GroupLine> {
        let name = case.group();
        let open = self.open_in_group.get_mut(&name)?;
        *open -= 1;
        if *open > 0 {
            return None;
        }
        let mut line = GroupLine {
            name,
            configurations: 0,
            calls: 0,
            mismatches: 0,
            seconds: 0.0,
        };
        for (case, tally) in self.cases.iter().zip(&self.tallies) {
            if case.group() == line.name {
                line.configurations += 1;
                line.calls += tally.calls;
                line.mismatches += tally.mismatches;
                line.seconds += tally.run + tally.check;
            }
        }
        Some(line)
    }

    /// What a rank is doing, as text for the user.
    pub(crate) fn last_configuration(&self, rank: u32) -> String {
        match self.current.get(rank as usize).copied().flatten() {
            Some(case) => self
                .cases
                .get(case)
                .map(Case::to_string)
                .unwrap_or_default(),
            None => match self.rank_world.get(rank as usize) {
                Some(0) | None => "its start".to_owned(),
                Some(world_size) => format!("the set-up of world size {world_size}"),
            },
        }
    }

    /// Whether a rank has begun a case and has not been done since.
    pub(crate) fn is_in_a_case(&self, rank: u32) -> bool {
        self.current.get(rank as usize).is_some_and(Option::is_some)
    }

    /// Ends the run with a failure of `rank`.
    pub(crate) fn fail(&mut self, rank: u32, failure: String) {
        if self.failure.is_none() {
            self.failed_case = self.current.get(rank as usize).copied().flatten();
            self.failure = Some(failure);
        }
    }

    /// Replaces the failure by one that includes the reports of all ranks.
    pub(crate) fn replace_failure(&mut self, rank: u32, failure: String) {
        let case = self.failed_case;
        self.failure = None;
        self.fail(rank, failure);
        self.failed_case = case.or(self.failed_case);
    }

    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// How each case ended.
    pub(crate) fn statuses(&self) -> Vec<CaseStatus> {
        let aborted = || {
            let reason = self.failure.as_deref().unwrap_or("the run was ended");
            reason.lines().next().unwrap_or_default().to_owned()
        };
        (0..self.cases.len())
            .map(|index| {
                let (case, tally) = (&self.cases[index], &self.tallies[index]);
                if tally.mismatches > 0 {
                    CaseStatus::Failed(format!(
                        "{} results differ from the reference",
                        tally.mismatches
                    ))
                } else if Some(index) == self.failed_case {
                    CaseStatus::Failed(aborted())
                } else if tally.ranks_ended == case.world_size {
                    CaseStatus::Passed
                } else if tally.began {
                    CaseStatus::Skipped(format!("not ended on every rank: {}", aborted()))
                } else {
                    CaseStatus::Skipped(format!("not begun: {}", aborted()))
                }
            })
            .collect()
    }

    /// Describes a mismatch, with the command that runs its case again.
    pub(crate) fn describe(&self, mismatch: &Mismatch) -> String {
        let Some(case) = self.cases.get(mismatch.case) else {
            return String::new();
        };
        let mode = match case.work {
            super::case::Work::Uniform { mode, variant, .. } => format!("{mode}, {variant}"),
            super::case::Work::Adversarial(kind) => format!("eager, adversarial {kind}"),
        };
        format!(
            "mismatch on rank {} of {}: {} {}, {} elements, {mode}, round {}, layer {}: {}; \
             seed {}\n  {}",
            mismatch.rank,
            case.world_size,
            mismatch.algorithm,
            case.dtype,
            mismatch.elements,
            mismatch.round,
            mismatch.layer,
            mismatch.wrong,
            self.settings.seed,
            self.settings.reproduce(&case.to_string())
        )
    }

    pub(crate) fn mismatches(&self) -> &[Mismatch] {
        &self.mismatches
    }

    pub(crate) fn mismatch_count(&self) -> u64 {
        self.tallies.iter().map(|tally| tally.mismatches).sum()
    }

    pub(crate) fn calls(&self, index: usize) -> u64 {
        self.tallies.get(index).map_or(0, |tally| tally.calls)
    }

    pub(crate) fn seconds(&self, precompile: Option<f64>, total: Duration) -> Seconds {
        Seconds {
            precompile,
            set_up: self.set_up.values().fold(0.0, |sum, seconds| sum + seconds),
            run: self.tallies.iter().fold(0.0, |sum, tally| sum + tally.run),
            check: self
                .tallies
                .iter()
                .fold(0.0, |sum, tally| sum + tally.check),
            total: total.as_secs_f64(),
        }
    }
}
