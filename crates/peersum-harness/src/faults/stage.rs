//! The cases, and what a case has of the device and the flags.

use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};
use peersum::device::DeviceStream;
use peersum::loader::LoadPolicy;
use peersum::{Communicator, CommunicatorBuilder, Rendezvous};

use crate::machine::{DeviceChoice, DeviceKind};

/// How long a call waits for a peer in these cases.
pub(super) const TIMEOUT: Duration = Duration::from_secs(1);

/// The data of most calls, and their size.
pub(super) const SEED: u64 = 3;
pub(super) const ELEMENTS: usize = 3000;

/// The length of their rows with RMSNorm.
pub(super) const HIDDEN: usize = 600;

/// One case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Case {
    /// Two communicators with default settings share the GPUs (one rank per GPU if there are two).
    /// Ranks enqueue their calls in opposite orders, eager and as graphs.
    TwoCommunicators,
    /// Four and eight ranks share a GPU and replay a graph without waiting, with and without
    /// programmatic dependent launch, between eager calls.
    GraphReplays,
    /// A rank never calls, in each operation. The others name it, outputs are NaN or ones, an
    /// earlier graph is refused and moves no data, and a new communicator works.
    AbsentRank,
    /// Another thread aborts a rank that waits.
    Abort,
    /// Ranks call with different operations, roots, sizes, types, algorithms, norms or FP8, in a
    /// different order, or skip a call; eager and in graphs.
    Disagreement,
    /// The program captures a rank's stream itself; cudarc's event tracking; slices of another GPU.
    /// Uses two GPUs if there are two.
    Captures,
}

/// Which cases to run.
#[derive(Debug, Clone, Args)]
pub(crate) struct FaultsArgs {
    /// The case [default: all that the device supports].
    #[arg(long)]
    pub(super) case: Option<Case>,
    /// What the ranks run on. All share GPU 0 unless the case says otherwise; on the emulator each
    /// has its own device.
    #[arg(long, value_enum, default_value = "auto")]
    pub(super) device: DeviceChoice,
    /// How much later than its deadline a rank may fail, in milliseconds.
    #[arg(long, default_value_t = 1000)]
    pub(super) grace_ms: u64,
    /// Maximum time in which an abort must end every wait, in milliseconds.
    #[arg(long, default_value_t = 10)]
    pub(super) abort_ms: u64,
}

/// What a case has of the device and the flags.
pub(super) struct Stage<'a, S> {
    pub(super) args: &'a FaultsArgs,
    pub(super) kind: DeviceKind,
    pub(super) stream: &'a (dyn Fn(u32) -> Result<S> + Sync),
}

impl<S> Stage<'_, S> {
    /// How much later than its deadline a rank may fail.
    pub(super) fn grace(&self) -> Duration {
        Duration::from_millis(self.args.grace_ms)
    }
}

impl<S: DeviceStream> Stage<'_, S> {
    /// A rank's communicator on a stream of its own.
    pub(super) fn build(
        &self,
        rendezvous: Rendezvous,
        settings: impl FnOnce(CommunicatorBuilder) -> CommunicatorBuilder,
    ) -> Result<Communicator<S::Device>> {
        let stream = (self.stream)(rendezvous.rank())?;
        let mut builder = Communicator::builder()
            .rendezvous(rendezvous)
            .load_policy(LoadPolicy::from_env()?)
            .max_bytes(64 << 10)
            .timeout(TIMEOUT)
            .setup_timeout(Duration::from_secs(60));
        if self.kind == DeviceKind::Emulator {
            // Every thread of a grid is a thread of the host, and all of them spin.
            builder = builder.max_blocks(1);
        }
        Ok(settings(builder).build(&stream)?)
    }
}
