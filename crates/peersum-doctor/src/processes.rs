//! This process and another one, which share memory as ranks of two processes do.

use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use peersum::device::{Device, DeviceError, DeviceStream, MemorySharing};
use peersum::{Error, Rendezvous};

use crate::bounded::{STEPS, bounded};
use crate::exchange::{Exchanged, join_and_exchange};
use crate::report::{Finding, Subject};

const GROUP: &str = "doctor";

/// A check that memory can be shared between this process and another one, with data both ways.
#[derive(Debug, Clone)]
pub struct TwoProcesses {
    /// How memory travels.
    pub sharing: MemorySharing,
    /// The GPUs of this process and of the other one; empty on the emulator.
    pub gpus: Vec<u32>,
    /// How long a step may take.
    pub patience: Duration,
}

impl TwoProcesses {
    /// Shares memory between the two and sends random bytes both ways.
    ///
    /// `command` is given the directory where the two meet and returns the command that starts the
    /// other process, which must call [`other_process`]. `open` opens this process's stream.
    pub fn finding<S: DeviceStream>(
        self,
        command: impl FnOnce(&Path) -> Command,
        open: impl FnOnce() -> Result<S, DeviceError> + Send + 'static,
    ) -> Finding {
        let by_handle = self.sharing == MemorySharing::LegacyIpc;
        let (subject, how, meaning) = if by_handle {
            (
                Subject::LegacyIpc,
                "by handles",
                "not needed if memory is shared as file descriptors. In containers it needs \
                 `--ipc=host --pid=host`",
            )
        } else {
            (
                Subject::Processes,
                "as file descriptors",
                "ranks that are processes cannot share memory this way; ranks that are threads of \
                 one process can if `shared memory` works",
            )
        };
        let finding = match self.exchange(command, open) {
            Ok(exchanged) if exchanged.all_arrived() => {
                let emulated = match self.gpus[..] {
                    [] => ", on emulated devices",
                    _ => "",
                };
                let seen = format!(
                    "memory shared {how} between two processes; random bytes arrived both \
                     ways{emulated}"
                );
                Finding::works(subject, seen)
            }
            Ok(Exchanged { wrote, read, .. }) => {
                let seen = format!(
                    "memory was shared {how} between two processes, but the data is wrong: \
                     written {wrote}, read {read}"
                );
                let wrong = Finding::not(subject, seen).meaning(meaning);
                wrong.blocking(!by_handle)
            }
            Err(reason) => Finding::not(subject, reason).meaning(meaning),
        };
        finding.on(self.gpus)
    }

    /// What this process saw, or why nothing.
    fn exchange<S: DeviceStream>(
        &self,
        command: impl FnOnce(&Path) -> Command,
        open: impl FnOnce() -> Result<S, DeviceError> + Send + 'static,
    ) -> Result<Exchanged, String> {
        let directory = tempfile::Builder::new()
            .prefix("peersum-doctor-")
            .tempdir()
            .map_err(|error| format!("making a directory for the two processes: {error}"))?;
        // The first of the two to come makes it, with the mode that it must have.
        let meeting = directory.path().join("ranks");
        // From this thread, which lives as long as the program: the child is killed when the thread
        // that started it ends. What goes wrong there comes back through the group.
        let child = command(&meeting)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("starting the other process: {error}"))?;
        let mut peer = OtherProcess(child);
        let (sharing, patience) = (self.sharing, self.patience);
        let outcome = bounded(patience * STEPS, move || {
            join_and_exchange::<S>(rank(&meeting, 0), sharing, patience, || {
                S::Device::open(&open()?)
            })
        });
        let exchanged = outcome?.map_err(|error| match peer.0.try_wait() {
            Ok(Some(status)) => format!("the other process ended with {status}: {error}"),
            _ => error.to_string(),
        })?;
        match peer.ended(patience) {
            Some(status) if status.success() => Ok(exchanged),
            Some(status) => Err(format!("the other process ended with {status}")),
            None => Err("the other process did not end".to_owned()),
        }
    }
}

/// The part of the other process of [`TwoProcesses`]: the two meet in `directory`, `open` opens its
/// stream.
///
/// # Errors
/// The two do not meet, or memory cannot be shared. The first process gets the reason too.
pub fn other_process<S: DeviceStream>(
    directory: &Path,
    sharing: MemorySharing,
    patience: Duration,
    open: impl FnOnce() -> Result<S, DeviceError>,
) -> Result<(), Error> {
    join_and_exchange::<S>(rank(directory, 1), sharing, patience, || {
        S::Device::open(&open()?)
    })
    .map(drop)
}

fn rank(directory: &Path, rank: u32) -> Rendezvous {
    Rendezvous::unix(directory, GROUP, rank, 2)
}

/// The other process; it does not outlive this value.
struct OtherProcess(Child);

impl OtherProcess {
    /// Waits until it has ended, and says how; `None` if that takes too long.
    fn ended(&mut self, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            match self.0.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
                Ok(None) | Err(_) => return None,
            }
        }
    }
}

impl Drop for OtherProcess {
    fn drop(&mut self) {
        // It may have ended already, which is no error here.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
