//! The emulator: the kernels on the CPU, one emulated device for each rank.

use std::time::Duration;

use anyhow::Result;
use peersum_emulator::{EmulatorDevice, EmulatorOptions, EmulatorStream};
use peersum_kernels::abi::PEERSUM_MAX_WORLD_SIZE;

use super::kind::DeviceKind;
use super::streams::Machine;

/// Maximum random delay of a block: a few times the duration of a call on the emulator.
const BLOCK_DELAY: Duration = Duration::from_micros(300);

/// Emulated devices, as many as ranks ask for.
#[derive(Default)]
pub(crate) struct Emulators {
    pub(crate) options: EmulatorOptions,
}

impl Emulators {
    /// Delays blocks at random, so that those of one launch drift apart.
    pub(crate) fn with_delayed_blocks() -> Emulators {
        let mut emulators = Emulators::default();
        emulators.options.block_delay = BLOCK_DELAY;
        emulators
    }
}

impl Machine for Emulators {
    type Stream = EmulatorStream;

    fn kind(&self) -> DeviceKind {
        DeviceKind::Emulator
    }

    fn device_name(&self) -> &str {
        "emulator"
    }

    fn devices(&self) -> u32 {
        PEERSUM_MAX_WORLD_SIZE
    }

    fn stream(&self, rank: u32) -> Result<EmulatorStream> {
        Ok(EmulatorDevice::with_options(rank, &self.options).stream()?)
    }
}
