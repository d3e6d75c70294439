//! The test grid: every configuration of the all-reduce, on GPUs or the emulator, compared with the
//! reference bit for bit.

mod calls;
pub(crate) mod case;
mod device_check;
pub(crate) mod event;
mod lane;
pub(crate) mod machine;
mod memory;
#[cfg(feature = "negative-controls")]
pub(crate) mod negative_controls;
mod plan;
mod rank;
mod report;
mod runner;
pub(crate) mod session;
pub(crate) mod settings;
mod tally;
mod workers;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::machine::{DeviceKind, decide, give_each_stream_a_queue};
use crate::names::name_of;
use report::Report;
use settings::Settings;

pub(crate) use settings::GridArgs;
pub(crate) use workers::{RankArgs, run_process};

/// Runs the grid that the flags describe. Exit status 1 unless every configuration passed.
pub(crate) fn run(args: &GridArgs) -> Result<ExitCode> {
    let began = Instant::now();
    give_each_stream_a_queue();
    // The configurations are the same on every device, so that listing them needs none.
    let mut settings = Settings::new(args, DeviceKind::Emulator);
    let cases = Arc::new(plan::cases(&settings));
    if args.list {
        for case in &*cases {
            println!("{case}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    let decision = decide(args.device, workers::ranks(&settings))?;
    settings.device = decision.kind;
    let settings = Arc::new(settings);
    ensure!(
        !cases.is_empty() || args.filter.is_none(),
        "--filter selects no configuration; --list prints the names of all"
    );
    println!("device: {}", decision.line);
    println!(
        "{} configurations, ranks are {}, seed {}",
        cases.len(),
        name_of(&settings.ranks),
        settings.seed
    );
    let tally = runner::run(&settings, &cases, &mut |line| println!("{line}"))?;
    let seconds = tally.seconds(args.precompile_seconds, began.elapsed());
    let report = Report::new(&decision.line, &settings, &tally, seconds);
    report.print();
    if let Some(path) = &args.report {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(path, text)
            .with_context(|| format!("writing the report {}", path.display()))?;
    }
    Ok(if report.passed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
