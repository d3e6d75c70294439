//! Calls into libcuda: their errors as [`DeviceError`], the current context, attributes.
//!
//! `cudarc` panics at the first call of a function that the installed driver lacks. Every function
//! called here is in the drivers of CUDA 11.8, and [`version`](super::start::version), which
//! [`Cuda::open`](super::Cuda) calls, refuses older ones; the one newer function that is
//! used, `cuFuncLoad`, is looked up by hand.

use std::ffi::{CStr, c_char, c_int};
use std::sync::OnceLock;

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{self, CUdevice, CUdevice_attribute, CUfunction, CUresult, CUuuid};
use peersum_artifact::Arch;

use crate::device::DeviceError;
use crate::shared_library::SharedLibrary;

/// The names of the driver's library: as the driver installs it, then the link of a development
/// package.
const LIBRARY_NAMES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];

/// The driver's library.
pub(crate) fn library() -> Result<&'static SharedLibrary, DeviceError> {
    static LIBRARY: OnceLock<SharedLibrary> = OnceLock::new();
    if let Some(library) = LIBRARY.get() {
        return Ok(library);
    }
    // SAFETY: opening runs the library's initialisers. They are those of NVIDIA's driver, which
    // expects to be opened at any time and by any thread.
    match unsafe { SharedLibrary::open(LIBRARY_NAMES) } {
        Ok(library) => Ok(LIBRARY.get_or_init(|| library)),
        Err(error) => Err(DeviceError::LibraryMissing {
            library: LIBRARY_NAMES[0].to_owned(),
            help: format!(
                "install NVIDIA's driver (the CUDA toolkit alone does not bring it), and start a \
                 container with the GPUs passed in, for instance `--gpus all`; tried: {error}"
            ),
        }),
    }
}

/// Whether the CUDA driver's library can be opened, without any call into it.
///
/// `cudarc` panics in its first call if the library is missing, `CudaContext::new` included: a
/// program that must run on machines without a GPU asks here first. It does not tell whether
/// there is a device.
///
/// # Errors
///
/// [`DeviceError::LibraryMissing`], which says what to install.
pub fn driver_present() -> Result<(), DeviceError> {
    library().map(|_| ())
}

/// The outcome of the driver function `call`.
pub(super) fn check(call: &'static str, result: CUresult) -> Result<(), DeviceError> {
    match result {
        CUresult::CUDA_SUCCESS => Ok(()),
        failure => Err(DeviceError::driver(call, describe(failure))),
    }
}

/// The value that the driver function `call` leaves in the place that it is given. The place holds
/// `initial` before.
pub fn returned<T>(
    call: &'static str,
    initial: T,
    run: impl FnOnce(*mut T) -> CUresult,
) -> Result<T, DeviceError> {
    let mut value = initial;
    check(call, run(&raw mut value))?;
    Ok(value)
}

/// The driver's name and description of an error.
pub fn describe(failure: CUresult) -> String {
    describe_number((failure as u32).cast_signed())
}

/// Logs a failure to give something back: the caller cannot act on it.
pub(super) fn note(result: Result<(), DeviceError>) {
    if let Err(error) = result {
        tracing::warn!(%error, "a resource of the device was not given back");
    }
}

/// Makes `context` the calling thread's current context.
///
/// Not `CudaContext::bind_to_thread`: that one also returns errors that unrelated objects of the
/// context left behind when they were dropped, and a rank that fails a call for such a reason would
/// leave its peers waiting.
pub(super) fn bind(context: &CudaContext) -> Result<(), DeviceError> {
    let wanted = context.cu_ctx();
    // SAFETY: the place is one context handle.
    let current = returned("cuCtxGetCurrent", std::ptr::null_mut(), |current| unsafe {
        sys::cuCtxGetCurrent(current)
    })?;
    if current == wanted {
        return Ok(());
    }
    // SAFETY: the context lives as long as `context`, which owns it; a thread that keeps it as its
    // current context after that gets errors and no undefined behaviour, as with every use of
    // cudarc.
    check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(wanted) })
}

/// An attribute of a device.
pub fn attribute(device: CUdevice, attribute: CUdevice_attribute) -> Result<i32, DeviceError> {
    // SAFETY: the place is one int; an unknown device or attribute is an error that is returned.
    returned("cuDeviceGetAttribute", 0, |value| unsafe {
        sys::cuDeviceGetAttribute(value, attribute, device)
    })
}

/// A device's name, for instance `NVIDIA H100 80GB HBM3`.
pub fn device_name(device: CUdevice) -> Result<String, DeviceError> {
    // SAFETY: the place has room for as many characters as is said.
    let name = returned("cuDeviceGetName", [0; 256], |name| unsafe {
        sys::cuDeviceGetName(name.cast(), 256, device)
    })?;
    Ok(text(&name))
}

/// The characters before the first NUL, or none without a NUL.
pub fn text(characters: &[c_char]) -> String {
    let bytes: Vec<u8> = characters.iter().map(|c| c.to_ne_bytes()[0]).collect();
    let text = CStr::from_bytes_until_nul(&bytes).unwrap_or_default();
    text.to_string_lossy().into_owned()
}

/// A device's UUID. Unlike the driver's first version of it, this one tells the parts of a
/// partitioned device (MIG) apart.
pub fn device_uuid(device: CUdevice) -> Result<[u8; 16], DeviceError> {
    // SAFETY: the place is one UUID.
    let uuid = returned(
        "cuDeviceGetUuid",
        CUuuid { bytes: [0; 16] },
        |uuid| unsafe { sys::cuDeviceGetUuid_v2(uuid, device) },
    )?;
    Ok(uuid.bytes.map(|byte| byte.to_ne_bytes()[0]))
}

/// A device's compute capability.
pub fn arch(device: CUdevice) -> Result<Arch, DeviceError> {
    let part = |which| {
        let value = attribute(device, which)?;
        u8::try_from(value).map_err(|_| {
            let message = format!("{which:?} is {value}, which no architecture has");
            DeviceError::driver("cuDeviceGetAttribute", message)
        })
    };
    Ok(Arch::new(
        part(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        part(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    ))
}

/// The number of devices that this process sees.
pub fn device_count() -> Result<u32, DeviceError> {
    // SAFETY: the place is one int.
    let count = returned("cuDeviceGetCount", 0, |count| unsafe {
        sys::cuDeviceGetCount(count)
    })?;
    Ok(u32::try_from(count).unwrap_or(0))
}

/// Whether `device` can address memory of `peer`.
pub(super) fn can_access_peer(device: CUdevice, peer: CUdevice) -> Result<bool, DeviceError> {
    // SAFETY: the place is one int; devices that do not exist are an error that is returned.
    let can = returned("cuDeviceCanAccessPeer", 0, |can| unsafe {
        sys::cuDeviceCanAccessPeer(can, device, peer)
    })?;
    Ok(can != 0)
}

/// Loads a function onto the device now. Under lazy loading the driver would do it at the first
/// launch, which waits until the device is idle: never, while a peer's kernel spins for this very
/// launch.
pub(super) fn load_function(function: CUfunction) -> Result<(), DeviceError> {
    // The result is declared as a number: cudarc's enumeration may lack an error of a newer driver.
    type FuncLoad = unsafe extern "C" fn(CUfunction) -> c_int;
    // If cudarc has found the driver under another name than ours, or the driver is older than CUDA
    // 12.4, the caller's query of the function's attributes must be enough.
    let Ok(library) = library() else {
        return Ok(());
    };
    // SAFETY: this is the signature in cuda.h since CUDA 12.4, where the function came.
    let Some(func_load) = (unsafe { library.function::<FuncLoad>("cuFuncLoad") }) else {
        return Ok(());
    };
    // SAFETY: `function` is a live function of the current context's module.
    match unsafe { func_load(function) } {
        0 => Ok(()),
        failure => Err(DeviceError::driver("cuFuncLoad", describe_number(failure))),
    }
}

/// As [`describe`], for a number that cudarc's enumeration may not have.
pub(crate) fn describe_number(failure: c_int) -> String {
    type GetErrorText = unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int;
    let text = |function: &str| {
        // SAFETY: `cuGetErrorName` and `cuGetErrorString`, the only names passed below, have this
        // signature.
        let get = unsafe { library().ok()?.function::<GetErrorText>(function) }?;
        let mut text = std::ptr::null();
        // SAFETY: `text` is a place for one pointer; a number that is unknown leaves null in it.
        if unsafe { get(failure, &raw mut text) } != 0 || text.is_null() {
            return None;
        }
        // SAFETY: the driver returns a string that ends in NUL and lies in its constant data.
        Some(
            unsafe { CStr::from_ptr(text) }
                .to_string_lossy()
                .into_owned(),
        )
    };
    match (text("cuGetErrorName"), text("cuGetErrorString")) {
        (Some(name), Some(text)) => format!("{name} ({text})"),
        _ => format!("CUDA error {failure}"),
    }
}
