//! A rank as its launcher describes it in the environment.

use super::error::RendezvousError;
use super::limits::{MAX_GROUP_BYTES, is_group_name};
use rustix::fs::FileType;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::environment::{GROUP, RENDEZVOUS_DIR as DIRECTORY};

/// The variables by which a launcher tells a process its rank.
struct Launcher {
    rank: &'static str,
    world_size: &'static str,
    local_rank: &'static str,
    /// How many of the group's ranks are on this machine, if the launcher says so.
    local_world_size: Option<&'static str>,
    /// On how many machines the ranks are: the first of these that is set.
    machines: &'static [&'static str],
    /// Set by the launcher itself, so that its count is the inner one if others are set too.
    innermost: Option<&'static str>,
    /// Its world size and local rank are also set for shells and steps that are no rank.
    ambient: bool,
}

const LAUNCHERS: [Launcher; 3] = [
    Launcher {
        rank: "RANK",
        world_size: "WORLD_SIZE",
        local_rank: "LOCAL_RANK",
        local_world_size: Some("LOCAL_WORLD_SIZE"),
        machines: &[],
        innermost: Some("TORCHELASTIC_RUN_ID"),
        ambient: false,
    },
    Launcher {
        rank: "OMPI_COMM_WORLD_RANK",
        world_size: "OMPI_COMM_WORLD_SIZE",
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
        local_world_size: Some("OMPI_COMM_WORLD_LOCAL_SIZE"),
        machines: &[],
        innermost: None,
        ambient: false,
    },
    Launcher {
        rank: "SLURM_PROCID",
        world_size: "SLURM_NTASKS",
        local_rank: "SLURM_LOCALID",
        local_world_size: None,
        // The step's own count first: it may be smaller than the job's.
        machines: &[
            "SLURM_STEP_NUM_NODES",
            "SLURM_NNODES",
            "SLURM_JOB_NUM_NODES",
        ],
        innermost: None,
        ambient: true,
    },
];

/// What tells one run of a launcher from the next, the innermost launcher first.
const RUNS: [&[&str]; 3] = [
    &[
        "TORCHELASTIC_RUN_ID",
        "TORCHELASTIC_RESTART_COUNT",
        "MASTER_PORT",
    ],
    &["PMIX_NAMESPACE"],
    &["SLURM_JOB_ID", "SLURM_STEP_ID"],
];

/// A rank as the environment describes it.
#[derive(Debug)]
pub(super) struct LaunchedRank {
    pub(super) rank: u32,
    pub(super) world_size: u32,
    pub(super) local_rank: u32,
    pub(super) group: String,
    pub(super) run: String,
    pub(super) directory: PathBuf,
}

/// What one launcher says of a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Numbers {
    rank: u32,
    world_size: u32,
    local_rank: Option<u32>,
}

type Lookup<'a> = &'a dyn Fn(&str) -> Option<OsString>;

pub(super) fn read(lookup: Lookup<'_>) -> Result<LaunchedRank, RendezvousError> {
    let numbers = numbers(lookup)?;
    let run = run(lookup)?;
    let group = match text(lookup, GROUP)? {
        Some(group) if is_group_name(&group) => group,
        Some(group) => return Err(RendezvousError::InvalidGroup { group }),
        None if run.is_empty() => "default".into(),
        None => group_of_run(&run),
    };
    Ok(LaunchedRank {
        rank: numbers.rank,
        world_size: numbers.world_size,
        local_rank: numbers.local_rank.unwrap_or(numbers.rank),
        group,
        run,
        directory: directory(lookup)?,
    })
}

fn numbers(lookup: Lookup<'_>) -> Result<Numbers, RendezvousError> {
    let mut found: Option<(&Launcher, Numbers)> = None;
    let mut incomplete = None;
    for launcher in &LAUNCHERS {
        let numbers = match launcher_numbers(lookup, launcher) {
            Ok(Some(numbers)) => numbers,
            Ok(None) => continue,
            Err(error @ RendezvousError::IncompleteEnvironment { .. }) if launcher.ambient => {
                incomplete = Some(error);
                continue;
            }
            Err(error) => return Err(error),
        };
        if let Some((first, other)) = found {
            let disagree = (numbers.rank, numbers.world_size) != (other.rank, other.world_size)
                || numbers
                    .local_rank
                    .zip(other.local_rank)
                    .is_some_and(|(one, another)| one != another);
            if disagree {
                return Err(RendezvousError::ConflictingEnvironment {
                    first: describe(first, other),
                    second: describe(launcher, numbers),
                });
            }
        }
        refuse_several_machines(lookup, launcher, numbers)?;
        if found.is_none() {
            found = Some((launcher, numbers));
            if launcher
                .innermost
                .is_some_and(|variable| lookup(variable).is_some())
            {
                break;
            }
        }
    }
    match found {
        Some((_, numbers)) => Ok(numbers),
        None => Err(incomplete.unwrap_or(RendezvousError::NoLauncher)),
    }
}

/// Fails if the launcher says that not all of its ranks are on this machine.
fn refuse_several_machines(
    lookup: Lookup<'_>,
    launcher: &Launcher,
    numbers: Numbers,
) -> Result<(), RendezvousError> {
    let local = launcher.local_world_size.map(|it| (it, numbers.world_size));
    let machines = launcher.machines.iter().find(|it| lookup(it).is_some());
    for (variable, expected) in local.into_iter().chain(machines.map(|it| (*it, 1))) {
        if let Some(value) = number(lookup, variable)?
            && value != expected
        {
            return Err(RendezvousError::SpansHosts {
                variable,
                value,
                expected,
                world_size: numbers.world_size,
            });
        }
    }
    Ok(())
}

fn launcher_numbers(
    lookup: Lookup<'_>,
    launcher: &Launcher,
) -> Result<Option<Numbers>, RendezvousError> {
    let needed = [launcher.rank, launcher.world_size];
    let all = [launcher.rank, launcher.world_size, launcher.local_rank];
    let set: Vec<&'static str> = all
        .into_iter()
        .filter(|name| lookup(name).is_some())
        .collect();
    match (
        number(lookup, launcher.rank)?,
        number(lookup, launcher.world_size)?,
    ) {
        (Some(rank), Some(world_size)) => {
            if rank >= world_size {
                return Err(RendezvousError::InvalidVariable {
                    variable: launcher.rank,
                    value: rank.to_string(),
                    expected: "a rank below the world size",
                });
            }
            Ok(Some(Numbers {
                rank,
                world_size,
                local_rank: number(lookup, launcher.local_rank)?,
            }))
        }
        _ if set.is_empty() => Ok(None),
        _ => Err(RendezvousError::IncompleteEnvironment {
            missing: needed
                .into_iter()
                .filter(|name| !set.contains(name))
                .collect(),
            set,
        }),
    }
}

fn describe(launcher: &Launcher, numbers: Numbers) -> String {
    let mut text = format!(
        "{}={}, {}={}",
        launcher.rank, numbers.rank, launcher.world_size, numbers.world_size
    );
    if let Some(local_rank) = numbers.local_rank {
        text += &format!(", {}={local_rank}", launcher.local_rank);
    }
    text
}

fn run(lookup: Lookup<'_>) -> Result<String, RendezvousError> {
    for variables in RUNS {
        if lookup(variables[0]).is_some() {
            let values = variables
                .iter()
                .map(|variable| text(lookup, variable))
                .collect::<Result<Vec<_>, _>>()?;
            return Ok(values.into_iter().flatten().collect::<Vec<_>>().join("."));
        }
    }
    Ok(String::new())
}

/// Runs whose names differ only beyond what fits are kept apart by the run itself, which rank 0 compares.
fn group_of_run(run: &str) -> String {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'_';
    let name = run
        .bytes()
        .map(|byte| if allowed(byte) { char::from(byte) } else { '-' });
    "run-".chars().chain(name).take(MAX_GROUP_BYTES).collect()
}

pub(super) fn directory(lookup: Lookup<'_>) -> Result<PathBuf, RendezvousError> {
    if let Some(value) = lookup(DIRECTORY) {
        let path = PathBuf::from(&value);
        return if path.is_absolute() {
            Ok(path)
        } else {
            Err(RendezvousError::InvalidVariable {
                variable: DIRECTORY,
                value: value.to_string_lossy().into_owned(),
                expected: "an absolute path, the same for all ranks",
            })
        };
    }
    let uid = rustix::process::geteuid().as_raw();
    let runtime = lookup("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|path| is_own_directory(path, uid));
    Ok(match runtime {
        Some(runtime) => runtime.join("peersum"),
        // Not TMPDIR: a launcher may give each rank its own, and all ranks of a user must meet in
        // one directory.
        None => Path::new("/tmp").join(format!("peersum-{uid}")),
    })
}

/// After `su` or in a container the variable often names a directory of another user, or none.
fn is_own_directory(path: &Path, uid: u32) -> bool {
    path.is_absolute()
        && rustix::fs::stat(path).is_ok_and(|stat| {
            FileType::from_raw_mode(stat.st_mode) == FileType::Directory && stat.st_uid == uid
        })
}

fn text(lookup: Lookup<'_>, variable: &'static str) -> Result<Option<String>, RendezvousError> {
    lookup(variable)
        .map(|value| {
            value
                .into_string()
                .map_err(|value| RendezvousError::InvalidVariable {
                    variable,
                    value: value.to_string_lossy().into_owned(),
                    expected: "UTF-8 text",
                })
        })
        .transpose()
}

fn number(lookup: Lookup<'_>, variable: &'static str) -> Result<Option<u32>, RendezvousError> {
    text(lookup, variable)?
        .map(|value| {
            value
                .trim()
                .parse()
                .map_err(|_| RendezvousError::InvalidVariable {
                    variable,
                    value: value.clone(),
                    expected: "a number from 0 on",
                })
        })
        .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendezvous(variables: &[(&str, &str)]) -> Result<LaunchedRank, RendezvousError> {
        read(&|name| {
            variables
                .iter()
                .find(|(variable, _)| *variable == name)
                .map(|(_, value)| OsString::from(value))
        })
    }

    fn error(variables: &[(&str, &str)]) -> String {
        rendezvous(variables).unwrap_err().to_string()
    }

    #[test]
    fn each_launcher_is_understood() {
        let torchrun = [
            ("RANK", "3"),
            ("WORLD_SIZE", "8"),
            ("LOCAL_RANK", "2"),
            ("LOCAL_WORLD_SIZE", "8"),
        ];
        let mpirun = [
            ("OMPI_COMM_WORLD_RANK", "3"),
            ("OMPI_COMM_WORLD_SIZE", "8"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "2"),
        ];
        let srun = [
            ("SLURM_PROCID", "3"),
            ("SLURM_NTASKS", "8"),
            ("SLURM_LOCALID", "2"),
        ];
        for variables in [&torchrun[..], &mpirun, &srun] {
            let rendezvous = rendezvous(variables).unwrap();
            assert_eq!(
                (
                    rendezvous.rank,
                    rendezvous.world_size,
                    rendezvous.local_rank
                ),
                (3, 8, 2)
            );
            assert_eq!(rendezvous.group, "default");
        }
        let shell_loop = rendezvous(&[("RANK", "1"), ("WORLD_SIZE", "2")]).unwrap();
        assert_eq!(shell_loop.local_rank, 1);
    }

    #[test]
    fn a_half_set_launcher_is_refused_by_the_names_of_its_variables() {
        assert_eq!(
            error(&[("RANK", "1")]),
            "RANK is set but WORLD_SIZE is not: set all of them or none"
        );
        assert_eq!(
            error(&[("LOCAL_RANK", "1")]),
            "LOCAL_RANK is set but RANK, WORLD_SIZE are not: set all of them or none"
        );
        assert!(error(&[("OMPI_COMM_WORLD_SIZE", "4")]).contains("OMPI_COMM_WORLD_RANK is not"));
        assert!(error(&[("SLURM_NTASKS", "4")]).contains("SLURM_PROCID is not"));
        // Half of one beside another that is whole is no less a mistake.
        assert!(
            error(&[
                ("RANK", "0"),
                ("OMPI_COMM_WORLD_RANK", "0"),
                ("OMPI_COMM_WORLD_SIZE", "2")
            ])
            .contains("WORLD_SIZE")
        );
        assert!(
            error(&[]).contains("OMPI_COMM_WORLD_RANK")
                && error(&[]).contains("RANK and WORLD_SIZE")
        );
    }

    #[test]
    fn a_shell_loop_inside_a_slurm_allocation_is_a_rank_of_the_loop() {
        let rendezvous =
            rendezvous(&[("RANK", "1"), ("WORLD_SIZE", "2"), ("SLURM_NTASKS", "16")]).unwrap();
        assert_eq!((rendezvous.rank, rendezvous.world_size), (1, 2));
    }

    #[test]
    fn launchers_that_disagree_are_named_with_their_values() {
        let text = error(&[
            ("RANK", "1"),
            ("WORLD_SIZE", "4"),
            ("OMPI_COMM_WORLD_RANK", "2"),
            ("OMPI_COMM_WORLD_SIZE", "4"),
        ]);
        assert!(
            text.contains(
                "RANK=1, WORLD_SIZE=4 contradicts OMPI_COMM_WORLD_RANK=2, OMPI_COMM_WORLD_SIZE=4"
            ),
            "{text}"
        );
        assert!(
            rendezvous(&[
                ("RANK", "1"),
                ("WORLD_SIZE", "4"),
                ("SLURM_PROCID", "1"),
                ("SLURM_NTASKS", "4")
            ])
            .is_ok()
        );
        assert!(
            error(&[
                ("RANK", "1"),
                ("WORLD_SIZE", "4"),
                ("SLURM_PROCID", "0"),
                ("SLURM_NTASKS", "1")
            ])
            .contains("SLURM_PROCID=0")
        );
    }

    #[test]
    fn under_torchrun_its_own_count_holds_whoever_started_it() {
        let rendezvous = rendezvous(&[
            ("RANK", "1"),
            ("WORLD_SIZE", "4"),
            ("TORCHELASTIC_RUN_ID", "none"),
            ("TORCHELASTIC_RESTART_COUNT", "0"),
            ("MASTER_PORT", "29500"),
            ("SLURM_PROCID", "0"),
            ("SLURM_NTASKS", "1"),
            ("SLURM_JOB_ID", "77"),
        ])
        .unwrap();
        assert_eq!((rendezvous.rank, rendezvous.world_size), (1, 4));
        assert_eq!(rendezvous.run, "none.0.29500");
        assert_eq!(rendezvous.group, "run-none.0.29500");
    }

    #[test]
    fn ranks_on_several_slurm_nodes_are_refused_at_once() {
        let rank = [
            ("SLURM_PROCID", "1"),
            ("SLURM_NTASKS", "2"),
            ("SLURM_LOCALID", "0"),
        ];
        let with = |variables: &[(&str, &str)]| rendezvous(&[&rank, variables].concat());
        for variable in [
            "SLURM_STEP_NUM_NODES",
            "SLURM_NNODES",
            "SLURM_JOB_NUM_NODES",
        ] {
            let error = with(&[(variable, "2")]).unwrap_err();
            assert!(
                matches!(
                    error,
                    RendezvousError::SpansHosts {
                        value: 2,
                        expected: 1,
                        ..
                    }
                ),
                "{error}"
            );
            let text = error.to_string();
            assert!(
                text.contains(&format!("{variable} is 2, and would be 1")),
                "{text}"
            );
            assert!(with(&[(variable, "1")]).is_ok());
        }
        // One node of a job that has two.
        assert!(with(&[("SLURM_STEP_NUM_NODES", "1"), ("SLURM_JOB_NUM_NODES", "2")]).is_ok());
        assert!(with(&[("SLURM_NNODES", "1"), ("SLURM_JOB_NUM_NODES", "2")]).is_ok());
        // A program of the user's that translates Slurm's variables.
        assert!(with(&[("RANK", "1"), ("WORLD_SIZE", "2"), ("SLURM_NNODES", "2")]).is_err());
        // A shell loop on one of two nodes.
        let shell_loop = [("RANK", "1"), ("WORLD_SIZE", "2"), ("SLURM_NNODES", "2")];
        assert!(rendezvous(&shell_loop).is_ok());
    }

    #[test]
    fn values_that_mean_nothing_are_refused() {
        assert_eq!(
            error(&[("RANK", "one"), ("WORLD_SIZE", "2")]),
            "RANK is \"one\", expected a number from 0 on"
        );
        assert!(error(&[("RANK", "-1"), ("WORLD_SIZE", "2")]).contains("RANK is \"-1\""));
        assert!(error(&[("RANK", "2"), ("WORLD_SIZE", "2")]).contains("below the world size"));
        let rank = [("RANK", "0"), ("WORLD_SIZE", "2")];
        let with = |variable| error(&[rank[0], rank[1], variable]);
        assert!(with(("PEERSUM_RENDEZVOUS_DIR", "relative")).contains("an absolute path"));
        assert!(with(("PEERSUM_GROUP", "../x")).contains("group name \"../x\""));
        assert!(with(("PEERSUM_GROUP", "")).contains("group name \"\""));
        assert!(
            with(("LOCAL_WORLD_SIZE", "1")).contains(
                "LOCAL_WORLD_SIZE is 1, and would be 2 if all 2 ranks ran on this machine"
            )
        );
    }

    #[test]
    fn a_name_made_from_a_run_is_always_a_group_name() {
        for run in ["prterun-host-123@1", "é", &"x".repeat(300), "...", "a/b"] {
            assert!(is_group_name(&group_of_run(run)), "{run}");
        }
    }

    #[test]
    fn the_directory_is_the_users_own() {
        let with = |variables: &[(&str, &str)]| {
            let rank = [("RANK", "0"), ("WORLD_SIZE", "2")];
            rendezvous(&[&rank, variables].concat()).unwrap().directory
        };
        let uid = rustix::process::geteuid().as_raw();
        assert_eq!(with(&[]), Path::new("/tmp").join(format!("peersum-{uid}")));
        assert_eq!(
            with(&[("XDG_RUNTIME_DIR", "/nowhere/at/all")]),
            Path::new("/tmp").join(format!("peersum-{uid}"))
        );
        let own = tempfile::tempdir().unwrap();
        assert_eq!(
            with(&[("XDG_RUNTIME_DIR", own.path().to_str().unwrap())]),
            own.path().join("peersum")
        );
        assert_eq!(
            with(&[("PEERSUM_RENDEZVOUS_DIR", "/run/x")]),
            PathBuf::from("/run/x")
        );
    }
}
