//! How the ranks of a group find each other and exchange messages and file descriptors, within
//! deadlines.
//!
//! A [`Rendezvous`] is a recipe: which rank this is, of how many, in which group.
//! [`Rendezvous::join`] carries it out and returns a [`Group`]. Rank 0 listens on a Unix socket in
//! a directory that only this user can enter. The others connect to it, and it passes on what they
//! send. No TCP port is opened.
//!
//! - Both ends check the other's user id. Rank 0 refuses, with the reason ([`Refusal`]), a process
//!   of another user, one that claims a rank that is taken, one of another run, and one that comes
//!   when the group is complete. The group is not affected. A connection that sends nothing, or
//!   nonsense, is closed and keeps no rank waiting.
//! - Rank 0 holds a file lock while it lives. The kernel releases the lock when the process dies,
//!   so the socket of a killed run is recognised and replaced. The survivors of a killed rank 0
//!   remove its socket themselves. If a cleaner of old files has removed a group's socket, the
//!   group leaves the socket of its successor alone when it ends.
//! - If a rank's process forks a child that executes no other program, the child has no part in the
//!   group: dropping its copy does nothing to the others, using it is [`RendezvousError::Forked`].
//!   If the rank's process is killed while such a child lives, the child keeps the rank's
//!   connections open, so the others learn of the death at their deadline.
//! - Ranks may be in different PID namespaces. They must be of one user and of one version of the
//!   protocol.
//! - If a rank dies, every other rank names it at once. If a rank does not come, every other rank
//!   names it at the deadline.
//! - The group's name keeps two runs in one directory apart, and so does the run's name if the
//!   launcher gives one. Without either, rank 0 cannot tell a rank that is left over from an
//!   earlier run, and has never reached its own rank 0, from the expected one: the first process to
//!   claim a rank has it.

mod admission;
mod connection;
mod directory;
mod environment;
mod error;
mod group;
mod hub;
mod late_ranks;
mod limits;
mod peer;
mod reasons;
mod recipe;
mod socket;
mod spoke;
mod step;
mod wire;

pub use crate::process_id::ProcessId;
pub use error::{RendezvousError, Whereabouts};
pub use group::Group;
pub use limits::{MAX_LABEL_BYTES, MAX_MESSAGE_BYTES, MAX_WORLD_SIZE};
pub use peer::Peer;
pub use reasons::{DirectoryProblem, Refusal};
pub use recipe::Rendezvous;
pub use wire::MessageWithFd;
