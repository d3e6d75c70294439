//! Rank 0 asks every process that connects who it is. None of them keeps the others waiting.

use super::connection::Connection;
use super::error::RendezvousError;
use super::peer::Peer;
use super::reasons::Refusal;
use super::socket::{self, peer_uid};
use super::step::{Wakeup, Watch};
use super::wire::{ConnectionError, GroupIdentity, Message, VERSION};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long a connection may take to say who it is. A rank says it at once.
const IDENTIFICATION_PATIENCE: Duration = Duration::from_secs(5);
/// The most connections that have not said who they are; the oldest is closed first.
const MAX_STRANGERS: usize = 128;
/// How long to wait when the process has no file descriptor left to accept a connection with.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// A connection that has not said who it is.
#[derive(Debug)]
struct Stranger {
    connection: Connection,
    /// None for a thread of this process, which may come as late as it likes.
    deadline: Option<Instant>,
    /// The rank of the thread that has the other end.
    expected: Option<u32>,
}

/// What came of the strangers in one round.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    /// Processes that ask for a rank that may be theirs.
    pub(super) candidates: Vec<(Peer, Connection)>,
    /// Ranks whose threads dropped their rendezvous.
    pub(super) lost: Vec<u32>,
}

#[derive(Debug)]
pub(super) struct Admission {
    pub(super) group: GroupIdentity,
    listener: Option<OwnedFd>,
    strangers: Vec<Stranger>,
    accept_after: Option<Instant>,
}

impl Admission {
    /// Ranks that are processes connect to `listener`. For ranks that are threads, `sockets` lead
    /// to the ranks from 1 on.
    pub(super) fn new(
        group: GroupIdentity,
        listener: Option<OwnedFd>,
        sockets: Vec<OwnedFd>,
    ) -> Self {
        let strangers = (1..)
            .zip(sockets)
            .map(|(rank, socket)| Stranger {
                connection: Connection::new(socket),
                deadline: None,
                expected: Some(rank),
            })
            .collect();
        Self {
            group,
            listener,
            strangers,
            accept_after: None,
        }
    }

    pub(super) fn is_listening(&self) -> bool {
        self.listener.is_some()
    }

    /// Accepts new connections and reads what strangers have sent, without waiting.
    pub(super) fn advance(&mut self) -> Result<Arrivals, RendezvousError> {
        self.accept()?;
        let now = Instant::now();
        let mut arrivals = Arrivals::default();
        for mut stranger in std::mem::take(&mut self.strangers) {
            match stranger.connection.pump() {
                Ok(()) => {}
                Err(ConnectionError::Version { theirs }) => {
                    let ours = VERSION;
                    refuse(stranger.connection, Refusal::Version { ours, theirs });
                    continue;
                }
                Err(error) => {
                    tracing::warn!(%error, "closed a connection that is not a rank's");
                    continue;
                }
            }
            match stranger.connection.next_frame().map(|frame| frame.message) {
                Some(Message::Join { group, peer }) => match self.objection(group, peer.rank) {
                    Some(refusal) => refuse(stranger.connection, refusal),
                    None => arrivals.candidates.push((peer, stranger.connection)),
                },
                Some(message) => {
                    let message = message.name();
                    tracing::warn!(message, "closed a connection that did not say who it is");
                }
                None if stranger.connection.is_lost() => arrivals.lost.extend(stranger.expected),
                None if stranger.deadline.is_some_and(|deadline| now >= deadline) => {
                    tracing::warn!("closed a connection that said nothing");
                }
                None => self.strangers.push(stranger),
            }
        }
        Ok(arrivals)
    }

    /// Tells the strangers, which may be ranks, why there will be no group.
    pub(super) fn fail(&mut self, error: &RendezvousError) {
        for stranger in &mut self.strangers {
            let failure = Message::failure(error, 0);
            stranger.connection.say_last(&failure, Instant::now());
        }
    }

    fn accept(&mut self) -> Result<(), RendezvousError> {
        let Some(listener) = &self.listener else {
            return Ok(());
        };
        if self
            .accept_after
            .is_some_and(|moment| Instant::now() < moment)
        {
            return Ok(());
        }
        self.accept_after = None;
        loop {
            let socket = match socket::accept(listener) {
                Ok(socket) => socket,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                    tracing::warn!(error = %errno, "cannot accept a rank's connection yet");
                    self.accept_after = Some(Instant::now() + ACCEPT_PAUSE);
                    return Ok(());
                }
                Err(errno) => return Err(RendezvousError::io("accept a rank's connection", errno)),
            };
            let ours = rustix::process::geteuid().as_raw();
            let theirs = peer_uid(socket.as_fd());
            let connection = Connection::new(socket);
            match theirs {
                Ok(theirs) if theirs == ours => self.strangers.push(Stranger {
                    connection,
                    deadline: Some(Instant::now() + IDENTIFICATION_PATIENCE),
                    expected: None,
                }),
                Ok(theirs) => refuse(connection, Refusal::User { ours, theirs }),
                Err(error) => {
                    tracing::warn!(%error, "closed a connection whose user is unknown");
                }
            }
            if self.strangers.len() > MAX_STRANGERS {
                self.strangers.remove(0);
            }
        }
    }

    /// Why the process may not have the rank that it asks for.
    fn objection(&self, theirs: GroupIdentity, rank: u32) -> Option<Refusal> {
        let ours = self.group.clone();
        if theirs.name != ours.name {
            let (ours, theirs) = (ours.name, theirs.name);
            Some(Refusal::Group { ours, theirs })
        } else if theirs.run != ours.run {
            let (ours, theirs) = (ours.run, theirs.run);
            Some(Refusal::Run { ours, theirs })
        } else if theirs.world_size != ours.world_size {
            let (ours, theirs) = (ours.world_size, theirs.world_size);
            Some(Refusal::WorldSize { ours, theirs })
        } else if rank == 0 || rank >= ours.world_size {
            Some(Refusal::Rank { rank })
        } else {
            None
        }
    }
}

impl Watch for Admission {
    fn watch<'a>(&'a self, wakeup: &mut Wakeup<'a>) {
        wakeup.at(self.accept_after);
        if self.accept_after.is_none()
            && let Some(listener) = &self.listener
        {
            wakeup.on(PollFd::new(listener, PollFlags::IN));
        }
        for stranger in &self.strangers {
            wakeup.at(stranger.deadline);
            stranger.connection.watch(wakeup);
        }
    }
}

/// Tells a process why it may not join, without waiting: the answer fits the socket's buffer.
pub(super) fn refuse(mut connection: Connection, refusal: Refusal) {
    tracing::warn!(%refusal, "refused a process that asked to join");
    connection.say_last(&Message::Refused(refusal), Instant::now());
}
