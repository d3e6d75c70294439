//! cuBLAS, found at run time: the matrix product of the layers that are measured.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use cudarc::cublas::{CudaBlas, sys};
use peersum::cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use peersum::shared_library::SharedLibrary;

/// What NVIDIA recommends for Hopper; smaller devices need less.
const WORKSPACE_BYTES: usize = 32 << 20;

/// Loads the library until the process ends. Must come first: cudarc panics at the first call if it
/// cannot load the library.
///
/// # Errors
/// There is no cuBLAS. The error says what to install and which variable to set.
pub(super) fn load() -> Result<()> {
    // In cudarc's order, so that it takes the one that is found here.
    let names = cudarc::get_lib_name_candidates("cublas");
    // SAFETY: cuBLAS's initialisers run, at any time; the file is the one that the user's loader
    // finds for cuBLAS's name.
    let Err(error) = (unsafe { SharedLibrary::open(&names) }) else {
        return Ok(());
    };
    // The loader's message begins with the file that is missing: another one is a library that
    // cuBLAS needs.
    let reasons = error.reasons.iter().zip(&names);
    let broken = reasons.filter(|(reason, name)| !reason.starts_with(*name));
    bail!(
        "could not load cuBLAS, which multiplies the layers' matrices: install a CUDA toolkit or \
         the Python package nvidia-cublas, and name the directory that holds libcublas.so.13 or \
         libcublas.so.12, and libcublasLt beside it, in LD_LIBRARY_PATH{}",
        broken
            .map(|(reason, _)| format!("; {reason}"))
            .collect::<String>()
    )
}

/// cuBLAS on one stream.
pub(super) struct Cublas {
    pub(super) blas: CudaBlas,
    // Freed behind the handle, in the stream's order.
    _workspace: CudaSlice<u8>,
}

impl Cublas {
    /// Opens cuBLAS on the stream's device, which becomes current in the calling thread.
    ///
    /// # Errors
    /// cuBLAS or the driver refuses.
    pub(super) fn new(stream: &Arc<CudaStream>) -> Result<Cublas> {
        stream.context().bind_to_thread()?;
        let workspace = stream.alloc_zeros::<u8>(WORKSPACE_BYTES)?;
        let blas = CudaBlas::new(Arc::clone(stream)).context("opening cuBLAS")?;
        // After the stream, which resets the workspace to the handle's own: a capture would have to
        // allocate that. The address outlives the guard: the workspace lives as long as the handle,
        // and is used on this stream alone.
        let address = workspace.device_ptr(stream).0;
        // SAFETY: the allocation has so many bytes, aligned to 256 as all are, and outlives the
        // handle's use.
        unsafe { sys::cublasSetWorkspace_v2(*blas.handle(), address as *mut _, WORKSPACE_BYTES) }
            .result()
            .context("cublasSetWorkspace")?;
        Ok(Cublas {
            blas,
            _workspace: workspace,
        })
    }

    /// The library's version, for instance `13.0.2`.
    ///
    /// # Errors
    /// cuBLAS refuses.
    pub(super) fn version(&self) -> Result<String> {
        let mut number = 0;
        // SAFETY: the handle is live; `number` is a place for one number.
        unsafe { sys::cublasGetVersion_v2(*self.blas.handle(), &raw mut number) }
            .result()
            .context("cublasGetVersion")?;
        Ok(format!(
            "{}.{}.{}",
            number / 10_000,
            number / 100 % 100,
            number % 100
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cublas_that_is_not_there_is_an_error_that_says_what_to_install_and_to_set() {
        // If the library is there, both calls load it.
        match load() {
            Ok(()) => load().unwrap(),
            Err(error) => {
                let error = error.to_string();
                assert!(
                    error.contains("nvidia-cublas") && error.contains("LD_LIBRARY_PATH"),
                    "{error}"
                );
            }
        }
    }
}
