//! The communicator: one rank of a group, on one stream of one device.

mod abort;
mod agreement;
mod builder;
mod check;
mod graph;
mod inherited;
mod layout;
mod lent;
mod links;
mod modules;
#[cfg(feature = "nccl")]
mod nccl_path;
mod path;
mod probe;
mod processes;
mod recording;
mod seats;
mod setup;
mod shared;
mod sharing;
mod step;
mod symmetric;

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use peersum_artifact::Dtype;
use peersum_kernels::abi::{self, PeersumParams};

pub use abort::AbortHandle;
pub use builder::CommunicatorBuilder;
pub use graph::{Capture, Graph, Held};
pub use path::CallPath;
pub use shared::SharedCommunicator;
pub(crate) use sharing::{Shared, share};
#[doc(hidden)]
pub use step::SetupStep;
pub use symmetric::SymmetricBuffer;

use crate::buffer::{Input, Output};
use crate::cuda::Cuda;
use crate::device::{Device, DeviceIdentity, LaunchShape};
use crate::dispatch::{DispatchTable, Plan};
use crate::element::Element;
use crate::error::{CallKind, CallSignature, Error, Failure};
use crate::loader::LoadReport;
use crate::rendezvous::{Group, ProcessId};
use links::Links;

/// The longest that a rank that is dropped waits for its peers to be dropped too, before it frees what they map.
const TEARDOWN_PATIENCE: Duration = Duration::from_secs(5);

/// One rank of a group that reduces over its peers' GPUs.
///
/// `Send`, not `Sync`: it belongs to one stream and one thread at a time. All ranks make the same calls in the same order, as with every
/// collective library; a call in which they differ is an error on every rank, not a hang.
///
/// Every call is asynchronous: `Ok` means launched. [`Communicator::synchronize`] is the only proof that results are valid.
pub struct Communicator<D: Device = Cuda> {
    // Fields are dropped in this order: mappings of peers' memory and modules before the device, the group after a barrier (see Drop).
    links: Option<Links<D>>,
    #[cfg(feature = "nccl")]
    nccl: Option<crate::nccl::Link>,
    device: D,
    group: Option<Group>,
    /// The rank's process. None if the system could not tell.
    process: Option<ProcessId>,
    rank: u32,
    world_size: u32,
    id: u64,
    identity: DeviceIdentity,
    table: DispatchTable,
    forced: Option<Plan>,
    pdl: bool,
    timeout: Duration,
    setup_timeout: Duration,
    /// The first failure that was looked up. Handles read it on other threads.
    failure: Arc<OnceLock<Failure>>,
    /// Whether `capture_begin` has begun a capture that nothing has ended.
    capturing: bool,
    allow_outside_capture: bool,
    _stream_claim: builder::StreamClaim,
    not_sync: PhantomData<Cell<()>>,
}

/// One launch, or several pieces of one call.
#[derive(Clone, Copy)]
struct Call {
    dtype: Dtype,
    input: u64,
    output: u64,
    elements: u64,
}

impl Call {
    /// The size of one buffer.
    fn bytes(&self) -> Result<u64, Error> {
        let element_bytes = self.dtype.size_bytes();
        self.elements
            .checked_mul(element_bytes as u64)
            .ok_or(Error::TooLong {
                elements: self.elements as usize,
                element_bytes,
            })
    }
}

impl Communicator<Cuda> {
    /// Starts the settings of a communicator. The device is that of the stream that [`CommunicatorBuilder::build`] is given.
    pub fn builder() -> CommunicatorBuilder {
        CommunicatorBuilder::new()
    }
}

impl<D: Device> Communicator<D> {
    /// The bare launch of the kernel of such a call, with parameters that are put together once: a
    /// benchmark compares [`Communicator::all_reduce`] with it. `None` for a group of one and for a
    /// call of several launches.
    ///
    /// # Safety
    /// Both addresses must hold `len` elements until the stream has passed every launch. All ranks
    /// must launch equally often.
    #[doc(hidden)]
    pub unsafe fn bare_launch<T: Element>(
        &self,
        input: u64,
        output: u64,
        len: usize,
    ) -> Option<impl Fn() -> Result<(), Error> + use<'_, T, D>> {
        let links = self.links.as_ref()?;
        let call = Call {
            dtype: T::DTYPE,
            input,
            output,
            elements: len as u64,
        };
        let bytes = call.bytes().ok()?;
        let placement = links.placement(input, output, bytes);
        let plan = self.forced.unwrap_or_else(|| self.plan(placement, bytes));
        let units = bytes.div_ceil(u64::from(abi::PEERSUM_UNIT_BYTES));
        if len == 0 || units > links.layout.capacity_units(plan.route, self.world_size) {
            return None;
        }
        let (shape, params) = self.prepare(links, plan, call);
        let module = links.modules.get(plan.route.family(), call.dtype);
        Some(move || {
            // SAFETY: as in `launch`, but for the caller's arrays, which are the caller's promise.
            unsafe {
                self.device
                    .launch(module, plan.route.algorithm(), shape, &params)?
            };
            Ok(())
        })
    }

    /// Sums `input` over all ranks into `output`, in rank order in float32 with one rounding (see [`crate::reference`]).
    ///
    /// `Ok` means launched: the output is valid once [`Communicator::synchronize`] has returned
    /// `Ok`. A length of 0 does nothing and does not count.
    ///
    /// All ranks must call with the same length and type, and with inputs of the same kind:
    /// ordinary memory, or the same part of the same symmetric buffer. Addresses and alignment may
    /// differ. For ordinary inputs the choice of output may differ as well, and one rank may work
    /// in place while another does not. For symmetric inputs either every rank works in place or
    /// none does: where the dispatch table has a route for symmetric buffers the algorithms differ,
    /// because in place each rank writes its share of the sum into every rank's buffer, and then it
    /// is [`Failure::Disagreement`] on every rank.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`]; [`Error::Buffer`] for memory of another GPU or context;
    /// [`Error::Capture`] while the stream records a capture that is not the communicator's own;
    /// [`Error::Failed`] at once if an earlier call is known to have failed; [`Error::Device`] if
    /// the launch was refused.
    pub fn all_reduce<T: Element, I: Input<T, D>, O: Output<T, D>>(
        &mut self,
        input: &I,
        output: &mut O,
    ) -> Result<(), Error> {
        if input.len() != output.len() {
            return Err(Error::LengthMismatch {
                input: input.len(),
                output: output.len(),
            });
        }
        self.all_reduce_into_front(input, output)
    }

    /// [`Communicator::all_reduce`] into the first elements of an output that may be longer.
    pub(crate) fn all_reduce_into_front<T: Element, I: Input<T, D>, O: Output<T, D>>(
        &mut self,
        input: &I,
        output: &mut O,
    ) -> Result<(), Error> {
        if output.len() < input.len() {
            return Err(Error::LengthMismatch {
                input: input.len(),
                output: output.len(),
            });
        }
        // Before the buffers' own waits are enqueued.
        self.check_recording()?;
        let stream = self.device.stream().clone();
        input.check(&stream)?;
        output.check(&stream)?;
        let elements = input.len() as u64;
        input.with_input(&stream, |input| {
            output.with_output(&stream, |output| {
                self.enqueue(Call {
                    dtype: T::DTYPE,
                    input,
                    output,
                    elements,
                })
            })
        })
    }

    /// Sums `buffer` over all ranks in place. As [`Communicator::all_reduce`] otherwise.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce`].
    pub fn all_reduce_in_place<T: Element, O: Output<T, D>>(
        &mut self,
        buffer: &mut O,
    ) -> Result<(), Error> {
        self.check_recording()?;
        let stream = self.device.stream().clone();
        buffer.check(&stream)?;
        let elements = buffer.len() as u64;
        buffer.with_output(&stream, |address| {
            self.enqueue(Call {
                dtype: T::DTYPE,
                input: address,
                output: address,
                elements,
            })
        })
    }

    /// Launches one call, in pieces if it is larger than what its route holds.
    fn enqueue(&mut self, call: Call) -> Result<(), Error> {
        self.refuse_if_failed()?;
        if self.capturing || self.allow_outside_capture {
            // The buffers' own waits may have spoilt the capture.
            self.check_recording()?;
        }
        let bytes = call.bytes()?;
        #[cfg(feature = "nccl")]
        if let Some(nccl) = self.nccl_for(bytes) {
            return self.enqueue_to_nccl(nccl, call);
        }
        let Some(links) = &self.links else {
            // One rank: the sum is the input.
            if call.input != call.output && call.elements != 0 {
                // SAFETY: `Input` and `Output` vouch for both ranges; distinct buffers do not overlap.
                unsafe { self.device.copy(call.output, call.input, bytes as usize)? };
            }
            return Ok(());
        };
        if call.elements == 0 {
            return Ok(());
        }
        let element_bytes = call.dtype.size_bytes() as u64;
        let placement = links.placement(call.input, call.output, bytes);
        let plan = self.forced.unwrap_or_else(|| self.plan(placement, bytes));
        if !plan.route.serves(placement) {
            return Err(Error::InvalidSetting {
                setting: "plan",
                reason: format!(
                    "{:?} needs a symmetric buffer as its input, the one-shot another buffer as its output, the \
                     two-shot the same",
                    plan.route
                ),
            });
        }
        let unit_elements = u64::from(abi::PEERSUM_UNIT_BYTES) / element_bytes;
        let piece = links.layout.capacity_units(plan.route, self.world_size) * unit_elements;
        let mut done = 0;
        while done < call.elements {
            let elements = piece.min(call.elements - done);
            let offset = done * element_bytes;
            let piece = Call {
                input: call.input + offset,
                output: call.output + offset,
                elements,
                ..call
            };
            self.launch(links, plan, piece)?;
            done += elements;
        }
        Ok(())
    }

    fn launch(&self, links: &Links<D>, plan: Plan, call: Call) -> Result<(), Error> {
        let (shape, params) = self.prepare(links, plan, call);
        let module = links.modules.get(plan.route.family(), call.dtype);
        // SAFETY: `params` holds this rank's view of the group's arenas and symmetric buffers, mapped as long as `links` lives, and the caller's
        // input and output, which `Input` and `Output` keep valid for what is enqueued here; the status record is held by `links`. The shape is
        // within the table's checked bounds. Teardown waits for the stream before any of it is unmapped.
        unsafe {
            self.device
                .launch(module, plan.route.algorithm(), shape, &params)?
        };
        Ok(())
    }

    /// The grid and the parameters of one launch.
    fn prepare(&self, links: &Links<D>, plan: Plan, call: Call) -> (LaunchShape, PeersumParams) {
        let mut params = PeersumParams {
            input: call.input,
            output: call.output,
            elements: call.elements,
            ..links.params
        };
        let bytes = call.elements * call.dtype.size_bytes() as u64;
        let mut signature = CallSignature {
            sequence: 0,
            kind: CallKind {
                family: plan.route.family(),
                algorithm: plan.route.algorithm(),
            },
            symmetric: plan.route.is_symmetric(),
            part: None,
            dtype: Some(call.dtype),
            bytes,
        };
        if signature.symmetric
            // `enqueue` has made sure that the whole input is symmetric, so every piece of it is.
            && let Some(range) = links.find_symmetric(call.input, bytes)
        {
            signature.part = Some(range.part());
            params.source = range.addresses;
            let is_aligned =
                |address: &u64| address.is_multiple_of(u64::from(abi::PEERSUM_UNIT_BYTES));
            let ranks = self.world_size as usize;
            if range.addresses.iter().take(ranks).all(is_aligned) {
                params.flags |= abi::PEERSUM_FLAG_SOURCE_ALIGNED;
            }
        }
        params.header = signature.header();
        params.detail = signature.detail();
        let Plan {
            blocks, threads, ..
        } = links.limits.launched(plan, bytes, self.world_size);
        let shape = LaunchShape {
            blocks,
            threads,
            pdl: self.pdl,
        };
        (shape, params)
    }

    /// A failure that is known so far: of this rank, or told by a peer. Asks no driver and never
    /// waits; `Ok` proves nothing yet. For a thread that does not own the communicator:
    /// [`AbortHandle::status`].
    ///
    /// # Errors
    /// [`Error::Failed`] with the reason, as far as it is known without asking the device: where this says [`Failure::PeerFailed`],
    /// [`Communicator::synchronize`] may find the [`Failure::Disagreement`] behind it.
    pub fn status(&self) -> Result<(), Error> {
        let status = self.links.as_ref().map(|links| &links.status);
        abort::known_failure(self.rank, &self.failure, status)
    }

    /// A handle with which any thread can read the status of this rank and end every wait of it.
    pub fn abort_handle(&self) -> AbortHandle {
        let status = self.links.as_ref().map(|links| links.status.clone());
        AbortHandle::new(self.rank, Arc::clone(&self.failure), status)
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

    /// Where each module came from and how long it took. Empty for a group of one.
    pub fn load_reports(&self) -> &[LoadReport] {
        self.links.as_ref().map_or(&[], |links| &links.reports)
    }

    /// The table that decides how calls are carried out.
    pub fn dispatch_table(&self) -> &DispatchTable {
        &self.table
    }

    /// The largest grid that any call launches, the same on every rank: this communicator's share
    /// of a GPU, which [`CommunicatorBuilder::max_blocks`] sets.
    pub fn max_blocks(&self) -> u32 {
        self.links.as_ref().map_or(0, |links| links.limits.blocks())
    }

    /// Device memory that this rank holds, in bytes: control block + 2 x push half + 2 x staging half (`max_bytes`), and its symmetric
    /// buffers.
    pub fn memory_bytes(&self) -> u64 {
        self.links.as_ref().map_or(0, Links::memory_bytes)
    }

    /// Carries out every later call by this plan instead of the table's; `None` goes back to the table. For tests and tuning: all ranks
    /// must set the same plan before the same call.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] if the plan's shape is outside what the kernels allow.
    pub fn force_plan(&mut self, plan: Option<Plan>) -> Result<(), Error> {
        if let Some(plan) = plan {
            plan.check_shape(self.table.link)
                .map_err(|reason| Error::InvalidSetting {
                    setting: "plan",
                    reason,
                })?;
        }
        self.forced = plan;
        Ok(())
    }

    /// Wraps the communicator in a mutex, for callers that need `&self` and `Sync`.
    pub fn into_shared(self) -> SharedCommunicator<D> {
        SharedCommunicator::new(self)
    }
}

/// Waits for the communicator's stream and then frees its memory. A capture that is open on the
/// stream is ended, whoever began it. If the stream cannot be waited for, because another thread
/// began the capture or the device has failed, the memory is leaked: a kernel may still use it.
impl<D: Device> Drop for Communicator<D> {
    fn drop(&mut self) {
        if self.is_inherited() {
            self.leave_to_parent();
            return;
        }
        self.end_any_capture();
        #[cfg(feature = "nccl")]
        self.close_nccl();
        let Some(mut links) = self.links.take() else {
            return;
        };
        // Every wait of a kernel is bounded, so this returns.
        if let Err(error) = self.device.synchronize() {
            tracing::warn!(
                rank = self.rank,
                bytes = links.memory_bytes(),
                %error,
                "device memory is leaked: the communicator's stream cannot be waited for"
            );
            // The peers' memory is mapped still, so this rank does not meet them: they keep what
            // they lent.
            links.leak();
            return;
        }
        links.close_mappings();
        // Peers may still have kernels that use this rank's memory. What they mapped from a file descriptor stays theirs until they unmap it,
        // so the wait is a courtesy, which a failed group goes without; what they know by its address must outlive their use of it.
        let lent_by_address = links.lent_by_address();
        let patience = match lent_by_address {
            true => TEARDOWN_PATIENCE,
            false => TEARDOWN_PATIENCE.min(self.timeout),
        };
        let peers_are_done = match &mut self.group {
            Some(group) if self.failure.get().is_none() || lent_by_address => {
                group.barrier("teardown", patience).is_ok()
            }
            _ => false,
        };
        if peers_are_done {
            links.peers_let_go();
        }
    }
}
