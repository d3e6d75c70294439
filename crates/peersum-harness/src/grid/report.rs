//! The table at the end and the report in JSON.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::case::Case;
use super::event::Mismatch;
use super::plan::{LeftOut, left_out};
use super::settings::Settings;
use super::tally::{CaseStatus, Seconds, Tally};

/// The report's schema.
const SCHEMA: u32 = 1;

#[derive(Debug, Serialize)]
struct Report<'a> {
    schema: u32,
    device: &'a str,
    settings: Flags<'a>,
    configurations: Counts,
    calls: u64,
    mismatches: u64,
    /// Why the run ended early, if it did.
    failure: Option<&'a str>,
    seconds: Seconds,
    /// Every configuration that was asked for.
    cases: Vec<CaseReport>,
    /// The first mismatches, in the order in which they came.
    first_mismatches: Vec<MismatchReport>,
    /// What the grid does not have, and why.
    left_out: Vec<LeftOut>,
}

/// The flags as they were resolved.
#[derive(Debug, Serialize)]
struct Flags<'a> {
    world_sizes: &'a [u32],
    dtypes: Vec<String>,
    algorithms: Vec<&'a str>,
    device: crate::machine::DeviceKind,
    ranks: super::settings::RankKind,
    grid: super::settings::GridKind,
    seed: u64,
}

#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Counts {
    run: usize,
    passed: usize,
    failed: usize,
    skipped: usize,
}

#[derive(Debug, Serialize)]
struct CaseReport {
    name: String,
    #[serde(flatten)]
    status: CaseStatus,
    calls: u64,
}

#[derive(Debug, Serialize)]
struct MismatchReport {
    case: String,
    rank: u32,
    round: u32,
    layer: u32,
    algorithm: String,
    elements: usize,
    wrong: super::event::Wrong,
    reproduce: String,
}

impl Counts {
    fn of(statuses: &[CaseStatus]) -> Counts {
        let mut counts = Counts::default();
        for status in statuses {
            match status {
                CaseStatus::Passed => counts.passed += 1,
                CaseStatus::Failed(_) => counts.failed += 1,
                CaseStatus::Skipped(_) => counts.skipped += 1,
            }
        }
        counts.run = counts.passed + counts.failed;
        counts
    }
}

/// Prints the table, and what went wrong before it. Returns whether everything passed.
pub(crate) fn print(settings: &Settings, tally: &Tally<'_>, seconds: &Seconds) -> bool {
    const MISMATCHES_SHOWN: usize = 10;
    for mismatch in tally.mismatches().iter().take(MISMATCHES_SHOWN) {
        println!("{}", tally.describe(mismatch));
    }
    let mismatches = tally.mismatch_count();
    if mismatches > MISMATCHES_SHOWN as u64 {
        println!(
            "and {} more mismatches",
            mismatches - MISMATCHES_SHOWN as u64
        );
    }
    if let Some(failure) = tally.failure() {
        println!("the run was ended: {failure}");
    }
    for LeftOut { what, reason } in left_out(settings) {
        println!("not in this grid: {what}: {reason}");
    }
    let statuses = tally.statuses();
    let counts = Counts::of(&statuses);
    let calls: u64 = (0..statuses.len()).map(|index| tally.calls(index)).sum();
    println!();
    println!(
        "configurations  {:>8}   passed {}, failed {}, skipped {}",
        statuses.len(),
        counts.passed,
        counts.failed,
        counts.skipped
    );
    println!("calls           {calls:>8}   each on every rank of its group");
    println!("mismatches      {mismatches:>8}");
    let precompile = seconds
        .precompile
        .map_or("-".to_owned(), |seconds| format!("{seconds:.1}"));
    println!(
        "seconds         {:>8.1}   precompile {precompile}, set-up {:.1}, run {:.1}, check {:.1}",
        seconds.total, seconds.set_up, seconds.run, seconds.check
    );
    println!("seed            {:>8}", settings.seed);
    counts.failed == 0 && counts.skipped == 0 && tally.failure().is_none()
}

/// Writes the report.
pub(crate) fn write(
    path: &Path,
    device: &str,
    settings: &Settings,
    cases: &[Case],
    tally: &Tally<'_>,
    seconds: Seconds,
) -> Result<()> {
    let statuses = tally.statuses();
    let mismatch = |mismatch: &Mismatch| {
        let case = cases
            .get(mismatch.case)
            .map(Case::to_string)
            .unwrap_or_default();
        MismatchReport {
            reproduce: settings.reproduce(&case),
            case,
            rank: mismatch.rank,
            round: mismatch.round,
            layer: mismatch.layer,
            algorithm: mismatch.algorithm.clone(),
            elements: mismatch.elements,
            wrong: mismatch.wrong,
        }
    };
    let report = Report {
        schema: SCHEMA,
        device,
        settings: Flags {
            world_sizes: &settings.world_sizes,
            dtypes: settings
                .dtypes
                .iter()
                .map(|dtype| dtype.to_string())
                .collect(),
            algorithms: settings.routes.iter().map(|route| route.name()).collect(),
            device: settings.device,
            ranks: settings.ranks,
            grid: settings.grid,
            seed: settings.seed,
        },
        configurations: Counts::of(&statuses),
        calls: (0..cases.len()).map(|index| tally.calls(index)).sum(),
        mismatches: tally.mismatch_count(),
        failure: tally.failure(),
        seconds,
        first_mismatches: tally.mismatches().iter().map(mismatch).collect(),
        left_out: left_out(settings),
        cases: cases
            .iter()
            .zip(statuses)
            .enumerate()
            .map(|(index, (case, status))| CaseReport {
                name: case.to_string(),
                status,
                calls: tally.calls(index),
            })
            .collect(),
    };
    let text = serde_json::to_string_pretty(&report)? + "\n";
    std::fs::write(path, text).with_context(|| format!("writing the report {}", path.display()))
}
