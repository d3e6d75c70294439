//! What `synchronize` looks at once the stream is done: the device's record, its poison word, the
//! headers and details of the last call.

use std::time::{Duration, Instant};

use peersum_artifact::Family;
use peersum_kernels::abi::{self, PeersumControl};

use super::connected::Connected;
use super::layout::{head_bytes_mut, sequence, zeroed_control};
use super::processes;
use super::state::Communicator;
use crate::call_signature::{CallSignature, is_detail_of};
use crate::device::Device;
use crate::error::Error;
use crate::failure::Failure;

/// Pause between two looks for a header that is still on its way.
const HEADER_POLL_INTERVAL: Duration = Duration::from_micros(50);

/// How long a rank that was told of a failure waits for the header of its own last call from the
/// rank that failed first, which may explain it: another thread of that rank sends it than the one
/// that finds a difference and tells all.
const OVERTAKEN_HEADER_PATIENCE: Duration = Duration::from_millis(100);

impl<D: Device> Communicator<D> {
    /// Waits for everything launched so far. The only proof: outputs of all calls up to here are
    /// valid once this has returned `Ok`.
    ///
    /// Cheap enough for once a step, where an engine reads its logits; one such check after a graph
    /// of many calls is enough.
    ///
    /// # Errors
    /// [`Error::Failed`] names the first failure of this rank: a peer that did not come within the
    /// timeout, an abort, ranks that called differently, or a peer that failed first. Outputs that
    /// were not reduced hold NaN.
    pub fn synchronize(&mut self) -> Result<(), Error> {
        if self.capturing {
            return Err(Error::Capture(
                "synchronize waits for launches, and a capture only records them: end it first",
            ));
        }
        if let Some(failure) = self.handle.failure.get() {
            return Err(failure.clone().into());
        }
        self.device.synchronize()?;
        #[cfg(feature = "nccl")]
        self.check_nccl()?;
        let Some(connected) = &self.connected else {
            return Ok(());
        };
        let Some(mut failure) = self.find_failure(connected)? else {
            return Ok(());
        };
        failure.note_absent(|| processes::absent(&connected.processes));
        // Set once: this returns early if a failure is known.
        let _ = self.handle.failure.set(failure.clone());
        Err(failure.into())
    }

    /// Refuses a call once a failure is known, with the reason that every later call and
    /// `synchronize` give too.
    pub(super) fn refuse_if_failed(&mut self) -> Result<(), Error> {
        let Err(known) = self.status() else {
            return Ok(());
        };
        if self.handle.failure.get().is_some() || self.may_record() {
            return Err(known);
        }
        // Every wait of a failed rank ends at its next look, so the stream is done soon, and then
        // the cause can be looked up.
        self.synchronize()
    }

    /// The stream is done: what its record, its poison word and its headers say.
    fn find_failure(&self, connected: &Connected<D>) -> Result<Option<Failure>, Error> {
        if let Some(status) = connected.status.failure() {
            let failure = Failure::from_status(&status);
            return match failure {
                Failure::PeerFailed { .. } | Failure::PeerTimeout { .. } => self
                    .explain(
                        connected,
                        failure,
                        Some(CallWords {
                            header: status.own_header,
                            detail: status.own_detail,
                        }),
                    )
                    .map(Some),
                _ => Ok(Some(failure)),
            };
        }
        if let Some(failure) = self.check_last_call(connected)? {
            return Ok(Some(failure));
        }
        if self.status().is_ok() {
            return Ok(None);
        }
        // Aborted while no call waited: no kernel of this rank will tell the peers.
        self.poison_all(connected)?;
        Ok(Some(Failure::AbortedIdle { rank: self.rank }))
    }

    /// Every call's headers and details are checked in the call after it; those of the last are
    /// checked here.
    fn check_last_call(&self, connected: &Connected<D>) -> Result<Option<Failure>, Error> {
        let began = Instant::now();
        loop {
            let head = self.read_head(connected)?;
            let state = head.blocks[0];
            if state.poison != 0 {
                let told = Failure::PeerFailed {
                    rank: self.rank,
                    origin: state.poison - 1,
                    waited_for: None,
                    absent: Vec::new(),
                };
                return self.explain(connected, told, None).map(Some);
            }
            let last = sequence(state.push_epoch, state.pull_epoch).wrapping_sub(1);
            let slot = usize::from(last) % abi::PEERSUM_HEADER_RING as usize;
            let own = CallWords::own(&head, slot);
            let Some((peer, theirs)) = self
                .peers()
                .map(|peer| (peer, CallWords::of_peer(&head, slot, peer)))
                .find(|(_, theirs)| *theirs != own)
            else {
                return Ok(None);
            };
            if let Some(disagreement) = disagreement(self.rank, own, peer, theirs) {
                self.poison_all(connected)?;
                return Ok(Some(disagreement));
            }
            // LatestCalls and details are relaxed stores: the peer's may arrive after the data of the
            // same call.
            if began.elapsed() > self.timeout {
                self.poison_all(connected)?;
                let algorithm = CallSignature::from_header(own.header).kind;
                return Ok(Some(Failure::PeerTimeout {
                    rank: self.rank,
                    peer,
                    algorithm,
                    epoch: match algorithm.family {
                        Family::Push => u64::from(state.push_epoch.wrapping_sub(1)),
                        Family::Pull => state.pull_epoch.wrapping_sub(1),
                    },
                    block: 0,
                    waited: began.elapsed(),
                    absent: Vec::new(),
                }));
            }
            // An abort ends this wait as it ends a kernel's.
            if self.status().is_err() {
                return Ok(None);
            }
            std::thread::sleep(HEADER_POLL_INTERVAL);
        }
    }

    /// Prefers a disagreement that the headers show to `failure`, which only names a rank: where
    /// any two ranks differ, every rank differs from some other. `unsent` is what this rank would
    /// have said of a call that it began but, being poisoned, may not have made.
    fn explain(
        &self,
        connected: &Connected<D>,
        failure: Failure,
        unsent: Option<CallWords>,
    ) -> Result<Failure, Error> {
        let began = Instant::now();
        loop {
            let headers = LatestCalls::read(self, connected)?;
            if let Some(disagreement) = headers.disagreement(unsent) {
                return Ok(disagreement);
            }
            // Whoever waited out the deadline has given the headers time enough; and what made the
            // first rank to fail find a difference is known there, so that only its own header can
            // be on its way.
            let Failure::PeerFailed { origin, .. } = failure else {
                return Ok(failure);
            };
            if headers.last_call_is_known(origin) || began.elapsed() > OVERTAKEN_HEADER_PATIENCE {
                return Ok(failure);
            }
            std::thread::sleep(HEADER_POLL_INTERVAL);
        }
    }

    fn read_head(&self, connected: &Connected<D>) -> Result<Box<PeersumControl>, Error> {
        let mut head = zeroed_control();
        // SAFETY: the control block lies at the start of this rank's arena, which `connected`
        // holds, and is larger than its head.
        unsafe {
            self.device
                .read(connected.own_control(), head_bytes_mut(&mut head))?
        };
        Ok(head)
    }

    fn peers(&self) -> impl Iterator<Item = u32> {
        let rank = self.rank;
        (0..self.world_size).filter(move |&peer| peer != rank)
    }

    /// Tells every rank, this one included, that this rank has failed. Done by the device itself
    /// where a kernel finds the failure.
    fn poison_all(&self, connected: &Connected<D>) -> Result<(), Error> {
        for word in connected.poison_words() {
            // SAFETY: the word lies in an arena that `connected` holds or maps.
            unsafe { self.device.fill(word, self.rank + 1, 1)? };
        }
        self.device.synchronize()?;
        Ok(())
    }
}

/// What a rank said of one of its calls: the header, and the detail or 0 if there is none or it has
/// not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CallWords {
    header: u64,
    detail: u64,
}

impl CallWords {
    fn new(header: u64, detail: u64) -> CallWords {
        let has_detail =
            CallSignature::from_header(header).symmetric && is_detail_of(header, detail);
        CallWords {
            header,
            detail: if has_detail { detail } else { 0 },
        }
    }

    /// What the owner of `head` said.
    fn own(head: &PeersumControl, slot: usize) -> CallWords {
        CallWords::new(head.own_headers[slot], head.own_details[slot])
    }

    /// What `peer` told the owner of `head`.
    fn of_peer(head: &PeersumControl, slot: usize, peer: u32) -> CallWords {
        let peer = peer as usize;
        CallWords::new(head.headers[slot][peer], head.details[slot][peer])
    }

    fn sequence(self) -> u16 {
        CallSignature::from_header(self.header).sequence
    }

    fn signature(self) -> CallSignature {
        CallSignature::from_words(self.header, self.detail)
    }
}

/// What is known of the ranks' latest calls. A poisoned rank's threads may have sent some of a
/// call's headers and not others, its own copy included, so each rank's own ring and every peer's
/// are looked at.
struct LatestCalls {
    rank: u32,
    /// Calls of this communicator so far, modulo 2^16.
    now: u16,
    /// By rank, in no order.
    by_rank: Vec<Vec<CallWords>>,
}

impl LatestCalls {
    fn read<D: Device>(
        communicator: &Communicator<D>,
        connected: &Connected<D>,
    ) -> Result<Self, Error> {
        let mut heads = vec![(communicator.rank, communicator.read_head(connected)?)];
        for peer in communicator.peers() {
            let mut head = zeroed_control();
            // SAFETY: the peer's arena begins with its control block, and is mapped as long as
            // `connected` lives.
            let read = unsafe {
                communicator
                    .device
                    .read(connected.arenas[peer as usize], head_bytes_mut(&mut head))
            };
            // What a lost peer knew is lost with it, and no reason to hide why this rank failed.
            if read.is_ok() {
                heads.push((peer, head));
            }
        }
        let state = heads[0].1.blocks[0];
        let said_by = |rank: u32| {
            heads.iter().flat_map(move |(owner, head)| {
                (0..abi::PEERSUM_HEADER_RING as usize).map(move |slot| match *owner == rank {
                    true => CallWords::own(head, slot),
                    false => CallWords::of_peer(head, slot, rank),
                })
            })
        };
        let by_rank = (0..communicator.world_size)
            .map(|rank| said_by(rank).collect())
            .collect();
        Ok(LatestCalls {
            rank: communicator.rank,
            now: sequence(state.push_epoch, state.pull_epoch),
            by_rank,
        })
    }

    fn own(&self) -> &[CallWords] {
        &self.by_rank[self.rank as usize]
    }

    fn peers(&self) -> impl Iterator<Item = (u32, &[CallWords])> {
        let rank = self.rank;
        (0..)
            .zip(&self.by_rank)
            .filter(move |(peer, _)| *peer != rank)
            .map(|(peer, said)| (peer, said.as_slice()))
    }

    /// How many calls ago.
    fn age(&self, said: CallWords) -> u16 {
        self.now.wrapping_sub(said.sequence())
    }

    fn disagreement(&self, unsent: Option<CallWords>) -> Option<Failure> {
        let mut calls: Vec<CallWords> = self.own().iter().copied().chain(unsent).collect();
        // The oldest first: what comes after a disagreement follows from it.
        calls.sort_by_key(|&own| std::cmp::Reverse(self.age(own)));
        calls.iter().find_map(|&own| {
            self.peers().find_map(|(peer, said)| {
                said.iter()
                    .find_map(|&theirs| disagreement(self.rank, own, peer, theirs))
            })
        })
    }

    /// Whether a peer's header of this rank's last call has come to any rank.
    fn last_call_is_known(&self, peer: u32) -> bool {
        let Some(last) = self.own().iter().map(|&own| self.age(own)).min() else {
            return true;
        };
        self.peers()
            .filter(|(rank, _)| *rank == peer)
            .all(|(_, said)| said.iter().any(|&said| self.age(said) == last))
    }
}

/// What two ranks said of the same call if it differs. A detail that has not come differs from
/// none.
fn disagreement(rank: u32, own: CallWords, peer: u32, theirs: CallWords) -> Option<Failure> {
    let differ = own.header != theirs.header
        || own.detail != theirs.detail && own.detail != 0 && theirs.detail != 0;
    (differ && theirs.sequence() == own.sequence()).then(|| Failure::Disagreement {
        rank,
        peer,
        own: own.signature(),
        theirs: theirs.signature(),
    })
}
