//! The results of a run: the state of each case, and totals.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::case::Case;
use super::event::Event;
use super::settings::Settings;

/// The most mismatches that are kept and shown; all are counted.
const MISMATCHES_KEPT: usize = 20;

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

/// How a case ended.
#[derive(Debug, Serialize)]
pub(crate) struct CaseReport {
    pub(crate) name: String,
    #[serde(flatten)]
    pub(crate) status: CaseStatus,
    pub(crate) calls: u64,
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

/// The cases that share a line in the output.
#[derive(Debug, Default)]
struct Group {
    /// Cases that not all ranks have ended.
    open: usize,
    configurations: usize,
    calls: u64,
    mismatches: u64,
    seconds: f64,
}

/// Everything that the runner knows of a run.
pub(crate) struct Tally<'a> {
    settings: &'a Settings,
    cases: &'a [Case],
    tallies: Vec<CaseTally>,
    groups: BTreeMap<String, Group>,
    set_up: BTreeMap<(u32, usize), f64>,
    rank_world: Vec<u32>,
    current: Vec<Option<usize>>,
    /// The first mismatches, each with the command that runs its case again.
    mismatches: Vec<String>,
    failure: Option<String>,
    failed_case: Option<usize>,
}

impl<'a> Tally<'a> {
    pub(crate) fn new(settings: &'a Settings, cases: &'a [Case], ranks: u32) -> Tally<'a> {
        let mut groups = BTreeMap::<_, Group>::new();
        for case in cases {
            groups.entry(case.group()).or_default().open += 1;
        }
        Tally {
            settings,
            cases,
            tallies: vec![CaseTally::default(); cases.len()],
            groups,
            set_up: BTreeMap::new(),
            rank_world: vec![0; ranks as usize],
            current: vec![None; ranks as usize],
            mismatches: Vec::new(),
            failure: None,
            failed_case: None,
        }
    }

    /// Records an event. Returns a group's line when its last case has ended.
    pub(crate) fn take(&mut self, rank: u32, event: &Event) -> Option<String> {
        let at = rank as usize;
        match event {
            Event::Building { world_size } => {
                self.rank_world[at] = *world_size;
                self.current[at] = None;
            }
            Event::Built {
                world_size,
                lanes,
                seconds,
            } => {
                // The last rank to join does not wait for the others, so the shortest time is that
                // of set-up itself.
                let shortest = self.set_up.entry((*world_size, *lanes));
                let shortest = shortest.or_insert(f64::MAX);
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
                if tally.ranks_ended == self.cases.get(*case)?.world_size {
                    return self.close(*case);
                }
            }
            Event::Mismatch(mismatch) => {
                let case = self.cases.get(mismatch.case)?;
                self.tallies[mismatch.case].mismatches += 1;
                if self.mismatches.len() < MISMATCHES_KEPT {
                    self.mismatches.push(format!(
                        "{}\n  {}",
                        mismatch.describe(case, self.settings.seed),
                        self.settings.reproduce(&case.to_string())
                    ));
                }
            }
            Event::Failed { .. } | Event::Done => {}
        }
        None
    }

    fn close(&mut self, case: usize) -> Option<String> {
        let name = self.cases[case].group();
        let group = self.groups.get_mut(&name)?;
        let tally = &self.tallies[case];
        group.open -= 1;
        group.configurations += 1;
        group.calls += tally.calls;
        group.mismatches += tally.mismatches;
        group.seconds += tally.run + tally.check;
        if group.open > 0 {
            return None;
        }
        let line = format!(
            "{name:<32} {:>4} configurations {:>7} calls {:>4} mismatches {:>7.2} s",
            group.configurations, group.calls, group.mismatches, group.seconds
        );
        let finished: usize = self.groups.values().map(|group| group.configurations).sum();
        Some(format!("{line}   [{finished}/{}]", self.cases.len()))
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
        self.failed_case = self.current.get(rank as usize).copied().flatten();
        self.failure = Some(failure);
    }

    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// How each case ended.
    pub(crate) fn cases(&self) -> Vec<CaseReport> {
        let aborted = || {
            let reason = self.failure.as_deref().unwrap_or("the run was ended");
            reason.lines().next().unwrap_or_default().to_owned()
        };
        let cases = self.cases.iter().zip(&self.tallies).enumerate();
        cases
            .map(|(index, (case, tally))| CaseReport {
                name: case.to_string(),
                calls: tally.calls,
                status: if tally.mismatches > 0 {
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
                },
            })
            .collect()
    }

    pub(crate) fn mismatches(&self) -> &[String] {
        &self.mismatches
    }

    pub(crate) fn mismatch_count(&self) -> u64 {
        self.tallies.iter().map(|tally| tally.mismatches).sum()
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
