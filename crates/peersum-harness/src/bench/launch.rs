//! The launch configuration of a kernel that the harness starts by itself.

use std::ffi::{c_char, c_uint};

use peersum::cudarc::driver::sys::{
    CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue, CUlaunchConfig, CUstream,
};

/// Calls `work` with the configuration, which is valid as long as `work` runs.
pub(super) fn with_config<R>(
    stream: CUstream,
    blocks: u32,
    threads: u32,
    pdl: bool,
    work: impl FnOnce(&CUlaunchConfig) -> R,
) -> R {
    let mut value = CUlaunchAttributeValue {
        pad: [0 as c_char; 64],
    };
    value.programmaticStreamSerializationAllowed = 1;
    let mut programmatic = CUlaunchAttribute {
        id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value,
    };
    work(&CUlaunchConfig {
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
    })
}
