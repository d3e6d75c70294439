//! The report of a run: printed at the end, and written as JSON.

use serde::Serialize;

use super::settings::Settings;

/// The report's schema.
pub(super) const SCHEMA: u32 = 3;

#[derive(Debug, Serialize)]
pub(crate) struct Report<'a> {
    pub(super) schema: u32,
    pub(super) device: &'a str,
    pub(super) settings: &'a Settings,
    pub(super) configurations: Counts,
    pub(super) calls: u64,
    pub(super) mismatches: u64,
    /// Why the run ended early, if it did.
    pub(super) failure: Option<String>,
    pub(super) seconds: Seconds,
    /// Every configuration that was asked for.
    pub(super) cases: Vec<CaseReport>,
    /// The first mismatches, in the order in which they came, each with the command that runs its
    /// case again.
    pub(super) first_mismatches: Vec<String>,
    /// What the grid does not have, and why.
    pub(super) left_out: Vec<String>,
}

/// How a case stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "status", content = "reason")]
pub(super) enum CaseStatus {
    /// Every rank has the reference's bits in every call.
    Passed,
    /// A result differs, or a rank failed.
    Failed(String),
    /// It did not run to its end, which does not count as passed.
    Skipped(String),
}

/// How a case ended.
#[derive(Debug, Serialize)]
pub(super) struct CaseReport {
    pub(super) name: String,
    #[serde(flatten)]
    pub(super) status: CaseStatus,
    pub(super) calls: u64,
}

/// Seconds by phase. Set-up, run and check are those of the slowest rank of each group, case by
/// case.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Seconds {
    pub(super) precompile: Option<f64>,
    pub(super) set_up: f64,
    pub(super) run: f64,
    pub(super) check: f64,
    pub(super) total: f64,
}

#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Counts {
    run: usize,
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Counts {
    pub(super) fn of(cases: &[CaseReport]) -> Counts {
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

impl Report<'_> {
    /// Whether every configuration passed.
    pub(crate) fn passed(&self) -> bool {
        self.configurations.passed == self.cases.len() && self.failure.is_none()
    }

    /// Prints the totals, and what went wrong before them.
    pub(crate) fn print(&self) {
        for mismatch in &self.first_mismatches {
            println!("{mismatch}");
        }
        let shown = self.first_mismatches.len() as u64;
        if self.mismatches > shown {
            println!("and {} more mismatches", self.mismatches - shown);
        }
        if let Some(failure) = &self.failure {
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
