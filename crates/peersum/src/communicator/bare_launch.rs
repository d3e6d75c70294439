//! The bare launch of a call's kernel, for the benchmark that shows the overhead of a call.

use super::prepared::Call;
use super::state::Communicator;
use crate::device::Device;
use crate::element::Element;
use crate::error::Error;
use crate::operation::Operation;

impl<D: Device> Communicator<D> {
    /// The bare launch of the kernel of such a call, with parameters that are put together once: a
    /// benchmark compares [`Communicator::all_reduce`] with it. `None` for a group of one and for a
    /// call of several launches. Launch from the thread that this was called on.
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
        let connected = self.connected.as_ref()?;
        let call = Call {
            dtype: T::DTYPE,
            input,
            output,
            elements: len as u64,
            operation: Operation::AllReduce,
        };
        let bytes = call.bytes().ok()?;
        let placement = connected.placement(input, output, bytes);
        let plan = self.forced.unwrap_or_else(|| self.plan(placement, bytes));
        let units = bytes.div_ceil(u64::from(peersum_kernels::abi::PEERSUM_UNIT_BYTES));
        if len == 0 || units > connected.layout.capacity_units(plan.route) {
            return None;
        }
        let mut params = connected.params;
        let shape = self.prepare(connected, plan, call, false, &mut params);
        let module = connected.modules.get(plan.route.family(), call.dtype);
        let algorithm = plan.route.algorithm();
        // Makes the device the current one of this thread.
        self.device.recording().ok()?;
        Some(move || {
            // SAFETY: as in `launch`, but for the caller's arrays, which are the caller's promise.
            unsafe { self.device.launch(module, algorithm, shape, &params)? };
            Ok(())
        })
    }
}
