//! Finding a compiled module: verified bytes, and a report that says where they came from.
//!
//! In this order: the directory named in code, the directory named by `PEERSUM_CUBIN_DIR`, the cubins embedded in
//! `peersum-kernels`, the JIT cache, NVRTC, and PTX, which the driver compiles. A file is used only if its length and
//! digest are those of its manifest, it was compiled from this build's sources, and its ELF is for the device's
//! architecture and has the module's entry points. Anything else is named in the report and passed over.
//!
//! The loader touches no GPU and loads no driver: a device hands the bytes to `cuModuleLoadData`.
//!
//! ```no_run
//! use peersum::loader::{DeviceTarget, LoadPolicy, load};
//! use peersum_artifact::Arch;
//!
//! let key = "peersum_push_bf16_ws8".parse()?;
//! let device = DeviceTarget { arch: Arch::plain(9, 0), driver_version: None };
//! let image = load(&LoadPolicy::from_env()?, key, &device)?;
//! println!("{}", image.report);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod jit;
mod jit_cache;
mod known;
pub mod nvrtc;
mod policy;
mod report;
mod search;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use peersum_artifact::{Algorithm, Arch, CudaVersion, EntryPoint, ModuleKey, Target};

pub use jit_cache::CacheError;
pub(crate) use jit_cache::probe as probe_cache;
pub use policy::{
    CACHE_DIR_VARIABLE, CUBIN_DIR_VARIABLE, JIT_VARIABLE, JitMode, LoadPolicy, ParseJitModeError,
};
pub use report::{LoadError, LoadReport, Origin, PassedOver, Place, Reason};

use policy::Environment;
use search::{Found, Outcome, Wanted};

/// What a module must run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceTarget {
    /// The device's compute capability.
    pub arch: Arch,
    /// The newest CUDA that its driver supports (`cuDriverGetVersion`). `None` when it is not known: the driver is
    /// then believed to be new enough.
    pub driver_version: Option<CudaVersion>,
}

/// The kernels to load: what compiled modules must have been made from, what NVRTC compiles, and the embedded cubins.
#[derive(Debug, Clone)]
pub struct KernelSet<'a> {
    /// The source files, pairs of path and text.
    pub sources: Vec<(&'a str, &'a str)>,
    /// The pack of cubins and PTX; empty when there is none. See [`peersum_artifact::pack`].
    pub pack: &'a [u8],
}

impl KernelSet<'static> {
    /// The kernels of this build of peersum.
    #[must_use]
    pub fn embedded() -> Self {
        Self {
            sources: peersum_kernels::SOURCES
                .iter()
                .map(|source| (source.path, source.text))
                .collect(),
            pack: peersum_kernels::PACK,
        }
    }
}

/// What an image is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageKind {
    /// Machine code.
    Cubin,
    /// Text that the driver compiles.
    Ptx,
}

/// A module's bytes, verified, and what a launch must know of its kernels.
#[derive(Debug)]
pub struct LoadedImage {
    /// The image as `cuModuleLoadData` takes it. PTX ends in a NUL, which that function needs.
    pub bytes: Arc<[u8]>,
    /// What the bytes are.
    pub kind: ImageKind,
    /// The target it was compiled for, which serves the device and need not be the device's own.
    pub target: Target,
    /// The kernels, in the order of [`Algorithm::ALL`].
    pub entry_points: Vec<EntryPoint>,
    /// Where it came from.
    pub report: LoadReport,
}

impl LoadedImage {
    /// The kernel that runs `algorithm`.
    #[must_use]
    pub fn entry_point(&self, algorithm: Algorithm) -> Option<&EntryPoint> {
        let name = self.report.module.entry_point(algorithm);
        self.entry_points
            .iter()
            .find(|entry_point| entry_point.name == name)
    }
}

/// Finds the module `key` of this build's kernels for `device`.
///
/// Never panics for want of a library. Compiles at most once per machine, where a JIT cache can be used: processes that
/// need the same module at the same time wait for the first.
///
/// # Errors
///
/// [`LoadError::NotFound`] when no place has the module and none can make it; it lists every place and the reason.
/// [`LoadError::ArchTooOld`] for a device that no kernel can be compiled for.
pub fn load(
    policy: &LoadPolicy,
    key: ModuleKey,
    device: &DeviceTarget,
) -> Result<LoadedImage, LoadError> {
    let Some(build) = policy.harness_build else {
        return load_from(policy, &KernelSet::embedded(), key, device);
    };
    let sources = build.sources();
    let kernels = KernelSet {
        sources: sources
            .iter()
            .map(|(path, text)| (*path, &**text))
            .collect(),
        pack: &[],
    };
    load_from(policy, &kernels, key, device)
}

/// As [`load`], for a given set of kernels.
///
/// # Errors
///
/// As [`load`].
pub fn load_from(
    policy: &LoadPolicy,
    kernels: &KernelSet<'_>,
    key: ModuleKey,
    device: &DeviceTarget,
) -> Result<LoadedImage, LoadError> {
    let start = Instant::now();
    if !device.arch.runs_kernels() {
        return Err(LoadError::ArchTooOld {
            device: device.arch,
        });
    }
    let mut passed_over = Vec::new();
    let found = Search {
        policy,
        kernels,
        key,
        device,
        passed_over: &mut passed_over,
    }
    .run();
    let Some((origin, Found { entry, mut bytes })) = found else {
        return Err(LoadError::NotFound {
            module: key,
            device: device.arch,
            jit: policy.jit,
            passed_over,
        });
    };
    let kind = match entry.target {
        Target::Cubin(_) => ImageKind::Cubin,
        Target::Ptx(_) => ImageKind::Ptx,
    };
    if kind == ImageKind::Ptx {
        bytes.push(0);
    }
    let report = LoadReport {
        module: key,
        origin,
        passed_over,
        took: start.elapsed(),
    };
    tracing::debug!(
        module = %report.module,
        origin = %report.origin,
        took_ms = report.took.as_secs_f64() * 1e3,
        "loaded a module"
    );
    Ok(LoadedImage {
        bytes: bytes.into(),
        kind,
        target: entry.target,
        entry_points: entry.entry_points,
        report,
    })
}

/// One search, from the first place to the last.
struct Search<'a> {
    policy: &'a LoadPolicy,
    kernels: &'a KernelSet<'a>,
    key: ModuleKey,
    device: &'a DeviceTarget,
    passed_over: &'a mut Vec<PassedOver>,
}

impl Search<'_> {
    fn run(&mut self) -> Option<(Origin, Found)> {
        let closure = match known::closure(self.key, &self.kernels.sources) {
            Ok(closure) => closure,
            Err(error) => {
                self.pass_over(Place::Sources, Reason::Sources(error));
                return None;
            }
        };
        let mut wanted = Wanted {
            key: self.key,
            device: self.device,
            closure: &closure,
            ptx: false,
        };
        self.compiled_ahead(&wanted)
            .or_else(|| self.compiled_here(&closure))
            .or_else(|| {
                wanted.ptx = true;
                self.ptx(&wanted)
            })
    }

    /// The directories and the pack.
    fn compiled_ahead(&mut self, wanted: &Wanted<'_>) -> Option<(Origin, Found)> {
        let policy = self.policy;
        if let Some(directory) = &policy.cubin_dir {
            let place = Place::Directory(directory.clone());
            if let Some(found) = self.look(place, |_| wanted.in_directory(directory)) {
                return Some((
                    Origin::Directory(directory.join(found.entry.file_name())),
                    found,
                ));
            }
        }
        match &policy.environment {
            Environment::NotRead => {}
            Environment::Ignored => {
                self.pass_over(Place::EnvDirectory(None), Reason::EnvironmentIgnored)
            }
            Environment::Read { cubin_dir: None } => {
                self.pass_over(Place::EnvDirectory(None), Reason::NotSet)
            }
            Environment::Read {
                cubin_dir: Some(directory),
            } => {
                let place = Place::EnvDirectory(Some(directory.clone()));
                if let Some(found) = self.look(place, |_| wanted.in_directory(directory)) {
                    return Some((
                        Origin::EnvDirectory(directory.join(found.entry.file_name())),
                        found,
                    ));
                }
            }
        }
        let found = self.look(Place::Pack, |kernels| wanted.in_pack(kernels.pack))?;
        Some((Origin::Pack, found))
    }

    /// PTX from the places that have been looked at for cubins.
    fn ptx(&mut self, wanted: &Wanted<'_>) -> Option<(Origin, Found)> {
        let policy = self.policy;
        if policy.jit != JitMode::Allow {
            self.pass_over(Place::Ptx(None), Reason::JitMode(policy.jit));
            return None;
        }
        let from_environment = match &policy.environment {
            Environment::Read { cubin_dir } => cubin_dir.as_deref(),
            Environment::NotRead | Environment::Ignored => None,
        };
        let mut in_directory = |directory: Option<&Path>, origin: fn(PathBuf) -> Origin| {
            let directory = directory?;
            let place = Place::Ptx(Some(directory.to_owned()));
            let found = self.look(place, |_| wanted.in_directory(directory))?;
            Some((origin(directory.join(found.entry.file_name())), found))
        };
        let found = in_directory(policy.cubin_dir.as_deref(), Origin::Directory)
            .or_else(|| in_directory(from_environment, Origin::EnvDirectory));
        if found.is_some() {
            return found;
        }
        let found = self.look(Place::Ptx(None), |kernels| wanted.in_pack(kernels.pack))?;
        Some((Origin::EmbeddedPtx, found))
    }

    /// Looks at one place that was filled ahead of time, and notes why it does not serve.
    fn look(
        &mut self,
        place: Place,
        find: impl FnOnce(&KernelSet<'_>) -> Outcome,
    ) -> Option<Found> {
        if self.policy.jit == JitMode::Force {
            self.pass_over(place, Reason::JitMode(JitMode::Force));
            return None;
        }
        let Outcome { found, passed_over } = find(self.kernels);
        for reason in passed_over {
            self.pass_over(place.clone(), reason);
        }
        found
    }

    fn pass_over(&mut self, place: Place, reason: Reason) {
        let passed = PassedOver { place, reason };
        // What is merely absent is no news; a file or directory that should have served and did not is.
        if passed.reason.is_absence() {
            tracing::debug!(module = %self.key, %passed, "passed over");
        } else {
            tracing::warn!(module = %self.key, %passed, "passed over");
        }
        self.passed_over.push(passed);
    }
}
