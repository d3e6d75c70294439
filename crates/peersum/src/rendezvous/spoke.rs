//! Every other rank's side: a connection to rank 0.

use super::connection::{Connection, Frame, Packet, wait};
use super::directory::Directory;
use super::door::Identity;
use super::error::RendezvousError;
use super::peer::Peer;
use super::wire::{self, Hello, Kind, Limits};
use super::{Exchange, JOIN, PENDING_INTERVAL, Part};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// How often a rank looks whether rank 0 has come.
const CONNECT_RETRY: Duration = Duration::from_millis(5);
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
    rank: u32,
    connection: Connection,
    /// Whom rank 0 was waiting for when it last spoke.
    pending: Option<(Instant, Vec<u32>)>,
    /// Where a dead rank 0 has left its socket.
    home: Option<(Directory, String)>,
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
            missing: vec![0],
        };
        let (socket, mut home) = match way {
            Way::Thread(socket) => (socket, None),
            Way::Directory(directory) => {
                let socket =
                    connect(&directory, &identity.group, deadline)?.ok_or_else(too_late)?;
                (socket, Some((directory, identity.group.clone())))
            }
        };
        let mut socket = socket;
        loop {
            let mut connection = Connection::new(socket, Limits::MEMBER);
            connection.queue(hello.clone());
            let mut spoke = Self {
                rank: own.rank,
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
                    let Some((directory, group)) = &home else {
                        return Err(too_late());
                    };
                    socket = connect(directory, group, deadline)?.ok_or_else(too_late)?;
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
        let frame = self.receive(JOIN, started, deadline)?;
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
            self.rank,
            label,
            &own.message,
            descriptors,
        ));
        let mut parts: Vec<Option<Part>> = (0..world_size).map(|_| None).collect();
        parts[self.rank as usize] = Some(own);
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
                    rank: self.rank,
                    during: during.to_owned(),
                    waited: started.elapsed(),
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
            self.rank,
            "",
            &wire::encode_failure(error, self.rank),
        ));
        self.connection.linger(Instant::now() + LAST_WORDS);
        if let (RendezvousError::PeerLost { rank: 0, .. }, Some((directory, group))) =
            (error, &self.home)
        {
            directory.sweep_behind_dying(group);
        }
    }
}

impl Drop for Spoke {
    /// A rank 0 that was killed behind the last exchange has left its socket to those who leave after it.
    fn drop(&mut self) {
        if let Some((directory, group)) = &self.home {
            let _ = self.connection.pump();
            if self.connection.is_lost() {
                directory.sweep(group);
            }
        }
    }
}

/// None at the deadline.
fn connect(
    directory: &Directory,
    group: &str,
    deadline: Instant,
) -> Result<Option<OwnedFd>, RendezvousError> {
    let path = directory.socket_path(group);
    loop {
        let socket = super::new_socket()?;
        match rustix::net::connect(&socket, &directory.address(group)?) {
            Ok(()) => {
                let theirs = rustix::net::sockopt::socket_peercred(&socket)
                    .map_err(|error| {
                        RendezvousError::io_at("identify who listens on", &path, error)
                    })?
                    .uid
                    .as_raw();
                let ours = rustix::process::geteuid().as_raw();
                if theirs != ours {
                    return Err(RendezvousError::WrongUser { path, theirs, ours });
                }
                return Ok(Some(socket));
            }
            // Not there yet, left by a killed run, or more callers than fit.
            Err(Errno::NOENT | Errno::CONNREFUSED | Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => return Err(RendezvousError::io_at("connect to", &path, errno)),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            // A rank 0 that was killed before anybody had reached it has nobody else to remove its socket.
            directory.sweep(group);
            return Ok(None);
        }
        std::thread::sleep(CONNECT_RETRY.min(left));
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
