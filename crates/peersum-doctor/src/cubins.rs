//! Which compiled kernels serve a GPU, and from where: the loader's own search.

use std::collections::BTreeMap;

use peersum::loader::{self, DeviceTarget, JitMode, LoadError, LoadPolicy, Reason, update_hint};
use peersum_artifact::{Arch, CudaVersion, ModuleKey, RELEASE_SET, Target};

use crate::report::{Finding, Subject};

/// What the places that were filled ahead of time have for one architecture.
#[derive(Default)]
struct Served {
    /// How many modules come from each place, by the place in words and what they were made for.
    places: BTreeMap<(String, Target), usize>,
    missing: Vec<ModuleKey>,
    /// The first reasons for which something that is there cannot be used.
    unusable: Vec<String>,
    /// The toolkit of a cubin that the driver is too old for.
    newer_toolkit: Option<CudaVersion>,
}

impl Served {
    /// Looks for every module that `device` could need.
    fn look(&mut self, policy: &LoadPolicy, device: &DeviceTarget) {
        // To compile all that is missing would take seconds.
        let ahead = policy.clone().jit(JitMode::Deny);
        for key in ModuleKey::all() {
            match loader::load(&ahead, key, device) {
                Ok(image) => {
                    let place = (image.report.place.to_string(), image.target);
                    *self.places.entry(place).or_default() += 1;
                }
                // Only GPUs that can run the kernels are asked for.
                Err(LoadError::ArchTooOld { .. }) => self.missing.push(key),
                Err(LoadError::NotFound { passed_over, .. }) => {
                    self.missing.push(key);
                    for passed in passed_over {
                        if let Reason::DriverTooOld { toolkit, .. } = passed.reason {
                            self.newer_toolkit = Some(toolkit);
                        }
                        if !passed.reason.is_absence() && self.unusable.len() < 3 {
                            self.unusable.push(passed.to_string());
                        }
                    }
                }
            }
        }
    }

    /// What comes from each place, in words.
    fn texts(&self) -> Vec<String> {
        let total = ModuleKey::all().count();
        let text = |((place, target), count): (&(String, Target), &usize)| {
            format!("{count} of {total} modules from {place}, made for {target}")
        };
        self.places.iter().map(text).collect()
    }
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
    let mut served = Served::default();
    if policy.jit_mode() == JitMode::Force {
        served.missing.extend(ModuleKey::all());
    } else {
        served.look(policy, &device);
    }
    let mut seen = served.texts();
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
    let mut served = Served::default();
    for target in RELEASE_SET {
        if let Target::Cubin(arch) = target {
            let driver_version = None;
            served.look(
                policy,
                &DeviceTarget {
                    arch,
                    driver_version,
                },
            );
        }
    }
    if !served.places.is_empty() {
        return Finding::works(Subject::Cubins, served.texts().join("; "));
    }
    let none = || "no compiled kernels here".to_owned();
    let seen = served.unusable.into_iter().next().unwrap_or_else(none);
    Finding::not(Subject::Cubins, seen).meaning(
        "nothing on this machine needs them. `cargo xtask precompile` makes them for any GPU, \
         without one",
    )
}
