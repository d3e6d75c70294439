//! What ranks run on, behind one trait: the GPUs of this machine, or the emulator.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use peersum::cudarc::driver::{CudaContext, CudaStream};
use peersum::device::DeviceStream;
use peersum::loader::{JitMode, LoadPolicy, LoadReport, Place};
use peersum_emulator::{EmulatorDevice, EmulatorOptions, EmulatorStream};

use super::device_check::{DeviceCheck, DeviceCheckModule};
use super::settings::{DeviceChoice, DeviceKind};

/// Makes the streams of ranks.
pub(crate) trait Machine: Send + Sync + 'static {
    type Stream: DeviceStream + Send + 'static;

    /// A new stream for a rank.
    fn stream(&self, rank: u32) -> Result<Self::Stream>;

    /// Where the rank's modules are loaded from.
    fn load_policy(&self) -> Result<LoadPolicy>;

    /// Refuses modules that a rank had to compile.
    fn require_precompiled(&self, reports: &[LoadReport]) -> Result<()>;

    /// Makes data and compares results on the device itself, where it can.
    fn device_check(
        &self,
        rank: u32,
        stream: &Self::Stream,
    ) -> Result<Option<Box<dyn DeviceCheck>>>;
}

/// The machine's GPUs.
pub(crate) struct Gpus {
    contexts: Vec<(Arc<CudaContext>, Option<DeviceCheckModule>)>,
}

impl Gpus {
    /// Opens the GPUs that ranks will use: one a rank if there are enough, else all.
    pub(crate) fn open(ranks: u32) -> Result<Gpus> {
        peersum::cuda::driver_present()?;
        let count = CudaContext::device_count().context("counting the GPUs")?;
        ensure!(count > 0, "the CUDA driver finds no GPU");
        let contexts = (0..count.unsigned_abs().min(ranks))
            .map(|ordinal| {
                let context = peersum::open_context(ordinal)
                    .with_context(|| format!("opening GPU {ordinal}"))?;
                // SAFETY: every slice here is used on the stream of one rank only.
                unsafe { context.disable_event_tracking() };
                let module = DeviceCheckModule::load(&context)?;
                Ok((context, module))
            })
            .collect::<Result<_>>()?;
        Ok(Gpus { contexts })
    }

    fn context(&self, rank: u32) -> Result<&(Arc<CudaContext>, Option<DeviceCheckModule>)> {
        self.contexts
            .get(rank as usize % self.contexts.len().max(1))
            .context("no GPU is open")
    }
}

impl Machine for Gpus {
    type Stream = Arc<CudaStream>;

    fn stream(&self, rank: u32) -> Result<Self::Stream> {
        Ok(self.context(rank)?.0.new_stream()?)
    }

    fn load_policy(&self) -> Result<LoadPolicy> {
        Ok(LoadPolicy::from_env()?.jit(JitMode::Deny))
    }

    fn require_precompiled(&self, reports: &[LoadReport]) -> Result<()> {
        for report in reports {
            match report.place {
                Place::Directory(_) | Place::EnvDirectory(_) | Place::Pack => {}
                _ => bail!("{report}: a rank must compile nothing"),
            }
        }
        Ok(())
    }

    fn device_check(
        &self,
        rank: u32,
        stream: &Self::Stream,
    ) -> Result<Option<Box<dyn DeviceCheck>>> {
        let (_, module) = self.context(rank)?;
        module.as_ref().map(|module| module.on(stream)).transpose()
    }
}

/// The longest that a block is held back at random: a few times what a call takes here.
const BLOCK_DELAY: Duration = Duration::from_micros(300);

/// The kernels on the CPU, one emulated device a rank. Blocks are held back at random, so that those of one launch drift apart.
pub(crate) struct Emulators {
    pub(crate) options: EmulatorOptions,
}

impl Default for Emulators {
    fn default() -> Self {
        let mut options = EmulatorOptions::default();
        options.block_delay = BLOCK_DELAY;
        Emulators { options }
    }
}

impl Machine for Emulators {
    type Stream = EmulatorStream;

    fn stream(&self, rank: u32) -> Result<EmulatorStream> {
        Ok(EmulatorDevice::with_options(rank, &self.options).stream()?)
    }

    fn load_policy(&self) -> Result<LoadPolicy> {
        Ok(LoadPolicy::default())
    }

    fn require_precompiled(&self, _reports: &[LoadReport]) -> Result<()> {
        Ok(())
    }

    fn device_check(
        &self,
        _rank: u32,
        _stream: &EmulatorStream,
    ) -> Result<Option<Box<dyn DeviceCheck>>> {
        Ok(None)
    }
}

/// The GPUs that the machine has, as `nvcc` names their architectures; none without a driver.
fn gpu_architectures() -> Result<Vec<String>> {
    if peersum::cuda::driver_present().is_err() {
        return Ok(Vec::new());
    }
    let count = CudaContext::device_count().unwrap_or(0);
    (0..count.unsigned_abs())
        .map(|ordinal| {
            let context = peersum::open_context(ordinal).with_context(|| {
                format!(
                    "GPU {ordinal} (CUDA_VISIBLE_DEVICES can hide it, and --device emulator does \
                     without GPUs)"
                )
            })?;
            let (major, minor) = context.compute_capability()?;
            Ok(format!("sm_{major}{minor}"))
        })
        .collect()
}

/// What `--device` comes to on this machine, with a line that says so.
pub(crate) fn decide(choice: DeviceChoice, ranks: u32) -> Result<Decision> {
    let architectures = match choice {
        DeviceChoice::Emulator => Vec::new(),
        DeviceChoice::Auto | DeviceChoice::Cuda => gpu_architectures()?,
    };
    let count = architectures.len() as u32;
    let (kind, line) = match (choice, count) {
        (DeviceChoice::Emulator, _) => (
            DeviceKind::Emulator,
            "the emulator: the kernels on the CPU".to_owned(),
        ),
        (DeviceChoice::Cuda, 0) => bail!(
            "--device cuda: there is no GPU that the CUDA driver can use on this machine; --device emulator runs the kernels on the CPU"
        ),
        (_, 0) => (
            DeviceKind::Emulator,
            "no GPU here, so the emulator: the kernels on the CPU".to_owned(),
        ),
        (_, count) if count >= ranks => {
            (DeviceKind::Cuda, format!("{count} GPUs: one for each rank"))
        }
        (_, 1) => (DeviceKind::Cuda, "1 GPU, which all ranks share".to_owned()),
        (_, count) => (
            DeviceKind::Cuda,
            format!("{count} GPUs, which {ranks} ranks share"),
        ),
    };
    let mut architectures = architectures;
    architectures.sort();
    architectures.dedup();
    Ok(Decision {
        kind,
        line,
        architectures,
    })
}

/// What the ranks run on.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct Decision {
    pub(crate) kind: DeviceKind,
    /// In words.
    pub(crate) line: String,
    /// What modules are needed for.
    pub(crate) architectures: Vec<String>,
}
