//! The search for one module: what is looked for, what was found, what was passed over.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use peersum_artifact::{Closure, ManifestModule, ModuleKey, Target, include_closure};

use super::image::{DeviceTarget, KernelSet, LoadedImage};
use super::place::Place;
use super::policy::LoadPolicy;
use super::reason::Reason;
use super::report::{Compilation, LoadError, LoadReport, PassedOver};

/// The search for one module.
pub(super) struct Search<'a> {
    pub(super) policy: &'a LoadPolicy,
    pub(super) kernels: &'a KernelSet<'a>,
    pub(super) key: ModuleKey,
    pub(super) device: &'a DeviceTarget,
    /// The closure of this build's sources: a module made from others is stale.
    pub(super) closure: Closure,
    /// How many modules this process compiles at once, this one included.
    pub(super) at_once: u32,
    pub(super) found: Option<Found>,
    /// The places that did not serve so far.
    passed_over: Vec<PassedOver>,
    /// Time spent on this module.
    took: Duration,
}

impl<'a> Search<'a> {
    pub(super) fn begin(
        policy: &'a LoadPolicy,
        kernels: &'a KernelSet<'a>,
        key: ModuleKey,
        device: &'a DeviceTarget,
    ) -> Result<Self, LoadError> {
        let start = Instant::now();
        let closure = include_closure(key.source_root(), &kernels.sources);
        let closure = closure.map_err(|error| LoadError::NotFound {
            module: key,
            device: device.arch,
            jit: policy.jit,
            passed_over: vec![PassedOver {
                place: Place::Sources,
                reason: error.into(),
            }],
        })?;
        Ok(Self {
            policy,
            kernels,
            key,
            device,
            closure,
            at_once: 1,
            found: None,
            passed_over: Vec::new(),
            took: start.elapsed(),
        })
    }

    pub(super) fn timed(&mut self, step: impl FnOnce(&mut Self) -> Option<Found>) {
        let start = Instant::now();
        self.found = step(self);
        self.took += start.elapsed();
    }

    pub(super) fn end(self) -> Result<LoadedImage, LoadError> {
        let Some(mut found) = self.found else {
            return Err(LoadError::NotFound {
                module: self.key,
                device: self.device.arch,
                jit: self.policy.jit,
                passed_over: self.passed_over,
            });
        };
        if matches!(found.entry.target, Target::Ptx(_)) {
            found.bytes.push(0);
        }
        let report = LoadReport {
            module: self.key,
            place: found.place,
            file: found.file,
            compilation: found.compilation,
            passed_over: self.passed_over,
            took: self.took,
        };
        tracing::debug!(
            module = %report.module,
            place = %report.place,
            took_ms = report.took.as_secs_f64() * 1e3,
            "loaded a module"
        );
        Ok(LoadedImage {
            bytes: found.bytes.into(),
            target: found.entry.target,
            entry_points: found.entry.entry_points,
            report,
        })
    }

    /// Notes that a place did not serve.
    pub(super) fn miss(&mut self, place: Place, reason: impl Into<Reason>) {
        let reason = reason.into();
        let passed = PassedOver { place, reason };
        // That nothing is there is no news; that something is there and cannot be used is.
        if passed.reason.is_absence() {
            tracing::debug!(module = %self.key, %passed, "passed over");
        } else {
            tracing::warn!(module = %self.key, %passed, "passed over");
        }
        self.passed_over.push(passed);
    }
}

/// What an image is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ImageKind {
    /// Machine code.
    Cubin,
    /// Text that the driver compiles.
    Ptx,
}

/// A module that was found and verified.
pub(super) struct Found {
    pub(super) place: Place,
    pub(super) file: Option<PathBuf>,
    pub(super) compilation: Option<Compilation>,
    pub(super) entry: ManifestModule,
    pub(super) bytes: Vec<u8>,
}
