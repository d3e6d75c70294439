//! The peers' processes: after a timeout a rank asks the system which of them do not run any more.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use crate::error::Error;
use crate::failure::{AbsentPeer, ProcessState};
use crate::rendezvous::Group;

/// The process of a peer, named by a descriptor that the peer has made. Unlike a process id, a
/// descriptor never comes to mean another process, and it means the same in every PID namespace.
#[derive(Debug)]
pub(super) struct PeerProcess {
    rank: u32,
    pidfd: OwnedFd,
}

/// A barrier at which the ranks exchange descriptors of their processes. A rank whose system has
/// none (Linux before 5.3) gives none.
pub(super) fn meet(
    group: &mut Group,
    label: &str,
    timeout: Duration,
) -> Result<Vec<PeerProcess>, Error> {
    let own = pidfd_open(getpid(), PidfdFlags::empty());
    let own = own.as_ref().ok().map(AsFd::as_fd);
    let received = group.all_gather_fd(label, &[], own, timeout)?;
    Ok((0..)
        .zip(received)
        // A thread of this process runs as long as this one.
        .filter(|(rank, _)| !group.is_same_process(*rank))
        .filter_map(|(rank, (_, pidfd))| pidfd.map(|pidfd| PeerProcess { rank, pidfd }))
        .collect())
}

/// The peers whose processes do not run.
pub(super) fn absent(processes: &[PeerProcess]) -> Vec<AbsentPeer> {
    processes
        .iter()
        .filter_map(|process| {
            let rank = process.rank;
            process.state().map(|state| AbsentPeer { rank, state })
        })
        .collect()
}

impl PeerProcess {
    /// `None` for a process that runs, and where the system does not say.
    fn state(&self) -> Option<ProcessState> {
        // Readable once the process has ended.
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        if poll(&mut fds, Some(&Timespec::default())) == Ok(1) {
            return Some(ProcessState::Ended);
        }
        let descriptor = self.pidfd.as_raw_fd();
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).ok()?;
        // Its id in this process's namespace; not positive if it has none there.
        let pid: u32 = info
            .lines()
            .find_map(|line| line.strip_prefix("Pid:"))
            .and_then(|pid| pid.trim().parse().ok())
            .filter(|pid| *pid > 0)?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The state follows the program's name, which is in parentheses and may hold anything.
        let (_, fields) = stat.rsplit_once(") ")?;
        fields
            .starts_with(['T', 't'])
            .then_some(ProcessState::Stopped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Pid, Signal, kill_process};

    #[test]
    fn a_process_that_is_stopped_or_ended_is_absent_and_one_that_runs_is_not() {
        let mut child = std::process::Command::new("sleep")
            .arg("600")
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&child);
        let processes = [PeerProcess {
            rank: 3,
            pidfd: pidfd_open(pid, PidfdFlags::empty()).unwrap(),
        }];
        let becomes = |state: Option<ProcessState>| {
            let expected: Vec<_> = state
                .map(|state| AbsentPeer { rank: 3, state })
                .into_iter()
                .collect();
            let began = std::time::Instant::now();
            while absent(&processes) != expected {
                assert!(began.elapsed() < Duration::from_secs(30), "{state:?}");
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        becomes(None);
        kill_process(pid, Signal::STOP).unwrap();
        becomes(Some(ProcessState::Stopped));
        kill_process(pid, Signal::CONT).unwrap();
        becomes(None);
        // Also as long as nobody has waited for it.
        kill_process(pid, Signal::KILL).unwrap();
        becomes(Some(ProcessState::Ended));
        child.wait().unwrap();
        becomes(Some(ProcessState::Ended));
    }
}
