//! What `synchronize` looks at once the stream is done: the device's record, its poison word, the
//! headers and details of the last call.

use std::time::{Duration, Instant};

use peersum_artifact::Family;
use peersum_kernels::abi::{self, PeersumControl};

use super::connected::Connected;
use super::latest_calls::{CallWords, LatestCalls, disagreement};
use super::layout::{head_bytes_mut, sequence, zeroed_control};
use super::processes;
use super::state::Communicator;
use crate::call_signature::CallSignature;
use crate::device::{Device, DeviceError};
use crate::error::Error;
use crate::failure::Failure;

/// Pause between two looks for a header that is still on its way.
const HEADER_POLL_INTERVAL: Duration = Duration::from_micros(50);

/// How long a rank that was told of a failure waits for the header of its last call from the rank
/// that failed first. That header may explain the failure. It may come late, because another thread
/// of that rank sends it than the one that finds a difference and tells all ranks.
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
    /// were not reduced hold NaN, and those of an all-gather or a broadcast bytes of `0xFF`.
    pub fn synchronize(&mut self) -> Result<(), Error> {
        if self.capture.is_some() {
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

    /// What the record, the poison word and the headers say, once the stream is done.
    fn find_failure(&self, connected: &Connected<D>) -> Result<Option<Failure>, Error> {
        if let Some(status) = connected.status.failure() {
            let failure = Failure::from_status(&status);
            if !matches!(
                failure,
                Failure::PeerFailed { .. } | Failure::PeerTimeout { .. }
            ) {
                return Ok(Some(failure));
            }
            let unsent = CallWords {
                header: status.own_header,
                detail: status.own_detail,
                norm: status.own_norm_words,
            };
            // The thread that failed may have been ahead of the one that keeps the norm words.
            let unsent = LatestCalls::completed(&*self.read_head(connected, self.rank)?, unsent);
            return self.explain(connected, failure, Some(unsent)).map(Some);
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
            let head = self.read_head(connected, self.rank)?;
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
            let own = CallWords::own(&head, slot).lasting();
            let Some((peer, theirs)) = self
                .peers()
                .map(|peer| (peer, CallWords::of_peer(&head, slot, peer).lasting()))
                .find(|(_, theirs)| *theirs != own)
            else {
                return Ok(None);
            };
            if let Some(disagreement) = disagreement(self.rank, own, peer, theirs) {
                self.poison_all(connected)?;
                return Ok(Some(disagreement));
            }
            // Headers and details are relaxed stores: the peer's may arrive after the data of the
            // same call.
            if began.elapsed() > self.timeout {
                self.poison_all(connected)?;
                let algorithm = CallSignature::from_header(own.header).kind;
                let algorithm = algorithm.of_kernel(own.header);
                return Ok(Some(Failure::PeerTimeout {
                    rank: self.rank,
                    peer,
                    algorithm,
                    epoch: match algorithm.family {
                        Family::Push | Family::Norm | Family::Move => {
                            u64::from(state.push_epoch.wrapping_sub(1))
                        }
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
    /// any two ranks differ, every rank differs from some other. For `unsent` see
    /// [`LatestCalls::disagreement`].
    fn explain(
        &self,
        connected: &Connected<D>,
        failure: Failure,
        unsent: Option<CallWords>,
    ) -> Result<Failure, Error> {
        let began = Instant::now();
        loop {
            let calls = self.read_latest_calls(connected)?;
            if let Some(disagreement) = calls.disagreement(unsent) {
                return Ok(disagreement);
            }
            // A rank that waited until the deadline has given the headers enough time. If a peer
            // failed first, what made it fail lies in its own control block, which was read above:
            // only the header that it sends itself can still be on its way.
            let Failure::PeerFailed { origin, .. } = failure else {
                return Ok(failure);
            };
            if calls.last_call_is_known(origin) || began.elapsed() > OVERTAKEN_HEADER_PATIENCE {
                return Ok(failure);
            }
            std::thread::sleep(HEADER_POLL_INTERVAL);
        }
    }

    fn read_latest_calls(&self, connected: &Connected<D>) -> Result<LatestCalls, Error> {
        let own = self.read_head(connected, self.rank)?;
        // What a lost peer knew is lost with it, and no reason to hide why this rank failed.
        let peers: Vec<_> = self
            .peers()
            .filter_map(|peer| Some((peer, self.read_head(connected, peer).ok()?)))
            .collect();
        Ok(LatestCalls::new(self.rank, self.world_size, &own, &peers))
    }

    /// The head of a rank's control block.
    fn read_head(
        &self,
        connected: &Connected<D>,
        rank: u32,
    ) -> Result<Box<PeersumControl>, DeviceError> {
        let mut head = zeroed_control();
        let arena = connected.arena.addresses[rank as usize];
        // SAFETY: every rank's arena begins with its control block, which is larger than its head.
        // `connected` holds this rank's arena, and maps those of the peers as long as it lives.
        unsafe { self.device.read(arena, head_bytes_mut(&mut head))? };
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
