//! Runs a program with a time limit. At the limit, the program and all its children are killed.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};

/// How often the program is polled.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

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
    let mut child = command
        .stdin(Stdio::null())
        .stdout(output.try_clone().context("sharing the output file")?)
        .stderr(output)
        // A process group of its own, so that it can be killed as a whole.
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting {}", Path::new(command.get_program()).display()))?;
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let mut status = None;
    while status.is_none() && began.elapsed() < limit {
        status = child.try_wait().context("waiting for compute-sanitizer")?;
        if status.is_none() {
            std::thread::sleep(LOOK_INTERVAL);
        }
    }
    let took = began.elapsed();
    // A program that has ended may have left a child running. The call fails if there is none.
    if let Some(group) = group {
        let _ = kill_process_group(group, Signal::KILL);
    }
    if status.is_none() {
        child.wait().context("waiting for compute-sanitizer")?;
    }
    let output = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    Ok(Ended {
        status,
        output: String::from_utf8_lossy(&output).into_owned(),
        took,
    })
}
