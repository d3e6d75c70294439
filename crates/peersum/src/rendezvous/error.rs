//! What can go wrong while ranks find each other and exchange messages.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A failed rendezvous or exchange.
///
/// Once an exchange has failed, its [`Group`](super::Group) is spent: every later call returns the first error again.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RendezvousError {
    /// No launcher told this process its rank.
    #[error(
        "no launcher has set a rank: looked for RANK and WORLD_SIZE (torchrun), OMPI_COMM_WORLD_RANK and \
         OMPI_COMM_WORLD_SIZE (mpirun), SLURM_PROCID and SLURM_NTASKS (srun); set RANK and WORLD_SIZE for each process, \
         or name the rank in code with Rendezvous::unix"
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
        "{first} contradicts {second}: unset those that do not describe this group, or use Rendezvous::unix"
    )]
    ConflictingEnvironment {
        /// One launcher's variables with their values.
        first: String,
        /// The other's.
        second: String,
    },

    /// An environment variable has a value that means nothing.
    #[error("{variable} is {value:?}, expected {expected}")]
    InvalidVariable {
        /// The variable's name.
        variable: &'static str,
        /// Its value, where it is no text a lossy rendering.
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
        "group name {group:?} is not 1 to 64 of the characters A-Z a-z 0-9 . _ - with no dot in front"
    )]
    InvalidGroup {
        /// The name.
        group: String,
    },

    /// The rank is not below the world size, or the world size is 0 or too large.
    #[error("rank {rank} of {world_size}: the world size is 1 to {max}, and ranks count from 0", max = super::MAX_WORLD_SIZE)]
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
    #[error("{} is too long for a Unix socket address and /proc is not mounted: set PEERSUM_RENDEZVOUS_DIR to a shorter path", path.display())]
    PathTooLong {
        /// The socket's path.
        path: PathBuf,
    },

    /// A live process already is rank 0 of a group of this name.
    #[error(
        "group {group:?} in {} already has a live rank 0{}: give this run another PEERSUM_GROUP, or end that process",
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
    #[error("{} is listened on by user {theirs}, not by this process's user {ours}", path.display())]
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
        /// The ranks that were missing, as far as `rank` knew. Rank 0 alone if it was silent: it knows the others.
        missing: Vec<u32>,
    },

    /// A child that fork made of a rank's process used the rank's group, which stays its parent's.
    #[error(
        "this process was forked from rank {rank}'s, and the group stays with its parent: use it \
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
        "rank {rank} is in {label:?} while rank {other_rank} is in {other_label:?}: the ranks' programs differ"
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

    /// More file descriptors than one message may carry. Nothing was sent and the group is as it was.
    #[error("{count} file descriptors are more than the {limit} that one message carries")]
    TooManyDescriptors {
        /// The descriptors given.
        count: usize,
        /// The most allowed.
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
        let Self {
            directory,
            group,
            rank,
            world_size,
        } = self;
        match directory {
            Some(directory) => {
                let directory = directory.display();
                write!(
                    f,
                    "rank {rank} of {world_size} of group {group:?} in {directory}"
                )
            }
            None => write!(f, "rank {rank} of {world_size}, a thread of this process"),
        }
    }
}

impl RendezvousError {
    /// The same error as a rank returns it that is there.
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

/// Why a directory is not used for sockets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DirectoryProblem {
    /// A symbolic link stands where the directory should be.
    #[error("is a symbolic link, which another could repoint: name the directory itself")]
    Symlink,
    /// Something else stands where the directory should be.
    #[error("is not a directory: remove it or name another with PEERSUM_RENDEZVOUS_DIR")]
    NotADirectory,
    /// It belongs to another user.
    #[error(
        "belongs to user {owner}, not to this process's user {ours}: name another with PEERSUM_RENDEZVOUS_DIR"
    )]
    WrongOwner {
        /// The owner's user id.
        owner: u32,
        /// This process's effective user id.
        ours: u32,
    },
    /// Others may enter it, or its owner may not.
    #[error(
        "has mode {mode:04o}, must be 0700: run chmod 700 on it, or name another with PEERSUM_RENDEZVOUS_DIR"
    )]
    WrongMode {
        /// The permission bits.
        mode: u32,
    },
}

/// Why rank 0 turned a process away. The group that it forms is not affected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The process speaks another version of the protocol.
    #[error(
        "it speaks rendezvous protocol {theirs}, rank 0 speaks {ours}: build all ranks from one version of peersum"
    )]
    Version {
        /// Rank 0's version.
        ours: u32,
        /// The refused process's version.
        theirs: u32,
    },
    /// The process belongs to another user.
    #[error("it belongs to user {theirs}, rank 0 to user {ours}")]
    User {
        /// Rank 0's user id.
        ours: u32,
        /// The refused process's user id.
        theirs: u32,
    },
    /// The process wants another group.
    #[error("it asks for group {theirs:?}, this is {ours:?}")]
    Group {
        /// Rank 0's group.
        ours: String,
        /// The refused process's group.
        theirs: String,
    },
    /// The process was started by another run of the launcher.
    #[error(
        "it belongs to run {theirs:?}, this is run {ours:?}: it is left over from an earlier run, or the runs need different PEERSUM_GROUPs"
    )]
    Run {
        /// Rank 0's run.
        ours: String,
        /// The refused process's run.
        theirs: String,
    },
    /// The process expects another number of ranks.
    #[error(
        "it expects a world size of {theirs}, rank 0 of {ours}: if they belong to different runs, \
         give each run its own PEERSUM_GROUP"
    )]
    WorldSize {
        /// Rank 0's world size.
        ours: u32,
        /// The refused process's world size.
        theirs: u32,
    },
    /// The process claims a rank that cannot join: 0, or one that is not below the world size.
    #[error("it claims rank {rank}, and ranks that join are 1 to the world size less 1")]
    Rank {
        /// The rank claimed.
        rank: u32,
    },
    /// Another process holds the rank.
    #[error(
        "rank {rank} is already held by process {pid}: if that process belongs to another run, \
         give each run its own PEERSUM_GROUP"
    )]
    RankTaken {
        /// The rank claimed.
        rank: u32,
        /// The process that holds it.
        pid: u32,
    },
    /// The group is complete.
    #[error(
        "group {group:?} is complete and rank {rank} is held by process {pid}: this process is \
         late, or it belongs to another run, which then needs its own PEERSUM_GROUP"
    )]
    AlreadyFormed {
        /// The group.
        group: String,
        /// The rank claimed.
        rank: u32,
        /// The process that holds it.
        pid: u32,
    },
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
    if at.directory.is_some() && during == super::JOIN {
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
