//! A rank as its launcher describes it in the environment.

use super::error::RendezvousError;
use super::limits::{MAX_GROUP_BYTES, is_group_name};
use rustix::fs::FileType;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::environment::{GROUP, RENDEZVOUS_DIR as DIRECTORY};

/// The variables in which a launcher tells a process its rank.
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

/// If two runs get one group name because their names differ only at the end, rank 0 still tells
/// them apart: it compares the runs as well.
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
mod tests;
