//! Lock files. The system releases a lock when its process ends, also if a child that fork made of
//! the process lives on.
//!
//! These are POSIX locks. A child does not inherit them, and the system names the process that
//! holds one. They do not keep two threads of a process apart, and a process loses its lock when it
//! closes any descriptor of the file. So this process remembers the files that it has locked, and
//! does not open them again.

use crate::process_nonce::{self, Nonce};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, Stat, fcntl_lock, fstat, openat, statat};
use rustix::io::Errno;
use rustix::process::{Flock, FlockType, fcntl_getlk};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A file, whatever its name. Its number may be given to another one once nothing holds it open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    pub(crate) fn of(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
        }
    }

    /// The file of that name in the directory, if there is one.
    pub(crate) fn named(directory: BorrowedFd<'_>, name: &Path) -> Option<Self> {
        let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
        stat.ok().map(|stat| Self::of(&stat))
    }
}

/// The files that this process has locked. A child inherits the list, which is not of its locks.
static LOCKED: Mutex<Vec<(Nonce, FileId)>> = Mutex::new(Vec::new());

fn locked() -> MutexGuard<'static, Vec<(Nonce, FileId)>> {
    LOCKED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What came of an attempt to lock a file.
pub(crate) enum Attempt {
    Locked(LockFile),
    /// It is locked already: by the process of this number, or by one that has no number in this
    /// process's PID namespace.
    Busy(Option<u32>),
    /// There is no such file, and none was to be created.
    Absent,
}

/// A file that this process keeps locked until this is dropped.
#[derive(Debug)]
pub(crate) struct LockFile {
    file: Option<OwnedFd>,
    id: FileId,
    /// The process that has locked the file.
    process: Nonce,
}

impl LockFile {
    /// Locks the file of that name in the directory, without waiting. `create` creates it.
    pub(crate) fn attempt(
        directory: BorrowedFd<'_>,
        name: &Path,
        create: bool,
    ) -> io::Result<Attempt> {
        let process = process_nonce::current()?;
        let mut flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        flags.set(OFlags::CREATE, create);
        let mut locked = locked();
        loop {
            if let Some(there) = FileId::named(directory, name)
                && locked.contains(&(process, there))
            {
                return Ok(Attempt::Busy(Some(std::process::id())));
            }
            let file = match openat(directory, name, flags, Mode::RUSR | Mode::WUSR) {
                Ok(file) => file,
                Err(Errno::NOENT) if !create => return Ok(Attempt::Absent),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::ACCESS | Errno::AGAIN) => return Ok(Attempt::Busy(holder(&file))),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            // The file may have been removed between our opening and locking it: then the lock is
            // on a file that nobody else will find.
            let id = FileId::of(&fstat(&file)?);
            if FileId::named(directory, name) == Some(id) {
                locked.push((process, id));
                let file = Some(file);
                return Ok(Attempt::Locked(Self { file, id, process }));
            }
        }
    }

    /// The file that is locked, whether or not it still has its name.
    pub(crate) fn id(&self) -> FileId {
        self.id
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        // Closed while the list is held: a thread that locks the file meanwhile would lose its
        // lock.
        let mut locked = locked();
        drop(self.file.take());
        locked.retain(|entry| *entry != (self.process, self.id));
    }
}

/// Who holds the lock on the file.
fn holder(file: &OwnedFd) -> Option<u32> {
    let lock = fcntl_getlk(file, &Flock::from(FlockType::WriteLock));
    let pid = lock.ok().flatten()?.pid?;
    u32::try_from(pid.as_raw_pid()).ok()
}
