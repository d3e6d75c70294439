//! The plain values that a device takes and returns.

use std::ffi::c_void;
use std::os::fd::{BorrowedFd, OwnedFd};

use peersum_artifact::Arch;
use serde::{Deserialize, Serialize};

/// What ranks must know of each other's device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceIdentity {
    /// The device's name, for instance `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Equal for two ranks exactly if they use the same device (or the same part of one).
    pub uuid: [u8; 16],
    /// Its architecture, which a cubin must be compiled for; `None` on the emulator.
    pub arch: Option<Arch>,
    /// Multiprocessors, which bound the blocks that run at once.
    pub multiprocessors: u32,
}

impl DeviceIdentity {
    pub(crate) fn is_emulated(&self) -> bool {
        self.arch.is_none()
    }
}

/// Which way of sharing memory to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemorySharing {
    /// File descriptors if the device supports them, else legacy IPC.
    #[default]
    Auto,
    /// File descriptors or an error.
    FileDescriptor,
    /// Legacy CUDA IPC (and, within a process, peer access by address).
    LegacyIpc,
}

/// How a piece of shared memory travels to another rank.
#[derive(Debug)]
pub enum Export {
    /// A file descriptor (CUDA VMM handle, memfd), sent through the rendezvous as ancillary data.
    Fd(OwnedFd),
    /// A legacy CUDA IPC handle: 64 opaque bytes.
    LegacyIpc([u8; 64]),
    /// The owner is a thread of this process: its address is valid here (on CUDA: once peer access
    /// is on).
    SameProcess(u64),
}

/// A received [`Export`].
#[derive(Debug)]
pub enum Import<'a> {
    /// See [`Export::Fd`].
    Fd(BorrowedFd<'a>),
    /// See [`Export::LegacyIpc`].
    LegacyIpc([u8; 64]),
    /// See [`Export::SameProcess`].
    SameProcess(u64),
}

/// The shape of one launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaunchShape {
    /// Blocks, 1 to `PEERSUM_MAX_BLOCKS`.
    pub blocks: u32,
    /// Threads of a block that handle data, `PEERSUM_MIN_THREADS` to `PEERSUM_MAX_THREADS`. The
    /// device adds one thread for each rank, which carry signals.
    pub threads: u32,
    /// Adjacent blocks that run at once and can write to each other's memory: a cluster, if more
    /// than 1. A divisor of `blocks`.
    pub cluster: u32,
    /// Whether to set the programmatic launch attribute. Ignored for an entry point that does not
    /// wait for the kernel before it.
    pub pdl: bool,
}

/// A stream as a library knows it. See [`Device::library_stream`](super::Device::library_stream).
#[derive(Debug, Clone, Copy)]
pub struct LibraryStream {
    /// CUDA's handle. Null on a device whose streams have none: the stream is idle, and the library
    /// does its work before it returns.
    pub handle: *mut c_void,
    /// Whether what is enqueued is recorded instead of run.
    pub is_recording: bool,
}

/// Whether a buffer makes the stream of a call wait for other work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waits {
    /// It does not.
    Never,
    /// It may enqueue waits on the stream, before the call or behind it.
    Possible,
}

impl std::ops::BitOr for Waits {
    type Output = Waits;

    fn bitor(self, other: Waits) -> Waits {
        match self {
            Waits::Never => other,
            Waits::Possible => Waits::Possible,
        }
    }
}

/// Whether a stream records what is enqueued on it instead of running it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recording {
    /// It runs what is enqueued.
    Off,
    /// It records, whoever began the capture.
    On {
        /// The number of the capture, which no other capture of the stream has.
        capture: u64,
    },
    /// It records, and something that a capture cannot hold has spoilt the recording.
    Spoilt,
}
