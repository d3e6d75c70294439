//! Where a module came from, and which places did not serve.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use peersum_artifact::{Arch, CudaVersion, ModuleKey};

use super::place::Place;
use super::policy::JitMode;
use super::reason::Reason;
use crate::environment::CUBIN_DIR;

/// Where a module came from and how long it took.
#[derive(Debug)]
pub struct LoadReport {
    /// The module.
    pub module: ModuleKey,
    /// The place it came from.
    pub place: Place,
    /// The module's file, if it was read from one.
    pub file: Option<PathBuf>,
    /// How NVRTC compiled it, if that happened now.
    pub compilation: Option<Compilation>,
    /// The places looked at before, in order, and why each did not serve.
    pub passed_over: Vec<PassedOver>,
    /// From the call to the verified bytes in memory.
    pub took: Duration,
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from {}", self.module, self.place)?;
        if let Some(compilation) = &self.compilation {
            let Compilation {
                library, version, ..
            } = compilation;
            write!(f, " {version} ({})", library.display())?;
        }
        write!(f, " in {:.1} ms", self.took.as_secs_f64() * 1e3)?;
        write_lines(f, &self.passed_over)
    }
}

/// A compilation by NVRTC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compilation {
    /// The library's file.
    pub library: PathBuf,
    /// Its CUDA version.
    pub version: CudaVersion,
    /// How long opening the library took: next to nothing if this process had opened it before.
    pub library_load: Duration,
    /// How long the compilation took.
    pub compile: Duration,
    /// The entry of the JIT cache that the module was stored in, if it was.
    pub stored: Option<PathBuf>,
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
        write!(f, "could not load {module} for sm_{device}")?;
        if *jit != JitMode::Allow {
            write!(f, ", and JIT is set to {jit}")?;
        }
        f.write_str("; searched:")?;
        write_lines(f, passed_over)?;
        write!(
            f,
            "\nrun `cargo xtask precompile --arch sm_{device}` and name its output with \
             {CUBIN_DIR} or LoadPolicy::cubin_dir"
        )?;
        match jit {
            JitMode::Deny => f.write_str(", or allow JIT"),
            JitMode::Allow | JitMode::Force => Ok(()),
        }
    }
}

/// A line for each place.
fn write_lines(f: &mut fmt::Formatter<'_>, passed_over: &[PassedOver]) -> fmt::Result {
    passed_over
        .iter()
        .try_for_each(|passed| write!(f, "\n  {passed}"))
}
