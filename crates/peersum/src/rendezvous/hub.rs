//! Rank 0's side: it forms the group, collects what the ranks send and hands it to all.

use super::admission::{Admission, refuse};
use super::connection::Connection;
use super::directory::Claim;
use super::error::RendezvousError;
use super::late_ranks::LateRankAnswerer;
use super::limits::JOIN;
use super::peer::Peer;
use super::reasons::Refusal;
use super::step::{Progress, Step, Wakeup, Watch};
use super::wire::{Frame, Message, MessageWithFd, PENDING_INTERVAL, Packet};
use crate::process_id::ProcessId;
use std::collections::BTreeSet;
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
}

impl Member {
    fn rank(&self) -> u32 {
        self.peer.rank
    }

    /// Sends and receives what is possible; fails if the member is gone and left no message.
    fn pump(&mut self, step: &Step<'_>) -> Result<(), RendezvousError> {
        let rank = self.rank();
        let pumped = self.connection.pump();
        pumped.map_err(|error| error.by_rank(rank))?;
        if self.connection.is_lost() {
            return Err(step.lost(rank));
        }
        Ok(())
    }

    /// The next message, if one has come.
    fn receive(&mut self, step: &Step<'_>) -> Result<Option<Frame>, RendezvousError> {
        self.pump(step)?;
        Ok(self.connection.next_frame())
    }
}

#[derive(Debug)]
pub(super) struct Hub {
    process: ProcessId,
    members: Vec<Member>,
    /// When to tell the waiting ranks next for whom they wait. None while no rank waits for others.
    next_notice: Option<Instant>,
    /// Dropped before the claim: the listener must be closed when the claim removes the socket.
    late_ranks: Option<LateRankAnswerer>,
    claim: Option<Claim>,
}

impl Hub {
    /// Admits ranks until every one has come.
    pub(super) fn form(
        mut admission: Admission,
        claim: Option<Claim>,
        own: Peer,
        step: &Step<'_>,
    ) -> Result<(Self, Vec<Peer>), RendezvousError> {
        let mut hub = Self {
            process: own.process,
            members: Vec::new(),
            next_notice: None,
            late_ranks: None,
            claim,
        };
        match hub.gather_members(&mut admission, own, step) {
            Ok(peers) => {
                if admission.is_listening() {
                    hub.late_ranks = Some(LateRankAnswerer::spawn(admission, peers.clone())?);
                }
                Ok((hub, peers))
            }
            Err(error) => {
                admission.fail(&error);
                let told = hub.members.iter().map(Member::rank).collect();
                hub.fail(&error);
                tell_latecomers(&mut admission, &error, told, step);
                Err(error)
            }
        }
    }

    fn gather_members(
        &mut self,
        admission: &mut Admission,
        own: Peer,
        step: &Step<'_>,
    ) -> Result<Vec<Peer>, RendezvousError> {
        let others = 1..admission.group.world_size;
        self.next_notice = Some(Instant::now());
        step.run(&mut (&mut *self, admission), |(hub, admission)| {
            let arrivals = admission.advance()?;
            for (peer, connection) in arrivals.candidates {
                hub.admit(peer, connection);
            }
            // After the candidates: those that came in the same round must be told as well.
            if let Some(&rank) = arrivals.lost.first() {
                return Err(step.lost(rank));
            }
            for member in &mut hub.members {
                if let Some(frame) = member.receive(step)? {
                    return Err(step.unexpected(member.rank(), frame.message));
                }
            }
            let come: BTreeSet<u32> = hub.members.iter().map(Member::rank).collect();
            let missing: Vec<u32> = others.clone().filter(|it| !come.contains(it)).collect();
            Ok(hub.wait_for(missing, |_| true))
        })?;
        self.members.sort_by_key(Member::rank);
        let members = self.members.iter().map(|member| member.peer);
        let peers: Vec<Peer> = std::iter::once(own).chain(members).collect();
        let welcome = Message::Welcome {
            peers: peers.clone(),
        };
        let packet = Packet::new(&welcome);
        for member in &mut self.members {
            member.connection.queue(Arc::clone(&packet));
        }
        self.drain(step)?;
        Ok(peers)
    }

    fn admit(&mut self, peer: Peer, connection: Connection) {
        let rank = peer.rank;
        match self.members.iter().find(|member| member.rank() == rank) {
            Some(holder) => {
                let pid = holder.peer.process.pid;
                refuse(connection, Refusal::RankTaken { rank, pid });
            }
            None => {
                self.members.push(Member { peer, connection });
                self.next_notice = Some(Instant::now());
            }
        }
    }

    /// Collects every rank's message and hands all of them to all.
    pub(super) fn exchange(
        &mut self,
        step: &Step<'_>,
        own: MessageWithFd,
    ) -> Result<Vec<MessageWithFd>, RendezvousError> {
        let all = self.collect(step, own)?;
        for (rank, message) in (0..).zip(&all) {
            let packet = Packet::contribution(rank, step.label, message)?;
            for member in self.members.iter_mut().filter(|it| it.rank() != rank) {
                member.connection.queue(Arc::clone(&packet));
            }
        }
        self.drain(step)?;
        Ok(all)
    }

    fn collect(
        &mut self,
        step: &Step<'_>,
        own: MessageWithFd,
    ) -> Result<Vec<MessageWithFd>, RendezvousError> {
        let mut collected: Vec<Option<MessageWithFd>> = vec![Some(own)];
        collected.extend(self.members.iter().map(|_| None));
        self.next_notice = Some(Instant::now());
        step.run(self, |hub| {
            for member in &mut hub.members {
                let slot = &mut collected[member.peer.rank as usize];
                let Some(frame) = member.receive(step)? else {
                    continue;
                };
                match frame.message {
                    Message::Contribution { rank, label }
                        if slot.is_none() && rank == member.rank() =>
                    {
                        if label != step.label {
                            return Err(RendezvousError::LabelMismatch {
                                rank,
                                label,
                                other_rank: 0,
                                other_label: step.label.to_owned(),
                            });
                        }
                        *slot = Some((frame.payload, frame.descriptor));
                        hub.next_notice = Some(Instant::now());
                    }
                    message => return Err(step.unexpected(member.rank(), message)),
                }
            }
            let missing: Vec<u32> = (0..)
                .zip(&collected)
                .filter(|(_, message)| message.is_none())
                .map(|(rank, _)| rank)
                .collect();
            // A rank may have ended right behind its message. Nobody has the results yet: this is
            // the last moment at which all ranks can be told.
            if missing.is_empty()
                && let Some(gone) = hub.members.iter().find(|it| it.connection.is_lost())
            {
                return Err(step.lost(gone.rank()));
            }
            let given = |rank| collected[rank as usize].is_some();
            Ok(hub.wait_for(missing, given))
        })?;
        Ok(collected.into_iter().flatten().collect())
    }

    /// Tells those members that wait, as `waits` says, which ranks are missing. They can then name
    /// them when their own deadlines pass.
    fn wait_for(&mut self, missing: Vec<u32>, waits: impl Fn(u32) -> bool) -> Progress<()> {
        if missing.is_empty() {
            self.next_notice = None;
        }
        let now = Instant::now();
        if self.next_notice.is_some_and(|moment| now >= moment) {
            self.next_notice = Some(now + PENDING_INTERVAL);
            let notice = Packet::new(&Message::Pending {
                missing: missing.clone(),
            });
            for member in self.members.iter_mut().filter(|it| waits(it.rank())) {
                // The queue of a member that does not read must not grow.
                if !member.connection.has_unsent() {
                    member.connection.queue(Arc::clone(&notice));
                    // What is not sent now is sent, and what fails is found, in the next round.
                    let _ = member.connection.pump();
                }
            }
        }
        Progress::without(missing)
    }

    /// Sends all that is queued. A rank that has everything may leave, or begin the next exchange.
    fn drain(&mut self, step: &Step<'_>) -> Result<(), RendezvousError> {
        step.run(self, |hub| {
            let mut missing = Vec::new();
            for member in &mut hub.members {
                let pumped = member.pump(step);
                match member.connection.has_unsent() {
                    // For a rank that has everything this exchange is over, so it may be gone.
                    false if member.connection.is_lost() => {}
                    false => pumped?,
                    true => {
                        pumped?;
                        if let Some(frame) = member.connection.next_frame() {
                            return Err(step.unexpected(member.rank(), frame.message));
                        }
                        missing.push(member.rank());
                    }
                }
            }
            Ok(Progress::without(missing))
        })
    }

    /// Tells every member why the group ends, and ends it.
    pub(super) fn fail(&mut self, error: &RendezvousError) {
        let failure = Message::failure(error, 0);
        let deadline = Instant::now() + LAST_WORDS;
        for mut member in self.members.drain(..) {
            member.connection.say_last(&failure, deadline);
            member.connection.shut_down();
        }
    }
}

impl Watch for Hub {
    fn watch<'a>(&'a self, wakeup: &mut Wakeup<'a>) {
        wakeup.at(self.next_notice);
        for member in &self.members {
            member.connection.watch(wakeup);
        }
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
            std::mem::forget(self.late_ranks.take());
            std::mem::forget(self.claim.take());
        }
    }
}

/// Keeps answering for a group that has failed to form. Ranks that are just being started would
/// otherwise look for rank 0 until their deadline, and blame it.
fn tell_latecomers(
    admission: &mut Admission,
    error: &RendezvousError,
    mut told: BTreeSet<u32>,
    step: &Step<'_>,
) {
    let left = step.deadline.saturating_duration_since(Instant::now());
    let patience = Step::begin(0, JOIN, left.min(LATECOMER_PATIENCE));
    let failure = Message::failure(error, 0);
    // It ends when all are told, or in a timeout.
    let _ = patience.run(admission, |admission| {
        if !admission.is_listening() || told.len() + 1 >= admission.group.world_size as usize {
            return Ok(Progress::Done(()));
        }
        for (peer, mut connection) in admission.advance()?.candidates {
            connection.say_last(&failure, Instant::now());
            told.insert(peer.rank);
        }
        Ok(Progress::Missing(Vec::new()))
    });
}
