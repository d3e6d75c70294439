//! Opening the GPU of a rank.

use std::env;
use std::ffi::OsStr;
use std::sync::Arc;

use cudarc::driver::CudaContext;

use super::driver::{arch, describe, device_count};
use super::start::{Trouble, start};
use crate::device::DeviceError;
use crate::loader::LoadError;

/// CUDA's own variable, which decides which GPUs a process sees.
const VISIBLE_DEVICES: &str = "CUDA_VISIBLE_DEVICES";

/// Opens the GPU of a rank, or says what is missing. Never panics.
///
/// That is GPU number `local_rank` among those that this process sees. A process that sees exactly
/// one uses that one, whatever its local rank: launchers show each rank its own GPU
/// (`CUDA_VISIBLE_DEVICES=$LOCAL_RANK`), and on a machine with one GPU all ranks share it.
///
/// `local_rank` is [`Rendezvous::local_rank`](crate::Rendezvous::local_rank), or the rank where
/// ranks are threads of one process. To share several GPUs among more ranks, give the number of the
/// GPU that a rank is to use.
///
/// Use this in place of `CudaContext::new`, which panics if the driver's library or a function of
/// it is missing. Both give the device's primary context.
///
/// # Errors
///
/// - [`DeviceError::LibraryMissing`] without a driver;
/// - [`DeviceError::UnusableDriver`] with a stub, or a driver that is too old or does not start;
/// - [`DeviceError::NoGpu`] if there is no such GPU: how many this process sees, and what to do;
/// - [`LoadError::ArchTooOld`] for a GPU that cannot run the kernels;
/// - [`DeviceError::Driver`] if the GPU cannot be opened.
pub fn open_context(local_rank: u32) -> Result<Arc<CudaContext>, DeviceError> {
    let visible = match start() {
        Ok(_) => device_count()?,
        Err(Trouble::NoDevice(_)) => 0,
        Err(trouble) => return Err(trouble.into()),
    };
    let ordinal = match visible {
        1 => 0,
        _ if local_rank < visible => local_rank,
        _ => {
            return Err(DeviceError::NoGpu {
                local_rank,
                visible,
                help: no_gpu_help(visible, env::var_os(VISIBLE_DEVICES).as_deref()),
            });
        }
    };
    let context = open_gpu(ordinal)?;
    let arch = arch(context.cu_device())?;
    if !arch.runs_kernels() {
        return Err(LoadError::ArchTooOld { device: arch }.into());
    }
    Ok(context)
}

/// Opens a GPU of a driver that [`start`] has started.
pub fn open_gpu(ordinal: u32) -> Result<Arc<CudaContext>, DeviceError> {
    CudaContext::new(ordinal as usize).map_err(|error| {
        let message = format!("GPU {ordinal}: {}", describe(error.0));
        DeviceError::driver("cuDevicePrimaryCtxRetain", message)
    })
}

/// The help for a rank that has no GPU among the `visible` ones.
fn no_gpu_help(visible: u32, visible_devices: Option<&OsStr>) -> String {
    let setting = match visible_devices {
        Some(value) => format!("{VISIBLE_DEVICES}={}", value.to_string_lossy()),
        None => format!("{VISIBLE_DEVICES} is not set"),
    };
    let remedy = match (visible.checked_sub(1), visible_devices) {
        (None, Some(_)) => format!("unset {VISIBLE_DEVICES}, or list in it the GPUs to use"),
        (None, None) => "on a machine with GPUs start the container with them passed in, for \
                         instance `--gpus all`; `peersum-doctor` says more"
            .to_owned(),
        (Some(last), _) => format!(
            "start at most {visible} ranks, with LOCAL_RANK from 0 to {last}; or show each rank \
             its one GPU by {VISIBLE_DEVICES}; or let ranks share GPUs by giving `open_context` \
             the number of a GPU, such as the local rank modulo {visible}"
        ),
    };
    format!("{setting}: {remedy}")
}
