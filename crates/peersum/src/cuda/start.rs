//! Starting the driver without a panic: `cudarc` panics at its first call if the library or a
//! function of it is missing.

use std::ffi::c_int;

use peersum_artifact::CudaVersion;

use super::driver::{describe_number, library};
use crate::device::DeviceError;
use crate::loader::update_hint;

/// Every function of the driver that this crate or `cudarc` under it calls. If one is missing,
/// `cudarc` panics.
const FUNCTIONS: &[&str] = &[
    "cuCtxEnablePeerAccess",
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuDeviceCanAccessPeer",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceGetP2PAttribute",
    "cuDeviceGetPCIBusId",
    "cuDeviceGetUuid_v2",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphUpload",
    "cuInit",
    "cuIpcCloseMemHandle",
    "cuIpcGetMemHandle",
    "cuIpcOpenMemHandle_v2",
    "cuLaunchKernelEx",
    "cuMemAddressFree",
    "cuMemAddressReserve",
    "cuMemAlloc_v2",
    "cuMemAllocAsync",
    "cuMemCreate",
    "cuMemExportToShareableHandle",
    "cuMemFreeAsync",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetAllocationGranularity",
    "cuMemGetAllocationPropertiesFromHandle",
    "cuMemHostAlloc",
    "cuMemHostGetDevicePointer_v2",
    "cuMemImportFromShareableHandle",
    "cuMemMap",
    "cuMemRelease",
    "cuMemSetAccess",
    "cuMemUnmap",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD32Async",
    "cuModuleGetFunction",
    "cuModuleLoadDataEx",
    "cuModuleUnload",
    "cuOccupancyMaxActiveBlocksPerMultiprocessor",
    "cuOccupancyMaxActiveClusters",
    "cuPointerGetAttribute",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamIsCapturing",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];

/// The oldest CUDA whose drivers load any cubin that this project supports (toolkit 12.4 and
/// newer).
const MIN_DRIVER: CudaVersion = CudaVersion {
    major: 12,
    minor: 0,
};

/// The CUDA major of the toolkit that the project's own cubins are made with.
pub const TOOLKIT_MAJOR: u32 = 13;

/// What to do about a driver that misbehaves.
pub const RESTART: &str = "the driver does not do what it should: look for Xid errors in \
    `dmesg`, end other processes that use the GPUs (`nvidia-smi`), reset the GPU or restart the \
    machine";

/// `CUDA_ERROR_STUB_LIBRARY` of cuda.h.
const STUB_LIBRARY: c_int = 34;
/// `CUDA_ERROR_NO_DEVICE` of cuda.h.
const NO_DEVICE: c_int = 100;

/// Why the driver is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// Its library is not there.
    #[error("{0}")]
    Missing(DeviceError),
    /// Its library is what the toolkit has for linking on machines without a driver.
    #[error("the library is the CUDA toolkit's stub of libcuda, not a driver: {0} failed")]
    Stub(&'static str),
    /// It does not tell its version.
    #[error("the driver does not say which CUDA it supports: cuDriverGetVersion failed: {0}")]
    NoVersion(String),
    /// It is older than any cubin.
    #[error("the driver supports CUDA {0} and peersum needs {MIN_DRIVER}")]
    TooOld(CudaVersion),
    /// It lacks functions.
    #[error("the driver{} lacks {}", of_version(version.as_ref()), functions.join(", "))]
    Incomplete {
        /// `None` if it lacks the function that says it.
        version: Option<CudaVersion>,
        /// Their names.
        functions: Vec<&'static str>,
    },
    /// It finds no device.
    #[error("the driver for CUDA {0} finds no GPU")]
    NoDevice(CudaVersion),
    /// It does not start.
    #[error("the driver for CUDA {0} does not start: cuInit failed: {1}")]
    Refused(CudaVersion, String),
}

impl Trouble {
    /// What to do about it.
    pub fn remedy(&self) -> String {
        let update = || update_hint(TOOLKIT_MAJOR);
        match self {
            Trouble::Stub(_) => format!(
                "programs that link CUDA need the stub only when they are built: take its \
                 directory (`.../lib64/stubs`) off LD_LIBRARY_PATH, and {}",
                update().replacen("update", "install", 1)
            ),
            Trouble::TooOld(_) => update(),
            Trouble::Missing(_) | Trouble::Incomplete { .. } => format!(
                "the library is not a whole driver, perhaps the toolkit's stub: take its \
                 directory off LD_LIBRARY_PATH, or {}",
                update()
            ),
            Trouble::Refused(..) => format!(
                "library and kernel module may be of different versions: load the new module or \
                 restart the machine. Otherwise {RESTART}"
            ),
            Trouble::NoVersion(_) => RESTART.to_owned(),
            Trouble::NoDevice(_) => "on a machine with GPUs start the container with them passed \
                                     in, for instance `--gpus all`"
                .to_owned(),
        }
    }
}

impl From<Trouble> for DeviceError {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Missing(error) => error,
            trouble => DeviceError::UnusableDriver {
                reason: trouble.to_string(),
                help: trouble.remedy(),
            },
        }
    }
}

fn of_version(version: Option<&CudaVersion>) -> String {
    version.map_or_else(String::new, |version| format!(" for CUDA {version}"))
}

/// The newest CUDA that the driver supports, if the driver is new enough and lacks no function.
pub(super) fn version() -> Result<CudaVersion, Trouble> {
    type GetVersion = unsafe extern "C" fn(*mut c_int) -> c_int;
    let library = library().map_err(Trouble::Missing)?;
    let mut version = None;
    // SAFETY: this is the function's signature in cuda.h; it is called only while the library is
    // open, which it stays.
    if let Some(get) = unsafe { library.function::<GetVersion>("cuDriverGetVersion") } {
        let mut number = 0;
        // SAFETY: `number` is a place for one int. The function may be called before `cuInit`.
        match unsafe { get(&raw mut number) } {
            0 => {}
            STUB_LIBRARY => return Err(Trouble::Stub("cuDriverGetVersion")),
            failure => return Err(Trouble::NoVersion(describe_number(failure))),
        }
        let found = CudaVersion::from_driver_api(number);
        if found < MIN_DRIVER {
            return Err(Trouble::TooOld(found));
        }
        version = Some(found);
    }
    let functions: Vec<&str> = FUNCTIONS
        .iter()
        .copied()
        // SAFETY: the symbol is looked up and not used.
        .filter(|name| unsafe { library.function::<*const ()>(name) }.is_none())
        .collect();
    match version {
        Some(version) if functions.is_empty() => Ok(version),
        version => Err(Trouble::Incomplete { version, functions }),
    }
}

/// Starts the driver, calling no function that it may lack.
pub fn start() -> Result<CudaVersion, Trouble> {
    type Init = unsafe extern "C" fn(u32) -> c_int;
    let version = version()?;
    let library = library().map_err(Trouble::Missing)?;
    // SAFETY: as for `cuDriverGetVersion`.
    let init = unsafe { library.function::<Init>("cuInit") };
    // `version` has found it.
    let init = init.ok_or_else(|| Trouble::Incomplete {
        version: Some(version),
        functions: vec!["cuInit"],
    })?;
    // SAFETY: 0 is the only flag there is.
    match unsafe { init(0) } {
        0 => Ok(version),
        STUB_LIBRARY => Err(Trouble::Stub("cuInit")),
        NO_DEVICE => Err(Trouble::NoDevice(version)),
        failure => Err(Trouble::Refused(version, describe_number(failure))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    #[test]
    fn every_function_of_the_driver_that_is_called_is_looked_for_first() {
        // The doctor calls the driver only after `start` has checked the same list.
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut called = 0;
        for directory in ["src/cuda", "../peersum-doctor/src"] {
            for file in fs::read_dir(package.join(directory)).unwrap() {
                let text = fs::read_to_string(file.unwrap().path()).unwrap();
                for call in text.split("sys::cu").skip(1) {
                    let end = call
                        .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                        .unwrap();
                    // What begins in lower case is no function of the driver but this very
                    // test's text.
                    if call.starts_with(|c: char| c.is_ascii_uppercase()) {
                        let name = format!("cu{}", &call[..end]);
                        assert!(FUNCTIONS.contains(&name.as_str()), "{name} is not listed");
                        called += 1;
                    }
                }
            }
        }
        assert!(called > 50, "only {called} calls were found in the sources");
    }
}
