//! Ranks that are processes.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use peersum::Rendezvous;
use peersum::device::{DeviceStream, MemorySharing};

use super::work::Work;
use super::{Stage, TIMEOUT, again};

/// Calls until something fails; prints a line for the parent after the first call and when it has failed.
pub(super) fn calls_until_failure<S: DeviceStream>(
    rendezvous: Rendezvous,
    stage: &Stage<'_, S>,
) -> Result<()> {
    let mut communicator = stage.build(rendezvous, |builder| builder)?;
    let work = Work::<S::Device>::new(communicator.stream(), communicator.rank(), 2)?;
    work.call(&mut communicator)?;
    communicator.synchronize()?;
    println!("calling");
    loop {
        let outcome = work
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
    let work = Work::<S::Device>::new(communicator.stream(), communicator.rank(), 2)?;
    for _ in 0..20 {
        work.output.poison(&work.device)?;
        work.call(&mut communicator)?;
        communicator.synchronize()?;
        ensure!(
            work.output_is(&|i| work.expected[i].to_bits())?,
            "a result is wrong"
        );
    }
    Ok(())
}

fn spawn<S>(stage: &Stage<'_, S>, rank: u32, directory: &Path) -> Result<Child> {
    let case = stage.args.case.context("a rank of no case")?;
    again(stage.args, stage.kind, case)?
        .args(["--rank", &rank.to_string(), "--directory"])
        .arg(directory)
        .stdout(Stdio::piped())
        .spawn()
        .context("starting a rank")
}

fn private_directory() -> Result<tempfile::TempDir> {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir()?;
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o700))?;
    Ok(directory)
}

pub(super) fn killed<S>(stage: &Stage<'_, S>) -> Result<()> {
    let directory = private_directory()?;
    let mut survivor = spawn(stage, 0, directory.path())?;
    let mut victim = spawn(stage, 1, directory.path())?;
    let mut lines = BufReader::new(survivor.stdout.take().context("no pipe")?).lines();
    let first = lines.next().context("the survivor said nothing")??;
    ensure!(first == "calling", "{first}");
    // Calls follow each other without a pause, so the kill falls into one, at some place.
    std::thread::sleep(Duration::from_millis(200));
    let began = Instant::now();
    victim.kill()?;
    victim.wait()?;
    let last = lines
        .next()
        .context("the survivor ended without a word")??;
    let took = began.elapsed();
    survivor.wait()?;
    println!("  {took:?} after the kill: {last}");
    ensure!(last.contains("waited") && last.contains("rank 1"), "{last}");
    ensure!(took < TIMEOUT + stage.grace, "took {took:?}");
    Ok(())
}

pub(super) fn processes_succeed<S>(stage: &Stage<'_, S>) -> Result<()> {
    let directory = private_directory()?;
    let ranks = [
        spawn(stage, 0, directory.path())?,
        spawn(stage, 1, directory.path())?,
    ];
    for (rank, child) in ranks.into_iter().enumerate() {
        let output = child.wait_with_output()?;
        ensure!(
            output.status.success(),
            "rank {rank} ended with {}",
            output.status
        );
    }
    Ok(())
}
