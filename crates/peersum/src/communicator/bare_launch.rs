//! The bare launch of a call's kernel, for the benchmark that shows the overhead of a call.

use peersum_kernels::abi::{self, PeersumParams};

use super::call::Call;
use super::state::Communicator;
use crate::cuda::Cuda;
use crate::device::LaunchShape;
use crate::element::Element;

impl Communicator<Cuda> {
    /// What a call with these device addresses would hand to the driver: for a benchmark that
    /// compares [`Communicator::all_reduce`] with a bare launch of the same. `None` for a group of
    /// one and for a call of several launches.
    #[doc(hidden)]
    pub fn bare_launch<T: Element>(
        &self,
        input: u64,
        output: u64,
        len: usize,
    ) -> Option<BareLaunch> {
        let connected = self.connected.as_ref()?;
        let call = Call {
            dtype: T::DTYPE,
            input,
            output,
            elements: len as u64,
        };
        let bytes = call.bytes().ok()?;
        let placement = connected.placement(input, output, bytes);
        let plan = self.forced.unwrap_or_else(|| self.plan(placement, bytes));
        let units = bytes.div_ceil(u64::from(abi::PEERSUM_UNIT_BYTES));
        if len == 0 || units > connected.layout.capacity_units(plan.route) {
            return None;
        }
        let (shape, params) = self.prepare(connected, plan, call);
        let module = connected.modules.get(plan.route.family(), call.dtype);
        let algorithm = plan.route.algorithm();
        Some(BareLaunch {
            function: module.function(algorithm),
            shape: LaunchShape {
                threads: module.launched_threads(algorithm, shape.threads),
                pdl: shape.pdl && module.pdl(algorithm),
                ..shape
            },
            params,
        })
    }
}

/// The parts of one launch. See [`Communicator::bare_launch`].
#[doc(hidden)]
pub struct BareLaunch {
    /// The kernel, live as long as the communicator.
    pub function: cudarc::driver::sys::CUfunction,
    /// Its grid, all threads of a block counted, and whether it is launched with the programmatic
    /// attribute.
    pub shape: LaunchShape,
    /// Its one parameter.
    pub params: PeersumParams,
}
