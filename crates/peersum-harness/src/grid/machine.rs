//! The machines that the grid runs on: they may check results themselves.

use std::sync::Arc;

use anyhow::{Result, bail};
use peersum::cudarc::driver::CudaStream;
use peersum::device::DeviceStream;
use peersum::loader::{JitMode, LoadPolicy, LoadReport, Place};
use peersum_emulator::EmulatorStream;

use super::device_check::{DeviceCheck, DeviceCheckModule};
use crate::machine::{Emulators, Gpus, Machine};

/// What the grid needs of a machine.
pub(crate) trait GridMachine: Send + Sync + 'static {
    type Stream: DeviceStream + Send + 'static;

    /// A new stream for a rank.
    fn stream(&self, rank: u32) -> Result<Self::Stream>;

    /// Makes data and compares results on the device itself, where it can.
    fn device_check(&self, rank: u32, stream: &Self::Stream) -> Result<Option<DeviceCheck>>;
}

impl GridMachine for Emulators {
    type Stream = EmulatorStream;

    fn stream(&self, rank: u32) -> Result<EmulatorStream> {
        Machine::stream(self, rank)
    }

    fn device_check(&self, _: u32, _: &EmulatorStream) -> Result<Option<DeviceCheck>> {
        Ok(None)
    }
}

/// GPUs with the kernels that check results.
pub(crate) struct CheckedGpus {
    gpus: Gpus,
    /// One for each GPU. They are loaded before any rank launches: loading may wait for a running
    /// kernel, and that kernel for its peers.
    checks: Vec<Option<DeviceCheckModule>>,
}

impl CheckedGpus {
    /// As [`Gpus::open`].
    pub(crate) fn open(ranks: u32) -> Result<CheckedGpus> {
        let gpus = Gpus::open(ranks)?;
        let checks = gpus.contexts().iter().map(DeviceCheckModule::load);
        Ok(CheckedGpus {
            checks: checks.collect::<Result<_>>()?,
            gpus,
        })
    }
}

impl GridMachine for CheckedGpus {
    type Stream = Arc<CudaStream>;

    fn stream(&self, rank: u32) -> Result<Self::Stream> {
        self.gpus.stream(rank)
    }

    fn device_check(&self, rank: u32, stream: &Self::Stream) -> Result<Option<DeviceCheck>> {
        let check = &self.checks[rank as usize % self.checks.len()];
        check.as_ref().map(|module| module.on(stream)).transpose()
    }
}

/// Where a rank's modules are loaded from: a rank compiles none.
pub(crate) fn load_policy() -> Result<LoadPolicy> {
    Ok(LoadPolicy::from_env()?.jit(JitMode::Deny))
}

/// Fails if a rank compiled a module.
pub(crate) fn require_precompiled(reports: &[LoadReport]) -> Result<()> {
    for report in reports {
        match report.place {
            Place::Directory(_) | Place::EnvDirectory(_) | Place::Pack => {}
            _ => bail!("{report}: a rank must compile nothing"),
        }
    }
    Ok(())
}
