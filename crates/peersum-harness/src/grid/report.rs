//! The report of a run: printed at the end, and written as JSON.

use serde::Serialize;

use super::plan::left_out;
use super::settings::Settings;
use super::tally::{CaseReport, CaseStatus, Seconds, Tally};

/// The report's schema.
const SCHEMA: u32 = 2;

#[derive(Debug, Serialize)]
pub(crate) struct Report<'a> {
    schema: u32,
    device: &'a str,
    settings: &'a Settings,
    configurations: Counts,
    calls: u64,
    mismatches: u64,
    /// Why the run ended early, if it did.
    failure: Option<&'a str>,
    seconds: Seconds,
    /// Every configuration that was asked for.
    cases: Vec<CaseReport>,
    /// The first mismatches, in the order in which they came.
    first_mismatches: &'a [String],
    /// What the grid does not have, and why.
    left_out: Vec<&'static str>,
}

#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Counts {
    run: usize,
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Counts {
    fn of(cases: &[CaseReport]) -> Counts {
        let mut counts = Counts::default();
        for case in cases {
            match case.status {
                CaseStatus::Passed => counts.passed += 1,
                CaseStatus::Failed(_) => counts.failed += 1,
                CaseStatus::Skipped(_) => counts.skipped += 1,
            }
        }
        counts.run = counts.passed + counts.failed;
        counts
    }
}

impl<'a> Report<'a> {
    pub(crate) fn new(
        device: &'a str,
        settings: &'a Settings,
        tally: &'a Tally<'_>,
        seconds: Seconds,
    ) -> Report<'a> {
        let cases = tally.cases();
        Report {
            schema: SCHEMA,
            device,
            settings,
            configurations: Counts::of(&cases),
            calls: cases.iter().map(|case| case.calls).sum(),
            mismatches: tally.mismatch_count(),
            failure: tally.failure(),
            seconds,
            cases,
            first_mismatches: tally.mismatches(),
            left_out: left_out(settings),
        }
    }

    /// Whether every configuration passed.
    pub(crate) fn passed(&self) -> bool {
        self.configurations.passed == self.cases.len() && self.failure.is_none()
    }

    /// Prints the totals, and what went wrong before them.
    pub(crate) fn print(&self) {
        for mismatch in self.first_mismatches {
            println!("{mismatch}");
        }
        let shown = self.first_mismatches.len() as u64;
        if self.mismatches > shown {
            println!("and {} more mismatches", self.mismatches - shown);
        }
        if let Some(failure) = self.failure {
            println!("the run was ended: {failure}");
        }
        for left_out in &self.left_out {
            println!("not in this grid: {left_out}");
        }
        let (counts, seconds) = (self.configurations, self.seconds);
        let precompile = seconds.precompile;
        let precompile = precompile.map_or("-".to_owned(), |seconds| format!("{seconds:.1}"));
        println!();
        println!(
            "configurations  {:>8}   passed {}, failed {}, skipped {}",
            self.cases.len(),
            counts.passed,
            counts.failed,
            counts.skipped
        );
        println!(
            "calls           {:>8}   each on every rank of its group",
            self.calls
        );
        println!("mismatches      {:>8}", self.mismatches);
        println!(
            "seconds         {:>8.1}   precompile {precompile}, set-up {:.1}, run {:.1}, \
             check {:.1}",
            seconds.total, seconds.set_up, seconds.run, seconds.check
        );
        println!("seed            {:>8}", self.settings.seed);
    }
}
