//! Which modules for which targets: the selection flags, resolved.

use anyhow::{Context as _, bail, ensure};
use peersum_artifact::{Arch, Dtype, Family, ModuleKey, RELEASE_SET, Target, WorldSize};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::str::FromStr;

/// One item of `--arch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ArchChoice {
    /// A target by its name.
    Named(Target),
    /// The GPUs of this machine.
    Native,
}

/// What the selection flags say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Selection {
    archs: Vec<ArchChoice>,
    modules: Vec<ModuleKey>,
}

/// One file that precompile makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Artifact {
    /// The module.
    pub(crate) module: ModuleKey,
    /// What it is compiled for.
    pub(crate) target: Target,
}

impl Artifact {
    /// Its file in the output directory.
    pub(crate) fn file_name(&self) -> String {
        self.target.file_name(&self.module)
    }

    /// Module and target in one word, for messages: `peersum_push_bf16_ws8.sm_90`.
    pub(crate) fn label(&self) -> String {
        format!("{}.{}", self.module.name(), self.target)
    }
}

impl Selection {
    /// Reads the flags; an absent one selects all of its kind, `--arch` the release set.
    ///
    /// # Errors
    /// A value that names nothing; the message lists what would.
    pub(crate) fn parse(
        archs: &[String],
        dtypes: &[String],
        world_sizes: &[String],
        families: &[String],
    ) -> anyhow::Result<Self> {
        let dtypes: BTreeSet<Dtype> = names("--dtype", dtypes, Dtype::ALL)?;
        let families: BTreeSet<Family> = names("--family", families, Family::ALL)?;
        let world_sizes = parse_world_sizes(world_sizes)?;
        let modules = ModuleKey::all()
            .filter(|key| {
                families.contains(&key.family)
                    && dtypes.contains(&key.dtype)
                    && world_sizes.contains(&key.world_size)
            })
            .collect();
        let mut choices = Vec::new();
        for name in archs.iter().flat_map(|list| list.split(',')).map(str::trim) {
            choices.push(match name {
                "native" => ArchChoice::Native,
                _ => ArchChoice::Named(
                    Target::from_str(name)
                        .context("bad --arch (or `native`: the GPUs of this machine)")?,
                ),
            });
        }
        if choices.is_empty() {
            choices.extend(RELEASE_SET.map(ArchChoice::Named));
        }
        Ok(Self {
            archs: choices,
            modules,
        })
    }

    /// The targets, `native` resolved. `compiler_dir` is where nvcc lies, if it is known: it has a device query beside it.
    ///
    /// # Errors
    /// `native` on a machine without a GPU that can run the kernels.
    pub(crate) fn targets(&self, compiler_dir: Option<&Path>) -> anyhow::Result<BTreeSet<Target>> {
        let mut targets = BTreeSet::new();
        for choice in &self.archs {
            match choice {
                ArchChoice::Named(target) => {
                    targets.insert(*target);
                }
                ArchChoice::Native => {
                    let archs = usable(native_archs(compiler_dir)?)?;
                    targets.extend(archs.into_iter().map(Target::Cubin))
                }
            }
        }
        Ok(targets)
    }

    /// Every file of the matrix, in the manifest's order.
    pub(crate) fn artifacts(&self, targets: &BTreeSet<Target>) -> Vec<Artifact> {
        let mut artifacts: Vec<_> = self
            .modules
            .iter()
            .flat_map(|&module| {
                targets
                    .iter()
                    .map(move |&target| Artifact { module, target })
            })
            .collect();
        artifacts.sort();
        artifacts
    }
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
    // nvcc lists plain architectures only; it compiles for the variants of those, such as sm_90a, all the same.
    let is_listed = |name: &String| {
        listed.contains(name)
            || listed
                .iter()
                .any(|plain| *plain == name.trim_end_matches(['a', 'f']))
    };
    let unknown: Vec<String> = targets
        .iter()
        .map(Target::to_string)
        .filter(|name| !is_listed(name))
        .collect();
    ensure!(
        unknown.is_empty(),
        "{compiler} does not compile for {}; it lists: {}. Choose among them with --arch, or another compiler with --toolkit",
        unknown.join(", "),
        listed.join(", ")
    );
    Ok(())
}

fn names<T: FromStr<Err = peersum_artifact::ParseNameError> + Copy + Ord>(
    flag: &'static str,
    lists: &[String],
    all: &[T],
) -> anyhow::Result<BTreeSet<T>> {
    if lists.is_empty() {
        return Ok(all.iter().copied().collect());
    }
    let items = lists.iter().flat_map(|list| list.split(','));
    items
        .map(|name| T::from_str(name.trim()).with_context(|| format!("bad {flag}")))
        .collect()
}

/// Reads `2..8` (both ends belong to it), `2..=8`, `4` and lists of these.
fn parse_world_sizes(lists: &[String]) -> anyhow::Result<BTreeSet<WorldSize>> {
    if lists.is_empty() {
        return Ok(WorldSize::ALL.iter().copied().collect());
    }
    let mut sizes = BTreeSet::new();
    for item in lists.iter().flat_map(|list| list.split(',')).map(str::trim) {
        let (first, last) = match item.split_once("..") {
            Some((first, last)) => (first, last.strip_prefix('=').unwrap_or(last)),
            None => (item, item),
        };
        let end = |text: &str| -> anyhow::Result<WorldSize> {
            if text == "1" {
                bail!("bad --world-size: one rank needs no module; valid: 2 to 8");
            }
            WorldSize::from_str(text)
                .context("bad --world-size (a number, a range such as 2..8, or a list of these)")
        };
        let (first, last) = (end(first)?, end(last)?);
        ensure!(
            first <= last,
            "bad --world-size: the range `{item}` is empty; valid: 2 to 8, the smaller end first"
        );
        sizes.extend(
            WorldSize::ALL
                .iter()
                .copied()
                .filter(|size| (first..=last).contains(size)),
        );
    }
    Ok(sizes)
}

/// Asks the driver for the architectures of this machine's GPUs: by nvidia-smi, else by the query tool that lies beside nvcc.
fn native_archs(compiler_dir: Option<&Path>) -> anyhow::Result<BTreeSet<Arch>> {
    let mut smi = Command::new("nvidia-smi");
    smi.args(["--query-gpu=compute_cap", "--format=csv,noheader"]);
    let mut tried = Vec::new();
    for mut query in [
        Some(smi),
        compiler_dir.map(|dir| Command::new(dir.join("__nvcc_device_query"))),
    ]
    .into_iter()
    .flatten()
    {
        let name = query.get_program().display().to_string();
        match query.output() {
            Ok(output) if output.status.success() => {
                let archs = parse_compute_capabilities(&String::from_utf8_lossy(&output.stdout));
                if !archs.is_empty() {
                    return Ok(archs);
                }
                tried.push(format!("`{name}` listed no GPU"));
            }
            Ok(output) => tried.push(format!("`{name}` ended with {}", output.status)),
            Err(error) => tried.push(format!("`{name}`: {error}")),
        }
    }
    bail!(
        "--arch native found no NVIDIA GPU on this machine ({}); name the architecture instead, such as --arch sm_90",
        tried.join("; ")
    )
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

/// Reads one capability a line, `9.0` as nvidia-smi writes it or `90` as nvcc's query does.
fn parse_compute_capabilities(text: &str) -> BTreeSet<Arch> {
    text.split([',', '\n', ' '])
        .filter_map(|item| item.trim().replace('.', "").parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn select(
        archs: &[&str],
        dtypes: &[&str],
        world_sizes: &[&str],
        families: &[&str],
    ) -> anyhow::Result<Selection> {
        let own = |items: &[&str]| {
            items
                .iter()
                .map(|&item| item.to_owned())
                .collect::<Vec<_>>()
        };
        Selection::parse(&own(archs), &own(dtypes), &own(world_sizes), &own(families))
    }

    fn count(selection: &Selection) -> usize {
        selection.artifacts(&selection.targets(None).unwrap()).len()
    }

    #[test]
    fn no_flags_select_all_42_modules_for_the_release_set() {
        assert_eq!(
            count(&select(&[], &[], &[], &[]).unwrap()),
            42 * RELEASE_SET.len()
        );
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
            let selection = select(&["sm_90"], &["bf16"], &[given], &["push"]).unwrap();
            assert_eq!(count(&selection), expected, "{given}");
        }
    }

    #[test]
    fn a_value_that_names_nothing_is_refused_with_the_valid_ones() {
        for (result, words) in [
            (
                select(&["sm90"], &[], &[], &[]),
                &["sm90", "sm_90", "native"][..],
            ),
            (
                select(&[], &["f64"], &[], &[]),
                &["f64", "--dtype", "f16, bf16, f32"],
            ),
            (
                select(&[], &[], &["9"], &[]),
                &["9", "--world-size", "2 to 8"],
            ),
            (
                select(&[], &[], &["2..9"], &[]),
                &["9", "--world-size", "2 to 8"],
            ),
            (select(&[], &[], &["8..2"], &[]), &["8..2", "--world-size"]),
            (select(&[], &[], &["1"], &[]), &["one rank needs no module"]),
            (
                select(&[], &[], &["two"], &[]),
                &["two", "--world-size", "2 to 8"],
            ),
            (
                select(&[], &[], &[], &["ring"]),
                &["ring", "--family", "push, pull"],
            ),
        ] {
            let error = format!("{:#}", result.unwrap_err());
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }

    #[test]
    fn an_architecture_that_the_compiler_does_not_list_is_refused_with_its_list() {
        let targets = BTreeSet::from([
            Target::from_str("sm_90").unwrap(),
            Target::from_str("sm_81").unwrap(),
        ]);
        let listed = ["sm_80".to_owned(), "sm_90".to_owned()];
        let error = ensure_supported(&targets, "nvcc 13.0.88", &listed)
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
            let error = format!("{:#}", select(&[old], &[], &[], &[]).unwrap_err());
            let last = old.rsplit(',').next().unwrap();
            assert!(error.contains(&format!("`{last}`")), "{error}");
            assert!(error.contains("sm_80 and newer"), "{error}");
        }
    }

    #[test]
    fn native_leaves_out_old_gpus_and_refuses_a_machine_of_them_alone() {
        let archs = |text| parse_compute_capabilities(text);
        assert_eq!(usable(archs("7.5\n9.0\n")).unwrap(), [Arch::plain(9, 0)]);
        let error = usable(archs("7.5\n7.0\n")).unwrap_err().to_string();
        assert!(
            error.contains("sm_70, sm_75") && error.contains("sm_80 and newer"),
            "{error}"
        );
    }

    #[test]
    fn capabilities_are_read_from_either_query() {
        let expected = BTreeSet::from([Arch::plain(8, 9), Arch::plain(9, 0)]);
        assert_eq!(parse_compute_capabilities("9.0\n9.0\n8.9\n"), expected);
        assert_eq!(parse_compute_capabilities("90,89\n"), expected);
        assert!(parse_compute_capabilities("No devices were found\n").is_empty());
    }
}
