//! The directory of the sockets, which only this user can enter, and rank 0's claim to a group's
//! name in it.

use super::error::RendezvousError;
use super::reasons::DirectoryProblem;
use super::socket;
use crate::lock_file::{Attempt, FileId, LockFile};
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::net::SocketAddrUnix;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The most bytes of a socket's path in its address.
const ADDRESS_BYTES: usize = 107;
/// How long a claim waits for one that is about to be given up.
const CLAIM_PATIENCE: Duration = Duration::from_secs(1);
const CLAIM_RETRY: Duration = Duration::from_millis(10);
/// How long a survivor waits until a dying rank 0 has lost its lock. The system closes a killed
/// process's connections and releases its lock in no promised order, so the survivors may learn of
/// the death first.
pub(super) const SWEEP_PATIENCE: Duration = Duration::from_millis(500);
const SWEEP_RETRY: Duration = Duration::from_millis(2);
/// How often to look whether another rank has finished with the directory. It takes microseconds.
const DIRECTORY_LOCK_RETRY: Duration = Duration::from_millis(1);

/// An open directory of mode 0700 that belongs to this user, for the files of one group.
#[derive(Debug)]
pub(super) struct Directory {
    handle: OwnedFd,
    path: PathBuf,
    group: String,
    /// The names of the group's files.
    socket: String,
    lock: String,
}

impl Directory {
    /// Opens the directory, creating it if it is not there.
    pub(super) fn open(path: &Path, group: &str) -> Result<Self, RendezvousError> {
        // Without a trailing slash, which would make the system follow a link in the last place.
        let path: PathBuf = path.components().collect();
        let at_path = |operation, error| RendezvousError::io_at(operation, &path, error);
        let mut builder = std::fs::DirBuilder::new();
        let created = builder.recursive(true).mode(0o700).create(&path);
        // If something other than a directory is there, the errors below say what it is.
        if let Err(error) = created
            && error.kind() != std::io::ErrorKind::AlreadyExists
        {
            return Err(at_path("create the rendezvous directory", error));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::open(&path, flags, Mode::empty());
        let stat = match &opened {
            // From now on only the open directory is used: if its name is moved to another one,
            // what is in this one stays ours.
            Ok(handle) => rustix::fs::fstat(handle),
            // This second look only says what is wrong: the directory is not used.
            Err(_) => rustix::fs::lstat(&path),
        };
        if let Some(problem) = stat.as_ref().ok().and_then(problem_of) {
            return Err(RendezvousError::Directory { path, problem });
        }
        let handle =
            opened.map_err(|error| at_path("open the rendezvous directory", error.into()))?;
        stat.map_err(|error| at_path("inspect the rendezvous directory", error.into()))?;
        Ok(Self {
            handle,
            path,
            group: group.to_owned(),
            socket: format!("{group}.sock"),
            lock: format!("{group}.lock"),
        })
    }

    /// The file of the group's socket, if there is one.
    pub(super) fn socket_file(&self) -> Option<FileId> {
        FileId::named(self.as_fd(), Path::new(&self.socket))
    }

    pub(super) fn socket_path(&self) -> PathBuf {
        self.path.join(&self.socket)
    }

    /// The address of the group's socket, short enough whatever the directory's path.
    pub(super) fn address(&self) -> Result<SocketAddrUnix, RendezvousError> {
        let path = self.socket_path();
        let through_handle = Path::new("/proc/self/fd").join(self.handle.as_raw_fd().to_string());
        let address = if path.as_os_str().len() <= ADDRESS_BYTES {
            SocketAddrUnix::new(&path)
        } else if through_handle.exists() {
            SocketAddrUnix::new(through_handle.join(&self.socket))
        } else {
            return Err(RendezvousError::PathTooLong { path });
        };
        address.map_err(|error| RendezvousError::io_at("address the socket", &path, error))
    }

    /// Keeps all other ranks, also those of other groups, from making or removing files in the
    /// directory until the guard is dropped.
    fn locked(&self, deadline: Instant) -> Result<DirectoryLock<'_>, RendezvousError> {
        loop {
            match rustix::fs::flock(&self.handle, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(DirectoryLock(self)),
                Err(Errno::INTR) => continue,
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(DIRECTORY_LOCK_RETRY);
                }
                Err(error) => {
                    let operation = "lock the rendezvous directory";
                    return Err(RendezvousError::io_at(operation, &self.path, error));
                }
            }
        }
    }

    /// Makes this process the group's rank 0. A claim ends when its process ends, for whatever
    /// reason. So the files of a killed process are recognised without a look at its pid.
    pub(super) fn claim(self, deadline: Instant) -> Result<Claim, RendezvousError> {
        let deadline = deadline.min(Instant::now() + CLAIM_PATIENCE);
        loop {
            let attempt = {
                let _lock = self.locked(deadline)?;
                self.try_claim(true)?
            };
            match attempt {
                Attempt::Locked(lock) => {
                    return Ok(Claim {
                        directory: self,
                        socket: None,
                        lock,
                    });
                }
                Attempt::Busy(pid) if Instant::now() >= deadline => {
                    return Err(RendezvousError::GroupInUse {
                        group: self.group,
                        pid,
                        directory: self.path,
                    });
                }
                Attempt::Busy(_) | Attempt::Absent => std::thread::sleep(CLAIM_RETRY),
            }
        }
    }

    /// Removes what a dead rank 0 has left behind; does nothing if a rank 0 lives for `patience`
    /// longer.
    pub(super) fn sweep(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        loop {
            let Ok(locked) = self.locked(Instant::now() + SWEEP_PATIENCE) else {
                return;
            };
            match self.try_claim(false) {
                Ok(Attempt::Locked(_lock)) => {
                    locked.remove(&self.socket);
                    locked.remove(&self.lock);
                    return;
                }
                // The dying rank 0 holds the lock, or another survivor that does the same, or the
                // rank 0 of a new run, which keeps its files.
                Ok(Attempt::Busy(_)) if Instant::now() < deadline => {
                    drop(locked);
                    std::thread::sleep(SWEEP_RETRY);
                }
                Ok(Attempt::Busy(_) | Attempt::Absent) | Err(_) => return,
            }
        }
    }

    fn try_claim(&self, create: bool) -> Result<Attempt, RendezvousError> {
        LockFile::attempt(self.as_fd(), Path::new(&self.lock), create)
            .map_err(|error| RendezvousError::io_at("lock", &self.path.join(&self.lock), error))
    }
}

/// Why sockets are not made in what is there.
fn problem_of(stat: &Stat) -> Option<DirectoryProblem> {
    let (owner, ours) = (stat.st_uid, rustix::process::geteuid().as_raw());
    let mode = stat.st_mode & 0o777;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => Some(DirectoryProblem::Symlink),
        FileType::Directory if owner != ours => Some(DirectoryProblem::WrongOwner { owner, ours }),
        FileType::Directory if mode != 0o700 => Some(DirectoryProblem::WrongMode { mode }),
        FileType::Directory => None,
        _ => Some(DirectoryProblem::NotADirectory),
    }
}

/// A lock on the directory: no other rank makes or removes files in it.
struct DirectoryLock<'a>(&'a Directory);

impl DirectoryLock<'_> {
    /// True if there was something to remove.
    fn remove(&self, name: &str) -> bool {
        match rustix::fs::unlinkat(self.0, name, AtFlags::empty()) {
            Ok(()) => true,
            Err(Errno::NOENT) => false,
            Err(error) => {
                let path = self.0.path.join(name);
                tracing::warn!(path = %path.display(), %error, "could not remove a file");
                false
            }
        }
    }

    /// Removes the file of that name if it is this one.
    fn remove_if(&self, name: &str, file: FileId) {
        if FileId::named(self.0.as_fd(), Path::new(name)) == Some(file) {
            self.remove(name);
        }
    }
}

impl Drop for DirectoryLock<'_> {
    fn drop(&mut self) {
        // Closing the directory would not be enough: a child that fork made meanwhile has it open
        // as well, and the lock would last until both have closed it.
        let _ = rustix::fs::flock(self.0, FlockOperation::Unlock);
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
    socket: Option<BoundSocket>,
    /// Released last, when the files are gone.
    lock: LockFile,
}

/// The file of the socket that a claim has made.
#[derive(Debug)]
struct BoundSocket {
    file: FileId,
    /// While the socket is open no other file is given the number of its file.
    _open: OwnedFd,
}

impl Claim {
    /// Binds the group's socket, in the place of one that a killed rank 0 left.
    pub(super) fn listen(&mut self) -> Result<OwnedFd, RendezvousError> {
        let path = self.directory.socket_path();
        let at_path = |operation, error| RendezvousError::io_at(operation, &path, error);
        let address = self.directory.address()?;
        let socket = socket::new()?;
        let open = socket::duplicate(socket.as_fd())?;
        {
            let locked = self.directory.locked(Instant::now() + CLAIM_PATIENCE)?;
            if locked.remove(&self.directory.socket) {
                let path = path.display();
                tracing::info!(%path, "replaced the socket that an earlier run left behind");
            }
            rustix::net::bind(&socket, &address).map_err(|error| at_path("bind", error))?;
            let file = self.directory.socket_file();
            self.socket = file.map(|file| BoundSocket { file, _open: open });
        }
        rustix::net::listen(&socket, 128).map_err(|error| at_path("listen on", error))?;
        Ok(socket)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // If the files were removed meanwhile, a successor may have files of these names.
        match self.directory.locked(Instant::now() + CLAIM_PATIENCE) {
            Ok(locked) => {
                if let Some(socket) = &self.socket {
                    locked.remove_if(&self.directory.socket, socket.file);
                }
                locked.remove_if(&self.directory.lock, self.lock.id());
            }
            Err(error) => tracing::warn!(%error, "the files of a group are left behind"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AMPLE: Duration = Duration::from_secs(10);

    fn claim(path: &Path) -> Result<Claim, RendezvousError> {
        Directory::open(path, "group")?.claim(Instant::now() + AMPLE)
    }

    #[test]
    fn an_ending_claim_neither_looks_nor_removes_while_a_successor_makes_its_files() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("sockets");
        let mut old = claim(&path).unwrap();
        let _listener = old.listen().unwrap();
        let successor = Directory::open(&path, "group").unwrap();
        let locked = successor.locked(Instant::now()).unwrap();
        std::thread::scope(|scope| {
            let ending = scope.spawn(|| drop(old));
            std::thread::sleep(CLAIM_PATIENCE / 10);
            assert!(!ending.is_finished());
            for name in ["group.lock", "group.sock"] {
                assert!(locked.remove(name), "{name} was removed meanwhile");
                std::fs::write(path.join(name), "the successor's").unwrap();
            }
            drop(locked);
        });
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 2);
    }

    #[test]
    fn a_claim_that_a_thread_holds_is_refused_to_the_others_and_survives_their_attempts() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("sockets");
        let held = claim(&path).unwrap();
        let own = Some(std::process::id());
        for _ in 0..2 {
            let error = claim(&path).unwrap_err();
            assert!(
                matches!(error, RendezvousError::GroupInUse { pid, .. } if pid == own),
                "{error}"
            );
        }
        let file = path.join("group.lock").into_os_string();
        let file = std::ffi::CString::new(file.into_encoded_bytes()).unwrap();
        // SAFETY: the child calls nothing but system calls before it ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let locked =
                rustix::fs::open(file.as_c_str(), OFlags::RDWR, Mode::empty()).and_then(|file| {
                    let operation = FlockOperation::NonBlockingLockExclusive;
                    rustix::fs::fcntl_lock(file, operation)
                });
            // SAFETY: ends the child without what the test harness has registered for its end.
            unsafe { libc::_exit(i32::from(locked != Err(Errno::AGAIN))) };
        }
        let child = rustix::process::Pid::from_raw(child).unwrap();
        let waited = rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty());
        assert_eq!(waited.unwrap().unwrap().1.exit_status(), Some(0));
        drop(held);
        claim(&path).unwrap();
    }
}
