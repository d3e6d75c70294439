//! The test grid: every configuration of the all-reduce, on whatever the machine has, bits against the reference.

pub(crate) mod case;
mod device_check;
pub(crate) mod event;
mod generator;
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

use case::Case;
pub(crate) use settings::DeviceKind;
use settings::Settings;
use tally::GroupLine;

pub(crate) use machine::decide;
pub(crate) use settings::{DeviceChoice, GridArgs, RankKind};
pub(crate) use workers::{RankArgs, run_process};

/// Ranks that share a card need a hardware queue each, and the driver reads this when the first context is made.
pub(crate) const CONNECTIONS_VARIABLE: &str = "CUDA_DEVICE_MAX_CONNECTIONS";

/// Asks the driver for a hardware queue a stream. Before the first thread and the first context.
pub(crate) fn give_each_stream_a_queue() {
    if std::env::var_os(CONNECTIONS_VARIABLE).is_none() {
        // SAFETY: this program has one thread so far.
        unsafe { std::env::set_var(CONNECTIONS_VARIABLE, "32") };
    }
}

/// Runs the grid that the flags describe. Exit status 1 unless every configuration passed.
pub(crate) fn run(args: &GridArgs) -> Result<ExitCode> {
    let began = Instant::now();
    give_each_stream_a_queue();
    // The list is of names, which are the same on every device; it must not need one.
    if args.list {
        let settings = Settings::new(args, DeviceKind::Emulator)?;
        for case in plan::cases(&settings) {
            println!("{case}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    let ranks = workers::ranks(&Settings::new(args, DeviceKind::Emulator)?);
    let decision = machine::decide(args.device, ranks)?;
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
            "{:<32} {:>4} configurations {:>7} calls {:>4} mismatches {:>7.2} s   [{finished}/{total}]",
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

/// The flags of `device`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DeviceArgs {
    #[arg(long, value_enum, default_value = "auto")]
    device: settings::DeviceChoice,
}

/// Prints what `--device` comes to here, as JSON: what must be precompiled depends on it.
pub(crate) fn print_device(args: &DeviceArgs) -> Result<()> {
    println!(
        "{}",
        serde_json::to_string(&machine::decide(args.device, 1)?)?
    );
    Ok(())
}
