//! Where a module came from, and what was passed over on the way.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use peersum_artifact::pack::PackError;
use peersum_artifact::{
    Arch, ClosureError, CudaVersion, Digest, ManifestError, ModuleKey, PtxVersion, VerifyError,
    driver_branch_floor,
};

use super::jit_cache::CacheError;
use super::nvrtc::NvrtcError;
use super::policy::{CUBIN_DIR_VARIABLE, JitMode};

/// Where a module came from and how long it took.
#[derive(Debug)]
pub struct LoadReport {
    /// The module.
    pub module: ModuleKey,
    /// The place it came from.
    pub origin: Origin,
    /// The places looked at before, in order, and why each did not serve.
    pub passed_over: Vec<PassedOver>,
    /// From the call to the verified bytes in memory.
    pub took: Duration,
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} from {} in {:.1} ms",
            self.module,
            self.origin,
            self.took.as_secs_f64() * 1e3
        )?;
        self.passed_over
            .iter()
            .try_for_each(|passed| write!(f, "\n  {passed}"))
    }
}

/// The place a module came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// This file of the directory that the policy names.
    Directory(PathBuf),
    /// This file of the directory that `PEERSUM_CUBIN_DIR` names.
    EnvDirectory(PathBuf),
    /// The cubins embedded in `peersum-kernels`.
    Pack,
    /// This entry of the JIT cache.
    JitCache(PathBuf),
    /// Compiled just now.
    Nvrtc {
        /// The library's file.
        library: PathBuf,
        /// Its CUDA version.
        version: CudaVersion,
        /// How long loading the library took; zero when it was loaded before.
        library_load: Duration,
        /// How long the compilation took.
        compile: Duration,
        /// The entry of the JIT cache that it was stored in, if it was.
        stored: Option<PathBuf>,
    },
    /// The PTX embedded in `peersum-kernels`, which the driver compiles.
    EmbeddedPtx,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Directory(path) => write!(f, "{}", path.display()),
            Origin::EnvDirectory(path) => write!(f, "{} ({CUBIN_DIR_VARIABLE})", path.display()),
            Origin::Pack => f.write_str("the embedded cubins"),
            Origin::JitCache(path) => write!(f, "the JIT cache's entry {}", path.display()),
            Origin::Nvrtc {
                library, version, ..
            } => write!(f, "NVRTC {version} ({})", library.display()),
            Origin::EmbeddedPtx => f.write_str("the embedded PTX"),
        }
    }
}

/// A place that was looked at and did not serve.
#[derive(Debug)]
pub struct PassedOver {
    /// The place.
    pub place: Place,
    /// Why it did not serve.
    pub reason: Reason,
}

impl fmt::Display for PassedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.reason)
    }
}

/// A place that the loader looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The kernels' sources, which say what a module must have been compiled from.
    Sources,
    /// The directory that the policy names.
    Directory(PathBuf),
    /// The directory that `PEERSUM_CUBIN_DIR` names, if it names one.
    EnvDirectory(Option<PathBuf>),
    /// The cubins embedded in `peersum-kernels`.
    Pack,
    /// The JIT cache, if there is a directory for it.
    JitCache(Option<PathBuf>),
    /// NVRTC.
    Nvrtc,
    /// PTX of this directory, or of the pack where there is none.
    Ptx(Option<PathBuf>),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Sources => f.write_str("the kernels' sources"),
            Place::Directory(path) => write!(f, "directory {}", path.display()),
            Place::EnvDirectory(Some(path)) => write!(f, "{CUBIN_DIR_VARIABLE}={}", path.display()),
            Place::EnvDirectory(None) => f.write_str(CUBIN_DIR_VARIABLE),
            Place::Pack => f.write_str("embedded cubins"),
            Place::JitCache(Some(path)) => write!(f, "JIT cache {}", path.display()),
            Place::JitCache(None) => f.write_str("JIT cache"),
            Place::Nvrtc => f.write_str("NVRTC"),
            Place::Ptx(Some(path)) => write!(f, "PTX of directory {}", path.display()),
            Place::Ptx(None) => f.write_str("embedded PTX"),
        }
    }
}

/// Why a place did not serve.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// Nothing names this place.
    #[error("not set")]
    NotSet,
    /// The process gained rights when it was executed, so its environment is not followed.
    #[error("the environment is ignored in a set-uid process")]
    EnvironmentIgnored,
    /// The JIT mode excludes it.
    #[error("not used: JIT is set to {0}")]
    JitMode(JitMode),
    /// `peersum-kernels` was built without cubins, as in a checkout.
    #[error("none: this build of peersum carries no cubins")]
    EmptyPack,
    /// The embedded pack cannot be read.
    #[error("{0}")]
    Pack(PackError),
    /// The directory's manifest is missing or cannot be believed.
    #[error("{0}")]
    Manifest(ManifestError),
    /// The manifest lists nothing for this module and device.
    #[error("has {} for {module} on sm_{device}{}", if *ptx { "no PTX" } else { "no cubin" }, Having(listed))]
    NoEntry {
        /// The module.
        module: ModuleKey,
        /// The device's architecture.
        device: Arch,
        /// Whether PTX was looked for, and not a cubin.
        ptx: bool,
        /// What the manifest has of this module.
        listed: Vec<String>,
    },
    /// It was compiled from other sources than this build's.
    #[error(
        "{file} was compiled from other kernel sources (closure {found}) than this build of peersum has ({expected}): run \
         `cargo xtask precompile` again, or install the cubins of this version"
    )]
    StaleSources {
        /// The file.
        file: String,
        /// The closure digest of this build's sources.
        expected: Digest,
        /// The closure digest in the manifest.
        found: Digest,
    },
    /// The file is not what its manifest says, or not what its name says.
    #[error("{0}")]
    File(VerifyError),
    /// The driver is older than the toolkit that made the cubin.
    #[error("{file} was made by CUDA {toolkit} and the driver's CUDA is {driver}{}", DriverHint(*toolkit))]
    DriverTooOld {
        /// The file.
        file: String,
        /// The toolkit.
        toolkit: CudaVersion,
        /// The newest CUDA that the driver supports.
        driver: CudaVersion,
    },
    /// The driver is older than the PTX.
    #[error(
        "{file} is PTX {ptx}, newer than the driver's CUDA {driver} can compile: update the driver"
    )]
    PtxTooNew {
        /// The file.
        file: String,
        /// The PTX version.
        ptx: PtxVersion,
        /// The newest CUDA that the driver supports.
        driver: CudaVersion,
    },
    /// The kernels' sources do not form a whole.
    #[error("{0}")]
    Sources(ClosureError),
    /// The JIT cache's directory, or its entry, cannot be used.
    #[error("{0}")]
    Cache(CacheError),
    /// The JIT cache has no entry for this module, device and NVRTC.
    #[error("no entry")]
    CacheMiss,
    /// The NVRTC that was found has no build id, so nothing it makes can be told from what another one makes.
    #[error("not used: {} has no build id to tell it from other builds", library.display())]
    NoBuildId {
        /// The library's file.
        library: PathBuf,
    },
    /// NVRTC made no cubin.
    #[error("{0}")]
    Nvrtc(NvrtcError),
    /// What NVRTC made is not what was asked for.
    #[error("NVRTC's result cannot be used: {0}")]
    Compiled(VerifyError),
}

impl Reason {
    /// Whether there simply is nothing, by choice or by default, as opposed to something that cannot be used.
    #[must_use]
    pub fn is_absence(&self) -> bool {
        matches!(
            self,
            Reason::NotSet
                | Reason::EnvironmentIgnored
                | Reason::JitMode(_)
                | Reason::EmptyPack
                | Reason::CacheMiss
        )
    }
}

/// ` (it has: a, b)`, or nothing.
struct Having<'a>(&'a [String]);

impl fmt::Display for Having<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            Ok(())
        } else {
            write!(f, " (it has {})", self.0.join(", "))
        }
    }
}

/// Which driver to install for a toolkit.
struct DriverHint(CudaVersion);

impl fmt::Display for DriverHint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match driver_branch_floor(self.0.major) {
            Some(branch) => write!(f, ": it needs driver {branch} or newer"),
            None => f.write_str(": update the driver"),
        }
    }
}

/// Why no module was loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The device is older than what the kernels are written for. No place was looked at.
    #[error(
        "a GPU of compute capability {}.{} cannot run peersum's kernels, which need sm_{} and \
         newer (compute capability {}.{})",
        device.major, device.minor, Arch::OLDEST, Arch::OLDEST.major, Arch::OLDEST.minor
    )]
    ArchTooOld {
        /// The device's architecture.
        device: Arch,
    },
    /// No place had it, and none could make it.
    #[error("{}", NotFoundText(*module, *device, *jit, passed_over))]
    NotFound {
        /// The module.
        module: ModuleKey,
        /// The device's architecture.
        device: Arch,
        /// Whether it might have been compiled.
        jit: JitMode,
        /// Every place looked at, in order, and why each did not serve.
        passed_over: Vec<PassedOver>,
    },
}

struct NotFoundText<'a>(ModuleKey, Arch, JitMode, &'a [PassedOver]);

impl fmt::Display for NotFoundText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(module, device, jit, passed_over) = self;
        match jit {
            JitMode::Deny => write!(
                f,
                "no cubin of {module} for sm_{device}, and JIT is set to deny; looked at:"
            )?,
            JitMode::Force => write!(
                f,
                "{module} cannot be compiled for sm_{device}, and JIT is set to force; looked at:"
            )?,
            JitMode::Allow => write!(f, "{module} is not to be had for sm_{device}; looked at:")?,
        }
        passed_over
            .iter()
            .try_for_each(|passed| write!(f, "\n  {passed}"))?;
        write!(
            f,
            "\nrun `cargo xtask precompile --arch sm_{device}` and name its output with {CUBIN_DIR_VARIABLE} or \
             LoadPolicy::cubin_dir"
        )?;
        match jit {
            JitMode::Deny => f.write_str(", or allow JIT"),
            JitMode::Allow | JitMode::Force => Ok(()),
        }
    }
}
