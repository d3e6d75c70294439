//! The errors of a communicator, each with what to do.

use std::time::Duration;

use crate::device::{BufferError, DeviceError};
use crate::dispatch::TableError;
use crate::failure::Failure;
use crate::norm_error::NormError;
use crate::operation::Operation;
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
    /// Input and output do not fit each other.
    #[error(
        "the input has {input} elements and the output {output}: the {} is too short",
        if input < output { "input" } else { "output" }
    )]
    LengthMismatch {
        /// Elements of the input.
        input: usize,
        /// Elements of the output.
        output: usize,
    },
    /// The buffers of an all-gather or a reduce-scatter do not fit each other.
    #[error(
        "{operation} over {world_size} ranks: the {} has {whole} elements and the {} {chunk}; the \
         first must be {world_size} times as long as the second",
        whole_and_chunk(operation).0,
        whole_and_chunk(operation).1
    )]
    ChunkLength {
        /// The operation.
        operation: Operation,
        /// Elements of the output of an all-gather or the input of a reduce-scatter.
        whole: usize,
        /// Elements of the other buffer: one rank's chunk.
        chunk: usize,
        /// The number of ranks.
        world_size: u32,
    },
    /// The buffer of an all-gather or a reduce-scatter in place is not one chunk for each rank.
    #[error(
        "{operation} in place over {world_size} ranks: {elements} elements are no multiple of \
         {world_size}, so the ranks' chunks would differ in length"
    )]
    UnequalChunks {
        /// The operation.
        operation: Operation,
        /// Elements of the buffer.
        elements: usize,
        /// The number of ranks.
        world_size: u32,
    },
    /// The root of a broadcast is no rank.
    #[error(
        "there is no rank {root} to broadcast from: the group has ranks 0 to {}",
        world_size - 1
    )]
    Root {
        /// The root that was given.
        root: u32,
        /// The number of ranks.
        world_size: u32,
    },
    /// Only groups whose ranks share memory have this call.
    #[error(
        "{operation} goes through peersum's kernels, which this group has not: its ranks reach \
         each other by NCCL alone, so call NCCL for it"
    )]
    NoKernels {
        /// The operation.
        operation: Operation,
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
    Buffer(BufferError),
    /// A call with RMSNorm was refused.
    #[error(transparent)]
    Norm(#[from] NormError),
    /// The blocks of all ranks that share a device cannot run at once, so the ranks could deadlock.
    #[error(
        "the blocks of the ranks that share device {device} did not run at the same time within \
         {waited:?}: set CUDA_DEVICE_MAX_CONNECTIONS=32 before creating the CUDA context, so that \
         no two ranks' streams share a hardware queue, and keep other kernels off the device while \
         communicators are built"
    )]
    NotCoResident {
        /// The device's name.
        device: String,
        /// How long the probe waited.
        waited: Duration,
    },
    /// Other communicators of this process hold the device's multiprocessors.
    #[error(
        "device {device} runs {capacity} blocks at once, and other communicators of this process \
         may use {reserved} of them. This one needs {ranks} x {blocks} (ranks on the device x \
         blocks), so their kernels could deadlock. By default a communicator takes half of a \
         device: set `CommunicatorBuilder::max_blocks(n)` for every communicator of this process, \
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
        "this stream carries another communicator already; give each communicator a stream of its \
         own"
    )]
    StreamTaken,
    /// A setting cannot be used.
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
    /// The ranks did not meet, or one was lost during set-up.
    #[error(transparent)]
    Rendezvous(#[from] RendezvousError),
    /// The device refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl Error {
    pub(crate) fn invalid(setting: &'static str, reason: impl Into<String>) -> Self {
        Error::InvalidSetting {
            setting,
            reason: reason.into(),
        }
    }
}

/// The buffers of an operation, for [`Error::ChunkLength`].
fn whole_and_chunk(operation: &Operation) -> (&'static str, &'static str) {
    match operation {
        Operation::ReduceScatter => ("input", "output"),
        _ => ("output", "input"),
    }
}

/// What is left for `max_blocks` on a device, for [`Error::DeviceFull`].
fn possible_blocks(capacity: u32, reserved: u32, ranks: u32) -> String {
    match capacity.saturating_sub(reserved) / ranks.max(1) {
        0 => "0 only: the others must take less first".to_owned(),
        most => format!("1 to {most}"),
    }
}
