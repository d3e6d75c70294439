//! Which files to make: modules times targets.

use super::native::native_archs;
use anyhow::ensure;
use peersum_artifact::{Arch, ModuleKey, ParseNameError, RELEASE_SET, Target, WorldSize};
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
        let refused = |valid: &str| ParseNameError {
            what: "world size",
            given: given.to_owned(),
            valid: valid.to_owned(),
        };
        if first == "1" {
            return Err(refused("2 to 8, since one rank needs no module"));
        }
        let sizes = Self {
            first: first.parse()?,
            last: last.parse()?,
        };
        if sizes.first > sizes.last {
            return Err(refused("2 to 8, the smaller end of a range first"));
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
            ArchChoice::Native => {
                let archs = usable(native_archs()?)?;
                targets.extend(archs.into_iter().map(Target::Cubin));
            }
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
pub(crate) fn ensure_supported(
    targets: &BTreeSet<Target>,
    compiler: &str,
    listed: &[String],
) -> anyhow::Result<()> {
    // nvcc lists plain architectures only, but also compiles for their variants, such as sm_90a.
    let is_listed = |name: &String| {
        let plain = name.trim_end_matches(['a', 'f']);
        listed
            .iter()
            .any(|listed| listed == name || listed == plain)
    };
    let unknown: Vec<String> = targets
        .iter()
        .map(Target::to_string)
        .filter(|name| !is_listed(name))
        .collect();
    ensure!(
        unknown.is_empty(),
        "{compiler} does not compile for {}; it lists: {}. Choose among them with --arch, or \
         another compiler with --toolkit",
        unknown.join(", "),
        listed.join(", ")
    );
    Ok(())
}

/// Those of a machine's GPUs that can run the kernels.
fn usable(archs: BTreeSet<Arch>) -> anyhow::Result<Vec<Arch>> {
    let (usable, old): (Vec<Arch>, Vec<Arch>) =
        archs.into_iter().partition(|arch| arch.runs_kernels());
    let old: Vec<String> = old.iter().map(|arch| format!("sm_{arch}")).collect();
    ensure!(
        !usable.is_empty(),
        "--arch native: the GPUs of this machine are {}, and the kernels need sm_{} and newer",
        old.join(", "),
        Arch::OLDEST
    );
    Ok(usable)
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

    fn request(flags: &str) -> Result<Request, String> {
        let flags = ["precompile"].into_iter().chain(flags.split_whitespace());
        Flags::try_parse_from(flags)
            .map(|flags| flags.request)
            .map_err(|error| error.to_string())
    }

    fn count(flags: &str) -> usize {
        let request = request(flags).unwrap();
        artifacts(&request.modules(), &targets(&request.arch).unwrap()).len()
    }

    #[test]
    fn no_flags_select_all_42_modules_for_the_release_set() {
        assert_eq!(count(""), 42 * RELEASE_SET.len());
        let modules = Request::default().modules();
        assert_eq!(modules, ModuleKey::all().collect::<Vec<_>>());
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
        ] {
            let flags = format!("--arch sm_90 --dtype bf16 --family push --world-size {given}");
            assert_eq!(count(&flags), expected, "{given}");
        }
    }

    #[test]
    fn a_value_that_names_nothing_is_refused_with_the_valid_ones() {
        for (flags, words) in [
            ("--arch sm90", &["sm90", "sm_90", "native"][..]),
            ("--dtype f64", &["f64", "--dtype", "f16, bf16, f32"]),
            ("--world-size 9", &["9", "--world-size", "2 to 8"]),
            ("--world-size 2..9", &["9", "--world-size", "2 to 8"]),
            ("--world-size 8..2", &["8..2", "--world-size"]),
            ("--world-size 1", &["one rank needs no module"]),
            ("--world-size two", &["two", "--world-size", "2 to 8"]),
            ("--family ring", &["ring", "--family", "push, pull"]),
        ] {
            let error = request(flags).unwrap_err();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }

    #[test]
    fn an_architecture_that_the_compiler_does_not_list_is_refused_with_its_list() {
        let targets = ["sm_90", "sm_81"].map(|name| Target::from_str(name).unwrap());
        let listed = ["sm_80".to_owned(), "sm_90".to_owned()];
        let error = ensure_supported(&targets.into(), "nvcc 13.0.88", &listed)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("for sm_81;") && error.contains("sm_80, sm_90"),
            "{error}"
        );
    }

    #[test]
    fn an_architecture_that_the_kernels_do_not_support_is_refused_as_it_is_read() {
        for old in [
            "sm_75",
            "compute_75",
            "sm_70",
            "sm_61",
            "sm_52a",
            "sm_90,compute_70",
        ] {
            let error = request(&format!("--arch {old}")).unwrap_err();
            let last = old.rsplit(',').next().unwrap();
            assert!(error.contains(&format!("`{last}`")), "{error}");
            assert!(error.contains("sm_80 and newer"), "{error}");
        }
    }

    #[test]
    fn native_leaves_out_old_gpus_and_refuses_a_machine_of_them_alone() {
        let (old, oldest) = (Arch::plain(7, 5), Arch::plain(7, 0));
        let hopper = Arch::plain(9, 0);
        assert_eq!(usable([old, hopper].into()).unwrap(), [hopper]);
        let error = usable([old, oldest].into()).unwrap_err().to_string();
        assert!(
            error.contains("sm_70, sm_75") && error.contains("sm_80 and newer"),
            "{error}"
        );
    }
}
