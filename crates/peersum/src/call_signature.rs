//! What ranks tell each other of a call: a header, and a detail if its input is symmetric.

use std::fmt;

use peersum_artifact::{Algorithm, Dtype, Family};
use peersum_kernels::abi;

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
    /// From the numbers of `abi.h`. An unknown number stands for the first of its kind.
    pub(crate) fn from_abi(family: u32, algorithm: u32) -> CallKind {
        let family = Family::ALL.get(family as usize);
        let algorithm = Algorithm::ALL.get(algorithm as usize);
        CallKind {
            family: *family.unwrap_or(&Family::Push),
            algorithm: *algorithm.unwrap_or(&Algorithm::OneShot),
        }
    }
}

/// The kinds have the numbers of `abi.h`, by which headers and records name them.
const _: () = {
    assert!(Family::Push as u32 == abi::PEERSUM_FAMILY_PUSH);
    assert!(Family::Pull as u32 == abi::PEERSUM_FAMILY_PULL);
    assert!(Algorithm::OneShot as u32 == abi::PEERSUM_ALGORITHM_ONE_SHOT);
    assert!(Algorithm::TwoShot as u32 == abi::PEERSUM_ALGORITHM_TWO_SHOT);
    assert!(Dtype::F16 as u32 == abi::PEERSUM_DTYPE_F16);
    assert!(Dtype::Bf16 as u32 == abi::PEERSUM_DTYPE_BF16);
    assert!(Dtype::F32 as u32 == abi::PEERSUM_DTYPE_F32);
};

/// A header's number for a type that no rank of this version sends.
const UNKNOWN_DTYPE: u32 = 3;

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
    /// Reads what a rank told of a call. A detail that is 0, or of another call, counts as none.
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
            dtype: Dtype::ALL
                .get(field(abi::PEERSUM_HEADER_DTYPE_SHIFT, 2) as usize)
                .copied(),
            bytes: header & ((1 << abi::PEERSUM_HEADER_BYTES_BITS) - 1),
        }
    }

    /// The word that a call sends. The device adds the sequence; a signature to be launched has
    /// sequence 0.
    pub(crate) fn header(&self) -> u64 {
        let family = self.kind.family as u32;
        let algorithm = self.kind.algorithm as u32;
        let dtype = self.dtype.map_or(UNKNOWN_DTYPE, |dtype| dtype as u32);
        u64::from(self.sequence) << abi::PEERSUM_HEADER_SEQUENCE_SHIFT
            | u64::from(abi::PEERSUM_OPERATION_ALL_REDUCE) << abi::PEERSUM_HEADER_OPERATION_SHIFT
            | u64::from(self.symmetric) << abi::PEERSUM_HEADER_SOURCE_SHIFT
            | u64::from(family) << abi::PEERSUM_HEADER_FAMILY_SHIFT
            | u64::from(algorithm) << abi::PEERSUM_HEADER_ALGORITHM_SHIFT
            | u64::from(dtype) << abi::PEERSUM_HEADER_DTYPE_SHIFT
            | self.bytes
    }

    /// The second word of a call with a symmetric buffer, also without the sequence; 0 for any
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
