//! Processes of this program, and what they say: one JSON object a line on stdout.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{
    Pid, Signal, getpid, getppid, kill_process, set_parent_process_death_signal,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::TempDir;

/// How often a process is polled.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

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

/// This program with a command.
///
/// # Errors
/// The program's file is not known.
pub(crate) fn this_program(command: &str) -> Result<Command> {
    let mut program = Command::new(std::env::current_exe().context("finding this program")?);
    program.arg(command);
    Ok(program)
}

/// This program with a command whose flags are [`RankArgs`], but for `--directory`.
///
/// # Errors
/// The program's file is not known.
pub(crate) fn rank_command<T: Serialize>(command: &str, rank: u32, task: &T) -> Result<Command> {
    let mut program = this_program(command)?;
    program
        .args(["--parent", &getpid().as_raw_pid().to_string()])
        .args(["--rank", &rank.to_string()])
        .args(["--task", &serde_json::to_string(task)?]);
    Ok(program)
}

/// The flags of a process that is a rank and ends with the one that started it.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct RankArgs {
    /// The id of the process that started this one.
    #[arg(long)]
    parent: i32,
    #[arg(long)]
    pub(crate) rank: u32,
    /// Where the ranks meet.
    #[arg(long)]
    pub(crate) directory: PathBuf,
    /// What to do, as JSON.
    #[arg(long)]
    task: String,
}

impl RankArgs {
    /// Makes the system kill this process when its parent, or the thread of it that started this
    /// one, ends. Returns the task.
    ///
    /// # Errors
    /// The parent has ended already, the system refuses, or this is not the task of this command.
    pub(crate) fn begin<T: DeserializeOwned>(&self) -> Result<T> {
        set_parent_process_death_signal(Some(Signal::KILL))
            .context("asking to end with the parent")?;
        // The parent may have ended before that took effect.
        ensure!(
            getppid().map(Pid::as_raw_pid) == Some(self.parent),
            "the parent has ended"
        );
        serde_json::from_str(&self.task).context("reading the task")
    }
}

/// A process that this one has started; killed when dropped.
pub(crate) struct ChildProcess(pub(crate) Child);

impl ChildProcess {
    /// # Errors
    /// The system refuses.
    pub(crate) fn spawn(command: &mut Command) -> Result<ChildProcess> {
        let child = command
            .spawn()
            .with_context(|| format!("starting {}", command.get_program().display()))?;
        Ok(ChildProcess(child))
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().ok().flatten()
    }

    /// Waits until it ends.
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) fn wait(&mut self) -> Result<ExitStatus> {
        self.0.wait().context("waiting for a process")
    }

    /// Waits until it ends, at most `limit`.
    pub(crate) fn wait_for(&mut self, limit: Duration) -> Option<ExitStatus> {
        let began = Instant::now();
        loop {
            let status = self.ended();
            if status.is_some() || began.elapsed() > limit {
                return status;
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    pub(crate) fn id(&self) -> Pid {
        Pid::from_child(&self.0)
    }

    /// # Errors
    /// It has ended, or the system refuses.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.id(), signal).with_context(|| format!("sending {signal:?}"))
    }

    /// Kills the process if it is running, and waits for its end.
    pub(crate) fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a rank says, and when; no word: it closed its stdout, so it has ended or is about to.
pub(crate) type Heard<T> = (usize, Instant, Option<T>);

/// Passes every word of a process, whose stdout must be a pipe, to `hears`, on a new thread. Other
/// lines, such as a library's output, are ignored.
///
/// # Errors
/// There is no pipe.
pub(crate) fn listen<T: DeserializeOwned + Send + 'static>(
    rank: usize,
    process: &mut ChildProcess,
    hears: Sender<Heard<T>>,
) -> Result<()> {
    let stdout = BufReader::new(process.0.stdout.take().context("no pipe")?);
    std::thread::spawn(move || {
        let lines = stdout.lines().map_while(Result::ok);
        let words = lines.filter_map(|line| serde_json::from_str(&line).ok());
        for word in words.map(Some).chain([None]) {
            // Who hears it may have ended already.
            let _ = hears.send((rank, Instant::now(), word));
        }
    });
    Ok(())
}

/// Says a word to the process that listens to this one, if that is still running.
pub(crate) fn say<T: Serialize>(word: &T) {
    if let Ok(line) = serde_json::to_string(word) {
        let mut stdout = std::io::stdout().lock();
        let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    }
}
