//! A formed group and its exchanges.

use super::error::{RendezvousError, Whereabouts};
use super::hub::Hub;
use super::limits::{MAX_LABEL_BYTES, MAX_MESSAGE_BYTES};
use super::peer::Peer;
use super::socket::duplicate;
use super::spoke::Spoke;
use super::step::Step;
use super::wire::MessageWithFd;
use std::os::fd::BorrowedFd;
use std::time::Duration;

#[derive(Debug)]
pub(super) enum Role {
    Alone,
    Hub(Hub),
    Spoke(Spoke),
}

/// A group of ranks that have found each other, as one of them sees it.
///
/// Exchanges are collective: every rank makes the same calls in the same order, each with a label
/// that names it. A label that differs is an error on every rank. The first error ends the group:
/// every rank is told the cause, and every later call returns that error again. If a rank drops its
/// group while others are in an exchange, or before they enter one, they see it as lost;
/// [`Group::abandon`] also tells them why.
#[derive(Debug)]
pub struct Group {
    own: Peer,
    peers: Vec<Peer>,
    role: Role,
    whereabouts: Whereabouts,
    failure: Option<RendezvousError>,
}

impl Group {
    pub(super) fn new(whereabouts: Whereabouts, own: Peer, peers: Vec<Peer>, role: Role) -> Self {
        Self {
            own,
            peers,
            role,
            whereabouts,
            failure: None,
        }
    }

    /// This rank.
    pub fn rank(&self) -> u32 {
        self.own.rank
    }

    /// The number of ranks.
    pub fn world_size(&self) -> u32 {
        self.peers.len() as u32
    }

    /// The members in rank order, this rank among them.
    pub fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// Whether `rank` is a thread of this very process. False for a rank that does not exist.
    pub fn is_same_process(&self, rank: u32) -> bool {
        let peer = self.peers.get(rank as usize);
        // Not by what rank 0 says of this rank.
        peer.is_some_and(|peer| rank == self.own.rank || peer.process == self.own.process)
    }

    /// Whether the calling process is a child that this rank's process forked and that executed no
    /// other program. A child has a copy of the group, which it can only drop: nothing that it does
    /// with the copy reaches the other ranks.
    pub fn is_inherited(&self) -> bool {
        !self.own.process.is_current()
    }

    /// Gives every rank's message to every rank, in rank order. Messages may differ in length and
    /// be empty.
    ///
    /// `label` is at most [`MAX_LABEL_BYTES`] long, `message` at most [`MAX_MESSAGE_BYTES`].
    ///
    /// # Errors
    ///
    /// [`RendezvousError::MessageTooLong`], which leaves the group as it was, and
    /// [`RendezvousError::Forked`] in a child that fork made. Otherwise, on every rank:
    /// [`RendezvousError::Timeout`] with the ranks that were missing after the shortest `timeout`
    /// among the ranks, [`RendezvousError::PeerLost`] with the rank that died or left,
    /// [`RendezvousError::PeerFailed`] with the reason of a rank that gave up,
    /// [`RendezvousError::LabelMismatch`], [`RendezvousError::Protocol`], [`RendezvousError::Io`].
    pub fn all_gather(
        &mut self,
        label: &str,
        message: &[u8],
        timeout: Duration,
    ) -> Result<Vec<Vec<u8>>, RendezvousError> {
        let all = self.all_gather_fd(label, message, None, timeout)?;
        Ok(all.into_iter().map(|(message, _)| message).collect())
    }

    /// As [`Self::all_gather`], with a file descriptor beside a rank's message if it gives one.
    ///
    /// Every rank receives a descriptor of its own, close-on-exec, for the same open file; its own
    /// entry holds a duplicate of `descriptor`.
    ///
    /// # Errors
    ///
    /// As [`Self::all_gather`].
    pub fn all_gather_fd(
        &mut self,
        label: &str,
        message: &[u8],
        descriptor: Option<BorrowedFd<'_>>,
        timeout: Duration,
    ) -> Result<Vec<MessageWithFd>, RendezvousError> {
        if self.is_inherited() {
            return Err(RendezvousError::Forked {
                rank: self.own.rank,
            });
        }
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        for (what, length, limit) in [
            ("label", label.len(), MAX_LABEL_BYTES),
            ("message", message.len(), MAX_MESSAGE_BYTES),
        ] {
            if length > limit {
                return Err(RendezvousError::MessageTooLong {
                    what,
                    length,
                    limit,
                });
            }
        }
        let step = Step::begin(self.own.rank, label, timeout);
        let world_size = self.world_size();
        let own = descriptor.map(duplicate).transpose();
        // A failure here is told to the others like any other.
        let result = own.and_then(|own| {
            let own = (message.to_vec(), own);
            match &mut self.role {
                Role::Alone => Ok(vec![own]),
                Role::Hub(hub) => hub.exchange(&step, own),
                Role::Spoke(spoke) => spoke.exchange(&step, own, world_size),
            }
        });
        result
            .map_err(|error| error.seen_by(&self.whereabouts))
            .inspect_err(|error| self.fail(error.clone()))
    }

    /// Returns once every rank has called it: an [`Self::all_gather`] of nothing.
    ///
    /// # Errors
    ///
    /// As [`Self::all_gather`].
    pub fn barrier(&mut self, label: &str, timeout: Duration) -> Result<(), RendezvousError> {
        self.all_gather_fd(label, &[], None, timeout).map(drop)
    }

    /// Leaves the group and tells the others why: their exchange, or the next one that they enter,
    /// ends with [`RendezvousError::PeerFailed`]. A reason longer than 4 KiB is cut. Takes at most
    /// a few tenths of a second.
    pub fn abandon(mut self, reason: &str) {
        if self.is_inherited() {
            return;
        }
        let (rank, reason) = (self.own.rank, reason.to_owned());
        self.fail(RendezvousError::PeerFailed { rank, reason });
    }

    fn fail(&mut self, error: RendezvousError) {
        match std::mem::replace(&mut self.role, Role::Alone) {
            Role::Alone => {}
            Role::Hub(mut hub) => hub.fail(&error),
            Role::Spoke(mut spoke) => spoke.fail(&error),
        }
        self.failure = Some(error);
    }
}
