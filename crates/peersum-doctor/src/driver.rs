//! What the driver says of itself, its GPUs and their links, before any context is made.

use std::ffi::c_int;
use std::fs;

use peersum::cuda::diagnosis::{
    arch, attribute, device_name, device_uuid, missing_support, returned, text,
};
use peersum::cudarc::driver::sys::{self, CUdevice, CUdevice_P2PAttribute, CUdevice_attribute};
use peersum::device::DeviceError;
use peersum_artifact::Arch;

use crate::report::{ComputeMode, GpuFacts, LinkFacts};

/// The version of NVIDIA's kernel module, as `/proc` tells it.
pub(crate) fn kernel_module() -> Option<String> {
    kernel_module_in(&fs::read_to_string("/proc/driver/nvidia/version").ok()?)
}

/// The first word that looks like a version, in the line of the kernel module.
fn kernel_module_in(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with("NVRM"))?;
    let is_version = |word: &&str| {
        let digits_and_dots = |byte: u8| byte.is_ascii_digit() || byte == b'.';
        word.contains('.') && word.bytes().all(digits_and_dots)
    };
    line.split_whitespace().find(is_version).map(str::to_owned)
}

/// The device with this number.
fn device(ordinal: u32) -> Result<CUdevice, DeviceError> {
    let ordinal = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
    // SAFETY: the place is one handle; a number that does not exist is an error that is returned.
    returned("cuDeviceGet", 0, |device| unsafe {
        sys::cuDeviceGet(device, ordinal)
    })
}

/// One GPU, and its architecture.
pub(crate) fn gpu(ordinal: u32) -> Result<(GpuFacts, Arch), DeviceError> {
    let device = device(ordinal)?;
    let name = device_name(device)?;
    // SAFETY: the place has room for as many characters as is said.
    let pci = returned("cuDeviceGetPCIBusId", [0; 32], |pci| unsafe {
        sys::cuDeviceGetPCIBusId(pci.cast(), 32, device)
    })?;
    let uuid = device_uuid(device)?;
    // SAFETY: the place is one size.
    let memory_bytes = returned("cuDeviceTotalMem", 0, |bytes| unsafe {
        sys::cuDeviceTotalMem_v2(bytes, device)
    })?;
    let arch = arch(device)?;
    let multiprocessors = attribute(
        device,
        CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
    )?;
    let compute_mode = attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_MODE)?;
    // The driver appends the profile, for instance `NVIDIA A100-SXM4-40GB MIG 1g.5gb`.
    let mig = name.contains(" MIG ");
    let facts = GpuFacts {
        ordinal,
        uuid: uuid_text(mig, uuid),
        name,
        pci_bus_id: text(&pci).to_ascii_lowercase(),
        compute_capability: format!("{}.{}", arch.major, arch.minor),
        multiprocessors: u32::try_from(multiprocessors).unwrap_or(0),
        memory_bytes: memory_bytes as u64,
        mig,
        compute_mode: match compute_mode {
            0 => ComputeMode::Shared,
            2 => ComputeMode::Prohibited,
            3 => ComputeMode::ExclusiveProcess,
            _ => ComputeMode::Unknown,
        },
        file_descriptors: missing_support(device)?.is_none(),
    };
    Ok((facts, arch))
}

/// `GPU-` or `MIG-` and the bytes in the groups of a UUID.
fn uuid_text(mig: bool, bytes: [u8; 16]) -> String {
    let mut text = format!("{:032x}", u128::from_be_bytes(bytes));
    for end in [20, 16, 12, 8] {
        text.insert(end, '-');
    }
    format!("{}-{text}", if mig { "MIG" } else { "GPU" })
}

/// How `from` reaches the memory of `to`, as the driver says.
pub(crate) fn link(from: u32, to: u32) -> Result<LinkFacts, DeviceError> {
    use CUdevice_P2PAttribute as Attribute;
    let (source, destination) = (device(from)?, device(to)?);
    let attribute = |which| {
        // SAFETY: the place is one int; devices that do not exist are an error that is returned.
        returned("cuDeviceGetP2PAttribute", 0, |value| unsafe {
            sys::cuDeviceGetP2PAttribute(value, which, source, destination)
        })
    };
    let native_atomics = Attribute::CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED;
    Ok(LinkFacts {
        from,
        to,
        access: attribute(Attribute::CU_DEVICE_P2P_ATTRIBUTE_ACCESS_SUPPORTED)? != 0,
        native_atomics: attribute(native_atomics)? != 0,
        data_arrived: None,
        gigabytes_per_second: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_module_s_version_is_read_from_either_form_of_its_line() {
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release \
                    Build  (root@x)  Tue\nGCC version:  gcc version 13.3.0\n";
        assert_eq!(kernel_module_in(open).as_deref(), Some("580.95.05"));
        let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 \
                      19:39:15 UTC 2024\n";
        assert_eq!(kernel_module_in(closed).as_deref(), Some("535.183.01"));
        assert_eq!(kernel_module_in("GCC version: 13.3.0\n"), None);
    }
}
