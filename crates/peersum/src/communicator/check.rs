//! What `synchronize` looks at once the stream is done: the device's record, its poison word, the headers of the last call.

use std::time::{Duration, Instant};

use peersum_artifact::Family;
use peersum_kernels::abi;

use super::Communicator;
use super::layout::{ControlHead, sequence};
use super::links::Links;
use crate::device::Device;
use crate::error::{CallSignature, Error, Failure};

/// Pause between two looks for a header that is still on its way.
const HEADER_POLL_INTERVAL: Duration = Duration::from_micros(50);

/// How long a rank that was told of a failure waits for the peers' headers of its own last call, which may explain it: another thread of a peer
/// sends them than the one that finds a difference and tells all.
const OVERTAKEN_HEADER_PATIENCE: Duration = Duration::from_millis(100);

impl<D: Device> Communicator<D> {
    /// Waits for everything launched so far. The only proof: outputs of all calls up to here are valid once this has returned `Ok`.
    ///
    /// Cheap enough for once a step, where an engine reads its logits; one such check after a graph of many calls is enough.
    ///
    /// # Errors
    /// [`Error::Failed`] names the first failure of this rank: a peer that did not come within the timeout, an abort, ranks that called
    /// differently, or a peer that failed first. Outputs that were not reduced hold NaN.
    pub fn synchronize(&mut self) -> Result<(), Error> {
        if self.capturing {
            return Err(Error::Capture(
                "synchronize waits for launches, and a capture only records them: end it first",
            ));
        }
        if let Some(failure) = &self.failure {
            return Err(failure.clone().into());
        }
        self.device.synchronize()?;
        let failure = match &self.links {
            Some(links) => self.find_failure(links)?,
            None => None,
        };
        let Some(failure) = failure else {
            return Ok(());
        };
        self.failure = Some(failure.clone());
        Err(failure.into())
    }

    /// Refuses a call once a failure is known, with the reason that every later call and `synchronize` give too.
    pub(super) fn refuse_if_failed(&mut self) -> Result<(), Error> {
        let Err(known) = self.status() else {
            return Ok(());
        };
        if self.failure.is_some() || self.capturing {
            return Err(known);
        }
        // Every wait of a failed rank ends at its next look, so the stream is done soon, and then the cause can be looked up.
        self.synchronize()
    }

    /// The stream is done: what its record, its poison word and its headers say.
    fn find_failure(&self, links: &Links<D>) -> Result<Option<Failure>, Error> {
        if let Some(status) = links.status.failure() {
            let failure = Failure::from_status(&status);
            return match failure {
                Failure::PeerFailed { .. } | Failure::PeerTimeout { .. } => self
                    .explain(links, failure, Some(status.own_header))
                    .map(Some),
                _ => Ok(Some(failure)),
            };
        }
        if let Some(failure) = self.check_last_call(links)? {
            return Ok(Some(failure));
        }
        if self.status().is_ok() {
            return Ok(None);
        }
        // Aborted while no call waited: no kernel of this rank will tell the peers.
        self.poison_all(links)?;
        Ok(Some(Failure::AbortedIdle { rank: self.rank }))
    }

    /// Every call's headers are checked in the call after it; those of the last are checked here.
    fn check_last_call(&self, links: &Links<D>) -> Result<Option<Failure>, Error> {
        let began = Instant::now();
        loop {
            let head = self.read_head(links)?;
            let state = head.blocks[0];
            if state.poison != 0 {
                let told = Failure::PeerFailed {
                    rank: self.rank,
                    origin: state.poison - 1,
                };
                return self.explain(links, told, None).map(Some);
            }
            let last = sequence(state.push_epoch, state.pull_epoch).wrapping_sub(1);
            let slot = usize::from(last) % abi::PEERSUM_HEADER_RING as usize;
            let own = head.own_headers[slot];
            let Some(peer) = self
                .peers()
                .find(|&peer| head.headers[slot][peer as usize] != own)
            else {
                return Ok(None);
            };
            if let Some(disagreement) = self.disagreement_with(&head, peer, own) {
                self.poison_all(links)?;
                return Ok(Some(disagreement));
            }
            // Headers are relaxed stores: the peer's may arrive after the data of the same call.
            if began.elapsed() > self.timeout {
                self.poison_all(links)?;
                let algorithm = CallSignature::from_header(own).kind;
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
                }));
            }
            // An abort ends this wait as it ends a kernel's.
            if self.status().is_err() {
                return Ok(None);
            }
            std::thread::sleep(HEADER_POLL_INTERVAL);
        }
    }

    /// Prefers a disagreement that this rank can see in its own headers to `failure`, which only names a rank: where any two ranks differ, every rank
    /// differs from some other. `unsent` is the header of a call that this rank began but, being poisoned, did not make.
    fn explain(
        &self,
        links: &Links<D>,
        failure: Failure,
        unsent: Option<u64>,
    ) -> Result<Failure, Error> {
        let began = Instant::now();
        loop {
            let head = self.read_head(links)?;
            let now = sequence(head.blocks[0].push_epoch, head.blocks[0].pull_epoch);
            let mut calls: Vec<u64> = head.own_headers.iter().copied().chain(unsent).collect();
            // The oldest first: what comes after a disagreement follows from it.
            calls.sort_by_key(|&own| {
                std::cmp::Reverse(now.wrapping_sub(CallSignature::from_header(own).sequence))
            });
            let disagreement = calls.iter().find_map(|&own| {
                self.peers()
                    .find_map(|peer| self.disagreement_with(&head, peer, own))
            });
            if let Some(disagreement) = disagreement {
                return Ok(disagreement);
            }
            // Whoever waited out the deadline has given the headers time enough.
            let is_told = matches!(failure, Failure::PeerFailed { .. });
            if !is_told
                || self.all_headers_came(&head, now)
                || began.elapsed() > OVERTAKEN_HEADER_PATIENCE
            {
                return Ok(failure);
            }
            std::thread::sleep(HEADER_POLL_INTERVAL);
        }
    }

    /// Whether a peer's header of the call that this rank made as `own` has come and differs.
    fn disagreement_with(&self, head: &ControlHead, peer: u32, own: u64) -> Option<Failure> {
        let own_signature = CallSignature::from_header(own);
        let slot = usize::from(own_signature.sequence) % abi::PEERSUM_HEADER_RING as usize;
        let theirs = head.headers[slot][peer as usize];
        let peer_signature = CallSignature::from_header(theirs);
        (theirs != own && peer_signature.sequence == own_signature.sequence).then_some(
            Failure::Disagreement {
                rank: self.rank,
                peer,
                own: own_signature,
                theirs: peer_signature,
            },
        )
    }

    /// Whether every peer's header of the last call that this rank made has come.
    fn all_headers_came(&self, head: &ControlHead, now: u16) -> bool {
        let sequence_of = |header| CallSignature::from_header(header).sequence;
        let last = head
            .own_headers
            .iter()
            .map(|&own| sequence_of(own))
            .min_by_key(|&sequence| now.wrapping_sub(sequence))
            .unwrap_or(now);
        let slot = usize::from(last) % abi::PEERSUM_HEADER_RING as usize;
        self.peers()
            .all(|peer| sequence_of(head.headers[slot][peer as usize]) == last)
    }

    fn read_head(&self, links: &Links<D>) -> Result<Box<ControlHead>, Error> {
        let mut head = ControlHead::zeroed();
        // SAFETY: the control block lies at the start of this rank's arena, which `links` holds, and is larger than its head.
        unsafe { self.device.read(links.own_control(), head.bytes_mut())? };
        Ok(head)
    }

    fn peers(&self) -> impl Iterator<Item = u32> {
        let rank = self.rank;
        (0..self.world_size).filter(move |&peer| peer != rank)
    }

    /// Tells every rank, this one included, that this rank has failed. Done by the device itself where a kernel finds the failure.
    fn poison_all(&self, links: &Links<D>) -> Result<(), Error> {
        for word in links.poison_words(self.world_size) {
            // SAFETY: the word lies in an arena that `links` holds or maps.
            unsafe { self.device.fill(word, self.rank + 1, 1)? };
        }
        self.device.synchronize()?;
        Ok(())
    }
}
