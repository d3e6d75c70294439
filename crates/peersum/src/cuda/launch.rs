//! Launches of kernels that take one argument, as the one launch of a call does.

use std::ffi::{c_char, c_uint, c_void};

use cudarc::driver::sys::{
    self, CUfunction, CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue,
    CUlaunchConfig, CUstream,
};
use peersum_kernels::abi::PeersumParams;

use super::driver::check;
use super::module::Kernel;
use crate::device::{DeviceError, LaunchShape};

/// Enqueues `kernel`.
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
    let threads = shape.threads + kernel.signal_threads;
    // A kernel that does not wait would run beside the one before it, and read what that one has
    // not written yet.
    let pdl = shape.pdl && kernel.pdl;
    // SAFETY: the kernel takes one argument, a `PeersumParams`; the loader has made sure that the
    // code was compiled from the sources whose ABI this is. The rest is the caller's promise.
    unsafe { launch_function(stream, kernel.function, shape.blocks, threads, pdl, params) }
}

/// Enqueues a kernel that takes one argument. Everything it needs is on the stack, and the driver
/// copies it before it returns. `pdl`: it may start before the kernel in front of it has ended.
///
/// # Safety
///
/// The stream and the function are live and of the current context. The function takes a `P`. Every
/// address in `argument` is valid for the kernel until it ends.
#[doc(hidden)]
pub unsafe fn launch_function<P>(
    stream: CUstream,
    function: CUfunction,
    blocks: u32,
    threads: u32,
    pdl: bool,
    argument: &P,
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
    let config = CUlaunchConfig {
        gridDimX: blocks,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: threads,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: 0,
        hStream: stream,
        attrs: &raw mut programmatic,
        numAttrs: c_uint::from(pdl),
    };
    let mut arguments: [*mut c_void; 1] = [(&raw const *argument).cast_mut().cast()];
    // SAFETY: the driver only reads the argument, as many bytes as the kernel's code says. The
    // attribute is initialised whether it counts or not. The rest is the caller's promise.
    check("cuLaunchKernelEx", unsafe {
        sys::cuLaunchKernelEx(
            &raw const config,
            function,
            arguments.as_mut_ptr(),
            std::ptr::null_mut(),
        )
    })
}
