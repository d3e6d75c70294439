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

mod connection;
mod directory;
mod door;
mod environment;
mod error;
mod group;
mod hub;
mod lock;
mod peer;
mod spoke;
mod wire;

pub use error::{DirectoryProblem, Refusal, RendezvousError, Whereabouts};
pub use group::{Group, MessageWithFds};
pub use peer::{Peer, ProcessId};

use crate::privilege::gained_rights;
use directory::Directory;
use door::{Door, Identity};
use group::Role;
use hub::Hub;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use spoke::{Spoke, Way};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The most ranks of a group.
pub const MAX_WORLD_SIZE: u32 = 64;
/// The longest message of an exchange, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// The longest label of an exchange, in bytes.
pub const MAX_LABEL_BYTES: usize = 256;
/// The most file descriptors beside one message.
pub const MAX_DESCRIPTORS: usize = 16;

const MAX_GROUP_BYTES: usize = 64;
const MAX_RUN_BYTES: usize = 256;
/// The label of the exchange that forms the group.
const JOIN: &str = "join";
/// How often rank 0 tells the waiting ranks for whom they wait.
const PENDING_INTERVAL: Duration = Duration::from_millis(250);

/// Which rank this is, of how many, in which group, and how to reach the others.
#[derive(Debug)]
#[must_use = "a rendezvous does nothing until it is joined"]
pub struct Rendezvous {
    rank: u32,
    world_size: u32,
    local_rank: u32,
    group: String,
    run: String,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Directory(PathBuf),
    /// Sockets to the other threads: rank 0 has one to each rank from 1 on, the others have one to rank 0.
    Threads(Vec<OwnedFd>),
    /// The sockets could not be made.
    Unavailable(RendezvousError),
}

impl Rendezvous {
    /// What the launcher has set, for one process a rank.
    ///
    /// - Rank, world size and local rank: `RANK`, `WORLD_SIZE`, `LOCAL_RANK` (torchrun, or a shell loop), or
    ///   `OMPI_COMM_WORLD_RANK`, `_SIZE`, `_LOCAL_RANK` (mpirun), or `SLURM_PROCID`, `SLURM_NTASKS`, `SLURM_LOCALID` (srun). Without
    ///   a local rank it is the rank. Where several launchers have set theirs they must agree, with two exceptions, since launchers
    ///   are started by others: under torchrun (`TORCHELASTIC_RUN_ID`) its own count, and an incomplete set of Slurm's is ignored
    ///   beside a complete one of another.
    /// - `PEERSUM_RENDEZVOUS_DIR`, an absolute path, else `peersum` in `$XDG_RUNTIME_DIR` if that is this user's, else
    ///   `peersum-{uid}` in `/tmp`.
    /// - `PEERSUM_GROUP`, else a name made from what identifies the launcher's run, else `default`.
    ///   A shell loop has nothing that identifies it: two loops of one user that run at once would
    ///   mix their ranks, so give each its own group, for instance `PEERSUM_GROUP=loop-$$` with the
    ///   shell's process id. The same holds for two loops in one Slurm allocation.
    /// - Several machines are refused, where the launcher tells of them: `LOCAL_WORLD_SIZE`,
    ///   `OMPI_COMM_WORLD_LOCAL_SIZE`, or one of `SLURM_STEP_NUM_NODES`, `SLURM_NNODES` and
    ///   `SLURM_JOB_NUM_NODES`.
    /// - The run, by which ranks left over from an earlier one are refused: `TORCHELASTIC_RUN_ID` with the restart count and
    ///   master port, `PMIX_NAMESPACE`, or the Slurm job and step.
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
        environment::read(&|name| std::env::var_os(name))
    }

    /// One process a rank, with the socket of group `group` in `dir`, which is created with mode 0700 if it is not there. The
    /// local rank is the rank.
    pub fn unix(
        dir: impl Into<PathBuf>,
        group: impl Into<String>,
        rank: u32,
        world_size: u32,
    ) -> Self {
        Self {
            rank,
            world_size,
            local_rank: rank,
            group: group.into(),
            run: String::new(),
            place: Place::Directory(dir.into()),
        }
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
        let directory = environment::directory(&lookup)?;
        Ok(Self::unix(directory, group, rank, world_size))
    }

    /// One thread of this process a rank: the ranks from 0 on, each to be joined by a thread of its own.
    ///
    /// Nothing is written to the file system. A rank dropped before it is joined is lost to the others.
    pub fn threads(world_size: u32) -> Vec<Self> {
        // More are refused by `join`; they need no sockets.
        let pairs: Result<Vec<_>, _> = (1..world_size.min(MAX_WORLD_SIZE + 1))
            .map(|_| {
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)
                    .map_err(|error| RendezvousError::io("create a pair of sockets", error))
            })
            .collect();
        let (hub, spokes): (Place, Vec<Place>) = match pairs {
            Ok(pairs) => {
                let (hub, spokes): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
                (
                    Place::Threads(hub),
                    spokes
                        .into_iter()
                        .map(|socket| Place::Threads(vec![socket]))
                        .collect(),
                )
            }
            Err(error) => {
                let unavailable = || Place::Unavailable(error.clone());
                (
                    unavailable(),
                    (1..world_size.min(MAX_WORLD_SIZE + 1))
                        .map(|_| unavailable())
                        .collect(),
                )
            }
        };
        (0..world_size)
            .zip(std::iter::once(hub).chain(spokes))
            .map(|(rank, place)| Self {
                rank,
                world_size,
                local_rank: rank,
                group: "threads".into(),
                run: String::new(),
                place,
            })
            .collect()
    }

    /// The socket that leads to the one other rank, for a test that plays this rank byte by byte. Only of a [`Rendezvous::threads`] of two.
    #[doc(hidden)]
    pub fn into_socket(self) -> Option<OwnedFd> {
        match self.place {
            Place::Threads(mut sockets) => sockets.pop(),
            _ => None,
        }
    }

    /// The same rank of another group, for a program that forms several.
    pub fn with_group(mut self, group: impl Into<String>) -> Self {
        self.group = group.into();
        self
    }

    /// Names the run that started this rank: rank 0 refuses a rank of another one. At most 256 bytes count.
    pub fn with_run(mut self, run: impl Into<String>) -> Self {
        self.run = truncated(&run.into(), MAX_RUN_BYTES).to_owned();
        self
    }

    /// The directory of the group's socket; `None` for threads of one process.
    pub fn directory(&self) -> Option<&Path> {
        match &self.place {
            Place::Directory(directory) => Some(directory),
            Place::Threads(_) | Place::Unavailable(_) => None,
        }
    }

    /// This rank.
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// The number of ranks.
    pub fn world_size(&self) -> u32 {
        self.world_size
    }

    /// This rank's number among those of this machine: which GPU to take.
    pub fn local_rank(&self) -> u32 {
        self.local_rank
    }

    /// Waits until every rank has come, at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`RendezvousError::InvalidRank`] and [`RendezvousError::InvalidGroup`] for the recipe;
    /// [`RendezvousError::Directory`], [`RendezvousError::PathTooLong`], [`RendezvousError::GroupInUse`],
    /// [`RendezvousError::WrongUser`] and [`RendezvousError::Io`] for the socket; [`RendezvousError::Refused`] from rank 0;
    /// [`RendezvousError::Timeout`] with the ranks that did not come, [`RendezvousError::PeerLost`] with one that came and
    /// died, [`RendezvousError::PeerFailed`] and [`RendezvousError::Protocol`] from the group.
    pub fn join(self, timeout: Duration) -> Result<Group, RendezvousError> {
        let Self {
            rank,
            world_size,
            group,
            run,
            place,
            ..
        } = self;
        if rank >= world_size || world_size > MAX_WORLD_SIZE {
            return Err(RendezvousError::InvalidRank { rank, world_size });
        }
        if !is_group_name(&group) {
            return Err(RendezvousError::InvalidGroup { group });
        }
        let whereabouts = Whereabouts {
            directory: match &place {
                Place::Directory(path) => Some(path.clone()),
                Place::Threads(_) | Place::Unavailable(_) => None,
            },
            group: group.clone(),
            rank,
            world_size,
        };
        let identity = Identity {
            group,
            run,
            world_size,
        };
        let process = ProcessId::current()?;
        let own = Peer { rank, process };
        match meet(place, identity, own, timeout) {
            Ok((role, peers)) => Ok(Group::new(whereabouts, own, peers, role)),
            Err(error) => Err(error.seen_by(&whereabouts)),
        }
    }
}

/// Waits until every rank has come.
fn meet(
    place: Place,
    identity: Identity,
    own: Peer,
    timeout: Duration,
) -> Result<(Role, Vec<Peer>), RendezvousError> {
    let started = Instant::now();
    let deadline = deadline(started, timeout);
    let lead = |door, claim| {
        let (hub, peers) = Hub::form(door, claim, own, started, deadline)?;
        Ok((Role::Hub(hub), peers))
    };
    let follow = |way, identity: &Identity| {
        let (spoke, peers) = Spoke::join(way, identity, own, started, deadline)?;
        Ok((Role::Spoke(spoke), peers))
    };
    match place {
        Place::Unavailable(error) => Err(error),
        _ if identity.world_size == 1 => Ok((Role::Alone, vec![own])),
        Place::Directory(path) => {
            let directory = Directory::open(&path)?;
            if own.rank != 0 {
                return follow(Way::Directory(directory), &identity);
            }
            let mut claim = directory.claim(&identity.group, own.process, deadline)?;
            let listener = claim.listen()?;
            lead(Door::listening(identity, listener), Some(claim))
        }
        Place::Threads(sockets) if own.rank == 0 => lead(Door::connected(identity, sockets), None),
        Place::Threads(mut sockets) => match sockets.pop() {
            Some(socket) => follow(Way::Thread(socket), &identity),
            None => Err(RendezvousError::PeerLost {
                rank: 0,
                during: JOIN.into(),
            }),
        },
    }
}

/// One exchange, as all who take part in it know it.
#[derive(Debug, Clone, Copy)]
struct Exchange<'a> {
    label: &'a str,
    started: Instant,
    deadline: Instant,
}

/// What one rank gives to an exchange.
#[derive(Debug)]
struct Part {
    message: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Part {
    fn duplicate(&self) -> Result<Vec<OwnedFd>, RendezvousError> {
        let borrowed: Vec<BorrowedFd<'_>> = self.descriptors.iter().map(AsFd::as_fd).collect();
        duplicate(&borrowed)
    }
}

fn duplicate(descriptors: &[BorrowedFd<'_>]) -> Result<Vec<OwnedFd>, RendezvousError> {
    descriptors
        .iter()
        .map(|descriptor| {
            descriptor
                .try_clone_to_owned()
                .map_err(|error| RendezvousError::io("duplicate a file descriptor", error))
        })
        .collect()
}

fn new_socket() -> Result<OwnedFd, RendezvousError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|error| RendezvousError::io("create a socket", error))
}

fn deadline(started: Instant, timeout: Duration) -> Instant {
    const A_YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    started + timeout.min(A_YEAR)
}

fn is_group_name(name: &str) -> bool {
    (1..=MAX_GROUP_BYTES).contains(&name.len())
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// The longest beginning of `text` that has at most `bytes` bytes.
fn truncated(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
