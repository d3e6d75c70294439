//! Why a call failed on the device.

use std::time::Duration;

use peersum_kernels::abi;

use crate::call_signature::{CallKind, CallSignature};

/// Why a communicator is poisoned. Every later call returns it again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// A peer did not arrive in time.
    #[error(
        "rank {rank} waited {waited:?} for rank {peer} in {algorithm} (epoch {epoch}, block \
         {block}): {}",
        explain_absence(absent, "that rank died, stalls, or never made this call")
    )]
    PeerTimeout {
        /// This rank.
        rank: u32,
        /// The rank that did not arrive.
        peer: u32,
        /// The call's family and algorithm.
        algorithm: CallKind,
        /// The family's epoch, which counts its calls.
        epoch: u64,
        /// The block that waited.
        block: u32,
        /// How long it waited.
        waited: Duration,
        /// The ranks whose processes do not run any more, where the system says so. Known once
        /// [`Communicator::synchronize`](crate::Communicator::synchronize) has returned the
        /// failure.
        absent: Vec<AbsentPeer>,
    },
    /// An [`AbortHandle`](crate::AbortHandle) ended the call.
    #[error(
        "rank {rank} was aborted by this program while it waited for rank {peer} in {algorithm} \
         (epoch {epoch})"
    )]
    Aborted {
        /// This rank.
        rank: u32,
        /// The rank that it waited for.
        peer: u32,
        /// The call's family and algorithm.
        algorithm: CallKind,
        /// The family's epoch.
        epoch: u64,
    },
    /// The program aborted while no call was waiting.
    #[error("rank {rank} was aborted by this program")]
    AbortedIdle {
        /// This rank.
        rank: u32,
    },
    /// Another rank failed first and told this one.
    #[error(
        "rank {rank} was told by its peers that rank {origin} failed{}: {}",
        waited_for.map(|peer| format!(", while it waited for rank {peer}")).unwrap_or_default(),
        explain_absence(absent, &format!("rank {origin}'s own error says why"))
    )]
    PeerFailed {
        /// This rank.
        rank: u32,
        /// The rank that failed first.
        origin: u32,
        /// Whom this rank itself was waiting for; `None` if it was between calls or had just begun
        /// one.
        waited_for: Option<u32>,
        /// As in [`Failure::PeerTimeout`].
        absent: Vec<AbsentPeer>,
    },
    /// Two ranks made different calls at the same place in the sequence.
    #[error(
        "rank {rank} called {own}, but rank {peer} called {theirs}; every rank must make the same \
         calls in the same order"
    )]
    Disagreement {
        /// This rank.
        rank: u32,
        /// The rank that differs.
        peer: u32,
        /// What this rank called.
        own: Box<CallSignature>,
        /// What that rank called.
        theirs: Box<CallSignature>,
    },
}

/// A rank whose process does not run any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AbsentPeer {
    /// The rank.
    pub rank: u32,
    /// What has become of its process.
    pub state: ProcessState,
}

/// What has become of a process that does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProcessState {
    /// It ended or was killed.
    Ended,
    /// It is stopped, by a signal or a debugger.
    Stopped,
}

fn explain_absence(absent: &[AbsentPeer], otherwise: &str) -> String {
    let states: Vec<String> = absent
        .iter()
        .map(|AbsentPeer { rank, state }| match state {
            ProcessState::Ended => format!("the process of rank {rank} has ended"),
            ProcessState::Stopped => format!("the process of rank {rank} is stopped"),
        })
        .collect();
    match states.as_slice() {
        [] => otherwise.to_owned(),
        states => states.join(", "),
    }
}

impl Failure {
    /// Adds which peers do not run any more, where that can be why.
    pub(crate) fn note_absent(&mut self, find: impl FnOnce() -> Vec<AbsentPeer>) {
        if let Failure::PeerTimeout { absent, .. } | Failure::PeerFailed { absent, .. } = self {
            *absent = find();
        }
    }

    /// Whether peers that do not run any more are the reason.
    pub(crate) fn names_absent(&self) -> bool {
        match self {
            Failure::PeerTimeout { absent, .. } | Failure::PeerFailed { absent, .. } => {
                !absent.is_empty()
            }
            _ => false,
        }
    }

    /// Reads the device's record.
    pub(crate) fn from_status(status: &abi::PeersumStatus) -> Failure {
        let algorithm = CallKind::from_abi(status.family, status.algorithm);
        let algorithm = algorithm.of_kernel(status.own_header);
        let (rank, peer, epoch) = (status.rank, status.peer, status.epoch);
        let call = |header, detail, norm_words| {
            Box::new(CallSignature::from_words(header, detail, norm_words))
        };
        match status.cause {
            abi::PEERSUM_CAUSE_ABORT => Failure::Aborted {
                rank,
                peer,
                algorithm,
                epoch,
            },
            abi::PEERSUM_CAUSE_POISON => Failure::PeerFailed {
                rank,
                origin: status.origin,
                waited_for: Some(peer).filter(|peer| *peer != rank),
                absent: Vec::new(),
            },
            abi::PEERSUM_CAUSE_DISAGREEMENT => Failure::Disagreement {
                rank,
                peer,
                own: call(status.own_header, status.own_detail, status.own_norm_words),
                theirs: call(
                    status.peer_header,
                    status.peer_detail,
                    status.peer_norm_words,
                ),
            },
            // A cause that this version does not know would still be a wait that ended.
            _ => Failure::PeerTimeout {
                rank,
                peer,
                algorithm,
                epoch,
                block: status.block,
                waited: Duration::from_nanos(status.waited_ns),
                absent: Vec::new(),
            },
        }
    }
}
