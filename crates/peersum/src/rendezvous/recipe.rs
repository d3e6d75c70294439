//! The recipe for a group: which rank this is, of how many, in which group, and where ranks meet.

use super::admission::Admission;
use super::directory::Directory;
use super::environment;
use super::error::{RendezvousError, Whereabouts};
use super::group::{Group, Role};
use super::hub::Hub;
use super::limits::{JOIN, MAX_RUN_BYTES, MAX_WORLD_SIZE, is_group_name, truncated};
use super::peer::{Peer, ProcessId};
use super::socket;
use super::spoke::{HubAddress, Spoke};
use super::step::Step;
use super::wire::GroupIdentity;
use crate::privilege::gained_rights;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Which rank this is, of how many, in which group, and how to reach the others.
#[derive(Debug)]
#[must_use = "a rendezvous does nothing until it is joined"]
pub struct Rendezvous {
    rank: u32,
    world_size: u32,
    local_rank: u32,
    group: String,
    run: String,
    meeting_place: MeetingPlace,
}

#[derive(Debug)]
enum MeetingPlace {
    Directory(PathBuf),
    /// Sockets to the other threads: rank 0 has one to each rank from 1 on, the others have one to
    /// rank 0. An error if the sockets could not be made.
    Threads(Result<Vec<OwnedFd>, RendezvousError>),
}

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
        let launched = environment::read(&|name| std::env::var_os(name))?;
        let (directory, group) = (launched.directory, launched.group);
        Ok(Self {
            local_rank: launched.local_rank,
            ..Self::unix(directory, group, launched.rank, launched.world_size)
        }
        .with_run(launched.run))
    }

    /// One process a rank. The socket of group `group` is in `dir`, which is created with mode 0700
    /// if it is not there. The local rank is the rank.
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
            meeting_place: MeetingPlace::Directory(dir.into()),
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

    /// One thread of this process a rank: the ranks from 0 on, each to be joined by a thread of its
    /// own.
    ///
    /// Nothing is written to the file system. If a rank is dropped before it is joined, the others
    /// see it as lost.
    pub fn threads(world_size: u32) -> Vec<Self> {
        // A larger world is refused by `join`, and needs no sockets.
        let connected = world_size.min(MAX_WORLD_SIZE + 1);
        let pairs: Result<Vec<_>, _> = (1..connected).map(|_| socket::pair()).collect();
        let sockets: Vec<Result<Vec<OwnedFd>, RendezvousError>> = match pairs {
            Ok(pairs) => {
                let (hub, spokes): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
                let spokes = spokes.into_iter().map(|socket| vec![socket]);
                std::iter::once(hub).chain(spokes).map(Ok).collect()
            }
            Err(error) => vec![error; connected as usize]
                .into_iter()
                .map(Err)
                .collect(),
        };
        (0..world_size)
            .zip(sockets)
            .map(|(rank, sockets)| Self {
                rank,
                world_size,
                local_rank: rank,
                group: "threads".into(),
                run: String::new(),
                meeting_place: MeetingPlace::Threads(sockets),
            })
            .collect()
    }

    /// The socket that leads to the one other rank, for a test that plays this rank message by
    /// message. Only of a [`Rendezvous::threads`] of two.
    #[doc(hidden)]
    pub fn into_socket(self) -> Option<OwnedFd> {
        match self.meeting_place {
            MeetingPlace::Threads(sockets) => sockets.ok()?.pop(),
            MeetingPlace::Directory(_) => None,
        }
    }

    /// The same rank of another group, for a program that forms several.
    pub fn with_group(mut self, group: impl Into<String>) -> Self {
        self.group = group.into();
        self
    }

    /// Names the run that started this rank: rank 0 refuses a rank of another run. Only the first
    /// 256 bytes count.
    pub fn with_run(mut self, run: impl Into<String>) -> Self {
        self.run = truncated(&run.into(), MAX_RUN_BYTES).to_owned();
        self
    }

    /// The directory of the group's socket; `None` for threads of one process.
    pub fn directory(&self) -> Option<&Path> {
        match &self.meeting_place {
            MeetingPlace::Directory(directory) => Some(directory),
            MeetingPlace::Threads(_) => None,
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

    /// Waits at most `timeout` until every rank has come.
    ///
    /// # Errors
    ///
    /// [`RendezvousError::InvalidRank`] and [`RendezvousError::InvalidGroup`] for the recipe;
    /// [`RendezvousError::Directory`], [`RendezvousError::PathTooLong`],
    /// [`RendezvousError::GroupInUse`], [`RendezvousError::WrongUser`] and [`RendezvousError::Io`]
    /// for the socket; [`RendezvousError::Refused`] from rank 0; [`RendezvousError::Timeout`] with
    /// the ranks that did not come, [`RendezvousError::PeerLost`] with one that came and died,
    /// [`RendezvousError::PeerFailed`] and [`RendezvousError::Protocol`] from the group.
    pub fn join(self, timeout: Duration) -> Result<Group, RendezvousError> {
        let (rank, world_size) = (self.rank, self.world_size);
        if rank >= world_size || world_size > MAX_WORLD_SIZE {
            return Err(RendezvousError::InvalidRank { rank, world_size });
        }
        if !is_group_name(&self.group) {
            return Err(RendezvousError::InvalidGroup { group: self.group });
        }
        let whereabouts = Whereabouts {
            directory: self.directory().map(Path::to_owned),
            group: self.group.clone(),
            rank,
            world_size,
        };
        let identity = GroupIdentity {
            name: self.group,
            run: self.run,
            world_size,
        };
        let process = ProcessId::current()?;
        let own = Peer { rank, process };
        let step = Step::begin(rank, JOIN, timeout);
        match meet(self.meeting_place, identity, own, &step) {
            Ok((role, peers)) => Ok(Group::new(whereabouts, own, peers, role)),
            Err(error) => Err(error.seen_by(&whereabouts)),
        }
    }
}

/// Waits until every rank has come.
fn meet(
    meeting_place: MeetingPlace,
    identity: GroupIdentity,
    own: Peer,
    step: &Step<'_>,
) -> Result<(Role, Vec<Peer>), RendezvousError> {
    let lead = |admission, claim| {
        let (hub, peers) = Hub::form(admission, claim, own, step)?;
        Ok((Role::Hub(hub), peers))
    };
    let follow = |spoke: Spoke, identity| {
        let (spoke, peers) = spoke.join(identity, step)?;
        Ok((Role::Spoke(spoke), peers))
    };
    match meeting_place {
        MeetingPlace::Threads(Err(error)) => Err(error),
        _ if identity.world_size == 1 => Ok((Role::Alone, vec![own])),
        MeetingPlace::Directory(path) if own.rank == 0 => {
            let directory = Directory::open(&path)?;
            let mut claim = directory.claim(&identity.name, step.deadline())?;
            let listener = claim.listen()?;
            lead(
                Admission::new(identity, Some(listener), Vec::new()),
                Some(claim),
            )
        }
        MeetingPlace::Directory(path) => {
            let directory = Directory::open(&path)?;
            let mut address = HubAddress::new(directory, &identity.name);
            let socket = address.connect(step)?;
            follow(Spoke::new(own, socket, Some(address)), identity)
        }
        MeetingPlace::Threads(Ok(sockets)) if own.rank == 0 => {
            lead(Admission::new(identity, None, sockets), None)
        }
        MeetingPlace::Threads(Ok(mut sockets)) => match sockets.pop() {
            Some(socket) => follow(Spoke::new(own, socket, None), identity),
            None => Err(step.lost(0)),
        },
    }
}
