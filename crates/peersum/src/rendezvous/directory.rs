//! The directory of the sockets, which only this user can enter, and rank 0's claim to a group's name in it.

use super::error::{DirectoryProblem, RendezvousError};
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SocketAddrUnix;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The most bytes of a socket's path in its address.
const ADDRESS_BYTES: usize = 107;
/// How long a claim waits for one that is about to be given up.
const CLAIM_PATIENCE: Duration = Duration::from_secs(1);
const CLAIM_RETRY: Duration = Duration::from_millis(10);
/// How long a survivor waits for a dying rank 0 to let go of its lock: the system closes a killed process's connections and
/// its lock in no promised order, so the survivors may learn of the death first.
const SWEEP_PATIENCE: Duration = Duration::from_millis(500);
const SWEEP_RETRY: Duration = Duration::from_millis(2);

/// What came of an attempt to lock a lock file.
enum Attempt {
    Locked(std::fs::File),
    /// Another process holds it.
    Busy,
    /// There is no such file, and none was to be created.
    Absent,
}

/// An open directory of mode 0700 that belongs to this user.
#[derive(Debug)]
pub(super) struct Directory {
    handle: OwnedFd,
    path: PathBuf,
}

impl Directory {
    /// Opens the directory, creating it if it is not there.
    pub(super) fn open(path: &Path) -> Result<Self, RendezvousError> {
        // Without a trailing slash, which would make the system follow a link in the last place.
        let path: PathBuf = path.components().collect();
        match std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
        {
            Ok(()) => {}
            // Something other than a directory is there; what it is, is said below.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(RendezvousError::io_at(
                    "create the rendezvous directory",
                    &path,
                    error,
                ));
            }
        }
        let refuse = |problem| RendezvousError::Directory {
            path: path.clone(),
            problem,
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let ours = rustix::process::geteuid().as_raw();
        let handle = match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(handle) => handle,
            Err(errno) => {
                // Looked at again only to say what is wrong: none of these is used.
                let stat = rustix::fs::lstat(&path).map_err(|_| {
                    RendezvousError::io_at("open the rendezvous directory", &path, errno)
                })?;
                return Err(match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Symlink => refuse(DirectoryProblem::Symlink),
                    FileType::Directory if stat.st_uid != ours => {
                        refuse(DirectoryProblem::WrongOwner {
                            owner: stat.st_uid,
                            ours,
                        })
                    }
                    FileType::Directory => {
                        RendezvousError::io_at("open the rendezvous directory", &path, errno)
                    }
                    _ => refuse(DirectoryProblem::NotADirectory),
                });
            }
        };
        // The open directory is checked, and used from now on: its name may be moved, what is in it stays ours.
        let stat = rustix::fs::fstat(&handle).map_err(|error| {
            RendezvousError::io_at("inspect the rendezvous directory", &path, error)
        })?;
        if stat.st_uid != ours {
            return Err(refuse(DirectoryProblem::WrongOwner {
                owner: stat.st_uid,
                ours,
            }));
        }
        let mode = stat.st_mode & 0o777;
        if mode != 0o700 {
            return Err(refuse(DirectoryProblem::WrongMode { mode }));
        }
        Ok(Self { handle, path })
    }

    pub(super) fn socket_path(&self, group: &str) -> PathBuf {
        self.path.join(socket_name(group))
    }

    /// The address of the group's socket, short enough whatever the directory's path.
    pub(super) fn address(&self, group: &str) -> Result<SocketAddrUnix, RendezvousError> {
        let path = self.socket_path(group);
        let through_handle = Path::new("/proc/self/fd").join(self.handle.as_raw_fd().to_string());
        let address = if path.as_os_str().len() <= ADDRESS_BYTES {
            SocketAddrUnix::new(&path)
        } else if through_handle.exists() {
            SocketAddrUnix::new(through_handle.join(socket_name(group)))
        } else {
            return Err(RendezvousError::PathTooLong { path });
        };
        address.map_err(|error| RendezvousError::io_at("address the socket", &path, error))
    }

    /// Makes this process the group's rank 0. A claim ends with the process that holds it, however that ends, so what a
    /// killed one left behind is recognised without asking whether its pid still lives.
    pub(super) fn claim(self, group: &str, deadline: Instant) -> Result<Claim, RendezvousError> {
        let deadline = deadline.min(Instant::now() + CLAIM_PATIENCE);
        let name = lock_name(group);
        loop {
            if let Attempt::Locked(mut lock) = self.try_lock(&name, OFlags::CREATE)? {
                let path = self.path.join(&name);
                // For those who find the name taken; nothing depends on it.
                lock.set_len(0)
                    .and_then(|()| lock.rewind())
                    .and_then(|()| writeln!(lock, "{}", std::process::id()))
                    .map_err(|error| RendezvousError::io_at("write the lock file", &path, error))?;
                return Ok(Claim {
                    _lock: lock,
                    directory: self,
                    group: group.to_owned(),
                });
            }
            if Instant::now() >= deadline {
                return Err(RendezvousError::GroupInUse {
                    group: group.to_owned(),
                    pid: self.holder(&name),
                    directory: self.path,
                });
            }
            std::thread::sleep(CLAIM_RETRY);
        }
    }

    /// Removes what a rank 0 that has just died leaves behind.
    pub(super) fn sweep_behind_dying(&self, group: &str) {
        self.sweep_until(group, Instant::now() + SWEEP_PATIENCE);
    }

    /// Removes what a rank 0 that is no more has left behind; does nothing where one lives.
    pub(super) fn sweep(&self, group: &str) {
        self.sweep_until(group, Instant::now());
    }

    fn sweep_until(&self, group: &str, deadline: Instant) {
        loop {
            match self.try_lock(&lock_name(group), OFlags::empty()) {
                Ok(Attempt::Locked(_lock)) => {
                    self.remove(&socket_name(group));
                    self.remove(&lock_name(group));
                    return;
                }
                // The dying rank 0, another survivor at the same work, or the rank 0 of a new run that has what it needs.
                Ok(Attempt::Busy) if Instant::now() < deadline => std::thread::sleep(SWEEP_RETRY),
                Ok(Attempt::Busy | Attempt::Absent) | Err(_) => return,
            }
        }
    }

    fn try_lock(&self, name: &str, create: OFlags) -> Result<Attempt, RendezvousError> {
        let path = self.path.join(name);
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | create;
        loop {
            let lock = match rustix::fs::openat(&self.handle, name, flags, Mode::RUSR | Mode::WUSR)
            {
                Ok(lock) => lock,
                Err(Errno::NOENT) if create.is_empty() => return Ok(Attempt::Absent),
                Err(Errno::INTR) => continue,
                Err(errno) => {
                    return Err(RendezvousError::io_at("open the lock file", &path, errno));
                }
            };
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(Attempt::Busy),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(RendezvousError::io_at("lock", &path, errno)),
            }
            // The holder before may have removed the file between our opening and locking it: then the lock is on a file
            // that nobody else will find.
            let locked = rustix::fs::fstat(&lock)
                .map_err(|error| RendezvousError::io_at("inspect", &path, error))?;
            let named = rustix::fs::statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW);
            if named
                .is_ok_and(|named| (named.st_dev, named.st_ino) == (locked.st_dev, locked.st_ino))
            {
                return Ok(Attempt::Locked(lock.into()));
            }
        }
    }

    fn holder(&self, name: &str) -> Option<u32> {
        let lock = rustix::fs::openat(
            &self.handle,
            name,
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .ok()?;
        let mut text = String::new();
        std::fs::File::from(lock)
            .take(16)
            .read_to_string(&mut text)
            .ok()?;
        text.trim().parse().ok()
    }

    /// True if there was something to remove.
    fn remove(&self, name: &str) -> bool {
        match rustix::fs::unlinkat(&self.handle, name, AtFlags::empty()) {
            Ok(()) => true,
            Err(Errno::NOENT) => false,
            Err(error) => {
                tracing::warn!(path = %self.path.join(name).display(), %error, "could not remove a rendezvous file");
                false
            }
        }
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

/// A group's name, held by this process as its rank 0. Dropping it removes the socket.
#[derive(Debug)]
pub(super) struct Claim {
    directory: Directory,
    group: String,
    /// Released last, when the files are gone.
    _lock: std::fs::File,
}

impl Claim {
    /// Binds the group's socket, in the place of one that a killed rank 0 left.
    pub(super) fn listen(&self) -> Result<OwnedFd, RendezvousError> {
        let path = self.directory.socket_path(&self.group);
        if self.directory.remove(&socket_name(&self.group)) {
            tracing::info!(path = %path.display(), "replaced the socket of a run that ended without removing it");
        }
        let address = self.directory.address(&self.group)?;
        let socket = super::new_socket()?;
        rustix::net::bind(&socket, &address)
            .map_err(|error| RendezvousError::io_at("bind", &path, error))?;
        rustix::net::listen(&socket, 128)
            .map_err(|error| RendezvousError::io_at("listen on", &path, error))?;
        Ok(socket)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.directory.remove(&socket_name(&self.group));
        self.directory.remove(&lock_name(&self.group));
    }
}

fn socket_name(group: &str) -> String {
    format!("{group}.sock")
}

fn lock_name(group: &str) -> String {
    format!("{group}.lock")
}
