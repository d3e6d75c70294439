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

/// Both entry points of one module.
#[derive(Debug, Clone, Copy)]
pub struct EmulatorModule {
    pub(crate) one_shot: EntryPoint,
    pub(crate) two_shot: EntryPoint,
    /// What a block has beyond the threads of its launch shape: those that carry signals.
    pub(crate) signal_threads: u32,
}

impl EmulatorModule {
    pub(crate) fn entry(&self, algorithm: Algorithm) -> EntryPoint {
        match algorithm {
            Algorithm::OneShot => self.one_shot,
            Algorithm::TwoShot => self.two_shot,
        }
    }
}

/// A recorded sequence of launches, fills and copies.
#[derive(Clone)]
pub struct EmulatorGraph {
    pub(crate) commands: Arc<[Command]>,
}
