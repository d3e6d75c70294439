//! Rank 0's side: it forms the group, collects what the ranks send and hands it to all.

use super::connection::{Connection, Frame, Packet, wait};
use super::directory::Claim;
use super::door::{Door, Doorkeeper, refuse};
use super::error::{Refusal, RendezvousError};
use super::peer::{Peer, ProcessId};
use super::wire::{self, Kind, Limits};
use super::{Exchange, JOIN, PENDING_INTERVAL, Part};
use rustix::event::PollFd;
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a failed group tries to tell its members why.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// How long rank 0 of a group that failed to form tells ranks that come later.
const LATECOMER_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct Member {
    peer: Peer,
    connection: Connection,
    /// What a rank that has ended this exchange has sent: its part of the next one, or that it leaves.
    early: Option<Frame>,
}

impl Member {
    fn rank(&self) -> u32 {
        self.peer.rank
    }

    /// The next frame, if one has come.
    fn receive(&mut self) -> Result<Option<Frame>, RendezvousError> {
        let rank = self.rank();
        self.connection
            .pump()
            .map_err(|error| error.by_rank(rank))?;
        Ok(self.early.take().or_else(|| self.connection.next_frame()))
    }

    /// What a frame that was not expected in `during` says.
    fn unexpected(&self, frame: &Frame, during: &str) -> RendezvousError {
        let broken = |detail| RendezvousError::Protocol {
            rank: self.rank(),
            detail,
        };
        match frame.kind {
            Kind::Failure => {
                wire::decode_failure(&frame.body).unwrap_or_else(|error| broken(error.to_string()))
            }
            kind => broken(format!(
                "a {kind:?} frame in {during:?} that has no place there"
            )),
        }
    }
}

/// A part on its way to several ranks: the descriptors are shared until all have been sent.
struct SharedPart {
    message: Vec<u8>,
    descriptors: Vec<Arc<OwnedFd>>,
}

impl From<Part> for SharedPart {
    fn from(part: Part) -> Self {
        Self {
            message: part.message,
            descriptors: part.descriptors.into_iter().map(Arc::new).collect(),
        }
    }
}

#[derive(Debug)]
pub(super) struct Hub {
    process: ProcessId,
    members: Vec<Member>,
    /// Before the claim, so that the thread has closed the listener when the claim removes the socket.
    doorkeeper: Option<Doorkeeper>,
    claim: Option<Claim>,
}

impl Hub {
    /// Waits at the door until every rank has come.
    pub(super) fn form(
        mut door: Door,
        claim: Option<Claim>,
        own: Peer,
        started: Instant,
        deadline: Instant,
    ) -> Result<(Self, Vec<Peer>), RendezvousError> {
        let mut hub = Self {
            process: own.process,
            members: Vec::new(),
            doorkeeper: None,
            claim,
        };
        match hub.gather_members(&mut door, own, started, deadline) {
            Ok(peers) => {
                if door.is_listening() {
                    hub.doorkeeper = Some(Doorkeeper::spawn(door, peers.clone())?);
                }
                Ok((hub, peers))
            }
            Err(error) => {
                door.fail(&error);
                let told = hub.members.iter().map(Member::rank).collect();
                hub.fail(&error);
                tell_latecomers(&mut door, &error, told, deadline);
                Err(error)
            }
        }
    }

    fn gather_members(
        &mut self,
        door: &mut Door,
        own: Peer,
        started: Instant,
        deadline: Instant,
    ) -> Result<Vec<Peer>, RendezvousError> {
        let others = 1..door.world_size();
        let mut heartbeat = Heartbeat::new();
        loop {
            let callers = door.step()?;
            for (peer, mut connection) in callers.candidates {
                match self
                    .members
                    .iter()
                    .find(|member| member.rank() == peer.rank)
                {
                    Some(holder) => {
                        let pid = holder.peer.process.pid;
                        refuse(
                            connection,
                            &Refusal::RankTaken {
                                rank: peer.rank,
                                pid,
                            },
                        );
                    }
                    None => {
                        connection.set_limits(Limits::MEMBER);
                        self.members.push(Member {
                            peer,
                            connection,
                            early: None,
                        });
                        heartbeat.expedite();
                    }
                }
            }
            // Behind the candidates: those that came in the same step must be told as well.
            if let Some(&rank) = callers.lost.first() {
                return Err(RendezvousError::PeerLost {
                    rank,
                    during: JOIN.into(),
                });
            }
            for member in &mut self.members {
                if let Some(frame) = member.receive()? {
                    return Err(member.unexpected(&frame, JOIN));
                }
                if member.connection.is_lost() {
                    return Err(RendezvousError::PeerLost {
                        rank: member.rank(),
                        during: JOIN.into(),
                    });
                }
            }
            let missing: Vec<u32> = others
                .clone()
                .filter(|&rank| self.members.iter().all(|member| member.rank() != rank))
                .collect();
            if missing.is_empty() {
                break;
            }
            if heartbeat.is_due() {
                self.report_missing(JOIN, &missing, |_| true);
            }
            if Instant::now() >= deadline {
                return Err(timeout(JOIN, started, missing));
            }
            self.wait(Some(door), deadline.min(heartbeat.next))?;
        }
        self.members.sort_by_key(Member::rank);
        let peers: Vec<Peer> = std::iter::once(own)
            .chain(self.members.iter().map(|member| member.peer))
            .collect();
        self.broadcast(&Packet::new(
            Kind::Welcome,
            0,
            JOIN,
            &wire::encode_roster(&peers),
        ));
        self.drain(JOIN, started, deadline)?;
        Ok(peers)
    }

    /// Collects every rank's part and hands all of them to all.
    pub(super) fn exchange(
        &mut self,
        exchange: Exchange<'_>,
        own: Part,
    ) -> Result<Vec<Part>, RendezvousError> {
        let parts = self.collect(&exchange, own.into())?;
        for (rank, part) in (0..).zip(&parts) {
            let packet = Packet::with_descriptors(
                Kind::Part,
                rank,
                exchange.label,
                &part.message,
                part.descriptors.clone(),
            );
            for member in self
                .members
                .iter_mut()
                .filter(|member| member.rank() != rank)
            {
                member.connection.queue(Arc::clone(&packet));
            }
        }
        self.drain(exchange.label, exchange.started, exchange.deadline)?;
        // All packets are sent and gone, so every descriptor has one owner again.
        Ok(parts
            .into_iter()
            .map(|part| Part {
                message: part.message,
                descriptors: part
                    .descriptors
                    .into_iter()
                    .filter_map(Arc::into_inner)
                    .collect(),
            })
            .collect())
    }

    fn collect(
        &mut self,
        exchange: &Exchange<'_>,
        own: SharedPart,
    ) -> Result<Vec<SharedPart>, RendezvousError> {
        let &Exchange {
            label,
            started,
            deadline,
        } = exchange;
        let mut parts: Vec<Option<SharedPart>> = self.members.iter().map(|_| None).collect();
        let mut heartbeat = Heartbeat::new();
        loop {
            for (member, part) in self.members.iter_mut().zip(&mut parts) {
                match member.receive()? {
                    None => {}
                    Some(frame) if frame.kind != Kind::Contribution || part.is_some() => {
                        return Err(member.unexpected(&frame, label));
                    }
                    Some(frame) if frame.label != label => {
                        return Err(RendezvousError::LabelMismatch {
                            rank: member.rank(),
                            label: frame.label,
                            other_rank: 0,
                            other_label: label.to_owned(),
                        });
                    }
                    Some(frame) => {
                        *part = Some(
                            Part {
                                message: frame.body,
                                descriptors: frame.descriptors,
                            }
                            .into(),
                        );
                        heartbeat.expedite();
                    }
                }
                if member.connection.is_lost() {
                    return Err(RendezvousError::PeerLost {
                        rank: member.rank(),
                        during: label.to_owned(),
                    });
                }
            }
            let missing: Vec<u32> = self
                .members
                .iter()
                .zip(&parts)
                .filter(|(_, part)| part.is_none())
                .map(|(member, _)| member.rank())
                .collect();
            if missing.is_empty() {
                return Ok(std::iter::once(own)
                    .chain(parts.into_iter().flatten())
                    .collect());
            }
            if heartbeat.is_due() {
                self.report_missing(label, &missing, |rank| !missing.contains(&rank));
            }
            if Instant::now() >= deadline {
                return Err(timeout(label, started, missing));
            }
            self.wait(None, deadline.min(heartbeat.next))?;
        }
    }

    /// Sends all that is queued. A rank that has everything may leave, or begin the next exchange.
    fn drain(
        &mut self,
        during: &str,
        started: Instant,
        deadline: Instant,
    ) -> Result<(), RendezvousError> {
        loop {
            for member in &mut self.members {
                match member.receive()? {
                    Some(frame) if member.connection.has_unsent() => {
                        return Err(member.unexpected(&frame, during));
                    }
                    // For a rank that has everything this exchange is over.
                    frame => member.early = frame,
                }
                if member.connection.is_lost() && member.connection.has_unsent() {
                    return Err(RendezvousError::PeerLost {
                        rank: member.rank(),
                        during: during.to_owned(),
                    });
                }
            }
            let missing: Vec<u32> = self
                .members
                .iter()
                .filter(|member| member.connection.has_unsent())
                .map(Member::rank)
                .collect();
            if missing.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(timeout(during, started, missing));
            }
            self.wait(None, deadline)?;
        }
    }

    /// Tells every member why the group ends, and ends it.
    pub(super) fn fail(&mut self, error: &RendezvousError) {
        self.broadcast(&failure(error));
        let deadline = Instant::now() + LAST_WORDS;
        for mut member in self.members.drain(..) {
            member.connection.linger(deadline);
            member.connection.shut_down();
        }
    }

    fn broadcast(&mut self, packet: &Arc<Packet>) {
        for member in &mut self.members {
            member.connection.queue(Arc::clone(packet));
        }
    }

    /// Tells those who wait whom they wait for, so that they can name them when their own deadlines pass.
    fn report_missing(&mut self, during: &str, missing: &[u32], waits: impl Fn(u32) -> bool) {
        let packet = Packet::new(Kind::Pending, 0, during, &wire::encode_ranks(missing));
        // One that does not read must not make the queue grow.
        for member in self
            .members
            .iter_mut()
            .filter(|member| waits(member.rank()) && !member.connection.has_unsent())
        {
            member.connection.queue(Arc::clone(&packet));
            // What cannot be sent now is sent, and what fails is found, in the next round.
            let _ = member.connection.pump();
        }
    }

    fn wait(&self, door: Option<&Door>, deadline: Instant) -> Result<(), RendezvousError> {
        let mut fds: Vec<PollFd<'_>> = self
            .members
            .iter()
            .filter_map(|member| member.connection.interest())
            .collect();
        let mut deadline = self
            .members
            .iter()
            .filter_map(|member| member.connection.wake_at())
            .fold(deadline, Instant::min);
        if let Some(door) = door {
            door.interest(&mut fds);
            deadline = door
                .wake_at()
                .map_or(deadline, |moment| moment.min(deadline));
        }
        wait(&mut fds, deadline)
            .map_err(|error| RendezvousError::io("wait for the other ranks", error))?;
        Ok(())
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        if self.process.is_current() {
            for member in &self.members {
                member.connection.shut_down();
            }
        } else {
            // A child that fork made has neither the thread nor the name.
            std::mem::forget(self.doorkeeper.take());
            std::mem::forget(self.claim.take());
        }
    }
}

/// Stays at the door of a group that has failed, for ranks that are just being started: they would look for rank 0 until
/// their deadline, and blame it.
fn tell_latecomers(
    door: &mut Door,
    error: &RendezvousError,
    mut told: BTreeSet<u32>,
    deadline: Instant,
) {
    let deadline = deadline.min(Instant::now() + LATECOMER_PATIENCE);
    while door.is_listening()
        && told.len() + 1 < door.world_size() as usize
        && Instant::now() < deadline
    {
        let Ok(callers) = door.step() else { return };
        for (peer, mut connection) in callers.candidates {
            connection.queue(failure(error));
            connection.linger(Instant::now());
            told.insert(peer.rank);
        }
        let mut fds = Vec::new();
        door.interest(&mut fds);
        let wake_at = door
            .wake_at()
            .map_or(deadline, |moment| moment.min(deadline));
        if wait(&mut fds, wake_at).is_err() {
            return;
        }
    }
}

fn failure(error: &RendezvousError) -> Arc<Packet> {
    Packet::new(Kind::Failure, 0, "", &wire::encode_failure(error, 0))
}

/// When rank 0 next tells the waiting ranks that it is there and for whom it waits.
struct Heartbeat {
    next: Instant,
}

impl Heartbeat {
    fn new() -> Self {
        Self {
            next: Instant::now(),
        }
    }

    fn expedite(&mut self) {
        self.next = Instant::now();
    }

    fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let due = now >= self.next;
        if due {
            self.next = now + PENDING_INTERVAL;
        }
        due
    }
}

fn timeout(during: &str, started: Instant, missing: Vec<u32>) -> RendezvousError {
    RendezvousError::Timeout {
        rank: 0,
        during: during.to_owned(),
        waited: started.elapsed(),
        at: Box::default(),
        missing,
    }
}
