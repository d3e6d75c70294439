//! Launches of kernels that take one argument, as the one launch of a call does, and how many
//! clusters of one there can be.

use std::ffi::{c_char, c_uint, c_void};

use cudarc::driver::sys::{
    self, CUfunction, CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue,
    CUlaunchConfig, CUstream,
};
use peersum_kernels::abi::PeersumParams;

use super::driver::{check, returned};
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
    unsafe {
        launch_function(
            stream,
            kernel.function,
            [shape.blocks, 1, shape.cluster],
            threads,
            pdl,
            params,
        )
    }
}

/// Enqueues a kernel that takes one argument. Everything it needs is on the stack, and the driver
/// copies it before it returns. The grid is so many blocks in each of so many rows, in clusters of
/// so many. `pdl`: it may start before the kernel in front of it has ended.
///
/// # Safety
///
/// The stream and the function are live and of the current context. The function takes a `P`. Every
/// address in `argument` is valid for the kernel until it ends.
#[doc(hidden)]
pub unsafe fn launch_function<P>(
    stream: CUstream,
    function: CUfunction,
    [blocks, rows, cluster]: [u32; 3],
    threads: u32,
    pdl: bool,
    argument: &P,
) -> Result<(), DeviceError> {
    let mut attributes = [attribute(CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_IGNORE); 2];
    let mut count = 0;
    if pdl {
        let id = CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        attributes[count] = attribute(id);
        attributes[count]
            .value
            .programmaticStreamSerializationAllowed = 1;
        count += 1;
    }
    if cluster > 1 {
        attributes[count] = cluster_attribute(cluster);
        count += 1;
    }
    let config = CUlaunchConfig {
        gridDimX: blocks,
        gridDimY: rows,
        gridDimZ: 1,
        blockDimX: threads,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: 0,
        hStream: stream,
        attrs: attributes.as_mut_ptr(),
        numAttrs: count as c_uint,
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

fn attribute(id: CUlaunchAttributeID) -> CUlaunchAttribute {
    CUlaunchAttribute {
        id,
        pad: [0; 4],
        value: CUlaunchAttributeValue {
            pad: [0 as c_char; 64],
        },
    }
}

fn cluster_attribute(size: u32) -> CUlaunchAttribute {
    let mut cluster = attribute(CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION);
    cluster.value.clusterDim.x = size;
    cluster.value.clusterDim.y = 1;
    cluster.value.clusterDim.z = 1;
    cluster
}

/// The most parts of a GPU, its graphics processing clusters, in one of which the blocks of a
/// cluster must find room. GB202 has as many; GH100 and GB100 have eight.
const MOST_PARTS: u32 = 12;

/// How many clusters of `size` blocks of `threads` threads find room among `seats` seats, wherever
/// those lie. In each part of the GPU fewer seats than one cluster needs may be left over.
pub(super) fn clusters(
    kernel: &Kernel,
    threads: u32,
    size: u32,
    seats: u32,
) -> Result<u32, DeviceError> {
    let left_over = MOST_PARTS.saturating_mul(size.saturating_sub(1));
    let by_seats = seats.saturating_sub(left_over) / size.max(1);
    // Code that can wait for the kernel before it is code for sm_90 or newer: it has clusters too.
    if by_seats == 0 || !kernel.pdl {
        return Ok(0);
    }
    let mut attributes = [cluster_attribute(size)];
    let config = CUlaunchConfig {
        gridDimX: size,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: threads + kernel.signal_threads,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: 0,
        hStream: std::ptr::null_mut(),
        attrs: attributes.as_mut_ptr(),
        numAttrs: 1,
    };
    // SAFETY: the place is one int, the function is live, the driver only reads the configuration.
    let on_empty_device = returned("cuOccupancyMaxActiveClusters", 0, |clusters| unsafe {
        sys::cuOccupancyMaxActiveClusters(clusters, kernel.function, &raw const config)
    })?;
    Ok(by_seats.min(u32::try_from(on_empty_device).unwrap_or(0)))
}
