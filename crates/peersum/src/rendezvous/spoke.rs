//! Every other rank's side: a connection to rank 0.

use super::connection::{Connection, Frame, Packet, peer_uid, wait};
use super::directory::Directory;
use super::door::Identity;
use super::error::RendezvousError;
use super::lock::FileId;
use super::peer::Peer;
use super::wire::{self, Hello, Kind, Limits};
use super::{Exchange, JOIN, PENDING_INTERVAL, Part};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// How often a rank looks whether rank 0 has come.
const CONNECT_RETRY: Duration = Duration::from_millis(5);
/// How long rank 0 may say nothing before a joining rank looks whether another rank 0 has come. One
/// that lives says at once that it grants the rank.
const SILENCE: Duration = PENDING_INTERVAL.saturating_mul(4);
/// How long a failed rank tries to tell rank 0 why.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Where rank 0 is to be found.
#[derive(Debug)]
pub(super) enum Way {
    /// A socket in a directory; rank 0 may not have come yet.
    Directory(Directory),
    /// A thread of this process; the socket is there.
    Thread(OwnedFd),
}

#[derive(Debug)]
pub(super) struct Spoke {
    own: Peer,
    connection: Connection,
    /// Whom rank 0 was waiting for when it last spoke.
    pending: Option<(Instant, Vec<u32>)>,
    /// Where a dead rank 0 has left its socket.
    home: Option<Home>,
}

/// The place of the group's socket.
#[derive(Debug)]
struct Home {
    directory: Directory,
    group: String,
    /// The file of the socket that this rank is connected to.
    socket: Option<FileId>,
}

impl Spoke {
    /// Asks rank 0 for a place and waits until the group is complete.
    pub(super) fn join(
        way: Way,
        identity: &Identity,
        own: Peer,
        started: Instant,
        deadline: Instant,
    ) -> Result<(Self, Vec<Peer>), RendezvousError> {
        let hello = Hello {
            world_size: identity.world_size,
            peer: own,
            group: identity.group.clone(),
            run: identity.run.clone(),
        };
        let hello = Packet::new(Kind::Hello, own.rank, "", &hello.encode());
        let too_late = || RendezvousError::Timeout {
            rank: own.rank,
            during: JOIN.into(),
            waited: started.elapsed(),
            at: Box::default(),
            missing: vec![0],
        };
        let (mut socket, mut home) = match way {
            Way::Thread(socket) => (socket, None),
            Way::Directory(directory) => {
                let mut home = Home {
                    directory,
                    group: identity.group.clone(),
                    socket: None,
                };
                let socket = home.connect(own, deadline)?.ok_or_else(too_late)?;
                (socket, Some(home))
            }
        };
        loop {
            let mut connection = Connection::new(socket, Limits::MEMBER);
            connection.queue(hello.clone());
            let mut spoke = Self {
                own,
                connection,
                pending: None,
                home: home.take(),
            };
            match spoke.await_welcome(identity.world_size, started, deadline) {
                Ok(peers) => return Ok((spoke, peers)),
                // A rank 0 that went before it granted the rank was not this group's: the next one may be.
                Err(RendezvousError::PeerLost { rank: 0, .. })
                    if spoke.pending.is_none() && spoke.home.is_some() =>
                {
                    home = spoke.home.take();
                    std::thread::sleep(CONNECT_RETRY);
                    let Some(home) = &mut home else {
                        return Err(too_late());
                    };
                    socket = home.connect(own, deadline)?.ok_or_else(too_late)?;
                }
                Err(error) => {
                    spoke.fail(&error);
                    return Err(error);
                }
            }
        }
    }

    fn await_welcome(
        &mut self,
        world_size: u32,
        started: Instant,
        deadline: Instant,
    ) -> Result<Vec<Peer>, RendezvousError> {
        let frame = loop {
            let look = deadline.min(Instant::now() + SILENCE);
            match self.receive(JOIN, started, look) {
                // This rank's own, not one that rank 0 has told of.
                Err(RendezvousError::Timeout { rank, .. })
                    if rank == self.own.rank && Instant::now() < deadline =>
                {
                    // A child of a dead rank 0 may keep the socket open that this rank found.
                    if self.pending.is_none() && self.home.as_ref().is_some_and(Home::is_replaced) {
                        return Err(RendezvousError::PeerLost {
                            rank: 0,
                            during: JOIN.into(),
                        });
                    }
                }
                received => break received?,
            }
        };
        match frame.kind {
            Kind::Welcome => wire::decode_roster(&frame.body, world_size).map_err(broken),
            Kind::Refused => {
                Err(wire::decode_refusal(&frame.body).map_or_else(broken, RendezvousError::Refused))
            }
            _ => Err(unexpected(&frame, JOIN)),
        }
    }

    /// Sends this rank's part to rank 0 and receives the others'.
    pub(super) fn exchange(
        &mut self,
        exchange: Exchange<'_>,
        own: Part,
        world_size: u32,
    ) -> Result<Vec<Part>, RendezvousError> {
        let Exchange {
            label,
            started,
            deadline,
        } = exchange;
        self.pending = None;
        let descriptors = own
            .duplicate()?
            .into_iter()
            .map(std::sync::Arc::new)
            .collect();
        self.connection.queue(Packet::with_descriptors(
            Kind::Contribution,
            self.own.rank,
            label,
            &own.message,
            descriptors,
        ));
        let mut parts: Vec<Option<Part>> = (0..world_size).map(|_| None).collect();
        parts[self.own.rank as usize] = Some(own);
        while parts.iter().any(Option::is_none) {
            let frame = self.receive(label, started, deadline)?;
            match parts.get_mut(frame.rank as usize) {
                Some(part @ None) if frame.kind == Kind::Part && frame.label == label => {
                    *part = Some(Part {
                        message: frame.body,
                        descriptors: frame.descriptors,
                    });
                }
                _ => return Err(unexpected(&frame, label)),
            }
        }
        Ok(parts.into_iter().flatten().collect())
    }

    /// The next frame that is not about who is missing.
    fn receive(
        &mut self,
        during: &str,
        started: Instant,
        deadline: Instant,
    ) -> Result<Frame, RendezvousError> {
        loop {
            self.connection.pump().map_err(|error| error.by_rank(0))?;
            match self.connection.next_frame() {
                Some(frame) if frame.kind == Kind::Pending => {
                    self.pending = Some((
                        Instant::now(),
                        wire::decode_ranks(&frame.body).map_err(broken)?,
                    ));
                    continue;
                }
                Some(frame) if frame.kind == Kind::Failure => {
                    return Err(wire::decode_failure(&frame.body).unwrap_or_else(broken));
                }
                Some(frame) => return Ok(frame),
                None => {}
            }
            if self.connection.is_lost() {
                return Err(RendezvousError::PeerLost {
                    rank: 0,
                    during: during.to_owned(),
                });
            }
            if Instant::now() >= deadline {
                return Err(RendezvousError::Timeout {
                    rank: self.own.rank,
                    during: during.to_owned(),
                    waited: started.elapsed(),
                    at: Box::default(),
                    missing: self.missing(),
                });
            }
            let wake_at = self
                .connection
                .wake_at()
                .map_or(deadline, |moment| moment.min(deadline));
            let mut fds: Vec<_> = self.connection.interest().into_iter().collect();
            wait(&mut fds, wake_at)
                .map_err(|error| RendezvousError::io("wait for rank 0", error))?;
        }
    }

    /// Whom this rank waits for: those that rank 0 named; rank 0 as well if it should have spoken since, and alone if it has long fallen silent.
    fn missing(&self) -> Vec<u32> {
        let Some((moment, missing)) = &self.pending else {
            return vec![0];
        };
        let silence = moment.elapsed();
        if silence > 4 * PENDING_INTERVAL || missing.is_empty() {
            vec![0]
        } else if silence > 2 * PENDING_INTERVAL {
            std::iter::once(0).chain(missing.iter().copied()).collect()
        } else {
            missing.clone()
        }
    }

    /// Tells rank 0, which tells the others, why this rank leaves.
    pub(super) fn fail(&mut self, error: &RendezvousError) {
        self.connection.queue(Packet::new(
            Kind::Failure,
            self.own.rank,
            "",
            &wire::encode_failure(error, self.own.rank),
        ));
        self.connection.linger(Instant::now() + LAST_WORDS);
        if let Some(home) = &self.home {
            match error {
                RendezvousError::PeerLost { rank: 0, .. } => home
                    .directory
                    .sweep_behind_dying(&home.group, self.own.process),
                // A child of a dead rank 0 may have kept the connection open.
                RendezvousError::Timeout { missing, .. } if missing[..] == [0] => {
                    home.directory.sweep(&home.group, self.own.process);
                }
                _ => {}
            }
        }
    }
}

impl Drop for Spoke {
    /// A rank 0 that was killed behind the last exchange has left its socket to those who leave after it.
    fn drop(&mut self) {
        // In a child that fork made the connection is its parent's.
        if !self.own.process.is_current() {
            return;
        }
        if let Some(home) = &self.home {
            let _ = self.connection.pump();
            if self.connection.is_lost() {
                home.directory.sweep(&home.group, self.own.process);
            }
        }
        self.connection.shut_down();
    }
}

impl Home {
    /// A connection to whoever listens on the group's socket. None at the deadline.
    fn connect(
        &mut self,
        own: Peer,
        deadline: Instant,
    ) -> Result<Option<OwnedFd>, RendezvousError> {
        let Self {
            directory, group, ..
        } = &*self;
        let path = directory.socket_path(group);
        loop {
            let socket = super::new_socket()?;
            let file = directory.socket_file(group);
            match rustix::net::connect(&socket, &directory.address(group)?) {
                // Replaced meanwhile, by the socket of the next run.
                Ok(()) if directory.socket_file(group) != file => {}
                Ok(()) => {
                    let theirs = peer_uid(socket.as_fd()).map_err(|error| {
                        RendezvousError::io_at("identify who listens on", &path, error)
                    })?;
                    let ours = rustix::process::geteuid().as_raw();
                    if theirs != ours {
                        return Err(RendezvousError::WrongUser { path, theirs, ours });
                    }
                    self.socket = file;
                    return Ok(Some(socket));
                }
                // Not there yet, left by a killed run, or more callers than fit.
                Err(Errno::NOENT | Errno::CONNREFUSED | Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(RendezvousError::io_at("connect to", &path, errno)),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // A rank 0 that was killed before anybody had reached it has nobody else to remove
                // its socket.
                directory.sweep(group, own.process);
                return Ok(None);
            }
            std::thread::sleep(CONNECT_RETRY.min(left));
        }
    }

    /// Whether another socket has the name of the one that this rank is connected to.
    fn is_replaced(&self) -> bool {
        let there = self.directory.socket_file(&self.group);
        there.is_some() && there != self.socket
    }
}

fn broken(error: wire::Malformed) -> RendezvousError {
    RendezvousError::Protocol {
        rank: 0,
        detail: error.to_string(),
    }
}

fn unexpected(frame: &Frame, during: &str) -> RendezvousError {
    RendezvousError::Protocol {
        rank: 0,
        detail: format!(
            "a {:?} frame in {during:?} that has no place there",
            frame.kind
        ),
    }
}
