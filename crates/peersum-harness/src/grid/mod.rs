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

use anyhow::{Result, ensure};

use crate::machine::{DeviceKind, decide, give_each_stream_a_queue};
use case::Case;
use settings::{RankKind, Settings};
use tally::GroupLine;

pub(crate) use settings::GridArgs;
pub(crate) use workers::{RankArgs, run_process};

/// Runs the grid that the flags describe. Exit status 1 unless every configuration passed.
pub(crate) fn run(args: &GridArgs) -> Result<ExitCode> {
    let began = Instant::now();
    give_each_stream_a_queue();
    // The names are the same on every device, so that listing them needs none.
    if args.list {
        let settings = Settings::new(args, DeviceKind::Emulator)?;
        for case in plan::cases(&settings) {
            println!("{case}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    let ranks = workers::ranks(&Settings::new(args, DeviceKind::Emulator)?);
    let decision = decide(args.device, ranks)?;
    let settings = Arc::new(Settings::new(args, decision.kind)?);
    let cases: Arc<Vec<Case>> = Arc::new(plan::cases(&settings));
    ensure!(
        !cases.is_empty() || args.filter.is_none(),
        "--filter selects no configuration; --list prints the names of all"
    );
    println!("device: {}", decision.line);
    println!(
        "{} configurations, ranks are {}, seed {}",
        cases.len(),
        match settings.ranks {
            RankKind::Threads => "threads",
            RankKind::Processes => "processes",
        },
        settings.seed
    );
    let total = cases.len();
    let mut finished = 0;
    let tally = runner::run(&settings, &cases, &mut |line: &GroupLine| {
        finished += line.configurations;
        println!(
            "{:<32} {:>4} configurations {:>7} calls {:>4} mismatches {:>7.2} s   \
             [{finished}/{total}]",
            line.name, line.configurations, line.calls, line.mismatches, line.seconds
        );
    })?;
    let precompile = args.precompile_seconds;
    let seconds = tally.seconds(precompile, began.elapsed());
    let passed = report::print(&settings, &tally, &seconds);
    if let Some(path) = &args.report {
        report::write(path, &decision.line, &settings, &cases, &tally, seconds)?;
    }
    Ok(if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
