//! Why a directory is not used, and why rank 0 refuses a process.

use serde::{Deserialize, Serialize};

/// Why a directory is not used for sockets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DirectoryProblem {
    /// There is a symbolic link instead of the directory.
    #[error("is a symbolic link, which another user could repoint: name the directory itself")]
    Symlink,
    /// There is something else instead of the directory.
    #[error("is not a directory: remove it or name another with PEERSUM_RENDEZVOUS_DIR")]
    NotADirectory,
    /// It belongs to another user.
    #[error(
        "belongs to user {owner}, not to this process's user {ours}: name another with \
         PEERSUM_RENDEZVOUS_DIR"
    )]
    WrongOwner {
        /// The owner's user id.
        owner: u32,
        /// This process's effective user id.
        ours: u32,
    },
    /// Others may enter it, or its owner may not.
    #[error(
        "has mode {mode:04o}, must be 0700: run chmod 700 on it, or name another with \
         PEERSUM_RENDEZVOUS_DIR"
    )]
    WrongMode {
        /// The permission bits.
        mode: u32,
    },
}

/// Why rank 0 turned a process away. The group that it forms is not affected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub enum Refusal {
    /// The process speaks another version of the protocol.
    #[error(
        "it speaks rendezvous protocol {theirs}, rank 0 speaks {ours}: build all ranks from one \
         version of peersum"
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
        "it belongs to run {theirs:?}, this is run {ours:?}: it is left over from an earlier run, \
         or the runs need different PEERSUM_GROUPs"
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
