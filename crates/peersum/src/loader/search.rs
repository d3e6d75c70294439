//! The search for a module, from the first place to the last.

use std::time::Instant;

use peersum_artifact::{ModuleKey, Target, include_closure};

use super::image::{DeviceTarget, KernelSet, LoadedImage};
use super::place::Place;
use super::policy::LoadPolicy;
use super::report::{LoadError, LoadReport, PassedOver};
use super::request::{ImageKind, Request};

/// Finds the module `key` of this build's kernels for `device`.
///
/// A missing library is no panic. Compiles at most once per machine, if a JIT cache can be used:
/// processes that need the same module at the same time wait for the first.
///
/// # Errors
///
/// [`LoadError::NotFound`] if no place has the module and none can make it; it lists every place
/// and the reason. [`LoadError::ArchTooOld`] for a device that no kernel can be compiled for.
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
    let not_found = |passed_over| LoadError::NotFound {
        module: key,
        device: device.arch,
        jit: policy.jit,
        passed_over,
    };
    let closure = include_closure(key.source_root(), &kernels.sources).map_err(|error| {
        let (place, reason) = (Place::Sources, error.into());
        not_found(vec![PassedOver { place, reason }])
    })?;
    let mut request = Request {
        policy,
        kernels,
        key,
        device,
        closure: &closure,
        passed_over: Vec::new(),
    };
    let found = request
        .compiled_ahead(ImageKind::Cubin)
        .or_else(|| request.compiled_here())
        .or_else(|| request.compiled_ahead(ImageKind::Ptx));
    let passed_over = request.passed_over;
    let Some(mut found) = found else {
        return Err(not_found(passed_over));
    };
    if matches!(found.entry.target, Target::Ptx(_)) {
        found.bytes.push(0);
    }
    let report = LoadReport {
        module: key,
        place: found.place,
        file: found.file,
        compilation: found.compilation,
        passed_over,
        took: start.elapsed(),
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
