//! Calls: from the program's buffers to the launches of one call.

use peersum_kernels::abi::{self, PeersumParams};

use super::connected::Connected;
use super::prepared::{Call, Cause, PreparedCall};
use super::state::Communicator;
use crate::call_signature::{CallKind, CallSignature};
use crate::device::{Device, Input, LaunchShape, Output};
use crate::dispatch::Plan;
use crate::element::Element;
use crate::error::Error;
use crate::operation::Operation;

impl<D: Device> Communicator<D> {
    /// Sums `input` over all ranks into `output`, in rank order in float32 with one rounding (see
    /// [`crate::reference`]).
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
    /// is [`Failure::Disagreement`](crate::Failure::Disagreement) on every rank.
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
        let stream = self.device.stream().clone();
        self.check_before_waits(input.check(&stream)? | output.check(&stream)?)?;
        let elements = input.len() as u64;
        input.with_input(&stream, |input| {
            output.with_output(&stream, |output| {
                self.enqueue(Call {
                    dtype: T::DTYPE,
                    input,
                    output,
                    elements,
                    operation: Operation::AllReduce,
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
        let stream = self.device.stream().clone();
        self.check_before_waits(buffer.check(&stream)?)?;
        let elements = buffer.len() as u64;
        buffer.with_output(&stream, |address| {
            self.enqueue(Call {
                dtype: T::DTYPE,
                input: address,
                output: address,
                elements,
                operation: Operation::AllReduce,
            })
        })
    }

    /// Refuses a call once a failure is known, or if the stream's capture is spoilt.
    pub(super) fn admit(&mut self) -> Result<(), Error> {
        self.refuse_if_failed()?;
        // The buffers' own waits may have spoilt the capture, or drawn the stream into one of
        // another stream.
        self.check_recording()?;
        self.capture_has_calls |= self.capture.is_some();
        Ok(())
    }

    /// Launches one call.
    pub(super) fn enqueue(&mut self, call: Call) -> Result<(), Error> {
        self.admit()?;
        let bytes = call.bytes()?;
        #[cfg(feature = "nccl")]
        if let Some(nccl) = self.nccl_for(bytes) {
            return self.enqueue_to_nccl(nccl, call);
        }
        let Some(connected) = &self.connected else {
            // One rank: the sum is the input.
            if call.input != call.output && call.elements != 0 {
                // SAFETY: `Input` and `Output` vouch for both ranges; distinct buffers do not
                // overlap.
                unsafe { self.device.copy(call.output, call.input, bytes as usize)? };
            }
            return Ok(());
        };
        if call.elements == 0 {
            return Ok(());
        }
        let cause = Cause {
            call,
            forced: self.forced,
            timeout_ns: connected.params.timeout_ns,
            symmetric_buffers: connected.symmetric.len(),
        };
        if self.latest.as_ref().is_none_or(|it| it.cause != cause) {
            self.latest = self.prepare_whole(connected, cause)?;
        }
        let Some(latest) = &self.latest else {
            return self.reduce(connected, call, &mut { connected.params });
        };
        let module = connected.modules.get(latest.family, call.dtype);
        let (algorithm, shape, params) = (latest.algorithm, latest.shape, &latest.params);
        // SAFETY: as in `launch`. They were made for the same addresses and the same state of
        // `connected`.
        unsafe { self.device.launch(module, algorithm, shape, params)? };
        Ok(())
    }

    /// What a call needs that is launched once. `None` if it takes several launches.
    fn prepare_whole(
        &self,
        connected: &Connected<D>,
        cause: Cause,
    ) -> Result<Option<PreparedCall>, Error> {
        let call = cause.call;
        let plan = self.plan_of(connected, &call)?;
        if call.elements > connected.most_elements(plan.route, call.dtype) {
            return Ok(None);
        }
        let mut params = connected.params;
        let shape = self.prepare(connected, plan, call, false, &mut params);
        Ok(Some(PreparedCall {
            cause,
            family: plan.route.family(),
            algorithm: plan.route.algorithm(),
            shape,
            params,
        }))
    }

    /// The plan of a call.
    ///
    /// # Errors
    /// A forced plan does not serve it.
    pub(super) fn plan_of(&self, connected: &Connected<D>, call: &Call) -> Result<Plan, Error> {
        let bytes = call.bytes()?;
        let placement = connected.placement(call.input, call.output, bytes);
        let plan = self.forced.unwrap_or_else(|| self.plan(placement, bytes));
        if !plan.route.serves(placement) {
            let reason = format!(
                "{:?} needs a symmetric buffer as its input, and as its output another buffer \
                 (one-shot) or the same one (two-shot)",
                plan.route
            );
            return Err(Error::invalid("plan", reason));
        }
        Ok(plan)
    }

    /// Launches the kernels of one all-reduce, in pieces if it is larger than what its route holds.
    /// `params` are those of any call; afterwards they are those of the last piece.
    pub(super) fn reduce(
        &self,
        connected: &Connected<D>,
        call: Call,
        params: &mut PeersumParams,
    ) -> Result<(), Error> {
        let plan = self.plan_of(connected, &call)?;
        let element_bytes = call.dtype.size_bytes() as u64;
        let piece = connected.most_elements(plan.route, call.dtype);
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
            done += elements;
            self.launch(connected, plan, piece, done < call.elements, params)?;
        }
        Ok(())
    }

    /// Launches one piece of a call.
    fn launch(
        &self,
        connected: &Connected<D>,
        plan: Plan,
        call: Call,
        more_pieces_follow: bool,
        params: &mut PeersumParams,
    ) -> Result<(), Error> {
        let shape = self.prepare(connected, plan, call, more_pieces_follow, params);
        let module = connected.modules.get(plan.route.family(), call.dtype);
        let algorithm = plan.route.algorithm();
        // SAFETY: `params` holds this rank's view of the group's arenas and symmetric buffers,
        // mapped as long as `connected` lives, and the caller's input and output, which `Input` and
        // `Output` keep valid for what is enqueued here; the status record is held by `connected`.
        // The shape is within the table's checked bounds. Teardown waits for the stream before any
        // of it is unmapped.
        unsafe { self.device.launch(module, algorithm, shape, params)? };
        Ok(())
    }

    /// The grid of one launch. Its parameters replace those of another call in `params`: they are
    /// large, so a call copies them once.
    pub(super) fn prepare(
        &self,
        connected: &Connected<D>,
        plan: Plan,
        call: Call,
        more_pieces_follow: bool,
        params: &mut PeersumParams,
    ) -> LaunchShape {
        params.input = call.input;
        params.output = call.output;
        params.elements = call.elements;
        params.flags = connected.params.flags;
        let bytes = call.elements * call.dtype.size_bytes() as u64;
        let mut signature = CallSignature {
            sequence: 0,
            kind: CallKind {
                family: plan.route.family(),
                algorithm: plan.route.algorithm(),
            },
            symmetric: plan.route.is_symmetric(),
            part: None,
            operation: call.operation,
            more_pieces_follow,
            fused: false,
            norm: None,
            dtype: Some(call.dtype),
            bytes,
        };
        if signature.symmetric
            // `enqueue` has made sure that the whole input is symmetric, so every piece of it is.
            && let Some(range) = connected.find_symmetric(call.input, bytes)
        {
            signature.part = Some(range.part);
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
        } = connected.limits.launched(plan, bytes, self.world_size);
        LaunchShape {
            blocks,
            threads,
            cluster: 1,
            pdl: self.pdl,
        }
    }
}
