//! The GPUs of this machine.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use peersum::cudarc::driver::{CudaContext, CudaStream};

use super::kind::DeviceKind;
use super::streams::Machine;
use crate::grid::device_check::{DeviceCheck, DeviceCheckModule};

/// GPUs that ranks use in turn.
pub(crate) struct Gpus {
    contexts: Vec<Arc<CudaContext>>,
    name: String,
    /// The kernels that check results, one for each GPU that has them.
    checks: Vec<Option<DeviceCheckModule>>,
}

impl Gpus {
    /// Opens a GPU for each rank, or all GPUs if there are fewer.
    ///
    /// # Errors
    /// There is no driver or no GPU, or one cannot be opened.
    pub(crate) fn open(ranks: u32) -> Result<Gpus> {
        Gpus::open_these((0..Gpus::count()?.min(ranks)).collect())
    }

    /// Opens the GPU of one rank, for a process that is that rank only.
    ///
    /// # Errors
    /// As [`Gpus::open`].
    pub(crate) fn open_for(rank: u32) -> Result<Gpus> {
        Gpus::open_these(vec![rank % Gpus::count()?])
    }

    /// How many GPUs there are, at least one.
    ///
    /// # Errors
    /// There is no driver or no GPU.
    pub(crate) fn count() -> Result<u32> {
        peersum::cuda::driver_present()?;
        let count = CudaContext::device_count().context("counting the GPUs")?;
        ensure!(count > 0, "the CUDA driver finds no GPU");
        Ok(count.unsigned_abs())
    }

    fn open_these(ordinals: Vec<u32>) -> Result<Gpus> {
        let contexts = ordinals
            .into_iter()
            .map(|ordinal| {
                let context = open_context(ordinal)?;
                // SAFETY: every slice of this program is used on the stream of one rank only.
                unsafe { context.disable_event_tracking() };
                Ok(context)
            })
            .collect::<Result<Vec<_>>>()?;
        let name = contexts.first().context("there is no GPU")?.name()?;
        Ok(Gpus {
            contexts,
            name,
            checks: Vec::new(),
        })
    }

    /// Loads the kernels that check results. Call it before any rank launches: loading may wait for
    /// a running kernel, and that kernel for its peers.
    pub(crate) fn with_checks(mut self) -> Result<Gpus> {
        let checks = self.contexts.iter().map(DeviceCheckModule::load);
        self.checks = checks.collect::<Result<_>>()?;
        Ok(self)
    }

    /// The context of a rank's GPU.
    pub(crate) fn context(&self, rank: u32) -> &Arc<CudaContext> {
        &self.contexts[rank as usize % self.contexts.len()]
    }
}

/// Opens a GPU. The error says how to run without it.
pub(super) fn open_context(ordinal: u32) -> Result<Arc<CudaContext>> {
    peersum::open_context(ordinal).with_context(|| {
        format!(
            "opening GPU {ordinal} (CUDA_VISIBLE_DEVICES can hide it, and --device emulator needs \
             no GPU)"
        )
    })
}

impl Machine for Gpus {
    type Stream = Arc<CudaStream>;

    fn kind(&self) -> DeviceKind {
        DeviceKind::Cuda
    }

    fn device_name(&self) -> &str {
        &self.name
    }

    fn devices(&self) -> u32 {
        self.contexts.len() as u32
    }

    fn stream(&self, rank: u32) -> Result<Self::Stream> {
        Ok(self.context(rank).new_stream()?)
    }

    fn device_check(&self, rank: u32, stream: &Self::Stream) -> Result<Option<DeviceCheck>> {
        let check = self.checks.get(rank as usize % self.contexts.len());
        let module = check.and_then(Option::as_ref);
        module.map(|module| module.on(stream)).transpose()
    }
}
