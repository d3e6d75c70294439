//! The results of a run: the state of each case, and totals.

use std::collections::BTreeMap;
use std::time::Duration;

use super::case::Case;
use super::event::{Event, Spent};
use super::report::{CaseReport, CaseStatus, Counts, Report, SCHEMA, Seconds};
use super::selection::{excluded, left_out};
use super::settings::Settings;

/// The most mismatches that are kept and shown; all are counted.
const MISMATCHES_KEPT: usize = 20;

/// What is known of a case.
#[derive(Debug, Default, Clone)]
struct CaseTally {
    began: bool,
    ranks_ended: u32,
    mismatches: u64,
    /// The calls of each rank, and the times of the slowest one.
    spent: Spent,
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

/// What a rank is doing.
#[derive(Debug, Clone, Copy)]
enum Doing {
    Starting,
    SettingUp { world_size: u32 },
    Case(usize),
}

/// Everything that the runner knows of a run.
pub(crate) struct Tally<'a> {
    settings: &'a Settings,
    cases: &'a [Case],
    tallies: Vec<CaseTally>,
    groups: BTreeMap<String, Group>,
    set_up: BTreeMap<(u32, usize), f64>,
    doing: Vec<Doing>,
    /// The first mismatches, each with the command that runs its case again.
    mismatches: Vec<String>,
    failure: Option<String>,
    failed_case: Option<usize>,
}

impl<'a> Tally<'a> {
    pub(crate) fn new(settings: &'a Settings, cases: &'a [Case], ranks: usize) -> Tally<'a> {
        let mut groups = BTreeMap::<_, Group>::new();
        for case in cases {
            groups.entry(case.group.clone()).or_default().open += 1;
        }
        Tally {
            settings,
            cases,
            tallies: vec![CaseTally::default(); cases.len()],
            groups,
            set_up: BTreeMap::new(),
            doing: vec![Doing::Starting; ranks],
            mismatches: Vec::new(),
            failure: None,
            failed_case: None,
        }
    }

    /// Records an event. Returns a group's line when its last case has ended.
    pub(crate) fn take(&mut self, rank: usize, event: &Event) -> Option<String> {
        match *event {
            Event::Building { world_size } => self.doing[rank] = Doing::SettingUp { world_size },
            Event::Built {
                world_size,
                slot,
                seconds,
            } => {
                // The last rank to join does not wait for the others, so the shortest time is that
                // of set-up itself.
                let shortest = self.set_up.entry((world_size, slot)).or_insert(f64::MAX);
                *shortest = shortest.min(seconds);
            }
            Event::Began { case } => {
                self.doing[rank] = Doing::Case(case);
                self.tallies[case].began = true;
            }
            Event::Ended { case, spent } => {
                let tally = &mut self.tallies[case];
                tally.ranks_ended += 1;
                // Every rank makes the same calls, so they are counted once per group.
                tally.spent.calls = spent.calls;
                tally.spent.run = tally.spent.run.max(spent.run);
                tally.spent.check = tally.spent.check.max(spent.check);
                if tally.ranks_ended == self.cases[case].world_size {
                    return self.close(case);
                }
            }
            Event::Mismatch { case, ref text } => {
                self.tallies[case].mismatches += 1;
                if self.mismatches.len() < MISMATCHES_KEPT {
                    let case = &self.cases[case];
                    let command = self.settings.reproduce(case.op, &case.name);
                    self.mismatches.push(format!("{text}\n  {command}"));
                }
            }
            Event::Failed { .. } | Event::Done => {}
        }
        None
    }

    fn close(&mut self, case: usize) -> Option<String> {
        let name = &self.cases[case].group;
        let group = self.groups.get_mut(name)?;
        let tally = &self.tallies[case];
        group.open -= 1;
        group.configurations += 1;
        group.calls += tally.spent.calls;
        group.mismatches += tally.mismatches;
        group.seconds += tally.spent.run + tally.spent.check;
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
    pub(crate) fn last_configuration(&self, rank: usize) -> String {
        match self.doing[rank] {
            Doing::Starting => "its start".to_owned(),
            Doing::SettingUp { world_size } => format!("the set-up of world size {world_size}"),
            Doing::Case(case) => self.cases[case].name.clone(),
        }
    }

    /// The case that a rank has begun, until it joins its next group.
    pub(crate) fn case_of(&self, rank: usize) -> Option<usize> {
        match self.doing[rank] {
            Doing::Case(case) => Some(case),
            _ => None,
        }
    }

    /// Ends the run with a failure of `rank`.
    pub(crate) fn fail(&mut self, rank: usize, failure: String) {
        self.failed_case = self.case_of(rank);
        self.failure = Some(failure);
    }

    /// How a case ended.
    fn status(&self, index: usize) -> CaseStatus {
        let tally = &self.tallies[index];
        let failure = self.failure.as_deref().unwrap_or("the run was ended");
        let ended = failure.lines().next().unwrap_or_default();
        if tally.mismatches > 0 {
            let count = tally.mismatches;
            CaseStatus::Failed(format!("{count} results differ from the reference"))
        } else if Some(index) == self.failed_case {
            CaseStatus::Failed(ended.to_owned())
        } else if tally.ranks_ended == self.cases[index].world_size {
            CaseStatus::Passed
        } else if tally.began {
            CaseStatus::Skipped(format!("not ended on every rank: {ended}"))
        } else {
            CaseStatus::Skipped(format!("not begun: {ended}"))
        }
    }

    /// The report of the run, which was on `device` and took `total`.
    pub(crate) fn report(
        self,
        device: &'a str,
        precompile: Option<f64>,
        total: Duration,
    ) -> Report<'a> {
        let cases = (0..).zip(self.cases).map(|(index, case)| CaseReport {
            name: case.name.clone(),
            status: self.status(index),
            calls: self.tallies[index].spent.calls,
        });
        let cases: Vec<CaseReport> = cases.collect();
        let left_out = left_out(self.settings).into_iter().map(str::to_owned);
        let left_out = excluded(self.settings)
            .into_iter()
            .chain(left_out)
            .collect();
        let sum = |of: fn(&Spent) -> f64| self.tallies.iter().map(|tally| of(&tally.spent)).sum();
        Report {
            schema: SCHEMA,
            device,
            settings: self.settings,
            configurations: Counts::of(&cases),
            calls: cases.iter().map(|case| case.calls).sum(),
            mismatches: self.tallies.iter().map(|tally| tally.mismatches).sum(),
            seconds: Seconds {
                precompile,
                set_up: self.set_up.values().sum(),
                run: sum(|spent| spent.run),
                check: sum(|spent| spent.check),
                total: total.as_secs_f64(),
            },
            cases,
            failure: self.failure,
            first_mismatches: self.mismatches,
            left_out,
        }
    }
}
