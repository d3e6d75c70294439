//! `grid --op rms-norm`: calls with RMSNorm, compared with the reference bit for bit.

mod cases;
mod rank;

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::settings::{GridArgs, RankKind, Settings};
use crate::machine::{DeviceKind, DeviceOf, Emulators, Gpus, Machine, decide};
use crate::ranks::run_threads;
use cases::cases;

pub(crate) use cases::NormCase;
pub(crate) use rank::NormRank;

/// Mismatches that are printed; all are counted.
const PRINTED: usize = 20;

/// Runs the configurations that the flags select. Returns whether every one passed.
pub(super) fn run(args: &GridArgs) -> Result<bool> {
    let mut settings = args.settings.clone();
    ensure!(
        settings.ranks == RankKind::Threads && args.report.is_none(),
        "--op rms-norm: the ranks are threads, and there is no --report"
    );
    let all = cases(&settings);
    if args.list {
        for case in &all {
            println!("{case}");
        }
        return Ok(true);
    }
    ensure!(
        !all.is_empty(),
        "--filter selects no configuration; --list prints the names of all"
    );
    let decision = decide(args.device, settings.most_ranks())?;
    settings.device = decision.kind;
    println!("device: {}", decision.line);
    println!(
        "{} configurations with RMSNorm, seed {}",
        all.len(),
        settings.seed
    );
    let began = Instant::now();
    let mut failed = 0;
    for &world_size in &settings.world_sizes {
        let own: Vec<NormCase> = all
            .iter()
            .copied()
            .filter(|case| case.world_size == world_size)
            .collect();
        if own.is_empty() {
            continue;
        }
        let wrong = match settings.device {
            DeviceKind::Cuda => run_group(&Gpus::open(world_size)?, &settings, &own),
            DeviceKind::Emulator => run_group(&Emulators::default(), &settings, &own),
        }
        .with_context(|| format!("ws{world_size}"))?;
        println!(
            "ws{world_size}: {} configurations, {} mismatches, {:.1} s so far",
            own.len(),
            wrong.len(),
            began.elapsed().as_secs_f64()
        );
        for line in wrong.iter().take(PRINTED) {
            println!("  {line}");
        }
        failed += wrong.len();
    }
    println!(
        "{} configurations, {failed} mismatches, seed {}",
        all.len(),
        settings.seed
    );
    Ok(failed == 0)
}

/// The first mismatch of all configurations that the settings select.
#[cfg(feature = "negative-controls")]
pub(super) fn mismatch<M: Machine>(machine: &M, settings: &Settings) -> Result<Option<String>> {
    let all = cases(settings);
    for group in all.chunk_by(|a, b| a.world_size == b.world_size) {
        let mut wrong = run_group(machine, settings, group)?;
        if !wrong.is_empty() {
            return Ok(Some(wrong.swap_remove(0)));
        }
    }
    Ok(None)
}

/// All configurations of one world size. Returns the mismatches of all ranks.
fn run_group<M: Machine>(
    machine: &M,
    settings: &Settings,
    cases: &[NormCase],
) -> Result<Vec<String>> {
    let wrong = Mutex::new(Vec::new());
    let world_size = cases.first().context("a group without cases")?.world_size;
    run_threads(world_size, 1, |mut member| {
        let rendezvous = member.next_group()?;
        let mut rank = NormRank::<DeviceOf<M>>::new(machine, settings, rendezvous, cases)?;
        for case in cases {
            let found = rank
                .run(case, &member.peers)
                .with_context(|| case.to_string())?;
            let mut wrong = wrong.lock().unwrap_or_else(PoisonError::into_inner);
            wrong.extend(found);
        }
        Ok(())
    })?;
    Ok(wrong.into_inner().unwrap_or_else(PoisonError::into_inner))
}
