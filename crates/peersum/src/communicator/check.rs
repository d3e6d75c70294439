//! What `synchronize` looks at once the stream is done: the device's record, its poison word, the headers of the last call.

use std::time::{Duration, Instant};

use peersum_kernels::abi;

use super::Communicator;
use super::layout::{ControlHead, sequence};
use super::links::Links;
use crate::device::Device;
use crate::error::{CallKind, CallSignature, Error, Failure};

/// Pause between two looks for a header that is still on its way.
const HEADER_POLL_INTERVAL: Duration = Duration::from_micros(50);

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
        let Some(links) = &self.links else {
            return Ok(());
        };
        let failure = match links.status.failure() {
            Some(status) => Some(Failure::from_status(&status)),
            None => self.last_headers_disagree(links)?,
        };
        let Some(failure) = failure else {
            return self.status();
        };
        self.failure = Some(failure.clone());
        Err(failure.into())
    }

    /// Every call's headers are checked in the call after it; those of the last are checked here.
    fn last_headers_disagree(&self, links: &Links<D>) -> Result<Option<Failure>, Error> {
        let began = Instant::now();
        let mut head = ControlHead::zeroed();
        loop {
            // SAFETY: the control block lies at the start of this rank's arena, which `links` holds, and is larger than its head.
            unsafe { self.device.read(links.own_control(), head.bytes_mut())? };
            let state = head.blocks[0];
            if state.poison != 0 {
                return Ok(Some(Failure::PeerFailed {
                    rank: self.rank,
                    origin: state.poison - 1,
                }));
            }
            let last = sequence(state.push_epoch, state.pull_epoch).wrapping_sub(1);
            let slot = usize::from(last) % abi::PEERSUM_HEADER_RING as usize;
            let own = head.own_headers[slot];
            let Some(peer) = (0..self.world_size)
                .find(|&peer| peer != self.rank && head.headers[slot][peer as usize] != own)
            else {
                return Ok(None);
            };
            let theirs = head.headers[slot][peer as usize];
            let (own_signature, peer_signature) = (
                CallSignature::from_header(own),
                CallSignature::from_header(theirs),
            );
            if own_signature.sequence == peer_signature.sequence {
                self.poison_all(links)?;
                return Ok(Some(Failure::Disagreement {
                    rank: self.rank,
                    peer,
                    own: own_signature,
                    theirs: peer_signature,
                }));
            }
            // Headers are relaxed stores: the peer's may arrive after the data of the same call.
            if began.elapsed() > self.timeout {
                self.poison_all(links)?;
                return Ok(Some(Failure::PeerTimeout {
                    rank: self.rank,
                    peer,
                    algorithm: CallKind {
                        family: own_signature.kind.family,
                        algorithm: own_signature.kind.algorithm,
                    },
                    epoch: match own_signature.kind.family {
                        peersum_artifact::Family::Push => {
                            u64::from(state.push_epoch.wrapping_sub(1))
                        }
                        peersum_artifact::Family::Pull => state.pull_epoch.wrapping_sub(1),
                    },
                    block: 0,
                    waited: began.elapsed(),
                }));
            }
            std::thread::sleep(HEADER_POLL_INTERVAL);
        }
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
