//! What is measured: the machine's GPUs, or the emulator, whose figures mean nothing but run the same code.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use peersum::cudarc::driver::{CudaContext, CudaStream};
use peersum::device::DeviceStream;
use peersum::dispatch::Topology;
use peersum::loader::{JitMode, LoadPolicy};
use peersum_artifact::Manifest;
use peersum_emulator::{EmulatorDevice, EmulatorStream};
use peersum_kernels::HarnessBuild;
use serde::{Deserialize, Serialize};

use super::timing::{EventTimer, HostTimer, Timer};

/// `--device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DeviceChoice {
    /// The machine's GPUs: one a rank where there are enough, else shared.
    Cuda,
    /// The kernels on the CPU. Its times mean nothing.
    Emulator,
}

/// How the kernels were compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Build {
    /// As they are shipped.
    Shipped,
    /// Without header, bounds and poison.
    UnsafeBaseline,
    /// With the formal chain from a re-arm to the next store.
    StrictOrder,
}

impl Build {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Build::Shipped => "shipped",
            Build::UnsafeBaseline => "unsafe baseline",
            Build::StrictOrder => "strict order",
        }
    }
}

/// Makes what ranks need.
pub(crate) trait Machine: Send + Sync {
    type Stream: DeviceStream + Send + 'static;
    type Timer: Timer;

    /// The device's name.
    fn device_name(&self) -> &str;

    /// How many devices ranks are spread over.
    fn devices(&self) -> u32;

    /// A new stream for a rank.
    fn stream(&self, rank: u32) -> Result<Self::Stream>;

    fn timer(&self, stream: &Self::Stream) -> Result<Self::Timer>;

    /// Where the modules of a build are loaded from.
    fn load_policy(&self, build: Build) -> Result<LoadPolicy>;

    /// The compiler of the kernels.
    fn toolkit(&self) -> Result<String>;

    /// How long a call may wait for a peer: many times what any takes.
    fn call_timeout(&self) -> Duration;
}

/// The machine's GPUs.
pub(crate) struct Gpus {
    contexts: Vec<Arc<CudaContext>>,
    name: String,
    cubins: PathBuf,
    /// Directories of other builds.
    builds: Vec<(Build, PathBuf)>,
}

impl Gpus {
    pub(crate) fn open(cubins: &Path, builds: Vec<(Build, PathBuf)>) -> Result<Gpus> {
        peersum::cuda::driver_present()?;
        let count = CudaContext::device_count().context("counting the GPUs")?;
        ensure!(count > 0, "the CUDA driver finds no GPU");
        let contexts = (0..count.unsigned_abs())
            .map(|ordinal| {
                let context = peersum::open_context(ordinal)
                    .with_context(|| format!("opening GPU {ordinal}"))?;
                // SAFETY: every slice here is used on its rank's own stream only.
                unsafe { context.disable_event_tracking() };
                Ok(context)
            })
            .collect::<Result<Vec<_>>>()?;
        let name = contexts.first().context("there is no GPU")?.name()?;
        Ok(Gpus {
            contexts,
            name,
            cubins: cubins.to_owned(),
            builds,
        })
    }

    pub(crate) fn context(&self, rank: u32) -> Result<&Arc<CudaContext>> {
        self.contexts
            .get(rank as usize % self.contexts.len().max(1))
            .context("no GPU is open")
    }
}

impl Machine for Gpus {
    type Stream = Arc<CudaStream>;
    type Timer = EventTimer;

    fn call_timeout(&self) -> Duration {
        // What a candidate costs that hangs.
        Duration::from_secs(2)
    }

    fn device_name(&self) -> &str {
        &self.name
    }

    fn devices(&self) -> u32 {
        self.contexts.len() as u32
    }

    fn stream(&self, rank: u32) -> Result<Self::Stream> {
        Ok(self.context(rank)?.new_stream()?)
    }

    fn timer(&self, stream: &Self::Stream) -> Result<EventTimer> {
        EventTimer::new(stream)
    }

    fn load_policy(&self, build: Build) -> Result<LoadPolicy> {
        let policy = LoadPolicy::default().jit(JitMode::Deny);
        let harness_build = match build {
            Build::Shipped => return Ok(policy.cubin_dir(&self.cubins)),
            Build::UnsafeBaseline => HarnessBuild::UnsafeBaseline,
            Build::StrictOrder => HarnessBuild::StrictOrder,
        };
        let Some((_, directory)) = self.builds.iter().find(|(other, _)| *other == build) else {
            bail!("no directory of cubins is given for the {}", build.name());
        };
        Ok(policy.cubin_dir(directory).harness_build(harness_build))
    }

    fn toolkit(&self) -> Result<String> {
        let manifest = Manifest::read_dir(&self.cubins)?;
        Ok(format!(
            "{} {}",
            manifest.toolkit.kind, manifest.toolkit.version
        ))
    }
}

/// The emulator, one emulated device a rank.
pub(crate) struct Emulators;

impl Machine for Emulators {
    type Stream = EmulatorStream;
    type Timer = HostTimer;

    fn call_timeout(&self) -> Duration {
        // Its threads share few cores with all else that runs.
        Duration::from_secs(60)
    }

    fn device_name(&self) -> &str {
        "emulator"
    }

    fn devices(&self) -> u32 {
        // As many as ranks ask for.
        peersum_kernels::abi::PEERSUM_MAX_WORLD_SIZE
    }

    fn stream(&self, rank: u32) -> Result<EmulatorStream> {
        Ok(EmulatorDevice::new(rank).stream()?)
    }

    fn timer(&self, stream: &EmulatorStream) -> Result<HostTimer> {
        Ok(HostTimer::new(stream))
    }

    fn load_policy(&self, build: Build) -> Result<LoadPolicy> {
        ensure!(
            build == Build::Shipped,
            "the emulator has no {} of the kernels",
            build.name()
        );
        Ok(LoadPolicy::default())
    }

    fn toolkit(&self) -> Result<String> {
        Ok("the host's C++ compiler".to_owned())
    }
}

/// How ranks are connected, as the communicator sees it.
pub(crate) fn link_of<M: Machine>(choice: DeviceChoice, machine: &M, world_size: u32) -> Topology {
    match choice {
        DeviceChoice::Emulator => Topology::Emulator,
        DeviceChoice::Cuda if world_size > machine.devices() => Topology::Shared,
        DeviceChoice::Cuda => Topology::Peer,
    }
}
