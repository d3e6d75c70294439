//! Steps with a deadline, and the loop in which every rank waits during a step.

use super::error::RendezvousError;
use super::wire::Message;
use rustix::event::{PollFd, Timespec, poll};
use rustix::io::Errno;
use std::time::{Duration, Instant};

/// Formation of the group, or one exchange: what this rank does before a deadline.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step<'a> {
    rank: u32,
    pub(super) label: &'a str,
    started: Instant,
    pub(super) deadline: Instant,
}

/// How far a step has come.
pub(super) enum Progress<T> {
    Done(T),
    /// The step waits for these ranks.
    Missing(Vec<u32>),
}

impl Progress<()> {
    /// A step that waits for these ranks, and is done if there is none.
    pub(super) fn without(missing: Vec<u32>) -> Self {
        match missing.is_empty() {
            true => Self::Done(()),
            false => Self::Missing(missing),
        }
    }
}

impl<'a> Step<'a> {
    /// A step of `rank` that begins now.
    pub(super) fn begin(rank: u32, label: &'a str, timeout: Duration) -> Self {
        // A deadline must be a moment that the clock can show.
        const A_YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
        let started = Instant::now();
        Self {
            rank,
            label,
            started,
            deadline: started + timeout.min(A_YEAR),
        }
    }

    /// Calls `advance` whenever something has happened that `side` watches, until it is done. Fails
    /// at the deadline with the ranks that are missing then.
    pub(super) fn run<S: Watch, T>(
        &self,
        side: &mut S,
        mut advance: impl FnMut(&mut S) -> Result<Progress<T>, RendezvousError>,
    ) -> Result<T, RendezvousError> {
        loop {
            match advance(side)? {
                Progress::Done(value) => return Ok(value),
                Progress::Missing(ranks) if Instant::now() >= self.deadline => {
                    return Err(self.timed_out(ranks));
                }
                Progress::Missing(_) => {
                    let mut wakeup = Wakeup::at_latest(self.deadline);
                    side.watch(&mut wakeup);
                    wakeup
                        .sleep()
                        .map_err(|error| RendezvousError::io("wait for other ranks", error))?;
                }
            }
        }
    }

    pub(super) fn timed_out(&self, missing: Vec<u32>) -> RendezvousError {
        RendezvousError::Timeout {
            rank: self.rank,
            during: self.label.to_owned(),
            waited: self.started.elapsed(),
            at: Box::default(),
            missing,
        }
    }

    /// `rank`'s connection closed during this step.
    pub(super) fn lost(&self, rank: u32) -> RendezvousError {
        RendezvousError::PeerLost {
            rank,
            during: self.label.to_owned(),
        }
    }

    /// What a message of `rank` means that this step does not expect.
    pub(super) fn unexpected(&self, rank: u32, message: Message) -> RendezvousError {
        match message {
            Message::Failure(failure) => failure.into(),
            message => RendezvousError::Protocol {
                rank,
                detail: format!(
                    "it sent a {} message that {:?} does not allow",
                    message.name(),
                    self.label
                ),
            },
        }
    }
}

/// Something that has sockets to wait for.
pub(super) trait Watch {
    fn watch<'a>(&'a self, wakeup: &mut Wakeup<'a>);
}

impl<A: Watch, B: Watch> Watch for (&mut A, &mut B) {
    fn watch<'a>(&'a self, wakeup: &mut Wakeup<'a>) {
        self.0.watch(wakeup);
        self.1.watch(wakeup);
    }
}

/// What ends a sleep: an event on one of the sockets, or a moment.
pub(super) struct Wakeup<'a> {
    fds: Vec<PollFd<'a>>,
    moment: Instant,
}

impl<'a> Wakeup<'a> {
    pub(super) fn at_latest(moment: Instant) -> Self {
        Self {
            fds: Vec::new(),
            moment,
        }
    }

    /// Ends the sleep at `moment` as well, if there is one.
    pub(super) fn at(&mut self, moment: Option<Instant>) {
        self.moment = moment.map_or(self.moment, |moment| moment.min(self.moment));
    }

    pub(super) fn on(&mut self, fd: PollFd<'a>) {
        self.fds.push(fd);
    }

    pub(super) fn sleep(mut self) -> Result<(), Errno> {
        loop {
            let left = self.moment.saturating_duration_since(Instant::now());
            let timeout = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            match poll(&mut self.fds, Some(&timeout)) {
                Ok(0) if !left.is_zero() => {}
                Err(Errno::INTR) => {}
                result => return result.map(drop),
            }
        }
    }
}
