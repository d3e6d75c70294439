//! cuBLAS, found at run time: the matrix product of the layers that are measured.

use std::ffi::c_int;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use cudarc::cublas::{result, sys};
use half::bf16;
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

/// A product `y = x w^T` of row-major matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Product {
    /// Rows of `x` and `y`.
    pub(super) rows: u32,
    /// Columns of `x` and `w`.
    pub(super) inputs: u32,
    /// Columns of `y`, rows of `w`.
    pub(super) outputs: u32,
    /// Elements from one row of `x` to the next, at least `inputs`. The rows of `y` and `w` follow
    /// each other without a gap.
    pub(super) input_stride: u32,
}

/// cuBLAS on one stream.
pub(super) struct Cublas {
    handle: sys::cublasHandle_t,
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
        let cublas = Cublas {
            handle: result::create_handle().context("cublasCreate")?,
            _workspace: workspace,
        };
        // Set the stream first: setting it resets the workspace to the handle's own, which a
        // capture would have to allocate. SAFETY: handle and stream are live, and the stream is of
        // the context that is current.
        unsafe { result::set_stream(cublas.handle, stream.cu_stream().cast()) }
            .context("cublasSetStream")?;
        // The address outlives the guard: the workspace lives as long as the handle, and is used on
        // this stream alone.
        let address = cublas._workspace.device_ptr(stream).0;
        // SAFETY: the allocation has so many bytes, aligned to 256 as all are, and outlives the
        // handle's use.
        unsafe { sys::cublasSetWorkspace_v2(cublas.handle, address as *mut _, WORKSPACE_BYTES) }
            .result()
            .context("cublasSetWorkspace")?;
        Ok(cublas)
    }

    /// The library's version, for instance `13.0.2`.
    ///
    /// # Errors
    /// cuBLAS refuses.
    pub(super) fn version(&self) -> Result<String> {
        let mut number = 0;
        // SAFETY: the handle is live; `number` is a place for one number.
        unsafe { sys::cublasGetVersion_v2(self.handle, &raw mut number) }
            .result()
            .context("cublasGetVersion")?;
        Ok(format!(
            "{}.{}.{}",
            number / 10_000,
            number / 100 % 100,
            number % 100
        ))
    }

    /// Enqueues a product of bf16 matrices, added up in f32.
    ///
    /// # Errors
    /// cuBLAS refuses.
    ///
    /// # Safety
    /// The addresses hold as many elements as `product` says, until the stream has passed this
    /// point; `y` overlaps neither of the others.
    pub(super) unsafe fn multiply(
        &self,
        product: Product,
        x: u64,
        weights: u64,
        y: u64,
    ) -> Result<()> {
        const BF16: sys::cudaDataType = sys::cudaDataType::CUDA_R_16BF;
        const { assert!(size_of::<bf16>() == 2) }
        let (one, zero) = (1.0f32, 0.0f32);
        let int = |number: u32| c_int::try_from(number).context("a matrix too large for cuBLAS");
        let (rows, inputs, outputs) = (
            int(product.rows)?,
            int(product.inputs)?,
            int(product.outputs)?,
        );
        // To cuBLAS, whose matrices go by columns, a row-major matrix is its transpose: y^T = w
        // x^T, where `w` must be turned back. SAFETY: the handle is live; the two numbers are read
        // before the call returns, as the pointer mode of a new handle is the host's; the rest is
        // the caller's promise.
        unsafe {
            result::gemm_ex(
                self.handle,
                sys::cublasOperation_t::CUBLAS_OP_T,
                sys::cublasOperation_t::CUBLAS_OP_N,
                outputs,
                rows,
                inputs,
                (&raw const one).cast(),
                weights as *const _,
                BF16,
                inputs,
                x as *const _,
                BF16,
                int(product.input_stride)?,
                (&raw const zero).cast(),
                y as *mut _,
                BF16,
                outputs,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .context("cublasGemmEx")
    }
}

impl Drop for Cublas {
    fn drop(&mut self) {
        // SAFETY: made by `create_handle`, and destroyed once, here.
        if let Err(error) = unsafe { result::destroy_handle(self.handle) } {
            tracing::warn!("cublasDestroy: {error}");
        }
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
