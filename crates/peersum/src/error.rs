//! What can go wrong, with what a person needs to act.

use std::fmt;
use std::time::Duration;

use peersum_artifact::{Algorithm, Dtype, Family};
use peersum_kernels::abi;

use crate::device::BufferError;
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
    /// A length is more than memory can have.
    #[error(
        "{elements} elements of {element_bytes} bytes are more than an address space; \
         pass a length that memory can have"
    )]
    TooLong {
        /// The number of elements.
        elements: usize,
        /// The size of one.
        element_bytes: usize,
    },
    /// A call does not take this buffer.
    #[error(transparent)]
    Buffer(#[from] BufferError),
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
        "device {device} runs {capacity} blocks at once, and other communicators of this process may \
         use {reserved} of them. This one needs {ranks} x {blocks} (ranks on the device x blocks), so \
         kernels of both could wait for each other for ever. By default a communicator takes half of \
         a device: set `CommunicatorBuilder::max_blocks(n)` for every communicator of this process, \
         on all ranks, so that the sum of ranks x n is at most {capacity}. Here n may be {}",
        possible_blocks(*capacity, *reserved, *ranks)
    )]
    DeviceFull {
        /// The device's name.
        device: String,
        /// Blocks that fit the device at once, two a multiprocessor.
        capacity: u32,
        /// Blocks that other communicators may launch.
        reserved: u32,
        /// Ranks of this communicator on the device.
        ranks: u32,
        /// Blocks that each of them needs.
        blocks: u32,
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
    /// The call does not go with the state of the stream: a capture is open, or none is, or it is
    /// not the communicator's own.
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

/// What is left for `max_blocks` on a device, for [`Error::DeviceFull`].
fn possible_blocks(capacity: u32, reserved: u32, ranks: u32) -> String {
    match capacity.saturating_sub(reserved) / ranks.max(1) {
        0 => "0 only: the others must take less first".to_owned(),
        most => format!("1 to {most}"),
    }
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

/// Where the input of a call with a symmetric buffer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SymmetricPart {
    /// The buffer: how many the communicator had allocated before it.
    pub buffer: u16,
    /// The first element's place in it, in bytes.
    pub offset_bytes: u64,
}

impl SymmetricPart {
    /// The most symmetric buffers of one communicator. A detail has no room for more.
    pub(crate) const MAX_BUFFERS: usize = (1 << abi::PEERSUM_DETAIL_BUFFER_BITS) - 1;
    /// The largest symmetric buffer, in bytes. A detail has no room for larger offsets.
    pub(crate) const MAX_BUFFER_BYTES: u64 = 1 << abi::PEERSUM_DETAIL_OFFSET_BITS;
}

/// A call as its header and its detail tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallSignature {
    /// The call's place among all calls of the communicator, modulo 2^16.
    pub sequence: u16,
    /// Family and algorithm.
    pub kind: CallKind,
    /// Whether the input was a symmetric buffer that peers read directly.
    pub symmetric: bool,
    /// Which part of which symmetric buffer; `None` for an ordinary input, and where a rank is not
    /// known to have told it.
    pub part: Option<SymmetricPart>,
    /// The element type; `None` for a value that no rank of this version sends.
    pub dtype: Option<Dtype>,
    /// The message's size in bytes.
    pub bytes: u64,
}

impl CallSignature {
    /// Reads what a rank said of a call. A detail that is 0, or of another call, says nothing.
    pub(crate) fn from_words(header: u64, detail: u64) -> CallSignature {
        let mut signature = Self::from_header(header);
        if signature.symmetric && is_detail_of(header, detail) {
            let buffer = detail >> abi::PEERSUM_DETAIL_BUFFER_SHIFT
                & ((1 << abi::PEERSUM_DETAIL_BUFFER_BITS) - 1);
            signature.part = Some(SymmetricPart {
                buffer: (buffer as u16).wrapping_sub(1),
                offset_bytes: detail & ((1 << abi::PEERSUM_DETAIL_OFFSET_BITS) - 1),
            });
        }
        signature
    }

    /// Reads a header alone: the part is not in it.
    pub(crate) fn from_header(header: u64) -> CallSignature {
        let field = |shift: u32, bits: u32| (header >> shift) as u32 & ((1 << bits) - 1);
        CallSignature {
            sequence: (header >> abi::PEERSUM_HEADER_SEQUENCE_SHIFT) as u16,
            kind: CallKind::from_abi(
                field(abi::PEERSUM_HEADER_FAMILY_SHIFT, 1),
                field(abi::PEERSUM_HEADER_ALGORITHM_SHIFT, 1),
            ),
            symmetric: field(abi::PEERSUM_HEADER_SOURCE_SHIFT, 1) == abi::PEERSUM_SOURCE_SYMMETRIC,
            part: None,
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
            | u64::from(abi::PEERSUM_OPERATION_ALL_REDUCE) << abi::PEERSUM_HEADER_OPERATION_SHIFT
            | u64::from(self.symmetric) << abi::PEERSUM_HEADER_SOURCE_SHIFT
            | u64::from(family) << abi::PEERSUM_HEADER_FAMILY_SHIFT
            | u64::from(algorithm) << abi::PEERSUM_HEADER_ALGORITHM_SHIFT
            | u64::from(dtype) << abi::PEERSUM_HEADER_DTYPE_SHIFT
            | self.bytes
    }

    /// The second word of a call with a symmetric buffer, likewise without the sequence; 0 for any
    /// other call.
    pub(crate) fn detail(&self) -> u64 {
        self.part.map_or(0, |part| {
            (u64::from(part.buffer) + 1) << abi::PEERSUM_DETAIL_BUFFER_SHIFT | part.offset_bytes
        })
    }
}

/// Whether a detail is of the call of `header`: 0 stands for none.
pub(crate) fn is_detail_of(header: u64, detail: u64) -> bool {
    let shift = abi::PEERSUM_HEADER_SEQUENCE_SHIFT;
    detail != 0 && header >> shift == detail >> shift
}

impl fmt::Display for CallSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes of ", self.kind, self.bytes)?;
        match self.dtype {
            Some(dtype) => write!(f, "{dtype}")?,
            None => f.write_str("an unknown type")?,
        }
        match self.part {
            Some(SymmetricPart {
                buffer,
                offset_bytes,
            }) => write!(
                f,
                " in symmetric buffer {buffer} from byte {offset_bytes} on"
            )?,
            None if self.symmetric => f.write_str(" in a symmetric buffer")?,
            None => {}
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
                own: CallSignature::from_words(status.own_header, status.own_detail),
                theirs: CallSignature::from_words(status.peer_header, status.peer_detail),
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
    fn a_header_and_a_detail_say_all_of_their_call() {
        let mut rng = fastrand::Rng::with_seed(11);
        for _ in 0..1000 {
            let symmetric = rng.bool();
            let signature = CallSignature {
                sequence: rng.u16(..),
                kind: CallKind {
                    family: Family::ALL[rng.usize(..2)],
                    algorithm: Algorithm::ALL[rng.usize(..2)],
                },
                symmetric,
                part: symmetric.then(|| SymmetricPart {
                    buffer: rng.u16(..SymmetricPart::MAX_BUFFERS as u16),
                    offset_bytes: rng.u64(..SymmetricPart::MAX_BUFFER_BYTES),
                }),
                dtype: Some(Dtype::ALL[rng.usize(..3)]),
                bytes: rng.u64(..1 << abi::PEERSUM_HEADER_BYTES_BITS),
            };
            let sequence = u64::from(signature.sequence) << abi::PEERSUM_HEADER_SEQUENCE_SHIFT;
            let detail = match signature.detail() {
                0 => 0,
                detail => detail | sequence,
            };
            assert_eq!(
                CallSignature::from_words(signature.header(), detail),
                signature
            );
        }
    }
}
