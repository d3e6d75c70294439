//! What can go wrong while ranks find each other and exchange messages.

use super::limits::{JOIN, MAX_WORLD_SIZE};
use super::reasons::{DirectoryProblem, Refusal};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A failed rendezvous or exchange.
///
/// After an exchange has failed, every later call on its [`Group`](super::Group) returns the first
/// error again.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RendezvousError {
    /// No launcher told this process its rank.
    #[error(
        "no launcher has set a rank: looked for RANK and WORLD_SIZE (torchrun), \
         OMPI_COMM_WORLD_RANK and OMPI_COMM_WORLD_SIZE (mpirun), SLURM_PROCID and SLURM_NTASKS \
         (srun); set RANK and WORLD_SIZE for each process, or name the rank in code with \
         Rendezvous::unix"
    )]
    NoLauncher,

    /// Some of a launcher's variables are set and others are not.
    #[error("{} set but {} not: set all of them or none", list(set), list(missing))]
    IncompleteEnvironment {
        /// The variables that are set.
        set: Vec<&'static str>,
        /// The variables that are missing beside them.
        missing: Vec<&'static str>,
    },

    /// Two launchers' variables contradict each other.
    #[error(
        "{first} contradicts {second}: unset those that do not describe this group, or use \
         Rendezvous::unix"
    )]
    ConflictingEnvironment {
        /// One launcher's variables with their values.
        first: String,
        /// The other's.
        second: String,
    },

    /// An environment variable has an invalid value.
    #[error("{variable} is {value:?}, expected {expected}")]
    InvalidVariable {
        /// The variable's name.
        variable: &'static str,
        /// Its value. What is not UTF-8 is replaced.
        value: String,
        /// What the value must be.
        expected: &'static str,
    },

    /// This process gained rights when it was executed, so the environment is its caller's.
    #[error(
        "this process gained rights when it was executed (set-uid, set-gid or file capabilities), \
         so its environment is not read: name the rank in code with Rendezvous::unix"
    )]
    EnvironmentIgnored,

    /// The launcher started ranks on more than one machine; a rendezvous joins those of one.
    #[error(
        "{variable} is {value}, and would be {expected} if all {world_size} ranks ran on this \
         machine: a group lives on one machine, so give each machine's ranks a group of their own \
         with Rendezvous::unix"
    )]
    SpansHosts {
        /// The variable that counts this machine's ranks, or the machines.
        variable: &'static str,
        /// Its value.
        value: u32,
        /// The value that it has if all ranks are on one machine.
        expected: u32,
        /// All ranks.
        world_size: u32,
    },

    /// A group's name cannot name its socket.
    #[error(
        "group name {group:?} is not 1 to 64 of the characters A-Z a-z 0-9 . _ - with no dot in \
         front"
    )]
    InvalidGroup {
        /// The name.
        group: String,
    },

    /// The rank is not below the world size, or the world size is 0 or too large.
    #[error("{}", invalid_rank(*rank, *world_size))]
    InvalidRank {
        /// The rank.
        rank: u32,
        /// The world size.
        world_size: u32,
    },

    /// The socket directory is not one that only this user can enter.
    #[error("rendezvous directory {}: {problem}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it and what to do.
        problem: DirectoryProblem,
    },

    /// The socket's path is too long for a socket address and `/proc` is not there to shorten it.
    #[error(
        "{} is too long for a Unix socket address and /proc is not mounted: set \
         PEERSUM_RENDEZVOUS_DIR to a shorter path",
        path.display()
    )]
    PathTooLong {
        /// The socket's path.
        path: PathBuf,
    },

    /// A live process already is rank 0 of a group of this name.
    #[error(
        "group {group:?} in {} already has a live rank 0{}: give this run another PEERSUM_GROUP, \
         or end that process",
        directory.display(),
        .pid.map_or_else(
            || " (a process of another PID namespace)".to_owned(),
            |pid| format!(" (process {pid})")
        )
    )]
    GroupInUse {
        /// The group's name.
        group: String,
        /// The socket directory.
        directory: PathBuf,
        /// The process that is rank 0, as the system names it. None if it has no number in this
        /// process's PID namespace.
        pid: Option<u32>,
    },

    /// The process that listens on the group's socket belongs to another user.
    #[error(
        "user {theirs} listens on {}, and this process belongs to user {ours}: end that process, \
         or set PEERSUM_RENDEZVOUS_DIR to another directory",
        path.display()
    )]
    WrongUser {
        /// The socket.
        path: PathBuf,
        /// The listener's user id.
        theirs: u32,
        /// This process's effective user id.
        ours: u32,
    },

    /// Rank 0 did not let this process into the group.
    #[error("rank 0 refused this process: {0}")]
    Refused(Refusal),

    /// Ranks did not arrive before the deadline.
    #[error(
        "rank {rank} waited {waited:.1?} in {during:?} for {}; {}",
        ranks(missing),
        advice(at, during)
    )]
    Timeout {
        /// The rank whose deadline passed first.
        rank: u32,
        /// The label of the exchange; `join` while the group forms.
        during: String,
        /// How long that rank had waited.
        waited: Duration,
        /// Where the rank that returns this error is, and looks for the others.
        at: Box<Whereabouts>,
        /// The ranks that were missing, as far as `rank` knew. Rank 0 alone if it was silent: only
        /// rank 0 knows which others are missing.
        missing: Vec<u32>,
    },

    /// A child that a rank's process forked used the rank's group, which belongs to the parent.
    #[error(
        "this process was forked from rank {rank}'s, and the group belongs to the parent: use it \
         there, or form another group for the child"
    )]
    Forked {
        /// The parent's rank.
        rank: u32,
    },

    /// A rank's connection closed: its process ended, was killed, or dropped its group.
    #[error("rank {rank} was lost in {during:?}: its process ended or dropped its group")]
    PeerLost {
        /// The rank that is gone.
        rank: u32,
        /// The label of the exchange in which that was noticed; `join` while the group forms.
        during: String,
    },

    /// A rank gave up and said why ([`Group::abandon`](super::Group::abandon)).
    #[error("rank {rank} gave up: {reason}")]
    PeerFailed {
        /// The rank that gave up.
        rank: u32,
        /// Its reason.
        reason: String,
    },

    /// Ranks are in different exchanges.
    #[error(
        "rank {rank} is in {label:?} while rank {other_rank} is in {other_label:?}: the ranks' \
         programs differ"
    )]
    LabelMismatch {
        /// One rank.
        rank: u32,
        /// The label it gave.
        label: String,
        /// Another rank.
        other_rank: u32,
        /// The label that one gave.
        other_label: String,
    },

    /// The message to send is longer than allowed. Nothing was sent and the group is as it was.
    #[error("the {what} of {length} bytes is longer than the {limit} allowed")]
    MessageTooLong {
        /// `message` or `label`.
        what: &'static str,
        /// Its length in bytes.
        length: usize,
        /// The most bytes allowed.
        limit: usize,
    },

    /// A rank sent what the protocol does not allow.
    #[error("rank {rank} broke the rendezvous protocol: {detail}")]
    Protocol {
        /// The rank that sent it.
        rank: u32,
        /// What was wrong.
        detail: String,
    },

    /// A system call failed.
    #[error("{operation}{}: {source}", behind_a_space(path.as_deref()))]
    Io {
        /// What was attempted.
        operation: &'static str,
        /// The file concerned.
        path: Option<PathBuf>,
        /// The system's answer.
        source: Arc<std::io::Error>,
    },
}

/// Which rank of which group this is, and where it looks for the others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Whereabouts {
    /// The directory of the group's socket. None for threads of one process.
    pub directory: Option<PathBuf>,
    /// The group's name.
    pub group: String,
    /// This rank.
    pub rank: u32,
    /// The number of ranks.
    pub world_size: u32,
}

impl std::fmt::Display for Whereabouts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (rank, world_size, group) = (self.rank, self.world_size, &self.group);
        write!(f, "rank {rank} of {world_size}")?;
        match &self.directory {
            Some(directory) => write!(f, " of group {group:?} in {}", directory.display()),
            None => f.write_str(", a thread of this process"),
        }
    }
}

impl RendezvousError {
    /// The same error, with where the rank is that returns it.
    pub(super) fn seen_by(mut self, whereabouts: &Whereabouts) -> Self {
        if let Self::Timeout { at, .. } = &mut self {
            **at = whereabouts.clone();
        }
        self
    }

    pub(super) fn io(operation: &'static str, source: impl Into<std::io::Error>) -> Self {
        Self::Io {
            operation,
            path: None,
            source: Arc::new(source.into()),
        }
    }

    pub(super) fn io_at(
        operation: &'static str,
        path: &Path,
        source: impl Into<std::io::Error>,
    ) -> Self {
        Self::Io {
            operation,
            path: Some(path.to_owned()),
            source: Arc::new(source.into()),
        }
    }
}

fn invalid_rank(rank: u32, world_size: u32) -> String {
    if rank < world_size {
        format!("{world_size} ranks: a group has at most {MAX_WORLD_SIZE}")
    } else {
        format!("rank {rank} of {world_size}: ranks are 0 to the world size less 1")
    }
}

fn behind_a_space(path: Option<&Path>) -> String {
    path.map(|path| format!(" {}", path.display()))
        .unwrap_or_default()
}

fn list(names: &[&str]) -> String {
    let verb = if names.len() == 1 { "is" } else { "are" };
    format!("{} {verb}", names.join(", "))
}

fn ranks(ranks: &[u32]) -> String {
    let noun = if ranks.len() == 1 { "rank" } else { "ranks" };
    let numbers: Vec<String> = ranks.iter().map(u32::to_string).collect();
    format!("{noun} {}", numbers.join(", "))
}

/// Where the rank looks, and what to check.
fn advice(at: &Whereabouts, during: &str) -> String {
    if at.directory.is_some() && during == JOIN {
        format!(
            "this is {at}: if the missing ranks run, they look elsewhere, so compare what each of \
             them says here, and give all of them the same PEERSUM_RENDEZVOUS_DIR and \
             PEERSUM_GROUP (without the first, the directory depends on XDG_RUNTIME_DIR, which \
             some ranks may lack)"
        )
    } else {
        format!("this is {at}: check that the missing ranks run and make the same calls")
    }
}
