//! What the ranks told each other of their latest calls, and where they differ.

use std::cmp::Reverse;

use peersum_kernels::abi::{self, PeersumControl};

use super::layout::sequence;
use crate::call_signature::{CallSignature, is_detail_of};
use crate::failure::Failure;
use crate::operation::Operation;

/// What a rank told of one of its calls: the header, and the detail and the norm words, or 0 for
/// those that the call has not or that have not come. A rank that has compared a norm word removes
/// it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CallWords {
    pub(super) header: u64,
    pub(super) detail: u64,
    pub(super) norm: [u64; abi::PEERSUM_NORM_WORDS as usize],
}

impl CallWords {
    fn new(header: u64, detail: u64, norm: [u64; abi::PEERSUM_NORM_WORDS as usize]) -> CallWords {
        let signature = CallSignature::from_header(header);
        let word_of = |exists: bool, word: u64| match exists && is_detail_of(header, word) {
            true => word,
            false => 0,
        };
        CallWords {
            header,
            detail: word_of(signature.symmetric, detail),
            norm: norm.map(|word| word_of(signature.operation == Operation::RmsNorm, word)),
        }
    }

    /// The words that both ranks still have once they agree.
    pub(super) fn lasting(self) -> CallWords {
        CallWords {
            norm: [0; abi::PEERSUM_NORM_WORDS as usize],
            ..self
        }
    }

    /// What the owner of `head` told the others.
    pub(super) fn own(head: &PeersumControl, slot: usize) -> CallWords {
        CallWords::new(
            head.own_headers[slot],
            head.own_details[slot],
            head.own_norm_words[slot],
        )
    }

    /// What `peer` told the owner of `head`.
    pub(super) fn of_peer(head: &PeersumControl, slot: usize, peer: u32) -> CallWords {
        let peer = peer as usize;
        CallWords::new(
            head.headers[slot][peer],
            head.details[slot][peer],
            head.norm_words[slot][peer],
        )
    }

    fn sequence(self) -> u16 {
        CallSignature::from_header(self.header).sequence
    }

    fn signature(self) -> CallSignature {
        CallSignature::from_words(self.header, self.detail, self.norm)
    }
}

/// What two ranks told of the same call if it differs. A word that has not come differs from none.
pub(super) fn disagreement(
    rank: u32,
    own: CallWords,
    peer: u32,
    theirs: CallWords,
) -> Option<Failure> {
    let words = |words: CallWords| [words.detail].into_iter().chain(words.norm);
    let differ = own.header != theirs.header
        || words(own)
            .zip(words(theirs))
            .any(|(own, theirs)| own != theirs && own != 0 && theirs != 0);
    (differ && theirs.sequence() == own.sequence()).then(|| Failure::Disagreement {
        rank,
        peer,
        own: Box::new(own.signature()),
        theirs: Box::new(theirs.signature()),
    })
}

/// What is known of the ranks' latest calls. A poisoned rank's threads may have sent some of a
/// call's headers and not others, its own copy included, so each rank's own ring and every peer's
/// are looked at.
pub(super) struct LatestCalls {
    rank: u32,
    /// Calls of this communicator so far, modulo 2^16.
    now: u16,
    /// By rank, in no order.
    by_rank: Vec<Vec<CallWords>>,
}

impl LatestCalls {
    /// From the head of this rank's control block and those of the peers that could be read.
    pub(super) fn new(
        rank: u32,
        world_size: u32,
        own: &PeersumControl,
        peers: &[(u32, Box<PeersumControl>)],
    ) -> Self {
        let peers = peers.iter().map(|(peer, head)| (*peer, &**head));
        let heads: Vec<(u32, &PeersumControl)> =
            std::iter::once((rank, own)).chain(peers).collect();
        let told_by = |rank: u32| {
            heads.iter().flat_map(move |&(owner, head)| {
                (0..abi::PEERSUM_HEADER_RING as usize).map(move |slot| match owner == rank {
                    true => CallWords::own(head, slot),
                    false => CallWords::of_peer(head, slot, rank),
                })
            })
        };
        LatestCalls {
            rank,
            now: sequence(own.blocks[0].push_epoch, own.blocks[0].pull_epoch),
            by_rank: (0..world_size)
                .map(|rank| told_by(rank).collect())
                .collect(),
        }
    }

    /// How many calls ago.
    fn age(&self, words: CallWords) -> u16 {
        self.now.wrapping_sub(words.sequence())
    }

    fn own(&self) -> &[CallWords] {
        &self.by_rank[self.rank as usize]
    }

    /// Fills in the norm words that this rank has kept for a call.
    pub(super) fn completed(own: &PeersumControl, words: CallWords) -> CallWords {
        let slot = usize::from(words.sequence()) % abi::PEERSUM_HEADER_RING as usize;
        CallWords::new(words.header, words.detail, own.own_norm_words[slot])
    }

    /// The first disagreement of this rank with any other. `unsent` is what this rank would have
    /// told of a call that it began but, being poisoned, may not have made.
    pub(super) fn disagreement(&self, unsent: Option<CallWords>) -> Option<Failure> {
        let mut calls: Vec<CallWords> = self.own().iter().copied().chain(unsent).collect();
        // The oldest first: what comes after a disagreement follows from it.
        calls.sort_by_key(|&own| Reverse(self.age(own)));
        let peers = || {
            (0..)
                .zip(&self.by_rank)
                .filter(|(peer, _)| *peer != self.rank)
        };
        calls.iter().find_map(|&own| {
            peers().find_map(|(peer, told)| {
                told.iter()
                    .find_map(|&theirs| disagreement(self.rank, own, peer, theirs))
            })
        })
    }

    /// Whether a peer's header of this rank's last call has come to any rank.
    pub(super) fn last_call_is_known(&self, peer: u32) -> bool {
        let Some(last) = self.own().iter().map(|&own| self.age(own)).min() else {
            return true;
        };
        let told = self.by_rank.get(peer as usize);
        peer == self.rank
            || told.is_none_or(|told| told.iter().any(|&words| self.age(words) == last))
    }
}
