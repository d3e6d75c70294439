//! A loaded module and its kernels.

use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{
    self, CUfunction, CUfunction_attribute, CUjit_option, CUmodule, CUresult,
};
use peersum_artifact::{Algorithm, ModuleKey};

use super::driver::{check, describe, load_function, returned};
use super::owned::Owned;
use crate::device::DeviceError;
use crate::loader::LoadedImage;

/// One warp in each of the four parts of a multiprocessor.
const THREADS_OF_A_WARP_IN_EACH_PART: u32 = 4 * 32;

/// The entry points of one module, loaded onto the device. Unloaded when dropped, at which time
/// no launch of it may be in flight.
pub struct Module {
    /// Held for the kernels.
    _module: Owned<CUmodule>,
    /// By algorithm, in the order of its declaration.
    kernels: [Option<Kernel>; Algorithm::ALL.len()],
}

// SAFETY: the handles name objects of the driver, which may be used by any thread whose current
// context is theirs; every use binds it first. They are live for as long as `self`.
unsafe impl Send for Module {}

/// One entry point.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    pub(super) function: CUfunction,
    /// Whether it waits for the kernel before it, so that it may be launched with the programmatic
    /// attribute.
    pub(super) pdl: bool,
    /// Threads that a block has beyond those of its launch shape: they carry signals.
    pub(super) signal_threads: u32,
    /// The largest launch shape's block.
    max_threads: u32,
}

impl Module {
    /// Loads the image's kernels into the current context, which is `context`.
    pub(super) fn load(
        context: &Arc<CudaContext>,
        image: &LoadedImage,
        key: ModuleKey,
    ) -> Result<Self, DeviceError> {
        let module = load_image(image, key)?;
        let module = Owned::new(context, module, "cuModuleUnload", |module| {
            // SAFETY: the module was loaded in this context and is unloaded once.
            unsafe { sys::cuModuleUnload(module) }
        });
        let mut kernels = [None; Algorithm::ALL.len()];
        for &algorithm in key.algorithms() {
            kernels[algorithm as usize] = Some(Kernel::load(&module, image, key, algorithm)?);
        }
        Ok(Self {
            _module: module,
            kernels,
        })
    }

    pub(super) fn entry_point(&self, algorithm: Algorithm) -> Result<&Kernel, DeviceError> {
        let kernel = self.kernels[algorithm as usize].as_ref();
        kernel.ok_or_else(|| {
            let message = format!("the module has no entry point {algorithm}");
            DeviceError::driver("cuLaunchKernelEx", message)
        })
    }

    /// Whether a block of `threads` threads fits a half of each part of a multiprocessor.
    pub(super) fn fits_seat(
        &self,
        algorithm: Algorithm,
        threads: u32,
    ) -> Result<bool, DeviceError> {
        let kernel = self.entry_point(algorithm)?;
        // The driver answers for blocks beyond the launch bound as well; a launch of one fails.
        if threads > kernel.max_threads {
            return Ok(false);
        }
        // A launched block has threads that carry signals as well.
        let threads = counted_threads(threads + kernel.signal_threads);
        let call = "cuOccupancyMaxActiveBlocksPerMultiprocessor";
        // SAFETY: the place is one int, the function is live.
        let blocks = returned(call, 0, |blocks| unsafe {
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(
                blocks,
                kernel.function,
                threads.cast_signed(),
                0,
            )
        })?;
        Ok(blocks >= 2)
    }
}

impl Kernel {
    /// Loads one entry point of `module` onto the device.
    fn load(
        module: &Owned<CUmodule>,
        image: &LoadedImage,
        key: ModuleKey,
        algorithm: Algorithm,
    ) -> Result<Self, DeviceError> {
        let name = key.entry_point(algorithm);
        let missing = |message: &str| {
            let origin = &image.report.place;
            let message = format!("{name} of {key}, from {origin}: {message}");
            DeviceError::driver("cuModuleGetFunction", message)
        };
        let entry_point = image
            .entry_points
            .iter()
            .find(|entry_point| entry_point.name == name)
            .ok_or_else(|| missing("the image's description does not list it"))?;
        let symbol =
            CString::new(name.as_str()).map_err(|_| missing("the name has a NUL in it"))?;
        let mut function = std::ptr::null_mut();
        // SAFETY: `function` is a place for one handle, the module is loaded, the name ends in NUL.
        match unsafe {
            sys::cuModuleGetFunction(&raw mut function, module.handle(), symbol.as_ptr())
        } {
            CUresult::CUDA_SUCCESS => {}
            failure => return Err(missing(&describe(failure))),
        }
        load_function(function)?;
        let which = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK;
        // SAFETY: the place is one int, the function is live.
        let bound = returned("cuFuncGetAttribute", 0, |bound| unsafe {
            sys::cuFuncGetAttribute(bound, which, function)
        })?;
        prefer_shared_memory(function)?;
        let signal_threads = key.world_size.get();
        Ok(Self {
            function,
            pdl: entry_point.pdl,
            signal_threads,
            // PTX is compiled here, and may need more registers than its manifest could know.
            max_threads: entry_point
                .max_threads
                .min(u32::try_from(bound).unwrap_or(0))
                .saturating_sub(signal_threads),
        })
    }
}

/// The threads as which a block counts. Its warps are spread evenly over the parts of a
/// multiprocessor. The driver says how many equal blocks fit, and these can complement each other:
/// a part with more warps of one has fewer of the next. Blocks of two kernels may not. So a block
/// counts as if each part had as many warps as the fullest.
fn counted_threads(launched: u32) -> u32 {
    launched.next_multiple_of(THREADS_OF_A_WARP_IN_EACH_PART)
}

/// Asks for the largest part of a multiprocessor's L1 cache as shared memory. A multiprocessor that
/// runs a block never enlarges that part, so a block of a kernel that asks for more waits until all
/// others end. All kernels of all communicators ask for the same, so none waits for another.
fn prefer_shared_memory(function: CUfunction) -> Result<(), DeviceError> {
    let which = CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
    let percent = 100;
    // SAFETY: the function is live.
    check("cuFuncSetAttribute", unsafe {
        sys::cuFuncSetAttribute(function, which, percent)
    })
}

/// Hands the image to the driver, with room for the messages of its compiler.
fn load_image(image: &LoadedImage, key: ModuleKey) -> Result<CUmodule, DeviceError> {
    let mut log = vec![0u8; 4096];
    let mut options = [
        CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
        CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
    ];
    let mut values: [*mut c_void; 2] = [
        log.as_mut_ptr().cast(),
        std::ptr::without_provenance_mut(log.len()),
    ];
    let mut module = std::ptr::null_mut();
    // SAFETY: the loader has verified the bytes: a cubin whose ELF it has read, or PTX that ends in
    // NUL. That is how the driver finds the end. `options` and `values` are two each; the values
    // are the log's place and its size, and all outlive the call.
    let result = unsafe {
        sys::cuModuleLoadDataEx(
            &raw mut module,
            image.bytes.as_ptr().cast(),
            2,
            options.as_mut_ptr(),
            values.as_mut_ptr(),
        )
    };
    if result == CUresult::CUDA_SUCCESS {
        return Ok(module);
    }
    let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
    let log = String::from_utf8_lossy(&log[..end]);
    let log = log.trim();
    let message = format!(
        "{}, for {key} ({}) from {}{}{log}",
        describe(result),
        image.target,
        image.report.place,
        if log.is_empty() { "" } else { ": " },
    );
    Err(DeviceError::driver("cuModuleLoadData", message))
}

#[cfg(test)]
mod tests {
    use super::counted_threads;

    /// Registers of a part, in warps of one register.
    const PART: u32 = 16_384 / 32;

    /// Registers that a block needs of each part if its first warp lies in the `first`-th.
    fn needs((warps, registers): (u32, u32), first: u32) -> [u32; 4] {
        [0, 1, 2, 3].map(|part| {
            let before = (part + 4 - first) % 4;
            (warps + 3 - before) / 4 * registers
        })
    }

    fn fit_together(block: (u32, u32), first: u32, other: (u32, u32), other_first: u32) -> bool {
        let mut parts = needs(block, first)
            .into_iter()
            .zip(needs(other, other_first));
        parts.all(|(needed, by_other)| needed + by_other <= PART)
    }

    /// How many blocks of so many warps the driver says fit.
    fn driver_says(warps: u32, registers: u32) -> u32 {
        PART / registers * 4 / warps
    }

    fn has_seat((warps, registers): (u32, u32)) -> bool {
        driver_says(counted_threads(warps * 32) / 32, registers) >= 2
    }

    #[test]
    fn blocks_of_any_two_kernels_that_have_seats_fit_wherever_their_warps_begin() {
        let sizes = (1..=17).flat_map(|warps| (1..=31).map(move |step| (warps, 8 * step)));
        let blocks: Vec<_> = sizes.filter(|&block| has_seat(block)).collect();
        assert!(blocks.contains(&(17, 48)) && blocks.contains(&(12, 80)));
        for &block in &blocks {
            for &other in &blocks {
                for (first, other_first) in (0..16).map(|both| (both / 4, both % 4)) {
                    assert!(
                        fit_together(block, first, other, other_first),
                        "{block:?} {other:?}"
                    );
                }
            }
        }
    }

    /// Measured on an H200: neither starts beside the other.
    #[test]
    fn twelve_warps_of_80_registers_and_17_of_56_never_fit_though_two_of_each_do() {
        let (pull, rows) = ((12, 80), (17, 56));
        assert!(driver_says(12, 80) >= 2 && driver_says(17, 56) >= 2);
        let never = (0..4).all(|first| !fit_together(pull, 0, rows, first));
        assert!(never && has_seat(pull) && !has_seat(rows));
    }
}
