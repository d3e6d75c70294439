//! What ranks tell each other of a call: a header, a detail if its input is symmetric, and two norm
//! words if its sum is normalised.

use std::fmt;

use peersum_artifact::{Algorithm, Dtype, Family};
use peersum_kernels::abi;

use crate::operation::Operation;

/// Family and algorithm of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallKind {
    /// The family.
    pub family: Family,
    /// The algorithm.
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

    /// The kernel that carries out a call of this kind with this header: those that move data or
    /// scatter sums have the kind of a one-shot push.
    pub(crate) fn of_kernel(self, header: u64) -> CallKind {
        let (family, algorithm) = match CallSignature::from_header(header).operation {
            Operation::AllReduce | Operation::RmsNorm => return self,
            Operation::AllGather => (Family::Move, Algorithm::AllGather),
            Operation::ReduceScatter => (Family::Push, Algorithm::ReduceScatter),
            Operation::Broadcast { .. } => (Family::Move, Algorithm::Broadcast),
        };
        CallKind { family, algorithm }
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
    assert!(Dtype::U8 as u32 == abi::PEERSUM_DTYPE_U8);
    assert!(Dtype::I8 as u32 == abi::PEERSUM_DTYPE_I8);
    assert!(Dtype::U32 as u32 == abi::PEERSUM_DTYPE_U32);
    assert!(Dtype::I32 as u32 == abi::PEERSUM_DTYPE_I32);
    assert!(Dtype::U64 as u32 == abi::PEERSUM_DTYPE_U64);
    assert!(Dtype::I64 as u32 == abi::PEERSUM_DTYPE_I64);
    assert!(Dtype::ALL.len() <= UNKNOWN_DTYPE as usize);
    assert!(NormOutput::Rows as u32 == abi::PEERSUM_NORM_OUTPUT_ROWS);
    assert!(NormOutput::Fp8Static as u32 == abi::PEERSUM_NORM_OUTPUT_FP8_STATIC);
    assert!(NormOutput::Fp8PerToken as u32 == abi::PEERSUM_NORM_OUTPUT_FP8_PER_TOKEN);
};

/// A header's number for a type that no rank of this version sends.
const UNKNOWN_DTYPE: u32 = (1 << abi::PEERSUM_HEADER_DTYPE_BITS) - 1;

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

/// What a call with RMSNorm writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormOutput {
    /// The normalised rows alone.
    Rows,
    /// The rows, and FP8 of them with a given scale.
    Fp8Static,
    /// The rows, and FP8 of them with a scale for each row.
    Fp8PerToken,
}

impl NormOutput {
    /// From the number of `abi.h`; an unknown one stands for the last.
    fn from_abi(number: u32) -> NormOutput {
        match number {
            abi::PEERSUM_NORM_OUTPUT_ROWS => NormOutput::Rows,
            abi::PEERSUM_NORM_OUTPUT_FP8_STATIC => NormOutput::Fp8Static,
            _ => NormOutput::Fp8PerToken,
        }
    }
}

/// How a call normalises its sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NormSignature {
    /// The length of a row, in elements; 0 if the type is not known.
    pub hidden: u32,
    epsilon_bits: u32,
    weight_offset_bits: u32,
    /// Whether a residual is added.
    pub has_residual: bool,
    /// What is written.
    pub output: NormOutput,
}

impl NormSignature {
    pub(crate) fn new(
        hidden: u32,
        (epsilon, weight_offset): (f32, f32),
        has_residual: bool,
        output: NormOutput,
    ) -> Self {
        Self {
            hidden,
            epsilon_bits: epsilon.to_bits(),
            weight_offset_bits: weight_offset.to_bits(),
            has_residual,
            output,
        }
    }

    /// What is added to the mean of the squares.
    #[must_use]
    pub fn epsilon(&self) -> f32 {
        f32::from_bits(self.epsilon_bits)
    }

    /// What is added to each weight.
    #[must_use]
    pub fn weight_offset(&self) -> f32 {
        f32::from_bits(self.weight_offset_bits)
    }

    /// The words that the call sends. The device adds the sequence.
    pub(crate) fn words(&self, dtype: Dtype) -> [u64; abi::PEERSUM_NORM_WORDS as usize] {
        let mark = 1 << abi::PEERSUM_NORM_MARK_SHIFT;
        let shift = abi::PEERSUM_NORM_VALUE_SHIFT;
        let units = self.hidden / unit_elements(dtype);
        [
            mark | u64::from(units) << shift | u64::from(self.epsilon_bits),
            mark | (self.output as u64) << abi::PEERSUM_NORM_OUTPUT_SHIFT
                | u64::from(self.has_residual) << shift
                | u64::from(self.weight_offset_bits),
        ]
    }

    /// Reads the words of a call of this header; `None` unless both have come.
    fn from_words(
        header: u64,
        words: [u64; abi::PEERSUM_NORM_WORDS as usize],
        dtype: Option<Dtype>,
    ) -> Option<Self> {
        let [epsilon, offset] = words;
        if !is_detail_of(header, epsilon) || !is_detail_of(header, offset) {
            return None;
        }
        let field = |word: u64| {
            let bits = abi::PEERSUM_NORM_MARK_SHIFT - abi::PEERSUM_NORM_VALUE_SHIFT;
            (word >> abi::PEERSUM_NORM_VALUE_SHIFT) as u32 & ((1 << bits) - 1)
        };
        let output = (offset >> abi::PEERSUM_NORM_OUTPUT_SHIFT) as u32
            & ((1 << abi::PEERSUM_NORM_OUTPUT_BITS) - 1);
        Some(Self {
            hidden: dtype.map_or(0, |dtype| field(epsilon) * unit_elements(dtype)),
            epsilon_bits: epsilon as u32,
            weight_offset_bits: offset as u32,
            has_residual: field(offset) & 1 != 0,
            output: NormOutput::from_abi(output),
        })
    }
}

impl fmt::Display for NormSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let with = if self.has_residual { "with a" } else { "no" };
        let fp8 = match self.output {
            NormOutput::Rows => "",
            NormOutput::Fp8Static => ", FP8 with a static scale",
            NormOutput::Fp8PerToken => ", FP8 with a scale for each row",
        };
        let (hidden, epsilon, offset) = (self.hidden, self.epsilon(), self.weight_offset());
        write!(
            f,
            ", with RMSNorm of rows of {hidden}, {with} residual, epsilon {epsilon}, \
             weight offset {offset}{fp8},"
        )
    }
}

/// Elements of a unit.
pub(crate) fn unit_elements(dtype: Dtype) -> u32 {
    abi::PEERSUM_UNIT_BYTES / dtype.size_bytes() as u32
}

/// A call as its words tell it.
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
    /// What the call does.
    pub operation: Operation,
    /// Whether this is a piece of a larger call, and more pieces follow.
    pub more_pieces_follow: bool,
    /// Whether all-reduce and RMSNorm are one kernel.
    pub fused: bool,
    /// How the sum is normalised; `None` for a call that normalises nothing, and where a rank is
    /// not known to have told it.
    pub norm: Option<NormSignature>,
    /// The element type; `None` for a value that no rank of this version sends.
    pub dtype: Option<Dtype>,
    /// The size in bytes of the message, or of one rank's chunk in an all-gather or a
    /// reduce-scatter.
    pub bytes: u64,
}

impl CallSignature {
    /// Reads what a rank told of a call. A word that is 0, or of another call, counts as none.
    pub(crate) fn from_words(
        header: u64,
        detail: u64,
        norm_words: [u64; abi::PEERSUM_NORM_WORDS as usize],
    ) -> CallSignature {
        let mut signature = Self::from_header(header);
        if signature.operation == Operation::RmsNorm {
            signature.norm = NormSignature::from_words(header, norm_words, signature.dtype);
        }
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
        let root = field(
            abi::PEERSUM_HEADER_ROOT_SHIFT,
            abi::PEERSUM_HEADER_ROOT_BITS,
        );
        let operation = field(
            abi::PEERSUM_HEADER_OPERATION_SHIFT,
            abi::PEERSUM_HEADER_OPERATION_BITS,
        );
        let operation = Operation::from_abi(operation, root);
        let has_root = matches!(operation, Operation::Broadcast { .. });
        let says = |bit| !has_root && root & bit != 0;
        let algorithm = field(abi::PEERSUM_HEADER_ALGORITHM_SHIFT, 1);
        let more_pieces_follow = match has_root {
            true => algorithm != 0,
            false => says(abi::PEERSUM_ROOT_MORE_PIECES_FOLLOW),
        };
        CallSignature {
            sequence: (header >> abi::PEERSUM_HEADER_SEQUENCE_SHIFT) as u16,
            kind: CallKind::from_abi(
                field(abi::PEERSUM_HEADER_FAMILY_SHIFT, 1),
                if has_root { 0 } else { algorithm },
            ),
            symmetric: field(abi::PEERSUM_HEADER_SOURCE_SHIFT, 1) == abi::PEERSUM_SOURCE_SYMMETRIC,
            part: None,
            operation,
            more_pieces_follow,
            fused: says(abi::PEERSUM_ROOT_FUSED),
            norm: None,
            dtype: Dtype::ALL
                .get(field(
                    abi::PEERSUM_HEADER_DTYPE_SHIFT,
                    abi::PEERSUM_HEADER_DTYPE_BITS,
                ) as usize)
                .copied(),
            bytes: header & ((1 << abi::PEERSUM_HEADER_BYTES_BITS) - 1),
        }
    }

    /// The word that a call sends. The device adds the sequence; a signature to be launched has
    /// sequence 0.
    pub(crate) fn header(&self) -> u64 {
        let family = self.kind.family as u32;
        let algorithm = match self.operation {
            Operation::Broadcast { .. } => u32::from(self.more_pieces_follow),
            _ => self.kind.algorithm as u32,
        };
        let dtype = self.dtype.map_or(UNKNOWN_DTYPE, |dtype| dtype as u32);
        u64::from(self.sequence) << abi::PEERSUM_HEADER_SEQUENCE_SHIFT
            | u64::from(self.operation.abi()) << abi::PEERSUM_HEADER_OPERATION_SHIFT
            | u64::from(self.symmetric) << abi::PEERSUM_HEADER_SOURCE_SHIFT
            | u64::from(family) << abi::PEERSUM_HEADER_FAMILY_SHIFT
            | u64::from(algorithm) << abi::PEERSUM_HEADER_ALGORITHM_SHIFT
            | u64::from(dtype) << abi::PEERSUM_HEADER_DTYPE_SHIFT
            | u64::from(self.root_bits()) << abi::PEERSUM_HEADER_ROOT_SHIFT
            | self.bytes
    }

    fn root_bits(&self) -> u32 {
        let bit = |is_set, bit| if is_set { bit } else { 0 };
        match self.operation {
            Operation::Broadcast { root } => root,
            _ => {
                bit(
                    self.more_pieces_follow,
                    abi::PEERSUM_ROOT_MORE_PIECES_FOLLOW,
                ) | bit(self.fused, abi::PEERSUM_ROOT_FUSED)
            }
        }
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
        match self.operation {
            Operation::AllReduce | Operation::RmsNorm => write!(f, "{}", self.kind)?,
            operation => write!(f, "{operation}")?,
        }
        let each = match self.operation {
            Operation::AllGather | Operation::ReduceScatter => " a rank",
            _ => "",
        };
        let dtype = self.dtype.map_or("an unknown type", Dtype::as_str);
        write!(f, " of {} bytes{each} of {dtype}", self.bytes)?;
        match self.part {
            Some(part) => {
                let (buffer, from) = (part.buffer, part.offset_bytes);
                write!(f, " in symmetric buffer {buffer} from byte {from} on")?;
            }
            None if self.symmetric => f.write_str(" in a symmetric buffer")?,
            None => {}
        }
        match self.norm {
            Some(norm) => write!(f, "{norm}")?,
            None if self.operation == Operation::RmsNorm => f.write_str(", with RMSNorm,")?,
            None => {}
        }
        if self.fused {
            f.write_str(" in one kernel")?;
        }
        if self.more_pieces_follow {
            f.write_str(", of which more pieces follow")?;
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
            let operation = Operation::from_abi(rng.u32(..5), rng.u32(..8));
            let normalised = operation == Operation::RmsNorm;
            let has_root = matches!(operation, Operation::Broadcast { .. });
            let dtype = Dtype::ALL[rng.usize(..Dtype::ALL.len())];
            let signature = CallSignature {
                sequence: rng.u16(..),
                kind: CallKind {
                    family: Family::ALL[rng.usize(..2)],
                    algorithm: match has_root {
                        true => Algorithm::OneShot,
                        false => Algorithm::ALL[rng.usize(..2)],
                    },
                },
                symmetric,
                part: symmetric.then(|| SymmetricPart {
                    buffer: rng.u16(..SymmetricPart::MAX_BUFFERS as u16),
                    offset_bytes: rng.u64(..SymmetricPart::MAX_BUFFER_BYTES),
                }),
                operation,
                more_pieces_follow: rng.bool(),
                fused: !has_root && rng.bool(),
                norm: normalised.then(|| {
                    let unit = unit_elements(dtype);
                    let (numbers, output) = ((rng.f32(), rng.f32()), rng.u32(..3));
                    let output = NormOutput::from_abi(output);
                    NormSignature::new(rng.u32(1..=4096) * unit, numbers, rng.bool(), output)
                }),
                dtype: Some(dtype),
                bytes: rng.u64(..1 << abi::PEERSUM_HEADER_BYTES_BITS),
            };
            let sequence = u64::from(signature.sequence) << abi::PEERSUM_HEADER_SEQUENCE_SHIFT;
            let detail = match signature.detail() {
                0 => 0,
                detail => detail | sequence,
            };
            let norm_words = signature.norm.map_or([0; 2], |norm| norm.words(dtype));
            let norm_words = norm_words.map(|word| if word == 0 { 0 } else { word | sequence });
            assert_eq!(
                CallSignature::from_words(signature.header(), detail, norm_words),
                signature
            );
        }
    }
}
