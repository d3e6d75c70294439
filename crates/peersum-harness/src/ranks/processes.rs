//! Ranks that are processes of this program, and what they say: one JSON object a line on stdout.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, ChildStdout, Command, ExitStatus};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, getpid, kill_process};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::TempDir;

use crate::parent;

/// Makes a directory where ranks meet, which is closed to other users. It is removed with
/// everything in it when it is dropped.
///
/// # Errors
/// The system refuses.
pub(crate) fn meeting_directory(command: &str) -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix(&format!("peersum-{command}-"))
        .permissions(std::fs::Permissions::from_mode(0o700))
        .tempdir()
        .context("making the directory where the ranks meet")
}

/// This program with a subcommand whose flags include [`ParentArgs`].
///
/// # Errors
/// The program's file is not known.
pub(crate) fn rank_command(command: &str) -> Result<Command> {
    let mut program = Command::new(std::env::current_exe().context("finding this program")?);
    program
        .arg(command)
        .args(["--parent", &getpid().as_raw_pid().to_string()]);
    Ok(program)
}

/// The flag of a process that ends with the one that started it.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ParentArgs {
    /// The id of the process that started this one.
    #[arg(long)]
    parent: i32,
}

impl ParentArgs {
    /// As [`parent::end_with`].
    pub(crate) fn end_with_it(&self) -> Result<()> {
        parent::end_with(self.parent)
    }
}

/// A process that is a rank; killed when dropped.
pub(crate) struct RankProcess {
    pub(crate) child: Child,
    status: Option<ExitStatus>,
}

impl RankProcess {
    /// # Errors
    /// The system refuses.
    pub(crate) fn spawn(command: &mut Command, rank: u32) -> Result<RankProcess> {
        let child = command
            .spawn()
            .with_context(|| format!("starting rank {rank}"))?;
        let status = None;
        Ok(RankProcess { child, status })
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }

    /// Waits until it ends.
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) fn wait(&mut self) -> Result<ExitStatus> {
        let status = self.child.wait().context("waiting for a rank")?;
        self.status = Some(status);
        Ok(status)
    }

    /// # Errors
    /// It has ended, or the system refuses.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal)
            .with_context(|| format!("sending {signal:?}"))
    }

    /// Kills the process if it is running, and waits for its end.
    pub(crate) fn kill(&mut self) {
        if self.status.is_none() {
            let _ = self.child.kill();
            self.status = self.child.wait().ok();
        }
    }
}

impl Drop for RankProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A line of a process, or the end of its output.
pub(crate) enum Heard<T> {
    Word(T),
    /// A line that is not a word, such as a library's output.
    Other(String),
    /// The process closed its stdout: it has ended or is about to.
    Closed,
}

/// Passes everything that a process says to `hear`, on a new thread.
pub(crate) fn listen<T: DeserializeOwned>(
    stdout: ChildStdout,
    mut hear: impl FnMut(Heard<T>) + Send + 'static,
) {
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            hear(match serde_json::from_str(&line) {
                Ok(word) => Heard::Word(word),
                Err(_) => Heard::Other(line),
            });
        }
        hear(Heard::Closed);
    });
}

/// Says a word to the process that listens to this one, if that is still running.
pub(crate) fn say<T: Serialize>(word: &T) {
    if let Ok(line) = serde_json::to_string(word) {
        let mut stdout = std::io::stdout().lock();
        let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    }
}
