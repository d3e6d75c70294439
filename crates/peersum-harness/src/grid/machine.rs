//! The machines that the grid runs on: they may check results themselves.

use std::sync::Arc;

use anyhow::{Result, bail};
use peersum::cudarc::driver::CudaStream;
use peersum::loader::{JitMode, LoadPolicy, LoadReport, Place};
use peersum_emulator::EmulatorStream;

use super::device_check::{DeviceCheck, DeviceCheckModule};
use crate::machine::{DeviceKind, Emulators, Gpus, Machine};

/// What the grid needs of a machine beside its streams.
pub(crate) trait GridMachine: Machine {
    /// Makes data and compares results on the device itself, where it can.
    fn device_check(
        &self,
        rank: u32,
        stream: &Self::Stream,
    ) -> Result<Option<Box<dyn DeviceCheck>>>;
}

impl GridMachine for Emulators {
    fn device_check(&self, _: u32, _: &EmulatorStream) -> Result<Option<Box<dyn DeviceCheck>>> {
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

impl Machine for CheckedGpus {
    type Stream = Arc<CudaStream>;

    fn kind(&self) -> DeviceKind {
        self.gpus.kind()
    }

    fn device_name(&self) -> &str {
        self.gpus.device_name()
    }

    fn devices(&self) -> u32 {
        self.gpus.devices()
    }

    fn stream(&self, rank: u32) -> Result<Self::Stream> {
        self.gpus.stream(rank)
    }
}

impl GridMachine for CheckedGpus {
    fn device_check(
        &self,
        rank: u32,
        stream: &Self::Stream,
    ) -> Result<Option<Box<dyn DeviceCheck>>> {
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
