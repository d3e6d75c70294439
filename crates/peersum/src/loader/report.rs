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
        let by = self.compilation.as_ref();
        let by = by.map(|by| format!(" {} ({})", by.version, by.library.display()));
        write!(
            f,
            "{} from {}{} in {:.1} ms{}",
            self.module,
            self.place,
            by.unwrap_or_default(),
            self.took.as_secs_f64() * 1e3,
            lines(&self.passed_over)
        )
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
    #[error("{}", not_found(*module, *device, *jit, passed_over))]
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

fn not_found(module: ModuleKey, device: Arch, jit: JitMode, passed_over: &[PassedOver]) -> String {
    let (mode, advice) = match jit {
        JitMode::Allow => (String::new(), ""),
        JitMode::Deny => (format!(", and JIT is set to {jit}"), ", or allow JIT"),
        JitMode::Force => (format!(", and JIT is set to {jit}"), ""),
    };
    format!(
        "could not load {module} for sm_{device}{mode}; searched:{}\nrun `cargo xtask precompile \
         --arch sm_{device}` and name its output with {CUBIN_DIR} or LoadPolicy::cubin_dir{advice}",
        lines(passed_over)
    )
}

/// A line for each place.
fn lines(passed_over: &[PassedOver]) -> String {
    passed_over
        .iter()
        .map(|passed| format!("\n  {passed}"))
        .collect()
}
