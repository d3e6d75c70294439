//! The one launch of a call.

use std::ffi::{c_char, c_uint, c_void};

use cudarc::driver::sys::{
    self, CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue, CUlaunchConfig, CUstream,
};
use peersum_kernels::abi::PeersumParams;

use super::driver::check;
use super::module::Kernel;
use crate::device::{DeviceError, LaunchShape};

/// Enqueues `kernel`. Everything it needs is on the stack, and the driver copies it before it
/// returns.
///
/// # Safety
///
/// The stream and the kernel are live and of the current context. Every address in `params` is
/// valid for the kernel until it ends, and `shape` within the kernel's bounds.
pub(super) unsafe fn launch(
    stream: CUstream,
    kernel: &Kernel,
    shape: LaunchShape,
    params: &PeersumParams,
) -> Result<(), DeviceError> {
    let mut value = CUlaunchAttributeValue {
        pad: [0 as c_char; 64],
    };
    value.programmaticStreamSerializationAllowed = 1;
    let mut programmatic = CUlaunchAttribute {
        id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value,
    };
    // A kernel that does not wait would run beside the one before it, and read what that one has
    // not written yet.
    let attributes = c_uint::from(shape.pdl && kernel.pdl);
    let config = CUlaunchConfig {
        gridDimX: shape.blocks,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: shape.threads + kernel.signal_threads,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: 0,
        hStream: stream,
        attrs: &raw mut programmatic,
        numAttrs: attributes,
    };
    let mut arguments: [*mut c_void; 1] = [(&raw const *params).cast_mut().cast()];
    // SAFETY: the kernel takes one argument, a `PeersumParams`, which the driver only reads, as
    // many bytes as the kernel's code says; the loader has made sure that the code was compiled
    // from the sources whose ABI this is. The attribute is initialised whether it counts or not.
    // The rest is the caller's promise.
    check("cuLaunchKernelEx", unsafe {
        sys::cuLaunchKernelEx(
            &raw const config,
            kernel.function,
            arguments.as_mut_ptr(),
            std::ptr::null_mut(),
        )
    })
}
