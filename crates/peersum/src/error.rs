//! What can go wrong, with what a person needs to act.

use std::fmt;
use std::time::Duration;

use peersum_artifact::{Algorithm, Dtype, Family};
use peersum_kernels::abi;

use crate::device::DeviceError;
use crate::dispatch::TableError;
use crate::rendezvous::RendezvousError;

/// Any failure of a communicator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A call failed on the device; the communicator is poisoned, and so is every peer's.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The ranks' settings differ. Every rank gets this error.
    #[error(
        "rank {rank} and rank {other_rank} differ in {what}: {value} and {other_value}; \
         every rank must be built from the same version with the same settings"
    )]
    SetupMismatch {
        /// What differs, for instance `kernel sources`.
        what: &'static str,
        /// The lowest rank of the group.
        rank: u32,
        /// Its value.
        value: String,
        /// The first rank that differs from it.
        other_rank: u32,
        /// That rank's value.
        other_value: String,
    },
    /// Input and output have different lengths.
    #[error("the input has {input} elements and the output {output}; they must be equal")]
    LengthMismatch {
        /// Elements of the input.
        input: usize,
        /// Elements of the output.
        output: usize,
    },
    /// The blocks of all ranks that share a device cannot run at once, and so could wait for each other for ever.
    #[error(
        "the blocks of the ranks that share device {device} did not run at the same time within {waited:?}: set \
         CUDA_DEVICE_MAX_CONNECTIONS=32 before the CUDA context is made, so that no two ranks' streams share a hardware queue, \
         and keep other kernels off the device while communicators are built"
    )]
    NotCoResident {
        /// The device's name.
        device: String,
        /// How long the probe waited.
        waited: Duration,
    },
    /// Other communicators of this process hold the device's multiprocessors.
    #[error(
        "device {device} has seats for {capacity} blocks, of which other communicators of this process hold {reserved}; \
         build each with `.max_blocks(n)` so that they fit together"
    )]
    DeviceFull {
        /// The device's name.
        device: String,
        /// Blocks that fit the device at once.
        capacity: u32,
        /// Blocks that other communicators may launch.
        reserved: u32,
    },
    /// The stream carries a communicator already.
    #[error(
        "this stream carries another communicator already; give each communicator a stream of its own"
    )]
    StreamTaken,
    /// A setting has no meaning.
    #[error("{setting}: {reason}")]
    InvalidSetting {
        /// The setting, for instance `max_bytes`.
        setting: &'static str,
        /// Why it cannot be used.
        reason: String,
    },
    /// A graph was launched on another communicator than the one that it was captured on.
    #[error("this graph was captured on another communicator")]
    ForeignGraph,
    /// A capture is open, or none is.
    #[error("{0}")]
    Capture(&'static str),
    /// A call of NCCL failed. Only with the feature `nccl`.
    #[error("{call} failed: {message}; with NCCL_DEBUG=INFO in the environment NCCL says more")]
    Nccl {
        /// The function of NCCL, for instance `ncclCommInitRank`.
        call: &'static str,
        /// NCCL's own description.
        message: String,
    },
    /// The dispatch table cannot be used.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The ranks did not find each other, or one was lost during set-up.
    #[error(transparent)]
    Rendezvous(#[from] RendezvousError),
    /// The device refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Why a communicator is poisoned. Every later call returns it again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// A peer did not come in time.
    #[error(
        "rank {rank} waited {waited:?} for rank {peer} in {algorithm} (epoch {epoch}, block {block}): {}",
        explain_absence(absent, "that rank died, stalls, or never made this call")
    )]
    PeerTimeout {
        /// This rank.
        rank: u32,
        /// The rank that did not come.
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
        /// [`Communicator::synchronize`](crate::Communicator::synchronize) has returned the failure.
        absent: Vec<AbsentPeer>,
    },
    /// An [`AbortHandle`](crate::AbortHandle) ended the call.
    #[error(
        "rank {rank} was aborted by this program while it waited for rank {peer} in {algorithm} (epoch {epoch})"
    )]
    Aborted {
        /// This rank.
        rank: u32,
        /// Whom it waited for.
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
        /// Whom this rank itself was waiting for; `None` if it was between calls or had just begun one.
        waited_for: Option<u32>,
        /// As in [`Failure::PeerTimeout`].
        absent: Vec<AbsentPeer>,
    },
    /// Two ranks made different calls at the same place in the sequence.
    #[error(
        "rank {rank} called {own}, but rank {peer} called {theirs}; every rank must make the same calls in the same order"
    )]
    Disagreement {
        /// This rank.
        rank: u32,
        /// The rank that differs.
        peer: u32,
        /// What this rank called.
        own: CallSignature,
        /// What that rank called.
        theirs: CallSignature,
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

/// Family and algorithm of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallKind {
    /// Push or pull.
    pub family: Family,
    /// One-shot or two-shot.
    pub algorithm: Algorithm,
}

impl fmt::Display for CallKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.family, self.algorithm)
    }
}

impl CallKind {
    pub(crate) fn from_abi(family: u32, algorithm: u32) -> CallKind {
        CallKind {
            family: if family == abi::PEERSUM_FAMILY_PULL {
                Family::Pull
            } else {
                Family::Push
            },
            algorithm: if algorithm == abi::PEERSUM_ALGORITHM_TWO_SHOT {
                Algorithm::TwoShot
            } else {
                Algorithm::OneShot
            },
        }
    }
}

/// A call as its header tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallSignature {
    /// The call's place among all calls of the communicator, modulo 2^16.
    pub sequence: u16,
    /// Family and algorithm.
    pub kind: CallKind,
    /// Whether the input was a symmetric buffer that peers read directly.
    pub symmetric: bool,
    /// A tag of which part of which symmetric buffer; 0 for an ordinary one. Equal parts have equal tags.
    pub buffer: u8,
    /// The element type; `None` for a value that no rank of this version sends.
    pub dtype: Option<Dtype>,
    /// The message's size in bytes.
    pub bytes: u64,
}

impl CallSignature {
    pub(crate) fn from_header(header: u64) -> CallSignature {
        let field = |shift: u32, bits: u32| (header >> shift) as u32 & ((1 << bits) - 1);
        CallSignature {
            sequence: (header >> abi::PEERSUM_HEADER_SEQUENCE_SHIFT) as u16,
            kind: CallKind::from_abi(
                field(abi::PEERSUM_HEADER_FAMILY_SHIFT, 1),
                field(abi::PEERSUM_HEADER_ALGORITHM_SHIFT, 1),
            ),
            symmetric: field(abi::PEERSUM_HEADER_SOURCE_SHIFT, 1) == abi::PEERSUM_SOURCE_SYMMETRIC,
            buffer: field(
                abi::PEERSUM_HEADER_BUFFER_SHIFT,
                abi::PEERSUM_HEADER_BUFFER_BITS,
            ) as u8,
            dtype: match field(abi::PEERSUM_HEADER_DTYPE_SHIFT, 2) {
                abi::PEERSUM_DTYPE_F16 => Some(Dtype::F16),
                abi::PEERSUM_DTYPE_BF16 => Some(Dtype::Bf16),
                abi::PEERSUM_DTYPE_F32 => Some(Dtype::F32),
                _ => None,
            },
            bytes: header & ((1 << abi::PEERSUM_HEADER_BYTES_BITS) - 1),
        }
    }
}

impl CallSignature {
    /// The word that a call sends. The device adds the sequence; a signature to be launched has sequence 0.
    pub(crate) fn header(&self) -> u64 {
        let family = match self.kind.family {
            Family::Push => abi::PEERSUM_FAMILY_PUSH,
            Family::Pull => abi::PEERSUM_FAMILY_PULL,
        };
        let algorithm = match self.kind.algorithm {
            Algorithm::OneShot => abi::PEERSUM_ALGORITHM_ONE_SHOT,
            Algorithm::TwoShot => abi::PEERSUM_ALGORITHM_TWO_SHOT,
        };
        let dtype = match self.dtype {
            Some(Dtype::F16) => abi::PEERSUM_DTYPE_F16,
            Some(Dtype::Bf16) => abi::PEERSUM_DTYPE_BF16,
            Some(Dtype::F32) => abi::PEERSUM_DTYPE_F32,
            None => 3,
        };
        u64::from(self.sequence) << abi::PEERSUM_HEADER_SEQUENCE_SHIFT
            | u64::from(self.buffer) << abi::PEERSUM_HEADER_BUFFER_SHIFT
            | u64::from(self.symmetric) << abi::PEERSUM_HEADER_SOURCE_SHIFT
            | u64::from(family) << abi::PEERSUM_HEADER_FAMILY_SHIFT
            | u64::from(algorithm) << abi::PEERSUM_HEADER_ALGORITHM_SHIFT
            | u64::from(dtype) << abi::PEERSUM_HEADER_DTYPE_SHIFT
            | self.bytes
    }
}

impl fmt::Display for CallSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes of ", self.kind, self.bytes)?;
        match self.dtype {
            Some(dtype) => write!(f, "{dtype}")?,
            None => f.write_str("an unknown type")?,
        }
        if self.symmetric {
            write!(f, " in a symmetric buffer (tag {})", self.buffer)?;
        }
        write!(f, " (call {} modulo 65536)", self.sequence)
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
        matches!(
            self,
            Failure::PeerTimeout { absent, .. } | Failure::PeerFailed { absent, .. } if !absent.is_empty()
        )
    }

    /// Reads the device's record.
    pub(crate) fn from_status(status: &abi::PeersumStatus) -> Failure {
        let algorithm = CallKind::from_abi(status.family, status.algorithm);
        let (rank, peer, epoch) = (status.rank, status.peer, status.epoch);
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
                own: CallSignature::from_header(status.own_header),
                theirs: CallSignature::from_header(status.peer_header),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_says_all_of_its_call() {
        let mut rng = fastrand::Rng::with_seed(11);
        for _ in 0..1000 {
            let signature = CallSignature {
                sequence: rng.u16(..),
                kind: CallKind {
                    family: Family::ALL[rng.usize(..2)],
                    algorithm: Algorithm::ALL[rng.usize(..2)],
                },
                symmetric: rng.bool(),
                buffer: rng.u8(..8),
                dtype: Some(Dtype::ALL[rng.usize(..3)]),
                bytes: rng.u64(..1 << abi::PEERSUM_HEADER_BYTES_BITS),
            };
            assert_eq!(CallSignature::from_header(signature.header()), signature);
        }
    }
}
