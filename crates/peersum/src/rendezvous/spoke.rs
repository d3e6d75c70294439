//! Every other rank's side: a connection to rank 0.

use super::connection::Connection;
use super::directory::{Directory, SWEEP_PATIENCE};
use super::error::RendezvousError;
use super::peer::Peer;
use super::socket::{self, peer_uid};
use super::step::{Progress, Step, Wakeup, Watch};
use super::wire::{Frame, GroupIdentity, Message, MessageWithFd, PENDING_INTERVAL, Packet};
use crate::lock_file::FileId;
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// How often a rank looks whether rank 0 has come.
const CONNECT_RETRY: Duration = Duration::from_millis(5);
/// How long rank 0 may say nothing before a joining rank looks whether another rank 0 has come. A
/// live one says at once that it grants the rank.
const SILENCE: Duration = PENDING_INTERVAL.saturating_mul(4);
/// How long a failed rank tries to tell rank 0 why.
const LAST_WORDS: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Spoke {
    own: Peer,
    connection: Connection,
    /// Which ranks were missing when rank 0 last said so, and when that was.
    pending: Option<(Instant, Vec<u32>)>,
    /// When a joining rank looks next whether rank 0's socket was replaced.
    next_look: Option<Instant>,
    /// None if rank 0 is a thread of this process.
    address: Option<HubAddress>,
}

/// The group's socket in the rendezvous directory.
#[derive(Debug)]
pub(super) struct HubAddress {
    directory: Directory,
    /// The file of the socket that this rank is connected to.
    socket: Option<FileId>,
}

impl Spoke {
    /// `socket` leads to rank 0, at `address` if that is another process.
    pub(super) fn new(own: Peer, socket: OwnedFd, address: Option<HubAddress>) -> Self {
        Self {
            own,
            connection: Connection::new(socket),
            pending: None,
            next_look: None,
            address,
        }
    }

    /// Asks rank 0 for this rank and waits until the group is complete.
    pub(super) fn join(
        mut self,
        group: GroupIdentity,
        step: &Step<'_>,
    ) -> Result<(Self, Vec<Peer>), RendezvousError> {
        let (world_size, peer) = (group.world_size, self.own);
        let request = Packet::new(&Message::Join { group, peer });
        loop {
            self.connection.queue(request.clone());
            self.next_look = Some(Instant::now() + SILENCE);
            let error = match self.await_welcome(world_size, step) {
                Ok(peers) => {
                    self.next_look = None;
                    return Ok((self, peers));
                }
                Err(error) => error,
            };
            match &mut self.address {
                // A rank 0 that left before it granted the rank was not this group's: the next one
                // may be.
                Some(address)
                    if self.pending.is_none()
                        && matches!(error, RendezvousError::PeerLost { rank: 0, .. }) =>
                {
                    std::thread::sleep(CONNECT_RETRY);
                    self.connection = Connection::new(address.connect(step)?);
                }
                _ => {
                    self.fail(&error);
                    return Err(error);
                }
            }
        }
    }

    fn await_welcome(
        &mut self,
        world_size: u32,
        step: &Step<'_>,
    ) -> Result<Vec<Peer>, RendezvousError> {
        match self.receive(step)?.message {
            Message::Welcome { peers } => {
                if peers.iter().map(|peer| peer.rank).eq(0..world_size) {
                    return Ok(peers);
                }
                let ranks: Vec<u32> = peers.iter().map(|peer| peer.rank).collect();
                Err(RendezvousError::Protocol {
                    rank: 0,
                    detail: format!("a group of ranks {ranks:?} for a world size of {world_size}"),
                })
            }
            Message::Refused(refusal) => Err(RendezvousError::Refused(refusal)),
            message => Err(step.unexpected(0, message)),
        }
    }

    /// Sends this rank's message to rank 0 and receives the others'.
    pub(super) fn exchange(
        &mut self,
        step: &Step<'_>,
        own: MessageWithFd,
        world_size: u32,
    ) -> Result<Vec<MessageWithFd>, RendezvousError> {
        self.pending = None;
        let packet = Packet::contribution(self.own.rank, step.label, &own)?;
        self.connection.queue(packet);
        let mut received: Vec<Option<MessageWithFd>> = (0..world_size).map(|_| None).collect();
        received[self.own.rank as usize] = Some(own);
        while received.iter().any(Option::is_none) {
            let frame = self.receive(step)?;
            let slot = match &frame.message {
                Message::Contribution { rank, label } if label == step.label => {
                    received.get_mut(*rank as usize)
                }
                _ => None,
            };
            match slot {
                Some(slot @ None) => *slot = Some((frame.payload, frame.descriptor)),
                _ => return Err(step.unexpected(0, frame.message)),
            }
        }
        Ok(received.into_iter().flatten().collect())
    }

    /// The next message that is neither a failure nor about missing ranks.
    fn receive(&mut self, step: &Step<'_>) -> Result<Frame, RendezvousError> {
        step.run(self, |spoke| {
            spoke.connection.pump().map_err(|error| error.by_rank(0))?;
            while let Some(frame) = spoke.connection.next_frame() {
                match frame.message {
                    Message::Pending { missing } => {
                        spoke.pending = Some((Instant::now(), missing));
                    }
                    Message::Failure(failure) => return Err(failure.into()),
                    _ => return Ok(Progress::Done(frame)),
                }
            }
            if spoke.connection.is_lost() || spoke.was_passed_over() {
                return Err(step.lost(0));
            }
            Ok(Progress::Missing(spoke.missing()))
        })
    }

    /// Whether another rank 0 listens now, and this rank's has never answered: a child of a dead
    /// rank 0 may keep its socket open.
    fn was_passed_over(&mut self) -> bool {
        let now = Instant::now();
        if self.next_look.is_none_or(|moment| now < moment) {
            return false;
        }
        self.next_look = Some(now + SILENCE);
        self.pending.is_none() && self.address.as_ref().is_some_and(HubAddress::is_replaced)
    }

    /// The ranks that this rank waits for: those that rank 0 named; rank 0 as well if a notice is
    /// overdue, and rank 0 alone if it has been silent for long.
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
        let failure = Message::failure(error, self.own.rank);
        let deadline = Instant::now() + LAST_WORDS;
        self.connection.say_last(&failure, deadline);
        let Some(HubAddress { directory, .. }) = &self.address else {
            return;
        };
        match error {
            RendezvousError::PeerLost { rank: 0, .. } => directory.sweep(SWEEP_PATIENCE),
            // A child of a dead rank 0 may have kept the connection open.
            RendezvousError::Timeout { missing, .. } if missing[..] == [0] => {
                directory.sweep(Duration::ZERO);
            }
            _ => {}
        }
    }
}

impl Watch for Spoke {
    fn watch<'a>(&'a self, wakeup: &mut Wakeup<'a>) {
        wakeup.at(self.next_look);
        self.connection.watch(wakeup);
    }
}

impl Drop for Spoke {
    /// A rank 0 that was killed after the last exchange has left its socket to the others.
    fn drop(&mut self) {
        // In a child that fork made the connection is its parent's.
        if !self.own.process.is_current() {
            return;
        }
        if let Some(address) = &self.address {
            let _ = self.connection.pump();
            if self.connection.is_lost() {
                address.directory.sweep(Duration::ZERO);
            }
        }
        self.connection.shut_down();
    }
}

impl HubAddress {
    pub(super) fn new(directory: Directory) -> Self {
        let socket = None;
        Self { directory, socket }
    }

    /// A connection to the process that listens on the group's socket. Waits until one does.
    pub(super) fn connect(&mut self, step: &Step<'_>) -> Result<OwnedFd, RendezvousError> {
        let directory = &self.directory;
        let path = directory.socket_path();
        loop {
            let socket = socket::new()?;
            let file = directory.socket_file();
            match rustix::net::connect(&socket, &directory.address()?) {
                // Replaced meanwhile, by the socket of the next run.
                Ok(()) if directory.socket_file() != file => {}
                Ok(()) => {
                    let theirs = peer_uid(socket.as_fd()).map_err(|error| {
                        RendezvousError::io_at("find the listener's user for", &path, error)
                    })?;
                    let ours = rustix::process::geteuid().as_raw();
                    if theirs != ours {
                        return Err(RendezvousError::WrongUser { path, theirs, ours });
                    }
                    self.socket = file;
                    return Ok(socket);
                }
                // Not there yet, left by a killed run, or more callers than fit.
                Err(Errno::NOENT | Errno::CONNREFUSED | Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(RendezvousError::io_at("connect to", &path, errno)),
            }
            let left = step.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // If a rank 0 was killed before any rank reached it, no other rank removes its
                // socket.
                directory.sweep(Duration::ZERO);
                return Err(step.timed_out(vec![0]));
            }
            std::thread::sleep(CONNECT_RETRY.min(left));
        }
    }

    /// Whether another socket has the name of the one that this rank is connected to.
    fn is_replaced(&self) -> bool {
        let there = self.directory.socket_file();
        there.is_some() && there != self.socket
    }
}
