//! The test grid: every configuration of every operation, on GPUs or the emulator, compared with
//! the reference bit for bit.

pub(crate) mod case;
pub(crate) mod device_check;
pub(crate) mod event;
mod lane;
mod moves;
#[cfg(feature = "negative-controls")]
pub(crate) mod negative_controls;
pub(crate) mod norms;
mod rank;
mod report;
mod runner;
mod selection;
pub(crate) mod session;
pub(crate) mod settings;
pub(crate) mod sums;
mod tally;
mod workers;

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::machine::{decide, give_each_stream_a_queue};
use crate::names::name_of;

pub(crate) use settings::GridArgs;
pub(crate) use workers::run_process;

/// Runs the grid that the flags describe. Returns whether every configuration
/// passed.
pub(crate) fn run(args: &GridArgs) -> Result<bool> {
    let began = Instant::now();
    give_each_stream_a_queue();
    let mut settings = args.settings.clone();
    let cases = selection::cases(&settings);
    selection::ensure_any(&settings, &cases)?;
    if args.list {
        for case in &cases {
            println!("{}", case.name);
        }
        return Ok(true);
    }
    let decision = decide(args.device, settings.most_ranks())?;
    settings.device = decision.kind;
    let settings = Arc::new(settings);
    println!("device: {}", decision.line);
    println!(
        "{} configurations, ranks are {}, seed {}",
        cases.len(),
        name_of(&settings.ranks),
        settings.seed
    );
    let tally = runner::run(&settings, &cases, &mut |line| println!("{line}"))?;
    let report = tally.report(&decision.line, args.precompile_seconds, began.elapsed());
    report.print();
    if let Some(path) = &args.report {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(path, text)
            .with_context(|| format!("writing the report {}", path.display()))?;
    }
    Ok(report.passed())
}
