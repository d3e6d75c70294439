//! What the driver says of itself, its devices and their links, before any context is made.

use std::ffi::{CStr, c_char, c_int};
use std::fs;

use cudarc::driver::sys::{self, CUdevice, CUdevice_P2PAttribute, CUdevice_attribute, CUuuid};
use peersum_artifact::Arch;

use super::report::{ComputeMode, GpuFacts, LinkFacts};
use crate::cuda::driver::{arch, attribute, check, describe_number, library};
use crate::device::DeviceError;

/// `CU_DEVICE_ATTRIBUTE_MULTICAST_SUPPORTED` of cuda.h since CUDA 12.1; the bindings of older versions lack it.
const ATTRIBUTE_MULTICAST_SUPPORTED: c_int = 132;
/// `CUDA_ERROR_INVALID_VALUE` of cuda.h.
const INVALID_VALUE: c_int = 1;

/// The version of NVIDIA's kernel module, as `/proc` tells it.
pub(super) fn kernel_module() -> Option<String> {
    kernel_module_in(&fs::read_to_string("/proc/driver/nvidia/version").ok()?)
}

/// The first word that looks like a version, in the line of the kernel module.
fn kernel_module_in(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with("NVRM"))?;
    let looks_so = |word: &&str| {
        word.contains('.')
            && word
                .bytes()
                .all(|byte| byte.is_ascii_digit() || byte == b'.')
    };
    line.split_whitespace().find(looks_so).map(str::to_owned)
}

/// The device with this number.
fn device(ordinal: u32) -> Result<CUdevice, DeviceError> {
    let mut device = 0;
    // SAFETY: `device` is a place for one handle; a number that does not exist is an error that is returned.
    check("cuDeviceGet", unsafe {
        sys::cuDeviceGet(
            &raw mut device,
            c_int::try_from(ordinal).unwrap_or(c_int::MAX),
        )
    })?;
    Ok(device)
}

/// One device, and its architecture.
pub(super) fn gpu(ordinal: u32) -> Result<(GpuFacts, Arch), DeviceError> {
    let device = device(ordinal)?;
    let text = |bytes: &[c_char]| -> String {
        let bytes: Vec<u8> = bytes.iter().map(|byte| byte.to_ne_bytes()[0]).collect();
        CStr::from_bytes_until_nul(&bytes)
            .map(|text| text.to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    let mut name: [c_char; 256] = [0; 256];
    // SAFETY: `name` has room for as many characters as is said.
    check("cuDeviceGetName", unsafe {
        sys::cuDeviceGetName(name.as_mut_ptr(), 256, device)
    })?;
    let mut pci: [c_char; 32] = [0; 32];
    // SAFETY: as for the name.
    check("cuDeviceGetPCIBusId", unsafe {
        sys::cuDeviceGetPCIBusId(pci.as_mut_ptr(), 32, device)
    })?;
    let mut uuid = CUuuid { bytes: [0; 16] };
    // SAFETY: `uuid` is a place for one UUID.
    check("cuDeviceGetUuid", unsafe {
        sys::cuDeviceGetUuid_v2(&raw mut uuid, device)
    })?;
    let mut memory_bytes = 0;
    // SAFETY: `memory_bytes` is a place for one size.
    check("cuDeviceTotalMem", unsafe {
        sys::cuDeviceTotalMem_v2(&raw mut memory_bytes, device)
    })?;
    let arch = arch(device)?;
    let has = |which| Ok::<_, DeviceError>(attribute(device, which)? != 0);
    let multiprocessors = attribute(
        device,
        CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
    )?;
    let name = text(&name);
    // The driver appends the profile, for instance `NVIDIA A100-SXM4-40GB MIG 1g.5gb`.
    let mig = name.contains(" MIG ");
    let facts = GpuFacts {
        ordinal,
        uuid: uuid_text(mig, uuid.bytes.map(|byte| byte.to_ne_bytes()[0])),
        name,
        pci_bus_id: text(&pci).to_ascii_lowercase(),
        compute_capability: format!("{}.{}", arch.major, arch.minor),
        multiprocessors: u32::try_from(multiprocessors).unwrap_or(0),
        memory_bytes: memory_bytes as u64,
        mig,
        compute_mode: match attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_MODE)?
        {
            0 => ComputeMode::Shared,
            2 => ComputeMode::Prohibited,
            3 => ComputeMode::ExclusiveProcess,
            _ => ComputeMode::Unknown,
        },
        file_descriptors: has(
            CUdevice_attribute::CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
        )? && has(
            CUdevice_attribute::CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED,
        )?,
        multicast: has_multicast(device)?,
    };
    Ok((facts, arch))
}

/// `GPU-` or `MIG-` and the bytes in the groups of a UUID.
fn uuid_text(mig: bool, bytes: [u8; 16]) -> String {
    let mut text = if mig { "MIG-" } else { "GPU-" }.to_owned();
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// Whether the device has multicast. A driver that does not know the question has none.
fn has_multicast(device: CUdevice) -> Result<bool, DeviceError> {
    // The attribute as a number, since the binding's enumeration may lack it.
    type GetAttribute = unsafe extern "C" fn(*mut c_int, c_int, CUdevice) -> c_int;
    // SAFETY: this is the function's signature in cuda.h.
    let get = unsafe { library()?.function::<GetAttribute>("cuDeviceGetAttribute") };
    let get = get.ok_or_else(|| failed("it is not in the driver's library".to_owned()))?;
    let mut value = 0;
    // SAFETY: `value` is a place for one int; an attribute that the driver does not know is an error.
    match unsafe { get(&raw mut value, ATTRIBUTE_MULTICAST_SUPPORTED, device) } {
        0 => Ok(value != 0),
        INVALID_VALUE => Ok(false),
        failure => Err(failed(describe_number(failure))),
    }
}

fn failed(message: String) -> DeviceError {
    DeviceError::Driver {
        call: "cuDeviceGetAttribute",
        message,
    }
}

/// How `from` reaches the memory of `to`, as the driver says.
pub(super) fn link(from: u32, to: u32) -> Result<LinkFacts, DeviceError> {
    let (source, destination) = (device(from)?, device(to)?);
    let attribute = |which| {
        let mut value = 0;
        // SAFETY: `value` is a place for one int; devices that do not exist are an error that is returned.
        check("cuDeviceGetP2PAttribute", unsafe {
            sys::cuDeviceGetP2PAttribute(&raw mut value, which, source, destination)
        })?;
        Ok::<_, DeviceError>(value)
    };
    Ok(LinkFacts {
        from,
        to,
        access: attribute(CUdevice_P2PAttribute::CU_DEVICE_P2P_ATTRIBUTE_ACCESS_SUPPORTED)? != 0,
        native_atomics: attribute(
            CUdevice_P2PAttribute::CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED,
        )? != 0,
        performance_rank: attribute(
            CUdevice_P2PAttribute::CU_DEVICE_P2P_ATTRIBUTE_PERFORMANCE_RANK,
        )?,
        data_arrived: None,
        gigabytes_per_second: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_module_s_version_is_read_from_either_form_of_its_line() {
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  \
        Release Build  (root@x)  Tue\n\
                    GCC version:  gcc version 13.3.0\n";
        assert_eq!(kernel_module_in(open).as_deref(), Some("580.95.05"));
        let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 \
            UTC 2024\n";
        assert_eq!(kernel_module_in(closed).as_deref(), Some("535.183.01"));
        assert_eq!(kernel_module_in("GCC version: 13.3.0\n"), None);
    }

    #[test]
    fn a_uuid_is_written_as_nvidia_smi_writes_it() {
        let bytes = std::array::from_fn(|index| index as u8 * 17);
        assert_eq!(
            uuid_text(false, bytes),
            "GPU-00112233-4455-6677-8899-aabbccddeeff"
        );
    }
}
