//! One call that is measured, of any operation.

use peersum::Element;
use peersum::dispatch::{Placement, Plan};

use crate::norm_output::NormOutput;
use crate::operation::Operation;

/// The root of broadcasts.
pub(crate) const ROOT: u32 = 0;

/// The pattern that arrays repeat, in bytes: making more random numbers than this would take longer
/// than measuring.
const PATTERN_BYTES: usize = 1 << 16;

/// What a call does, on which message, and how it is carried out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct MeasuredCall {
    pub(crate) operation: Operation,
    /// The message: the output of an all-gather, the input of a reduce-scatter.
    pub(crate) bytes: usize,
    /// Elements of a row, with RMSNorm.
    pub(crate) hidden: u32,
    /// What a call with RMSNorm writes.
    pub(crate) output: NormOutput,
    pub(crate) placement: Placement,
    /// Instead of the plan of the dispatch table.
    pub(crate) plan: Option<Plan>,
    /// Whether a call with RMSNorm takes the fused kernel; `None` leaves it to the table.
    pub(crate) fuses: Option<bool>,
}

impl MeasuredCall {
    /// A call on ordinary input as the dispatch table says.
    pub(crate) fn new(operation: Operation, bytes: usize) -> MeasuredCall {
        MeasuredCall {
            operation,
            bytes,
            hidden: 0,
            output: NormOutput::Same,
            placement: Placement::Ordinary,
            plan: None,
            fuses: None,
        }
    }

    /// A call with RMSNorm, of `rows` rows of elements of `element_bytes`.
    pub(crate) fn of_rows(rows: u32, hidden: u32, element_bytes: usize) -> MeasuredCall {
        MeasuredCall {
            hidden,
            ..MeasuredCall::new(
                Operation::RmsNorm,
                rows as usize * hidden as usize * element_bytes,
            )
        }
    }

    /// What a rank sends to each peer: its chunk of the message, in whole units, or all of it.
    pub(crate) fn sent_bytes(&self, world_size: u32) -> usize {
        match self.operation {
            Operation::AllGather | Operation::ReduceScatter => {
                (self.bytes / world_size as usize / 16).max(1) * 16
            }
            _ => self.bytes,
        }
    }

    pub(crate) fn rows<T: Element>(&self) -> u32 {
        (self.bytes / size_of::<T>()) as u32 / self.hidden.max(1)
    }

    /// Elements of the input and of the output.
    pub(super) fn lengths<T: Element>(&self, world_size: u32) -> [usize; 2] {
        let sent = self.sent_bytes(world_size) / size_of::<T>();
        match self.operation {
            Operation::AllGather => [sent, sent * world_size as usize],
            Operation::ReduceScatter => [sent * world_size as usize, sent],
            _ => [sent, sent],
        }
    }

    /// Elements after which the arrays repeat: whole rows, if there are rows.
    pub(super) fn period<T: Element>(&self, elements: usize) -> usize {
        let pattern = PATTERN_BYTES / size_of::<T>();
        let hidden = (self.hidden as usize).max(1);
        elements.min((pattern / hidden).max(1) * hidden)
    }

    /// Whether the result replaces the input.
    pub(super) fn is_in_place(&self) -> bool {
        self.placement == Placement::SymmetricInPlace || self.output.has_fp8()
    }
}
