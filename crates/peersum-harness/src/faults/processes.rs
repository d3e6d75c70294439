//! Ranks that are processes.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use peersum::Rendezvous;
use peersum::device::{DeviceStream, MemorySharing};

use super::stage::{ELEMENTS, SEED, Stage, TIMEOUT, again};
use crate::ranks::{RankProcess, meeting_directory};

/// Calls until a call fails. Prints a line for the parent after the first call and after the
/// failure.
pub(super) fn calls_until_failure<S: DeviceStream>(
    rendezvous: Rendezvous,
    stage: &Stage<'_, S>,
) -> Result<()> {
    let mut communicator = stage.build(rendezvous, |builder| builder)?;
    let arrays = stage.arrays(&communicator, SEED, ELEMENTS)?;
    arrays.call(&mut communicator)?;
    communicator.synchronize()?;
    println!("calling");
    loop {
        let outcome = arrays
            .call(&mut communicator)
            .and_then(|()| communicator.synchronize());
        if let Err(error) = outcome {
            println!("failed: {error}");
            return Ok(());
        }
    }
}

pub(super) fn legacy_ipc<S: DeviceStream>(
    rendezvous: Rendezvous,
    stage: &Stage<'_, S>,
) -> Result<()> {
    let mut communicator = stage.build(rendezvous, |builder| {
        builder.memory_sharing(MemorySharing::LegacyIpc)
    })?;
    let arrays = stage.arrays(&communicator, SEED, ELEMENTS)?;
    for _ in 0..20 {
        arrays.output.poison(&arrays.device)?;
        arrays.call(&mut communicator)?;
        communicator.synchronize()?;
        arrays.ensure_sum(&arrays.output)?;
    }
    Ok(())
}

fn spawn<S>(stage: &Stage<'_, S>, rank: u32, directory: &Path) -> Result<RankProcess> {
    let case = stage.args.case.context("a rank of no case")?;
    let mut command = again(stage.args, stage.kind, case)?;
    command
        .args(["--rank", &rank.to_string(), "--directory"])
        .arg(directory)
        .stdout(Stdio::piped());
    RankProcess::spawn(&mut command, rank)
}

pub(super) fn killed<S>(stage: &Stage<'_, S>) -> Result<()> {
    let directory = meeting_directory("faults")?;
    let mut survivor = spawn(stage, 0, directory.path())?;
    let mut victim = spawn(stage, 1, directory.path())?;
    let mut lines = BufReader::new(survivor.child.stdout.take().context("no pipe")?).lines();
    let first = lines.next().context("the survivor said nothing")??;
    ensure!(first == "calling", "{first}");
    // There is no pause between calls, so the kill hits one of them at a random point.
    std::thread::sleep(Duration::from_millis(200));
    let began = Instant::now();
    victim.kill();
    let last = lines
        .next()
        .context("the survivor ended without a word")??;
    let took = began.elapsed();
    survivor.wait()?;
    println!("  {took:?} after the kill: {last}");
    ensure!(last.contains("waited") && last.contains("rank 1"), "{last}");
    ensure!(took < TIMEOUT + stage.grace(), "took {took:?}");
    Ok(())
}

pub(super) fn processes_succeed<S>(stage: &Stage<'_, S>) -> Result<()> {
    let directory = meeting_directory("faults")?;
    let ranks = [
        spawn(stage, 0, directory.path())?,
        spawn(stage, 1, directory.path())?,
    ];
    for (rank, mut process) in ranks.into_iter().enumerate() {
        let status = process.wait()?;
        ensure!(status.success(), "rank {rank} ended with {status}");
    }
    Ok(())
}
