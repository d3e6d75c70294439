//! Rank 0's door: who knocks is asked who they are, without any of them keeping the others waiting.

use super::connection::{Connection, Packet, peer_uid};
use super::error::{Refusal, RendezvousError};
use super::peer::Peer;
use super::wire::{self, Hello, Kind, Limits};
use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a connection may take to say who it is. A rank says it at once.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);
/// The most connections that have not said who they are; the oldest leaves first.
const MAX_STRANGERS: usize = 128;
/// How long to wait when the process has no file descriptor left to accept a connection with.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// What all ranks of a group have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) group: String,
    pub(super) run: String,
    pub(super) world_size: u32,
}

/// A connection that has not said who it is.
#[derive(Debug)]
struct Stranger {
    connection: Connection,
    /// None for a thread of this process, which may come as late as it likes.
    deadline: Option<Instant>,
    /// The rank of the thread that has the other end.
    expected: Option<u32>,
}

/// What came of the strangers.
#[derive(Debug, Default)]
pub(super) struct Callers {
    /// Those who ask for a rank that may be theirs.
    pub(super) candidates: Vec<(Peer, Connection)>,
    /// Threads of this process that dropped their rendezvous.
    pub(super) lost: Vec<u32>,
}

#[derive(Debug)]
pub(super) struct Door {
    identity: Identity,
    listener: Option<OwnedFd>,
    strangers: Vec<Stranger>,
    accept_after: Option<Instant>,
}

impl Door {
    pub(super) fn listening(identity: Identity, listener: OwnedFd) -> Self {
        Self {
            identity,
            listener: Some(listener),
            strangers: Vec::new(),
            accept_after: None,
        }
    }

    /// For ranks that are threads: `sockets` lead to the ranks from 1 on.
    pub(super) fn connected(identity: Identity, sockets: Vec<OwnedFd>) -> Self {
        let strangers = (1..)
            .zip(sockets)
            .map(|(rank, socket)| Stranger {
                connection: Connection::new(socket, Limits::STRANGER),
                deadline: None,
                expected: Some(rank),
            })
            .collect();
        Self {
            identity,
            listener: None,
            strangers,
            accept_after: None,
        }
    }

    pub(super) fn group(&self) -> &str {
        &self.identity.group
    }

    pub(super) fn world_size(&self) -> u32 {
        self.identity.world_size
    }

    pub(super) fn is_listening(&self) -> bool {
        self.listener.is_some()
    }

    /// What to wait for.
    pub(super) fn interest<'door>(&'door self, fds: &mut Vec<PollFd<'door>>) {
        if self.accept_after.is_none()
            && let Some(listener) = &self.listener
        {
            fds.push(PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN));
        }
        fds.extend(
            self.strangers
                .iter()
                .filter_map(|stranger| stranger.connection.interest()),
        );
    }

    /// The next moment at which something is due although nobody has said anything.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.strangers
            .iter()
            .filter_map(|stranger| stranger.deadline)
            .chain(self.accept_after)
            .min()
    }

    /// Lets in who has connected and hears who has spoken, without waiting.
    pub(super) fn step(&mut self) -> Result<Callers, RendezvousError> {
        self.accept()?;
        let now = Instant::now();
        let mut callers = Callers::default();
        for mut stranger in std::mem::take(&mut self.strangers) {
            if let Err(error) = stranger.connection.pump() {
                tracing::warn!(%error, "closed a connection that is not a rank's");
                continue;
            }
            match stranger.connection.next_frame() {
                Some(frame) if frame.kind == Kind::Hello => {
                    self.hear(&frame.body, stranger.connection, &mut callers);
                }
                Some(frame) => {
                    tracing::warn!(kind = ?frame.kind, "closed a connection that did not say who it is")
                }
                None if stranger.connection.is_lost() => callers.lost.extend(stranger.expected),
                None if stranger.deadline.is_some_and(|deadline| now >= deadline) => {
                    tracing::warn!("closed a connection that said nothing");
                }
                None => self.strangers.push(stranger),
            }
        }
        Ok(callers)
    }

    /// Tells those who may be ranks, and have not been heard yet, why there will be no group.
    pub(super) fn fail(&mut self, error: &RendezvousError) {
        let packet = Packet::new(Kind::Failure, 0, "", &wire::encode_failure(error, 0));
        for stranger in &mut self.strangers {
            stranger.connection.queue(packet.clone());
            stranger.connection.linger(Instant::now());
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
            let socket = match rustix::net::accept_with(
                listener,
                SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            ) {
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
            let theirs = match peer_uid(socket.as_fd()) {
                Ok(uid) => uid,
                Err(error) => {
                    tracing::warn!(%error, "closed a connection whose user is unknown");
                    continue;
                }
            };
            let connection = Connection::new(socket, Limits::STRANGER);
            if theirs != ours {
                refuse(connection, &Refusal::User { ours, theirs });
                continue;
            }
            if self.strangers.len() >= MAX_STRANGERS {
                self.strangers.remove(0);
            }
            let deadline = Some(Instant::now() + HELLO_PATIENCE);
            self.strangers.push(Stranger {
                connection,
                deadline,
                expected: None,
            });
        }
    }

    fn hear(&self, body: &[u8], connection: Connection, callers: &mut Callers) {
        match Hello::decode(body) {
            Ok(Ok(hello)) => match self.objection(&hello) {
                None => callers.candidates.push((hello.peer, connection)),
                Some(refusal) => refuse(connection, &refusal),
            },
            Ok(Err(refusal)) => refuse(connection, &refusal),
            Err(error) => tracing::warn!(%error, "closed a connection that is not a rank's"),
        }
    }

    fn objection(&self, hello: &Hello) -> Option<Refusal> {
        let Identity {
            group,
            run,
            world_size,
        } = &self.identity;
        if hello.group != *group {
            Some(Refusal::Group {
                ours: group.clone(),
                theirs: hello.group.clone(),
            })
        } else if hello.run != *run {
            Some(Refusal::Run {
                ours: run.clone(),
                theirs: hello.run.clone(),
            })
        } else if hello.world_size != *world_size {
            Some(Refusal::WorldSize {
                ours: *world_size,
                theirs: hello.world_size,
            })
        } else if hello.peer.rank == 0 || hello.peer.rank >= *world_size {
            Some(Refusal::Rank {
                rank: hello.peer.rank,
            })
        } else {
            None
        }
    }
}

/// Tells a process why it may not join. It is not waited for: the answer fits its socket's buffer.
pub(super) fn refuse(mut connection: Connection, refusal: &Refusal) {
    tracing::warn!(%refusal, "refused a process that asked to join");
    connection.queue(Packet::new(
        Kind::Refused,
        0,
        "",
        &wire::encode_refusal(refusal),
    ));
    connection.linger(Instant::now());
}

/// Answers at the door of a complete group until it is dropped, so that a late process learns why it cannot join.
#[derive(Debug)]
pub(super) struct Doorkeeper {
    /// An event counter; the thread ends once it is not 0. The closing of a pipe would not do: a
    /// child that fork made may have it open as well.
    stop: Arc<OwnedFd>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Doorkeeper {
    pub(super) fn spawn(door: Door, holders: Vec<Peer>) -> Result<Self, RendezvousError> {
        let stop = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)
            .map_err(|error| RendezvousError::io("create an event counter", error))?;
        let stop = Arc::new(stop);
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("peersum-door".into())
            .spawn(move || keep(door, &holders, &stopped))
            .map_err(|error| {
                RendezvousError::io("start the thread that answers late ranks", error)
            })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Doorkeeper {
    fn drop(&mut self) {
        if let Err(error) =
            rustix::io::retry_on_intr(|| rustix::io::write(&self.stop, &1_u64.to_ne_bytes()))
        {
            // The thread stays, as waiting for it might take for ever.
            tracing::error!(%error, "cannot end the thread that answers late ranks");
            return;
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that answers late ranks panicked");
        }
    }
}

fn keep(mut door: Door, holders: &[Peer], stopped: &OwnedFd) {
    loop {
        let callers = match door.step() {
            Ok(callers) => callers,
            Err(error) => {
                tracing::warn!(%error, "late ranks are no longer answered");
                return;
            }
        };
        for (peer, connection) in callers.candidates {
            let pid = holders
                .get(peer.rank as usize)
                .map_or(0, |holder| holder.process.pid);
            let group = door.group().to_owned();
            refuse(
                connection,
                &Refusal::AlreadyFormed {
                    group,
                    rank: peer.rank,
                    pid,
                },
            );
        }
        let deadline = door
            .wake_at()
            .unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
        let mut fds = vec![PollFd::from_borrowed_fd(stopped.as_fd(), PollFlags::IN)];
        door.interest(&mut fds);
        if super::connection::wait(&mut fds, deadline).is_err() || !fds[0].revents().is_empty() {
            return;
        }
    }
}
