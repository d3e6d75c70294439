//! How the ranks of a group find each other and exchange messages and file descriptors, within deadlines.
//!
//! A [`Rendezvous`] is a recipe: which rank this is, of how many, in which group. [`Rendezvous::join`] carries it out and
//! returns a [`Group`]. Rank 0 listens on a Unix socket in a directory that only this user can enter; the others connect to it,
//! and it passes on what they send. No TCP port is opened.
//!
//! - Both ends check the other's user id. A process of another user, one that claims a rank that is taken, one of another
//!   run, one that comes when the group is complete: each is refused with the reason ([`Refusal`]) and the group is not affected.
//!   A connection that says nothing, or nonsense, is closed and keeps nobody waiting.
//! - Rank 0 holds a file lock while it lives. The kernel releases it at its death, so the socket of a killed run is
//!   recognised and replaced; the survivors of a killed rank 0 remove it themselves. If a cleaner
//!   of old files has removed the socket, a group that ends leaves those of its successor alone.
//! - A child that a rank's process makes by fork, without executing a program, has no part in the
//!   group: dropping its copy does nothing to the others, using it is [`RendezvousError::Forked`].
//!   If the rank's process is killed while such a child lives, the child keeps the rank's
//!   connections open, so the others learn of the death at their deadline.
//! - Ranks may be in different PID namespaces. They must be of one user.
//! - A rank that dies is named on every other rank at once, a rank that does not come when the deadline passes.
//! - The ranks of two runs in one directory are kept apart by their group's name, and, where the launcher tells its runs
//!   apart, by that. Without either, a rank left over from an earlier run that has never reached its own rank 0 cannot be told from the
//!   one that is expected: the first to claim a rank has it.

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

pub use error::{RendezvousError, Whereabouts};
pub use group::Group;
pub use limits::{MAX_LABEL_BYTES, MAX_MESSAGE_BYTES, MAX_WORLD_SIZE};
pub use peer::{Peer, ProcessId};
pub use reasons::{DirectoryProblem, Refusal};
pub use recipe::Rendezvous;
pub use wire::MessageWithFd;
