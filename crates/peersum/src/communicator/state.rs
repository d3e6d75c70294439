//! What one rank of a group holds, and what can be read of it.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::abort::AbortHandle;
use super::alone::Alone;
use super::builder::CommunicatorBuilder;
use super::connected::Connected;
use super::prepared::PreparedCall;
use super::stream_claim::StreamClaim;
use crate::cuda::Cuda;
use crate::device::{Device, DeviceIdentity};
use crate::dispatch::{DispatchTable, Plan};
use crate::error::Error;
use crate::loader::LoadReport;
use crate::rendezvous::{Group, ProcessId};

/// Communicators of this process so far.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// One rank of a group, whose calls go over its peers' GPUs.
///
/// `Send`, not `Sync`: it belongs to one stream and one thread at a time. All ranks make the same
/// calls in the same order, as with every collective library; a call in which they differ is an
/// error on every rank, not a hang.
///
/// Every call is asynchronous: `Ok` means launched. [`Communicator::synchronize`] is the only proof
/// that results are valid.
pub struct Communicator<D: Device = Cuda> {
    // Fields are dropped in this order: mappings of peers' memory and modules before the device,
    // the group after a barrier (see Drop).
    pub(super) connected: Option<Connected<D>>,
    /// Of a rank that is not connected; why it has none otherwise.
    pub(super) alone: Result<Alone<D>, String>,
    #[cfg(feature = "nccl")]
    pub(super) nccl: Option<crate::nccl::Link>,
    // Before the device, which may own the stream: another stream can then get its address.
    _stream_claim: StreamClaim,
    pub(super) device: D,
    pub(super) group: Option<Group>,
    /// The rank's process. None if the system could not tell.
    pub(super) process: Option<ProcessId>,
    pub(super) rank: u32,
    pub(super) world_size: u32,
    pub(super) id: u64,
    pub(super) identity: DeviceIdentity,
    pub(super) table: DispatchTable,
    pub(super) forced: Option<Plan>,
    /// Whether calls with RMSNorm are fused; `None`: as the plan says.
    pub(super) fuses: Option<bool>,
    pub(super) pdl: bool,
    /// The latest all-reduce, if one launch carried it out.
    pub(super) latest: Option<PreparedCall>,
    pub(super) timeout: Duration,
    pub(super) setup_timeout: Duration,
    /// What this rank knows of its failure. Other threads have clones.
    pub(super) handle: AbortHandle,
    /// The number of the capture that `capture_begin` has begun and `capture_end` has not ended.
    pub(super) capture: Option<u64>,
    /// Whether it has calls.
    pub(super) capture_has_calls: bool,
    /// Whether something else has ended such a capture, and so may have a graph of its calls.
    pub(super) lost_a_capture: bool,
    pub(super) allow_outside_capture: bool,
    not_sync: PhantomData<Cell<()>>,
}

impl<D: Device> Communicator<D> {
    /// A communicator that knows its own device and no other rank yet.
    pub(super) fn unconnected(
        builder: &CommunicatorBuilder,
        device: D,
        identity: DeviceIdentity,
        table: DispatchTable,
        claim: StreamClaim,
        rank: u32,
        world_size: u32,
    ) -> Self {
        Self {
            connected: None,
            alone: Err("this rank has peers".to_owned()),
            #[cfg(feature = "nccl")]
            nccl: None,
            device,
            group: None,
            process: ProcessId::current().ok(),
            rank,
            world_size,
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            identity,
            table,
            forced: None,
            fuses: None,
            pdl: builder.pdl,
            latest: None,
            timeout: builder.timeout,
            setup_timeout: builder.setup_timeout,
            handle: AbortHandle {
                rank,
                failure: Arc::default(),
                status: None,
            },
            capture: None,
            capture_has_calls: false,
            lost_a_capture: false,
            allow_outside_capture: builder.allow_outside_capture,
            _stream_claim: claim,
            not_sync: PhantomData,
        }
    }

    /// A failure that is known so far: of this rank, or told by a peer. Asks no driver and never
    /// waits; `Ok` proves nothing yet. For a thread that does not own the communicator:
    /// [`AbortHandle::status`].
    ///
    /// # Errors
    /// [`Error::Failed`] with the reason, as far as it is known without asking the device: where
    /// this says [`Failure::PeerFailed`](crate::Failure::PeerFailed),
    /// [`Communicator::synchronize`] may find the
    /// [`Failure::Disagreement`](crate::Failure::Disagreement) behind it.
    pub fn status(&self) -> Result<(), Error> {
        self.handle.status()
    }

    /// A handle with which any thread can read the status of this rank and end every wait of it.
    pub fn abort_handle(&self) -> AbortHandle {
        self.handle.clone()
    }

    /// This rank, from 0.
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// The number of ranks.
    pub fn world_size(&self) -> u32 {
        self.world_size
    }

    /// The stream that every call is enqueued on.
    pub fn stream(&self) -> &D::Stream {
        self.device.stream()
    }

    /// The device that the stream belongs to.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The device's name, identity and size.
    pub fn identity(&self) -> &DeviceIdentity {
        &self.identity
    }

    /// Where each module came from and how long it took.
    pub fn load_reports(&self) -> &[LoadReport] {
        match (&self.connected, &self.alone) {
            (Some(connected), _) => &connected.reports,
            (None, Ok(alone)) => &alone.reports,
            (None, Err(_)) => &[],
        }
    }

    /// The table that decides how calls are carried out.
    pub fn dispatch_table(&self) -> &DispatchTable {
        &self.table
    }

    /// The largest grid that any call launches, the same on every rank: this communicator's share
    /// of a GPU, which [`CommunicatorBuilder::max_blocks`] sets.
    pub fn max_blocks(&self) -> u32 {
        self.connected
            .as_ref()
            .map_or(0, |connected| connected.limits.blocks())
    }

    /// Device memory that this rank holds, in bytes: control block + 2 x push half + 2 x staging
    /// half (`max_bytes`), and its symmetric buffers.
    pub fn memory_bytes(&self) -> u64 {
        self.connected.as_ref().map_or(0, Connected::memory_bytes)
    }

    /// Carries out every later call by this plan instead of the table's; `None` goes back to the
    /// table. For tests and tuning: all ranks must set the same plan before the same call.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] if the plan's shape is outside what the kernels allow.
    pub fn force_plan(&mut self, plan: Option<Plan>) -> Result<(), Error> {
        if let Some(plan) = plan {
            plan.check_shape(self.table.topology)
                .map_err(|reason| Error::invalid("plan", reason))?;
        }
        self.forced = plan;
        Ok(())
    }

    /// Makes every later call with RMSNorm fused wherever one row fits the slots, or never; `None`
    /// goes back to what the plan says. For tests and tuning: all ranks must set the same before
    /// the same call.
    #[doc(hidden)]
    pub fn force_fused(&mut self, fuses: Option<bool>) {
        self.fuses = fuses;
    }
}
