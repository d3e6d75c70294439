//! The settings of a communicator.

use std::time::Duration;

use super::layout::StartEpochs;
use crate::device::MemorySharing;
use crate::error::Error;
use crate::loader::LoadPolicy;
use crate::rendezvous::Rendezvous;

/// The largest staged all-reduce that is not split, unless set otherwise: 64 MiB.
const DEFAULT_MAX_BYTES: u64 = 64 << 20;

/// One half of the push slots, unless set otherwise: 32 MiB, or 16 times `max_bytes` if that is
/// less. 16 MiB cost a pair 4 % at 64 MiB, in pieces of 16.
const DEFAULT_PUSH_HALF_BYTES: u64 = 32 << 20;

/// How long a call waits for a peer, unless set otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the ranks wait for each other during set-up, unless set otherwise. Engines load weights
/// at very different speeds.
const DEFAULT_SETUP_TIMEOUT: Duration = Duration::from_secs(300);

/// Settings of a [`Communicator`](crate::Communicator). All ranks must use the same, except for
/// where modules are loaded from and for the timeouts.
#[derive(Debug)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct CommunicatorBuilder {
    pub(super) rendezvous: Option<Rendezvous>,
    pub(super) load_policy: Option<LoadPolicy>,
    pub(super) max_bytes: u64,
    pub(super) push_half_bytes: Option<u64>,
    pub(super) max_blocks: Option<u32>,
    pub(super) timeout: Duration,
    pub(super) setup_timeout: Duration,
    pub(super) pdl: bool,
    pub(super) sharing: MemorySharing,
    pub(super) tables: Option<String>,
    pub(super) start: StartEpochs,
    pub(super) allow_outside_capture: bool,
    #[cfg(feature = "nccl")]
    pub(super) above_range: Option<crate::nccl::Nccl>,
}

impl CommunicatorBuilder {
    pub(super) fn new() -> Self {
        CommunicatorBuilder {
            rendezvous: None,
            load_policy: None,
            max_bytes: DEFAULT_MAX_BYTES,
            push_half_bytes: None,
            max_blocks: None,
            timeout: DEFAULT_TIMEOUT,
            setup_timeout: DEFAULT_SETUP_TIMEOUT,
            pdl: true,
            sharing: MemorySharing::Auto,
            tables: None,
            start: StartEpochs::default(),
            allow_outside_capture: false,
            #[cfg(feature = "nccl")]
            above_range: None,
        }
    }

    /// How the ranks find each other. Required.
    pub fn rendezvous(mut self, rendezvous: Rendezvous) -> Self {
        self.rendezvous = Some(rendezvous);
        self
    }

    /// Where modules are loaded from. Default: [`LoadPolicy::from_env`].
    pub fn load_policy(mut self, policy: LoadPolicy) -> Self {
        self.load_policy = Some(policy);
        self
    }

    /// All-reduces of more bytes are split, except those that replace a symmetric buffer by
    /// two-shot; less than 32 GiB. Two staging halves of this size are allocated. Default: 64 MiB.
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes as u64;
        self
    }

    /// Takes calls also while the program itself captures the communicator's stream, for instance
    /// with cudarc's `begin_capture`. Without this setting such a call is [`Error::Capture`], and
    /// [`Communicator::capture_begin`](crate::Communicator::capture_begin) is the way to capture.
    ///
    /// # Safety
    /// A graph that the program captured knows nothing of the communicator. For every such graph
    /// that holds a call, or a launch of a [`Graph`](crate::Graph), the program must make sure
    /// that:
    /// - it is launched only while the communicator lives, and all its launches have ended before
    ///   the communicator is dropped;
    /// - it is launched on the communicator's stream only
    ///   ([`Communicator::stream`](crate::Communicator::stream)), or so that every launch is
    ///   ordered by events after all earlier calls and before all later ones: two calls of one
    ///   communicator must never run at once;
    /// - every buffer of its calls stays allocated, at its address, as long as the graph is
    ///   launched;
    /// - one launch follows the other: it is in no conditional, parallel or repeated branch of
    ///   another graph.
    ///
    /// As always, every rank makes the same calls in the same order, and the launches of graphs
    /// count.
    pub unsafe fn allow_outside_capture(mut self) -> Self {
        self.allow_outside_capture = true;
        self
    }

    /// The size of one half of the push slots, in bytes; two are allocated.
    ///
    /// These calls fit: a one-shot push of this size divided by the world size, and a two-shot push
    /// of half this size; for a pair of ranks, both of this size. Larger calls go as
    /// [`Communicator::plan`](crate::Communicator::plan) says. Any value works: it is rounded up to
    /// a multiple of 1 KiB for each rank (of 1 KiB for a pair), and to at least 8 KiB. 32 GiB and
    /// more are refused.
    ///
    /// Default: 32 MiB, or 16 times `max_bytes` if that is less.
    pub fn push_half_bytes(mut self, bytes: usize) -> Self {
        self.push_half_bytes = Some(bytes as u64);
        self
    }

    /// The largest grid of this communicator, in blocks: its share of the device. All ranks use the
    /// smallest value that any of them gives.
    ///
    /// Blocks that wait for a peer stay on the device. So the communicators of a process must not
    /// have more blocks on a device than run there at once, which is two for each multiprocessor
    /// (264 on an H100). [`CommunicatorBuilder::build`] reserves them, for each rank on the device,
    /// and returns [`Error::DeviceFull`] if they are not free.
    ///
    /// Default: half of the device, divided by the ranks of this communicator that share it (132
    /// blocks on an H100 with one rank), or less if no row of the dispatch table needs as many. So
    /// a device has room for two communicators with default settings, for instance one for tensor
    /// and one for expert parallelism. Set a smaller number for each if there are more. A larger
    /// one helps where many ranks share a device and no other communicator needs it; what exceeds
    /// the whole device is cut to that.
    ///
    /// The number depends on the settings and the device alone, never on what other communicators
    /// hold: grids are the same in every process, in every run and in every captured graph.
    pub fn max_blocks(mut self, blocks: u32) -> Self {
        self.max_blocks = Some(blocks);
        self
    }

    /// How long a call waits for a peer before it fails. Default: 30 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long the ranks wait for each other during set-up and in collective allocations. Default:
    /// 5 minutes.
    pub fn setup_timeout(mut self, timeout: Duration) -> Self {
        self.setup_timeout = timeout;
        self
    }

    /// Programmatic dependent launch on GPUs of compute capability 9.0 and up. Default: on.
    ///
    /// With it a kernel that follows a call in the stream may start before the call has ended, if
    /// that kernel is itself launched with the attribute
    /// (`CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION`). Every kernel that the program
    /// launches so between two calls must execute `griddepcontrol.wait` (in CUDA C++
    /// `cudaGridDependencySynchronize`), whatever memory it uses, and before it touches a buffer of
    /// the call in front. A call waits for the kernel in front of it and for no earlier one: if
    /// that kernel ends without having waited, the next call runs beside the last one, and results
    /// can be wrong. Kernels that are launched without the attribute need nothing.
    pub fn pdl(mut self, on: bool) -> Self {
        self.pdl = on;
        self
    }

    /// How memory is shared between the ranks. Default: file descriptors where the driver can, else
    /// legacy CUDA IPC.
    pub fn memory_sharing(mut self, sharing: MemorySharing) -> Self {
        self.sharing = sharing;
        self
    }

    /// The text of a file of dispatch tables, as `cargo xtask tune` writes it, instead of the
    /// shipped ones.
    pub fn dispatch_tables(mut self, json: impl Into<String>) -> Self {
        self.tables = Some(json.into());
        self
    }

    /// Sends all-reduces larger than [`CommunicatorBuilder::max_bytes`] to NCCL, instead of in
    /// pieces through peersum's kernels; or every all-reduce, with
    /// [`Nccl::across_hosts`](crate::nccl::Nccl::across_hosts), which takes the place of a
    /// rendezvous. What differs then is said in [`crate::nccl`]. Default: no NCCL.
    #[cfg(feature = "nccl")]
    pub fn above_range(mut self, nccl: crate::nccl::Nccl) -> Self {
        self.above_range = Some(nccl);
        self
    }

    /// Lets the epochs start elsewhere than at 0 calls, to test their wrap-around within reach.
    /// `pull` is at least 1.
    #[doc(hidden)]
    pub fn start_epochs(mut self, push: u32, pull: u64) -> Self {
        self.start = StartEpochs {
            push,
            // A flag is a multiple of the epoch, and must not wrap: a wait would end at once.
            pull: pull.clamp(1, u64::MAX >> 2),
        };
        self
    }

    /// What carries out all-reduces above the custom range, as the ranks compare it: one rank may
    /// have been built with the feature `nccl` and another without. Opens NCCL, so that a rank that
    /// lacks it fails before any rank waits for it in NCCL.
    pub(super) fn above_range_name(&self, world_size: u32) -> Result<String, Error> {
        #[cfg(feature = "nccl")]
        if let Some(nccl) = self.above_range.as_ref().filter(|_| world_size > 1) {
            return Ok(format!("NCCL {}", nccl.open()?.version));
        }
        let _ = world_size;
        Ok("peersum's kernels".to_owned())
    }

    pub(super) fn push_half_bytes_or_default(&self) -> u64 {
        self.push_half_bytes
            .unwrap_or_else(|| DEFAULT_PUSH_HALF_BYTES.min(self.max_bytes.saturating_mul(16)))
    }
}
