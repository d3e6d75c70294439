//! From a module's sources to its cubin.

use std::time::{Duration, Instant};

use peersum_artifact::{Arch, CudaVersion, EntryPoint, ModuleKey, PtxasReport, Target};

use super::error::NvrtcError;
use super::launch_bounds::launch_bound;
use super::library::NvrtcLibrary;
use super::program::OpenProgram;

/// A module compiled by NVRTC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    /// The ELF image, ready for `cuModuleLoadData`.
    pub cubin: Vec<u8>,
    /// The module's kernels, in the order of [`ModuleKey::entry_points`].
    pub entry_points: Vec<EntryPoint>,
    /// How long the compilation took, without the time to load the library.
    pub took: Duration,
}

/// The first compute capability with programmatic dependent launch. From there on the kernels wait
/// for the kernel before them.
const FIRST_PDL_ARCH: u16 = 90;
/// The first NVRTC whose ptxas is known to compile a module's functions on as many threads as there
/// are cores. It makes the same machine code, so this is none of the [`compile_flags`]. NVRTC's own
/// `--split-compile` does not: it also splits what comes before ptxas.
const FIRST_TO_SPLIT: CudaVersion = CudaVersion {
    major: 13,
    minor: 0,
};
/// The largest block of a kernel without launch bounds.
const MAX_THREADS_OF_A_BLOCK: u32 = 1024;

/// NVRTC's options besides the defines, in order. They make the machine code that
/// `nvcc -std=c++17 -O3` makes: NVRTC always optimises at level 3 and rejects the option.
pub fn compile_flags(arch: Arch) -> Vec<String> {
    vec![
        format!("-arch={}", Target::Cubin(arch)),
        "-std=c++17".to_owned(),
        "--ptxas-options=-v".to_owned(),
    ]
}

/// Compiles the module `key` for `arch` from `sources`, pairs of path and text. The paths are those
/// of the include lines.
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
    if !supported.contains(&Arch::new(arch.major, arch.minor)) {
        return Err(NvrtcError::ArchUnsupported {
            library: library.path().to_owned(),
            version: library.version(),
            arch,
            supported,
        });
    }
    let program = OpenProgram::create(library, key.source_root(), sources)?;
    let mut options = compile_flags(arch);
    options.extend(key.defines().iter().map(|define| format!("-D{define}")));
    if library.version() >= FIRST_TO_SPLIT {
        options.push("--ptxas-options=-split-compile=0".to_owned());
    }
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
                entry_points,
                took,
            })
        }
        // Any other failure (out of memory, a missing builtins library) comes with a log as well,
        // if only a short one.
        Err(NvrtcError::Call { message, .. }) => Err(NvrtcError::Compile {
            library: library.path().to_owned(),
            module: key.name(),
            arch,
            log: if log.trim().is_empty() { message } else { log },
        }),
        Err(other) => Err(other),
    }
}

/// What a launch must know of the module's kernels.
fn entry_points(key: ModuleKey, arch: Arch, cubin: &[u8], log: &str) -> Vec<EntryPoint> {
    let report = PtxasReport::parse(log);
    let names = key.entry_points().into_iter();
    names
        .map(|name| EntryPoint {
            resources: Some(report.functions.get(&name).copied().unwrap_or_default()),
            max_threads: launch_bound(cubin, &name).unwrap_or(MAX_THREADS_OF_A_BLOCK),
            pdl: arch.number() >= FIRST_PDL_ARCH,
            name,
        })
        .collect()
}
