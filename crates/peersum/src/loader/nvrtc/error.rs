//! Why NVRTC gave no cubin.

use std::path::PathBuf;

use peersum_artifact::{Arch, CudaVersion};

/// Why NVRTC gave no cubin.
#[derive(Debug, thiserror::Error)]
pub enum NvrtcError {
    /// No library was found.
    #[error(
        "NVRTC was not found; looked at: {}. Install it (NVIDIA's package cuda-nvrtc-13-0, or \
         `pip install nvidia-cuda-nvrtc` and name its libnvrtc.so.13 with \
         LoadPolicy::nvrtc_library), or set CUDA_HOME to a toolkit that has it",
        looked_at.join(", ")
    )]
    NotFound {
        /// Every place that was looked at, in words.
        looked_at: Vec<String>,
    },
    /// The dynamic loader refused the file.
    #[error("{} cannot be opened as a library: {detail}", library.display())]
    Open {
        /// The file.
        library: PathBuf,
        /// The loader's words.
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
    /// The driver would not load what this NVRTC makes.
    #[error(
        "{} belongs to CUDA {nvrtc_major}, and the driver to CUDA {}.{}, which loads nothing newer \
         than {}: update the driver or install NVRTC {}",
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
        "{} (CUDA {version}) does not compile for sm_{arch}; it compiles for {}. A newer NVRTC may",
        library.display(), sm_list(supported)
    )]
    ArchUnsupported {
        /// The file.
        library: PathBuf,
        /// Its CUDA version.
        version: CudaVersion,
        /// The architecture asked for.
        arch: Arch,
        /// The architectures it knows.
        supported: Vec<Arch>,
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

/// `sm_80, sm_90`.
fn sm_list(archs: &[Arch]) -> String {
    let names: Vec<String> = archs.iter().map(|arch| format!("sm_{arch}")).collect();
    names.join(", ")
}
