//! Which compiled kernels serve a GPU, and from where: the loader's own search.

use std::collections::BTreeMap;

use peersum_artifact::{Arch, CudaVersion, ModuleKey, RELEASE_SET, Target};

use super::report::{Finding, Subject, Verdict};
use crate::cuda::start::update_hint;
use crate::loader::{self, DeviceTarget, JitMode, LoadPolicy, Reason};

/// Looks for every module that `arch` could need. `first_steps` says how to make them.
pub(super) fn cubins(
    policy: &LoadPolicy,
    arch: Arch,
    driver_version: CudaVersion,
    first_steps: &str,
) -> Finding {
    let device = DeviceTarget {
        arch,
        driver_version: Some(driver_version),
    };
    let target = Target::Cubin(arch);
    // Compiling all that is missing would take seconds: whether it can be done is found out with one module.
    let ahead = policy.clone().jit(JitMode::Deny);
    let mut served: BTreeMap<String, usize> = BTreeMap::new();
    let mut missing = Vec::new();
    let mut reasons: Vec<String> = Vec::new();
    let mut too_old = None;
    let total = ModuleKey::all().count();
    if policy.jit_mode() == JitMode::Force {
        missing.extend(ModuleKey::all());
    } else {
        for key in ModuleKey::all() {
            match loader::load(&ahead, key, &device) {
                Ok(image) => {
                    *served
                        .entry(format!(
                            "{}, made for {}",
                            image.report.place.to_string(),
                            image.target
                        ))
                        .or_default() += 1;
                }
                // Only GPUs that can run the kernels get here.
                Err(loader::LoadError::ArchTooOld { .. }) => missing.push(key),
                Err(loader::LoadError::NotFound { passed_over, .. }) => {
                    missing.push(key);
                    for passed in passed_over {
                        if let Reason::DriverTooOld { toolkit, .. } = passed.reason {
                            too_old = Some(toolkit);
                        }
                        if !passed.reason.is_absence() && reasons.len() < 3 {
                            reasons.push(passed.to_string());
                        }
                    }
                }
            }
        }
    }
    let mut seen: Vec<String> = served
        .iter()
        .map(|(place, count)| format!("{count} of {total} modules from {place}"))
        .collect();
    let Some(&first_missing) = missing.first() else {
        return Finding::new(Subject::Cubins, Verdict::Works, seen.join("; "));
    };
    match loader::load(policy, first_missing, &device) {
        Ok(image) => {
            seen.push(format!(
                "{} of {total} have no cubin for {target}; {first_missing} came from {}",
                missing.len(),
                image.report.place
            ));
            Finding::new(Subject::Cubins, Verdict::Slower, seen.join("; ")).meaning(format!(
                "what is missing is compiled at its first use, about a tenth of a second a \
                module: {first_steps}"
            ))
        }
        Err(error) => {
            if served.is_empty() {
                seen.push(format!(
                    "none of the {total} modules for {target} is to be had"
                ));
            } else {
                seen.push(format!(
                    "{} of {total} modules for {target} are \
                missing",
                    missing.len()
                ));
            }
            if reasons.is_empty() {
                reasons.push(error.to_string());
            }
            seen.extend(reasons);
            let advice = match too_old {
                Some(toolkit) => update_hint(toolkit.major),
                None => first_steps.to_owned(),
            };
            Finding::new(Subject::Cubins, Verdict::Not, seen.join("\n"))
                .meaning(format!("a communicator cannot be built: {advice}"))
                .blocking(true)
        }
    }
}

/// What was compiled ahead of time, where there is no GPU to ask for.
pub(super) fn compiled_ahead(policy: &LoadPolicy) -> Finding {
    let ahead = policy.clone().jit(JitMode::Deny);
    let total = ModuleKey::all().count();
    let mut served = Vec::new();
    let (mut from, mut unusable) = (None, None);
    for target in RELEASE_SET {
        let Target::Cubin(arch) = target else {
            continue;
        };
        let device = DeviceTarget {
            arch,
            driver_version: None,
        };
        let mut count = 0;
        for key in ModuleKey::all() {
            match loader::load(&ahead, key, &device) {
                Ok(image) => {
                    count += 1;
                    from.get_or_insert_with(|| image.report.place.to_string());
                }
                Err(loader::LoadError::ArchTooOld { .. }) => {}
                Err(loader::LoadError::NotFound { passed_over, .. }) => {
                    let mut present = passed_over
                        .iter()
                        .filter(|passed| !passed.reason.is_absence());
                    unusable = unusable.or_else(|| present.next().map(ToString::to_string));
                }
            }
        }
        if count > 0 {
            served.push(format!("{count} of {total} for {target}"));
        }
    }
    let unneeded = "nothing on this machine needs them. `cargo xtask precompile` makes them for any \
                    GPU, without one";
    match (from, unusable) {
        (Some(from), _) => Finding::new(
            Subject::Cubins,
            Verdict::Works,
            format!("{} from {from}", served.join(", ")),
        ),
        (None, Some(unusable)) => {
            Finding::new(Subject::Cubins, Verdict::Not, unusable).meaning(unneeded)
        }
        (None, None) => Finding::new(Subject::Cubins, Verdict::Not, "no compiled kernels here")
            .meaning(unneeded),
    }
}
