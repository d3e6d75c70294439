//! Which files to make: modules times targets.

use super::native::native_archs;
use crate::toolchain::Nvcc;
use anyhow::ensure;
use peersum_artifact::{ModuleKey, ParseNameError, RELEASE_SET, Target, WorldSize};
use std::collections::BTreeSet;
use std::str::FromStr;

/// One item of `--arch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ArchChoice {
    /// A target by its name.
    Named(Target),
    /// The GPUs of this machine.
    Native,
}

impl FromStr for ArchChoice {
    type Err = ParseNameError;

    fn from_str(given: &str) -> Result<Self, Self::Err> {
        if given == "native" {
            return Ok(Self::Native);
        }
        given
            .parse()
            .map(Self::Named)
            .map_err(|error: ParseNameError| ParseNameError {
                valid: format!("native (this machine's GPUs), {}", error.valid),
                ..error
            })
    }
}

/// One item of `--world-size`: `4`, or a range that includes both its ends, `2..8` or `2..=8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WorldSizes {
    first: WorldSize,
    last: WorldSize,
}

impl WorldSizes {
    pub(super) fn contains(self, size: WorldSize) -> bool {
        (self.first..=self.last).contains(&size)
    }
}

impl FromStr for WorldSizes {
    type Err = ParseNameError;

    fn from_str(given: &str) -> Result<Self, Self::Err> {
        let (first, last) = match given.split_once("..") {
            Some((first, last)) => (first, last.strip_prefix('=').unwrap_or(last)),
            None => (given, given),
        };
        let sizes = Self {
            first: first.parse()?,
            last: last.parse()?,
        };
        if sizes.first > sizes.last {
            return Err(ParseNameError {
                what: "world size",
                given: given.to_owned(),
                valid: "1 to 8, the smaller end of a range first".to_owned(),
            });
        }
        Ok(sizes)
    }
}

/// One file that precompile makes.
pub(crate) type Artifact = (ModuleKey, Target);

/// The targets of `--arch`: without any, the release set; `native` resolved.
///
/// # Errors
/// `native` on a machine without a GPU that can run the kernels.
pub(crate) fn targets(choices: &[ArchChoice]) -> anyhow::Result<BTreeSet<Target>> {
    if choices.is_empty() {
        return Ok(RELEASE_SET.into());
    }
    let mut targets = BTreeSet::new();
    for choice in choices {
        match choice {
            ArchChoice::Named(target) => {
                targets.insert(*target);
            }
            ArchChoice::Native => targets.extend(native_archs()?.into_iter().map(Target::Cubin)),
        }
    }
    Ok(targets)
}

/// Every module for every target, in the manifest's order.
pub(crate) fn artifacts(modules: &[ModuleKey], targets: &BTreeSet<Target>) -> Vec<Artifact> {
    let of_module = |&module| targets.iter().map(move |&target| (module, target));
    let mut artifacts: Vec<_> = modules.iter().flat_map(of_module).collect();
    artifacts.sort();
    artifacts
}

/// Refuses targets that the compiler does not list.
///
/// # Errors
/// Names each of them and lists what the compiler can do.
pub(crate) fn ensure_supported(targets: &BTreeSet<Target>, nvcc: &Nvcc) -> anyhow::Result<()> {
    let listed = &nvcc.toolkit.gpu_codes;
    let unknown: Vec<String> = targets
        .iter()
        .map(Target::to_string)
        .filter(|name| !listed.contains(name))
        .collect();
    ensure!(
        unknown.is_empty(),
        "{} ({}) does not compile for {}; it lists: {}. Choose among them with --arch, or \
         another compiler with --toolkit",
        nvcc.program.display(),
        nvcc.toolkit.compiler,
        unknown.join(", "),
        listed.join(", ")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::request::Request;
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        request: Request,
    }

    fn count(flags: &str) -> usize {
        let flags = ["precompile"].into_iter().chain(flags.split_whitespace());
        let request = Flags::try_parse_from(flags).unwrap().request;
        artifacts(
            &request.modules().unwrap(),
            &targets(&request.arch).unwrap(),
        )
        .len()
    }

    #[test]
    fn no_flags_select_every_module_for_the_release_set() {
        assert_eq!(count(""), 73 * RELEASE_SET.len());
    }

    #[test]
    fn ranges_of_world_sizes_hold_both_their_ends() {
        for (given, expected) in [
            ("2..8", 7),
            ("2..=8", 7),
            ("4", 1),
            ("2,4,8", 3),
            ("2..3,7..8", 4),
            ("2..4,3", 3),
            // A group of one exchanges nothing, so it has no push module.
            ("1..2", 1),
        ] {
            let flags = format!("--arch sm_90 --dtype bf16 --family push --world-size {given}");
            assert_eq!(count(&flags), expected, "{given}");
        }
    }
}
