//! What a device refuses, and why.

use crate::loader::LoadError;

/// Why the device could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A library that the device needs is not on this machine.
    #[error("{library} was not found; {help}")]
    LibraryMissing {
        /// The library's file name, for instance `libcuda.so.1`.
        library: String,
        /// What to install or set.
        help: String,
    },
    /// The driver's library exists but cannot be used.
    #[error("{reason}; {help}")]
    UnusableDriver {
        /// What is wrong with it.
        reason: String,
        /// What to do.
        help: String,
    },
    /// This process sees no GPU for its rank.
    #[error("there is no GPU for local rank {local_rank}: this process sees {visible}; {help}")]
    NoGpu {
        /// The rank's number among those of this machine.
        local_rank: u32,
        /// How many GPUs the driver shows this process.
        visible: u32,
        /// The value of `CUDA_VISIBLE_DEVICES`, and what to do.
        help: String,
    },
    /// A call into the driver failed.
    #[error("{call} failed: {message}")]
    Driver {
        /// The driver function, for instance `cuMemCreate`.
        call: &'static str,
        /// The driver's own name and description of the error.
        message: String,
    },
    /// The module for this configuration could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The stream cannot carry a communicator.
    #[error("this stream cannot carry a communicator: {reason}")]
    UnsuitableStream {
        /// Why, and which stream would do.
        reason: String,
    },
    /// Every known way of sharing memory failed.
    #[error("memory cannot be shared between the ranks: {reason}")]
    CannotShare {
        /// Each way that was tried, with its failure.
        reason: String,
    },
    /// A system call failed.
    #[error("{call} failed: {source}")]
    System {
        /// The call, for instance `memfd_create`.
        call: &'static str,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
}

impl DeviceError {
    pub(crate) fn driver(call: &'static str, message: impl Into<String>) -> Self {
        DeviceError::Driver {
            call,
            message: message.into(),
        }
    }

    pub(crate) fn cannot_share(reason: impl Into<String>) -> Self {
        DeviceError::CannotShare {
            reason: reason.into(),
        }
    }
}

/// Why a call does not take a buffer. Nothing was launched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BufferError {
    /// The memory belongs to another device, or to another context of the same device.
    #[error(
        "the buffer is memory of {buffer}, but the communicator's stream is one of \
         {communicator}; allocate the buffer in the context of the communicator's stream"
    )]
    OtherDevice {
        /// Where the memory is.
        buffer: String,
        /// Where the communicator's stream is.
        communicator: String,
    },
    /// The stream could not be made to wait for other work on the buffer.
    #[error(
        "the communicator's stream cannot be made to wait for earlier work on the buffer, so \
         nothing was launched: {message}"
    )]
    Unordered {
        /// The driver's own name and description of the error.
        message: String,
    },
    /// The same while the stream records, which has spoilt the recording.
    #[error("a wait for earlier work on the buffer has spoilt the capture of the stream")]
    SpoiltCapture,
}
