//! Lock files. The system releases a lock when its process ends, also if a child that fork made of
//! the process lives on.
//!
//! These are POSIX locks. A child does not inherit them, and the system names the process that
//! holds one. They do not keep two threads of a process apart, and a process loses its lock when it
//! closes any descriptor of the file. So this process remembers the files that it has locked, and
//! does not open them again.

use crate::process_id::ProcessId;
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

/// The files that processes have locked. A child inherits the list of its parent, but no lock, so
/// each entry names its process.
static LOCKED: Mutex<Vec<(ProcessId, FileId)>> = Mutex::new(Vec::new());

fn locked() -> MutexGuard<'static, Vec<(ProcessId, FileId)>> {
    LOCKED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What came of an attempt to lock a file.
pub(crate) enum Attempt {
    Locked(LockFile),
    /// It is locked already, by the process of this number. None if that process has no number in
    /// this process's PID namespace.
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
    process: ProcessId,
}

impl LockFile {
    /// Locks the file of that name in the directory, without waiting. If there is no such file,
    /// `create` makes one that only this user can open. `name` may be a path; `rustix::fs::CWD` is
    /// then the directory for it.
    pub(crate) fn attempt(
        directory: BorrowedFd<'_>,
        name: &Path,
        create: bool,
    ) -> io::Result<Attempt> {
        let process = ProcessId::current()?;
        let mut flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        flags.set(OFlags::CREATE, create);
        let mut locked = locked();
        loop {
            if let Some(there) = FileId::named(directory, name)
                && locked.contains(&(process, there))
            {
                return Ok(Attempt::Busy(Some(process.pid)));
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
            // If the file was removed between opening and locking, the lock is on a file that no
            // other process will find.
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
        // The list is held while the file is closed: if another thread locked the file in between,
        // closing would release that lock.
        let mut locked = locked();
        drop(self.file.take());
        locked.retain(|entry| *entry != (self.process, self.id));
    }
}

/// The process that holds the lock on the file.
fn holder(file: &OwnedFd) -> Option<u32> {
    let lock = fcntl_getlk(file, &Flock::from(FlockType::WriteLock));
    let pid = lock.ok().flatten()?.pid?;
    u32::try_from(pid.as_raw_pid()).ok()
}
