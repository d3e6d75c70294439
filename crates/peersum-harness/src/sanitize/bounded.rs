//! Runs a program with a time limit. At the limit, the program and all its children are killed.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Signal, kill_process_group};

use crate::ranks::ChildProcess;

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// `None` if it was killed at the limit.
    pub(crate) status: Option<ExitStatus>,
    /// What it printed, on either stream.
    pub(crate) output: String,
    pub(crate) took: Duration,
}

/// Runs `command` for at most `limit`. What it prints goes through a file in `directory`: a pipe
/// would have to be emptied, and a grandchild that outlives the program would keep it open.
pub(crate) fn run(command: &mut Command, directory: &Path, limit: Duration) -> Result<Ended> {
    let path = directory.join("output");
    let output = File::create(&path).with_context(|| format!("making {}", path.display()))?;
    let began = Instant::now();
    command
        .stdin(Stdio::null())
        .stdout(output.try_clone().context("sharing the output file")?)
        .stderr(output)
        // A process group of its own, so that it can be killed as a whole.
        .process_group(0);
    let mut process = ChildProcess::spawn(command)?;
    let status = process.wait_for(limit);
    let took = began.elapsed();
    // A program that has ended may have left a child running. The call fails if there is none.
    let _ = kill_process_group(process.id(), Signal::KILL);
    drop(process);
    let output = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    Ok(Ended {
        status,
        output: String::from_utf8_lossy(&output).into_owned(),
        took,
    })
}
