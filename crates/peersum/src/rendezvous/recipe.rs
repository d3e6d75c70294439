//! The recipe for a group: which rank this is, of how many, in which group, and where ranks meet.

use super::admission::Admission;
use super::directory::Directory;
use super::error::{RendezvousError, Whereabouts};
use super::group::{Group, Role};
use super::hub::Hub;
use super::limits::{JOIN, MAX_RUN_BYTES, MAX_WORLD_SIZE, is_group_name, truncated};
use super::peer::Peer;
use super::socket;
use super::spoke::{HubAddress, Spoke};
use super::step::Step;
use super::wire::GroupIdentity;
use crate::process_id::ProcessId;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Which rank this is, of how many, in which group, and how to reach the others.
#[derive(Debug)]
#[must_use = "a rendezvous does nothing until it is joined"]
pub struct Rendezvous {
    rank: u32,
    world_size: u32,
    pub(super) local_rank: u32,
    pub(super) group: String,
    pub(super) run: String,
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

    /// One thread of this process a rank: the ranks from 0 on, each to be joined by a thread of its
    /// own.
    ///
    /// Nothing is written to the file system. If a rank is dropped before it is joined, the others
    /// see it as lost.
    pub fn threads(world_size: u32) -> Vec<Self> {
        // A larger world is refused by `join`, and needs no sockets.
        let connected = world_size.min(MAX_WORLD_SIZE + 1);
        let pairs: Result<Vec<_>, _> = (1..connected).map(|_| socket::pair()).collect();
        let error = pairs.as_ref().err().cloned();
        let (hub, spokes): (Vec<_>, Vec<_>) = pairs.unwrap_or_default().into_iter().unzip();
        let spokes = spokes.into_iter().map(|socket| vec![socket]);
        let mut sockets = std::iter::once(hub).chain(spokes);
        (0..connected)
            .map(|rank| Self {
                rank,
                world_size,
                local_rank: rank,
                group: "threads".into(),
                run: String::new(),
                meeting_place: MeetingPlace::Threads(match &error {
                    None => Ok(sockets.next().unwrap_or_default()),
                    Some(error) => Err(error.clone()),
                }),
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
        let process = ProcessId::current()
            .map_err(|error| RendezvousError::io("tell this process from others", error))?;
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
    if identity.world_size == 1 {
        return Ok((Role::Alone, vec![own]));
    }
    if own.rank == 0 {
        let (admission, claim) = match meeting_place {
            MeetingPlace::Directory(path) => {
                let directory = Directory::open(&path, &identity.name)?;
                let mut claim = directory.claim(step.deadline)?;
                let listener = claim.listen()?;
                let admission = Admission::new(identity, Some(listener), Vec::new());
                (admission, Some(claim))
            }
            MeetingPlace::Threads(sockets) => (Admission::new(identity, None, sockets?), None),
        };
        let (hub, peers) = Hub::form(admission, claim, own, step)?;
        return Ok((Role::Hub(hub), peers));
    }
    let (socket, address) = match meeting_place {
        MeetingPlace::Directory(path) => {
            let mut address = HubAddress::new(Directory::open(&path, &identity.name)?);
            (address.connect(step)?, Some(address))
        }
        MeetingPlace::Threads(sockets) => (sockets?.pop().ok_or_else(|| step.lost(0))?, None),
    };
    let (spoke, peers) = Spoke::new(own, socket, address).join(identity, step)?;
    Ok((Role::Spoke(spoke), peers))
}
