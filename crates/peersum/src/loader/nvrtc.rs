//! Compiling a module at run time: NVRTC, from sources in memory to a cubin.
//!
//! Needs `libnvrtc` only: no driver, no GPU, no header, no host compiler. For one CUDA version NVRTC and nvcc make the
//! same machine code of these sources (a test compares every module's `.text` sections), so a module compiled here
//! behaves like the shipped one.

mod launch_bounds;
mod library;
mod locate;

use std::ffi::{CString, c_char, c_int};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use peersum_artifact::{Arch, CudaVersion, EntryPoint, KernelResources, ModuleKey, Target};

pub use library::{NvrtcLibrary, build_id};
pub use locate::{NvrtcFile, NvrtcFound, NvrtcSearch};

use library::Program;

/// Why NVRTC gave no cubin.
#[derive(Debug, thiserror::Error)]
pub enum NvrtcError {
    /// No library was found.
    #[error(
        "NVRTC was not found; looked at: {}. Install it (NVIDIA's package cuda-nvrtc-13-0, or `pip install nvidia-cuda-nvrtc` \
         and name its libnvrtc.so.13 with LoadPolicy::nvrtc_library), or set CUDA_HOME to a toolkit that has it",
        looked_at.join(", ")
    )]
    NotFound {
        /// Every place that was looked at, in words.
        looked_at: Vec<String>,
    },
    /// The dynamic linker refused the file.
    #[error("{} cannot be opened as a library: {detail}", library.display())]
    Open {
        /// The file.
        library: PathBuf,
        /// The linker's words.
        detail: String,
    },
    /// The library lacks a function: it is not NVRTC, or one from before CUDA 11.2.
    #[error("{} has no function {symbol}: it is not an NVRTC of CUDA 12 or 13", library.display())]
    MissingSymbol {
        /// The file.
        library: PathBuf,
        /// The function looked for.
        symbol: &'static str,
    },
    /// The file could not be read to find out which NVRTC it is.
    #[error("{} cannot be read: {source}", library.display())]
    Read {
        /// The file.
        library: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// What this NVRTC makes would not be loaded by the driver.
    #[error(
        "{} belongs to CUDA {nvrtc_major}, and the driver to CUDA {}.{}, which loads nothing newer than {}: update the driver \
         or install NVRTC {}",
        library.display(), driver.major, driver.minor, driver.major, driver.major
    )]
    NewerThanDriver {
        /// The file.
        library: PathBuf,
        /// NVRTC's major version.
        nvrtc_major: u32,
        /// The CUDA version of the driver.
        driver: CudaVersion,
    },
    /// The library does not know the architecture.
    #[error(
        "{} (CUDA {}.{}) does not compile for sm_{arch}; it compiles for {}. A newer NVRTC may",
        library.display(), version.0, version.1, SmList(supported)
    )]
    ArchUnsupported {
        /// The file.
        library: PathBuf,
        /// Its CUDA version.
        version: (u32, u32),
        /// The architecture asked for.
        arch: Arch,
        /// The architectures it knows, `90` for sm_90.
        supported: Vec<u32>,
    },
    /// The kernels cannot be compiled for this architecture by any compiler.
    #[error(
        "the kernels cannot be compiled for sm_{arch}: they need sm_{} and newer",
        Arch::OLDEST
    )]
    ArchTooOld {
        /// The architecture asked for.
        arch: Arch,
    },
    /// The compiler refused the sources.
    #[error("{} does not compile {module} for sm_{arch}; its log:\n{log}", library.display())]
    Compile {
        /// The file.
        library: PathBuf,
        /// The module's name.
        module: String,
        /// The architecture asked for.
        arch: Arch,
        /// NVRTC's log, whole.
        log: String,
    },
    /// The sources do not hold the module's root file.
    #[error("the sources have no file {path}")]
    MissingSource {
        /// The file's path, as an include line would name it.
        path: String,
    },
    /// A name, option or source holds a NUL byte, which C strings cannot.
    #[error("{what} holds a NUL byte")]
    Nul {
        /// What holds it.
        what: String,
    },
    /// NVRTC itself reported an error outside the compilation of the sources.
    #[error("{function} failed with status {status} ({message})")]
    Call {
        /// The function.
        function: &'static str,
        /// Its `nvrtcResult`.
        status: i32,
        /// NVRTC's words for it.
        message: String,
    },
}

/// Prints `[80, 90]` as `sm_80, sm_90`.
struct SmList<'a>(&'a [u32]);

impl std::fmt::Display for SmList<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, arch) in self.0.iter().enumerate() {
            write!(f, "{}sm_{arch}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// A module compiled by NVRTC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    /// The ELF image, ready for `cuModuleLoadData`.
    pub cubin: Vec<u8>,
    /// The compiler's log, ptxas's resource report included.
    pub log: String,
    /// The module's kernels, in the order of [`ModuleKey::entry_points`].
    pub entry_points: Vec<EntryPoint>,
    /// How long the compilation took, the library's loading not counted.
    pub took: Duration,
}

/// The first compute capability with programmatic dependent launch. The kernels wait for their predecessor from there on.
const FIRST_PDL_ARCH: u16 = 90;
/// The largest block of a kernel without launch bounds.
const MAX_THREADS_OF_A_BLOCK: u32 = 1024;

/// NVRTC's options besides the defines, in order. They make the machine code that `nvcc -std=c++17 -O3` makes: NVRTC always
/// optimises at level 3 and rejects the option.
pub fn compile_flags(arch: Arch) -> Vec<String> {
    vec![
        format!("-arch={}", Target::Cubin(arch)),
        "-std=c++17".to_owned(),
        "--ptxas-options=-v".to_owned(),
    ]
}

/// Compiles the module `key` for `arch` from `sources`, pairs of path and text as the include lines name them.
///
/// # Errors
///
/// [`NvrtcError::ArchTooOld`] below [`Arch::OLDEST`], [`NvrtcError::ArchUnsupported`] with the
/// library's own list, [`NvrtcError::Compile`] with its whole log, or one of the errors of the call
/// itself.
pub fn compile(
    library: &NvrtcLibrary,
    key: ModuleKey,
    arch: Arch,
    sources: &[(&str, &str)],
) -> Result<Compiled, NvrtcError> {
    if !arch.runs_kernels() {
        return Err(NvrtcError::ArchTooOld { arch });
    }
    let supported = library.supported_archs()?;
    if !supported.contains(&u32::from(arch.number())) {
        return Err(NvrtcError::ArchUnsupported {
            library: library.path().to_owned(),
            version: library.version(),
            arch,
            supported,
        });
    }
    let root = key.source_root();
    let text = sources
        .iter()
        .find(|(path, _)| *path == root)
        .map(|(_, text)| *text)
        .ok_or_else(|| NvrtcError::MissingSource {
            path: root.to_owned(),
        })?;
    let headers: Vec<(&str, &str)> = sources
        .iter()
        .copied()
        .filter(|(path, _)| *path != root)
        .collect();
    let program = OpenProgram::create(library, root, text, &headers)?;
    let mut options = compile_flags(arch);
    options.extend(key.defines().iter().map(|define| format!("-D{define}")));
    let start = Instant::now();
    let compiled = program.compile(&options);
    let took = start.elapsed();
    let log = program.log()?;
    match compiled {
        Ok(()) => {
            let cubin = program.cubin()?;
            let entry_points = entry_points(key, arch, &cubin, &log);
            Ok(Compiled {
                cubin,
                log,
                entry_points,
                took,
            })
        }
        // Any other failure (out of memory, a missing builtins library) comes with a log as well, if only a short one.
        Err(NvrtcError::Call { message, .. }) => Err(NvrtcError::Compile {
            library: library.path().to_owned(),
            module: key.name(),
            arch,
            log: if log.trim().is_empty() { message } else { log },
        }),
        Err(other) => Err(other),
    }
}

/// An `nvrtcProgram`, destroyed when dropped.
struct OpenProgram<'a> {
    library: &'a NvrtcLibrary,
    handle: Program,
}

impl<'a> OpenProgram<'a> {
    fn create(
        library: &'a NvrtcLibrary,
        name: &str,
        text: &str,
        headers: &[(&str, &str)],
    ) -> Result<Self, NvrtcError> {
        let name_c = c_string(name, name)?;
        let text_c = c_string(text, name)?;
        let header_paths = headers
            .iter()
            .map(|(path, _)| c_string(path, path))
            .collect::<Result<Vec<_>, _>>()?;
        let header_texts = headers
            .iter()
            .map(|(path, text)| c_string(text, path))
            .collect::<Result<Vec<_>, _>>()?;
        let (paths, texts) = (pointers(&header_paths), pointers(&header_texts));
        let mut handle: Program = std::ptr::null_mut();
        // SAFETY: every string is NUL-terminated and outlives the call, both arrays have as many elements as the count
        // says, and NVRTC copies what it keeps.
        let status = unsafe {
            (library.functions.create_program)(
                &raw mut handle,
                text_c.as_ptr(),
                name_c.as_ptr(),
                count(&texts),
                texts.as_ptr(),
                paths.as_ptr(),
            )
        };
        library.functions.check("nvrtcCreateProgram", status)?;
        Ok(Self { library, handle })
    }

    fn compile(&self, options: &[String]) -> Result<(), NvrtcError> {
        let options = options
            .iter()
            .map(|option| c_string(option, option))
            .collect::<Result<Vec<_>, _>>()?;
        let options = pointers(&options);
        // SAFETY: the handle is open; the strings are NUL-terminated and outlive the call; the count is the array's.
        let status = unsafe {
            (self.library.functions.compile_program)(self.handle, count(&options), options.as_ptr())
        };
        self.library.functions.check("nvrtcCompileProgram", status)
    }

    fn log(&self) -> Result<String, NvrtcError> {
        let mut size = 0;
        // SAFETY: the handle is open and the pointer is valid for one `size_t`.
        let status = unsafe { (self.library.functions.log_size)(self.handle, &raw mut size) };
        self.library
            .functions
            .check("nvrtcGetProgramLogSize", status)?;
        let mut log = vec![0_u8; size];
        // SAFETY: the buffer has the size that NVRTC just asked for, its final NUL included.
        let status =
            unsafe { (self.library.functions.log)(self.handle, log.as_mut_ptr().cast::<c_char>()) };
        self.library.functions.check("nvrtcGetProgramLog", status)?;
        log.truncate(log.iter().position(|&byte| byte == 0).unwrap_or(log.len()));
        Ok(String::from_utf8_lossy(&log).into_owned())
    }

    fn cubin(&self) -> Result<Vec<u8>, NvrtcError> {
        let mut size = 0;
        // SAFETY: the handle is open and the pointer is valid for one `size_t`.
        let status = unsafe { (self.library.functions.cubin_size)(self.handle, &raw mut size) };
        self.library.functions.check("nvrtcGetCUBINSize", status)?;
        let mut cubin = vec![0_u8; size];
        // SAFETY: the buffer has the size that NVRTC just asked for.
        let status = unsafe {
            (self.library.functions.cubin)(self.handle, cubin.as_mut_ptr().cast::<c_char>())
        };
        self.library.functions.check("nvrtcGetCUBIN", status)?;
        Ok(cubin)
    }
}

impl Drop for OpenProgram<'_> {
    fn drop(&mut self) {
        // SAFETY: the handle came from nvrtcCreateProgram and is destroyed once, here. A failure leaves nothing to do.
        unsafe { (self.library.functions.destroy_program)(&raw mut self.handle) };
    }
}

fn c_string(text: &str, what: &str) -> Result<CString, NvrtcError> {
    CString::new(text).map_err(|_| NvrtcError::Nul {
        what: what.to_owned(),
    })
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).collect()
}

/// The length as C's `int`. Saturation cannot occur: the arrays hold a few files or options.
fn count(pointers: &[*const c_char]) -> c_int {
    c_int::try_from(pointers.len()).unwrap_or(c_int::MAX)
}

/// What a launch must know of the module's kernels.
fn entry_points(key: ModuleKey, arch: Arch, cubin: &[u8], log: &str) -> Vec<EntryPoint> {
    let reported = parse_ptxas_report(log);
    let resources = |name: &str| {
        reported
            .iter()
            .find(|(kernel, _)| kernel == name)
            .map(|(_, resources)| *resources)
    };
    key.entry_points()
        .into_iter()
        .map(|name| EntryPoint {
            resources: Some(resources(&name).unwrap_or(UNREPORTED)),
            max_threads: launch_bounds::launch_bound(cubin, &name)
                .unwrap_or(MAX_THREADS_OF_A_BLOCK),
            pdl: arch.number() >= FIRST_PDL_ARCH,
            name,
        })
        .collect()
}

const UNREPORTED: KernelResources = KernelResources {
    registers: 0,
    spill_bytes: 0,
    shared_bytes: 0,
};

/// Reads the resource lines that ptxas prints under `-v`, for kernels and for functions that they call. Lines it does not
/// know are passed over: the report informs, nothing depends on it.
fn parse_ptxas_report(log: &str) -> Vec<(String, KernelResources)> {
    let mut functions: Vec<(String, KernelResources)> = Vec::new();
    let index_of = |functions: &mut Vec<(String, KernelResources)>, name: &str| {
        functions
            .iter()
            .position(|(known, _)| known == name)
            .unwrap_or_else(|| {
                functions.push((name.to_owned(), UNREPORTED));
                functions.len() - 1
            })
    };
    // The kernel being compiled owns the line of registers; "Function properties" names whom the spill line is about.
    let (mut kernel, mut function) = (None, None);
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            kernel = Some(index_of(
                &mut functions,
                rest.split('\'').next().unwrap_or_default(),
            ));
        } else if let Some((_, name)) = line.split_once("Function properties for ") {
            function = Some(index_of(&mut functions, name.trim().trim_matches('\'')));
        } else if line.contains("spill stores")
            && let Some(index) = function
        {
            functions[index].1.spill_bytes = number_before(line, " bytes spill stores")
                + number_before(line, " bytes spill loads");
        } else if line.contains("Used ")
            && line.contains(" registers")
            && let Some(index) = kernel
        {
            functions[index].1.registers = number_before(line, " registers");
            functions[index].1.shared_bytes = number_before(line, " bytes smem");
        }
    }
    functions
}

/// The decimal number that stands right before `unit` in `line`, or 0.
fn number_before(line: &str, unit: &str) -> u32 {
    line.find(unit)
        .and_then(|at| line[..at].rsplit(|c: char| !c.is_ascii_digit()).next())
        .and_then(|digits| digits.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ptxas_report_is_read_kernel_by_kernel() {
        let log = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_90'
ptxas info    : Function properties for first
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 14 registers, used 0 barriers
ptxas info    : Compiling entry function 'second' for 'sm_90'
ptxas info    : Function properties for second
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 1024 bytes smem, 480 bytes cmem[0]
ptxas info    : Function properties for called
ptxas         .     0 bytes stack frame, 4 bytes spill stores, 0 bytes spill loads
";
        let first = KernelResources {
            registers: 14,
            spill_bytes: 0,
            shared_bytes: 0,
        };
        let second = KernelResources {
            registers: 255,
            spill_bytes: 20,
            shared_bytes: 1024,
        };
        let called = KernelResources {
            registers: 0,
            spill_bytes: 4,
            shared_bytes: 0,
        };
        assert_eq!(
            parse_ptxas_report(log),
            [
                ("first".to_owned(), first),
                ("second".to_owned(), second),
                ("called".to_owned(), called)
            ]
        );
    }
}
