//! What a communicator holds of the emulator: the device, its modules, its graphs.

use std::sync::Arc;

use peersum_artifact::Algorithm;

use crate::entry_points::EntryPoint;
use crate::stream::{Command, EmulatorStream};

/// Runs the kernels on the CPU. See the crate's documentation.
#[derive(Debug)]
pub struct Emulator {
    pub(crate) stream: EmulatorStream,
}

/// The entry points of one module.
#[derive(Debug, Clone, Copy)]
pub struct EmulatorModule {
    /// By algorithm, in the order of its declaration.
    pub(crate) entry_points: [Option<EntryPoint>; Algorithm::ALL.len()],
    /// What a block has beyond the threads of its launch shape: those that carry signals.
    pub(crate) signal_threads: u32,
}

impl EmulatorModule {
    pub(crate) fn entry(&self, algorithm: Algorithm) -> Option<EntryPoint> {
        self.entry_points[algorithm as usize]
    }
}

/// A recorded sequence of launches, fills and copies.
#[derive(Clone)]
pub struct EmulatorGraph {
    pub(crate) commands: Arc<[Command]>,
}
