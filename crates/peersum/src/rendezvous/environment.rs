//! A rank as its launcher describes it in the environment.

use super::error::RendezvousError;
use super::limits::{MAX_GROUP_BYTES, is_group_name};
use super::recipe::Rendezvous;
use crate::environment::{GROUP, RENDEZVOUS_DIR as DIRECTORY};
use crate::privilege::gained_rights;
use rustix::fs::FileType;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// The variables in which a launcher tells a process its rank.
struct Launcher {
    rank: &'static str,
    world_size: &'static str,
    local_rank: &'static str,
    /// How many of the group's ranks are on this machine, if the launcher says so.
    local_world_size: Option<&'static str>,
    /// On how many machines the ranks are: the first of these that is set.
    machines: &'static [&'static str],
    /// What tells one run of the launcher from the next. The first is set in every run.
    run: &'static [&'static str],
    /// If the launcher has set its run, its count is the inner one, whatever others have set.
    innermost: bool,
    /// Its world size and local rank are also set for shells and steps that are no rank.
    ambient: bool,
}

/// The innermost launcher first.
const LAUNCHERS: [Launcher; 3] = [
    Launcher {
        rank: "RANK",
        world_size: "WORLD_SIZE",
        local_rank: "LOCAL_RANK",
        local_world_size: Some("LOCAL_WORLD_SIZE"),
        machines: &[],
        run: &[
            "TORCHELASTIC_RUN_ID",
            "TORCHELASTIC_RESTART_COUNT",
            "MASTER_PORT",
        ],
        innermost: true,
        ambient: false,
    },
    Launcher {
        rank: "OMPI_COMM_WORLD_RANK",
        world_size: "OMPI_COMM_WORLD_SIZE",
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
        local_world_size: Some("OMPI_COMM_WORLD_LOCAL_SIZE"),
        machines: &[],
        run: &["PMIX_NAMESPACE"],
        innermost: false,
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
        run: &["SLURM_JOB_ID", "SLURM_STEP_ID"],
        innermost: false,
        ambient: true,
    },
];

type Lookup<'a> = &'a dyn Fn(&str) -> Option<OsString>;

impl Rendezvous {
    /// The rank that the launcher describes in the environment, for one process a rank.
    ///
    /// - Rank, world size and local rank: `RANK`, `WORLD_SIZE`, `LOCAL_RANK` (torchrun, or a shell
    ///   loop), or `OMPI_COMM_WORLD_RANK`, `_SIZE`, `_LOCAL_RANK` (mpirun), or `SLURM_PROCID`,
    ///   `SLURM_NTASKS`, `SLURM_LOCALID` (srun). If no local rank is set it is the rank. If several
    ///   launchers have set variables, they must agree. There are two exceptions, since one
    ///   launcher may start another: under torchrun (`TORCHELASTIC_RUN_ID`) only its own variables
    ///   count, and an incomplete set of Slurm's is ignored beside a complete set of another
    ///   launcher.
    /// - The directory: `PEERSUM_RENDEZVOUS_DIR`, an absolute path, else `peersum` in
    ///   `$XDG_RUNTIME_DIR` if that is this user's, else `peersum-{uid}` in `/tmp`.
    /// - The group: `PEERSUM_GROUP`, else a name made from what identifies the launcher's run, else
    ///   `default`. A shell loop has nothing that identifies it: two loops of one user that run at
    ///   once would mix their ranks, so give each its own group, for instance
    ///   `PEERSUM_GROUP=loop-$$` with the shell's process id. The same holds for two loops in one
    ///   Slurm allocation.
    /// - Several machines are refused, where the launcher tells of them: `LOCAL_WORLD_SIZE`,
    ///   `OMPI_COMM_WORLD_LOCAL_SIZE`, or one of `SLURM_STEP_NUM_NODES`, `SLURM_NNODES` and
    ///   `SLURM_JOB_NUM_NODES`.
    /// - The run, by which ranks left over from an earlier one are refused: `TORCHELASTIC_RUN_ID`
    ///   with the restart count and master port, `PMIX_NAMESPACE`, or the Slurm job and step.
    ///
    /// In a process that gained rights when it was executed (set-uid, set-gid, file capabilities)
    /// the environment is its caller's and is not read, as in
    /// [`LoadPolicy::from_env`](crate::loader::LoadPolicy::from_env).
    ///
    /// # Errors
    ///
    /// [`RendezvousError::EnvironmentIgnored`], [`RendezvousError::NoLauncher`],
    /// [`RendezvousError::IncompleteEnvironment`], [`RendezvousError::ConflictingEnvironment`],
    /// [`RendezvousError::InvalidVariable`] and [`RendezvousError::SpansHosts`], each of which
    /// names the variables.
    pub fn from_env() -> Result<Self, RendezvousError> {
        if gained_rights() {
            return Err(RendezvousError::EnvironmentIgnored);
        }
        read(&|name| std::env::var_os(name))
    }

    /// As [`Rendezvous::unix`], in the directory that [`Rendezvous::from_env`] uses. Nothing else
    /// is taken from the environment, and nothing at all in a process that gained rights when it
    /// was executed.
    ///
    /// # Errors
    ///
    /// [`RendezvousError::InvalidVariable`] for `PEERSUM_RENDEZVOUS_DIR`.
    pub fn in_default_directory(
        group: impl Into<String>,
        rank: u32,
        world_size: u32,
    ) -> Result<Self, RendezvousError> {
        let gained_rights = gained_rights();
        let lookup = |name: &str| std::env::var_os(name).filter(|_| !gained_rights);
        let directory = directory(&lookup)?;
        Ok(Self::unix(directory, group, rank, world_size))
    }
}

/// What one launcher says of a rank.
struct LaunchedRank {
    launcher: &'static Launcher,
    rank: u32,
    world_size: u32,
    local_rank: Option<u32>,
}

impl LaunchedRank {
    fn contradicts(&self, other: &Self) -> bool {
        let local_ranks = self.local_rank.zip(other.local_rank);
        (self.rank, self.world_size) != (other.rank, other.world_size)
            || local_ranks.is_some_and(|(one, another)| one != another)
    }

    fn describe(&self) -> String {
        let names = self.launcher;
        let (rank, world_size) = (self.rank, self.world_size);
        let mut text = format!("{}={rank}, {}={world_size}", names.rank, names.world_size);
        if let Some(local_rank) = self.local_rank {
            text += &format!(", {}={local_rank}", names.local_rank);
        }
        text
    }
}

fn read(lookup: Lookup<'_>) -> Result<Rendezvous, RendezvousError> {
    let launched = launched_rank(lookup)?;
    let run = run(lookup)?;
    let group = match text(lookup, GROUP)? {
        Some(group) if is_group_name(&group) => group,
        Some(group) => return Err(RendezvousError::InvalidGroup { group }),
        None if run.is_empty() => "default".into(),
        None => group_of_run(&run),
    };
    let (rank, world_size) = (launched.rank, launched.world_size);
    let mut rendezvous =
        Rendezvous::unix(directory(lookup)?, group, rank, world_size).with_run(run);
    rendezvous.local_rank = launched.local_rank.unwrap_or(rank);
    Ok(rendezvous)
}

fn launched_rank(lookup: Lookup<'_>) -> Result<LaunchedRank, RendezvousError> {
    let mut found: Option<LaunchedRank> = None;
    let mut incomplete = None;
    for launcher in &LAUNCHERS {
        let launched = match launched_by(lookup, launcher) {
            Ok(Some(launched)) => launched,
            Ok(None) => continue,
            Err(error @ RendezvousError::IncompleteEnvironment { .. }) if launcher.ambient => {
                incomplete = Some(error);
                continue;
            }
            Err(error) => return Err(error),
        };
        if let Some(other) = &found
            && other.contradicts(&launched)
        {
            return Err(RendezvousError::ConflictingEnvironment {
                first: other.describe(),
                second: launched.describe(),
            });
        }
        refuse_several_machines(lookup, &launched)?;
        found.get_or_insert(launched);
        if launcher.innermost && lookup(launcher.run[0]).is_some() {
            break;
        }
    }
    found.ok_or(incomplete.unwrap_or(RendezvousError::NoLauncher))
}

/// Fails if the launcher says that not all of its ranks are on this machine.
fn refuse_several_machines(
    lookup: Lookup<'_>,
    launched: &LaunchedRank,
) -> Result<(), RendezvousError> {
    let (launcher, world_size) = (launched.launcher, launched.world_size);
    let local = launcher.local_world_size.map(|it| (it, world_size));
    let machines = launcher.machines.iter().find(|it| lookup(it).is_some());
    for (variable, expected) in local.into_iter().chain(machines.map(|it| (*it, 1))) {
        if let Some(value) = number(lookup, variable)?
            && value != expected
        {
            return Err(RendezvousError::SpansHosts {
                variable,
                value,
                expected,
                world_size,
            });
        }
    }
    Ok(())
}

fn launched_by(
    lookup: Lookup<'_>,
    launcher: &'static Launcher,
) -> Result<Option<LaunchedRank>, RendezvousError> {
    let names = [launcher.rank, launcher.world_size, launcher.local_rank];
    let (set, mut missing): (Vec<&str>, Vec<&str>) =
        names.iter().partition(|name| lookup(name).is_some());
    if set.is_empty() {
        return Ok(None);
    }
    let rank = number(lookup, launcher.rank)?;
    let world_size = number(lookup, launcher.world_size)?;
    let (Some(rank), Some(world_size)) = (rank, world_size) else {
        missing.retain(|name| *name != launcher.local_rank);
        return Err(RendezvousError::IncompleteEnvironment { set, missing });
    };
    if rank >= world_size {
        let value = rank.to_string();
        return Err(invalid(launcher.rank, value, "a rank below the world size"));
    }
    Ok(Some(LaunchedRank {
        launcher,
        rank,
        world_size,
        local_rank: number(lookup, launcher.local_rank)?,
    }))
}

fn run(lookup: Lookup<'_>) -> Result<String, RendezvousError> {
    let mut runs = LAUNCHERS.iter().map(|launcher| launcher.run);
    let variables = runs.find(|variables| lookup(variables[0]).is_some());
    let values = variables
        .into_iter()
        .flatten()
        .map(|variable| text(lookup, variable))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(values.into_iter().flatten().collect::<Vec<_>>().join("."))
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

fn directory(lookup: Lookup<'_>) -> Result<PathBuf, RendezvousError> {
    if let Some(path) = lookup(DIRECTORY).map(PathBuf::from) {
        let expected = "an absolute path, the same for all ranks";
        return match path.is_absolute() {
            true => Ok(path),
            false => Err(invalid(DIRECTORY, path, expected)),
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
    let value = lookup(variable).map(OsString::into_string).transpose();
    value.map_err(|value| invalid(variable, value, "UTF-8 text"))
}

fn number(lookup: Lookup<'_>, variable: &'static str) -> Result<Option<u32>, RendezvousError> {
    let Some(value) = text(lookup, variable)? else {
        return Ok(None);
    };
    let number = value.trim().parse().map(Some);
    number.map_err(|_| invalid(variable, value, "a number from 0 on"))
}

fn invalid(
    variable: &'static str,
    value: impl AsRef<OsStr>,
    expected: &'static str,
) -> RendezvousError {
    RendezvousError::InvalidVariable {
        variable,
        value: value.as_ref().to_string_lossy().into_owned(),
        expected,
    }
}

#[cfg(test)]
mod tests;
