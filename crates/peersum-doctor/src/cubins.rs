//! Which compiled kernels serve a GPU, and from where: the loader's own search.

use std::collections::BTreeMap;

use peersum::cuda::diagnosis::update_hint;
use peersum::loader::{self, DeviceTarget, JitMode, LoadError, LoadPolicy, LoadedImage, Reason};
use peersum_artifact::{Arch, CudaVersion, ModuleKey, RELEASE_SET, Target};

use crate::report::{Finding, Subject};

/// What the places that were filled ahead of time have for one architecture.
#[derive(Default)]
struct Served {
    /// How many modules come from each place, by the place in words.
    places: BTreeMap<String, usize>,
    missing: Vec<ModuleKey>,
    /// The first reasons for which something that is there cannot be used.
    unusable: Vec<String>,
    /// The toolkit of a cubin that the driver is too old for.
    newer_toolkit: Option<CudaVersion>,
}

/// Looks for every module that `device` could need. `place` says where an image came from.
fn ahead_of_time(
    policy: &LoadPolicy,
    device: &DeviceTarget,
    place: impl Fn(&LoadedImage) -> String,
) -> Served {
    // To compile all that is missing would take seconds.
    let ahead = policy.clone().jit(JitMode::Deny);
    let mut served = Served::default();
    for key in ModuleKey::all() {
        match loader::load(&ahead, key, device) {
            Ok(image) => *served.places.entry(place(&image)).or_default() += 1,
            // Only GPUs that can run the kernels are asked for.
            Err(LoadError::ArchTooOld { .. }) => served.missing.push(key),
            Err(LoadError::NotFound { passed_over, .. }) => {
                served.missing.push(key);
                for passed in passed_over {
                    if let Reason::DriverTooOld { toolkit, .. } = passed.reason {
                        served.newer_toolkit = Some(toolkit);
                    }
                    if !passed.reason.is_absence() && served.unusable.len() < 3 {
                        served.unusable.push(passed.to_string());
                    }
                }
            }
        }
    }
    served
}

/// Looks for every module that `arch` could need. `first_steps` says how to make them.
pub(crate) fn cubins(
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
    let total = ModuleKey::all().count();
    let mut served = if policy.jit_mode() == JitMode::Force {
        Served {
            missing: ModuleKey::all().collect(),
            ..Served::default()
        }
    } else {
        ahead_of_time(policy, &device, |image| {
            format!("{}, made for {}", image.report.place, image.target)
        })
    };
    let mut seen: Vec<String> = served
        .places
        .iter()
        .map(|(place, count)| format!("{count} of {total} modules from {place}"))
        .collect();
    let missing = served.missing.len();
    let Some(&first_missing) = served.missing.first() else {
        return Finding::works(Subject::Cubins, seen.join("; "));
    };
    // Whether the missing ones can be compiled is found out with one of them.
    match loader::load(policy, first_missing, &device) {
        Ok(image) => {
            seen.push(format!(
                "{missing} of {total} have no cubin for {target}; {first_missing} came from {}",
                image.report.place
            ));
            Finding::slower(Subject::Cubins, seen.join("; ")).meaning(format!(
                "each missing module is compiled at its first use, in about a tenth of a second: \
                 {first_steps}"
            ))
        }
        Err(error) => {
            seen.push(if served.places.is_empty() {
                format!("could not load any of the {total} modules for {target}")
            } else {
                format!("{missing} of {total} modules for {target} are missing")
            });
            if served.unusable.is_empty() {
                served.unusable.push(error.to_string());
            }
            seen.extend(served.unusable);
            let advice = match served.newer_toolkit {
                Some(toolkit) => update_hint(toolkit.major),
                None => first_steps.to_owned(),
            };
            Finding::not(Subject::Cubins, seen.join("\n"))
                .meaning(format!("a communicator cannot be built: {advice}"))
                .blocking(true)
        }
    }
}

/// What was compiled ahead of time, if there is no GPU to ask for.
pub(crate) fn compiled_ahead(policy: &LoadPolicy) -> Finding {
    let total = ModuleKey::all().count();
    let mut counts = Vec::new();
    let (mut from, mut unusable) = (None, None);
    for target in RELEASE_SET {
        let Target::Cubin(arch) = target else {
            continue;
        };
        let device = DeviceTarget {
            arch,
            driver_version: None,
        };
        let served = ahead_of_time(policy, &device, |image| image.report.place.to_string());
        let count: usize = served.places.values().sum();
        if count > 0 {
            counts.push(format!("{count} of {total} for {target}"));
        }
        from = from.or(served.places.into_keys().next());
        unusable = unusable.or(served.unusable.into_iter().next());
    }
    let unneeded = "nothing on this machine needs them. `cargo xtask precompile` makes them for \
                    any GPU, without one";
    match (from, unusable) {
        (Some(from), _) => Finding::works(
            Subject::Cubins,
            format!("{} from {from}", counts.join(", ")),
        ),
        (None, Some(unusable)) => Finding::not(Subject::Cubins, unusable).meaning(unneeded),
        (None, None) => {
            Finding::not(Subject::Cubins, "no compiled kernels here".to_owned()).meaning(unneeded)
        }
    }
}
