//! The directory that dist works in, among the system's temporary files. Dropping it removes it; if
//! a run is killed, the next run removes what it left.
//!
//! A scratch directory is in use as long as the file `lock` in it is locked. The programs that dist
//! starts inherit the lock, since they outlive a dist that is killed: the lock is free when the
//! last process that works in the directory has ended.

use anyhow::Context as _;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::geteuid;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use tempfile::TempDir;

const PREFIX: &str = "peersum-dist-scratch-";
const LOCK_FILE: &str = "lock";

/// A directory that only this run uses.
#[derive(Debug)]
pub(super) struct ScratchDir {
    // Removed before the lock is released.
    directory: TempDir,
    _lock: File,
}

impl ScratchDir {
    /// Removes what killed runs of this user left, then makes an empty directory, apart from its
    /// lock.
    ///
    /// # Errors
    /// The directory for temporary files cannot be written.
    pub(super) fn new() -> anyhow::Result<Self> {
        let parent = std::env::temp_dir();
        // First, because what was left may fill the disk.
        remove_abandoned(&parent, geteuid().as_raw());
        Self::within(&parent).with_context(|| {
            format!(
                "cannot make a directory to work in within `{}`; give another place with TMPDIR",
                parent.display()
            )
        })
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    fn within(parent: &Path) -> io::Result<Self> {
        loop {
            let directory = TempDir::with_prefix_in(PREFIX, parent)?;
            // Until it is locked, another run may take it for an abandoned one and remove it.
            if let Some(lock) = try_lock(directory.path())? {
                fcntl_setfd(&lock, FdFlags::empty())?;
                return Ok(Self {
                    directory,
                    _lock: lock,
                });
            }
        }
    }
}

/// Locks a scratch directory; `None` if it is in use or gone.
fn try_lock(directory: &Path) -> io::Result<Option<File>> {
    let lock = match File::create(directory.join(LOCK_FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        lock => lock?,
    };
    match lock.try_lock() {
        // The process that held the lock when it was opened may have removed it with the directory.
        Ok(()) if lock.metadata()?.nlink() > 0 => Ok(Some(lock)),
        Ok(()) | Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Removes the scratch directories of the user `owner` that are not in use. If one cannot be
/// removed, the run goes on.
fn remove_abandoned(parent: &Path, owner: u32) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let is_scratch = entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(PREFIX.as_bytes());
        // The metadata of the entry itself, not of a link's target.
        let is_own = |metadata: fs::Metadata| metadata.is_dir() && metadata.uid() == owner;
        if !is_scratch || !entry.metadata().is_ok_and(is_own) {
            continue;
        }
        let path = entry.path();
        let removed = try_lock(&path).and_then(|lock| match lock {
            Some(_held) => fs::remove_dir_all(&path),
            None => Ok(()),
        });
        if let Err(error) = removed {
            eprintln!(
                "note: cannot remove `{}`, which a killed dist left: {error}",
                path.display()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A directory as a killed dist leaves it.
    fn left(parent: &Path, name: &str) -> std::path::PathBuf {
        let path = parent.join(format!("{PREFIX}{name}"));
        fs::create_dir_all(path.join("checkout")).unwrap();
        fs::write(path.join("checkout/Cargo.toml"), "").unwrap();
        fs::write(path.join(LOCK_FILE), "").unwrap();
        path
    }

    fn own() -> u32 {
        geteuid().as_raw()
    }

    #[test]
    fn what_is_in_use_or_of_another_user_or_not_ours_stays() {
        let parent = tempfile::tempdir().unwrap();
        let used = left(parent.path(), "used");
        let _lock = try_lock(&used).unwrap().unwrap();
        remove_abandoned(parent.path(), own());
        assert!(used.join("checkout/Cargo.toml").is_file());

        let of_another = left(parent.path(), "of-another");
        remove_abandoned(parent.path(), own() + 1);
        assert!(of_another.join("checkout/Cargo.toml").is_file());

        let elsewhere = tempfile::tempdir().unwrap();
        let target = left(elsewhere.path(), "target");
        symlink(&target, parent.path().join(format!("{PREFIX}link"))).unwrap();
        fs::write(parent.path().join(format!("{PREFIX}file")), "").unwrap();
        fs::create_dir(parent.path().join("peersum-dist-other")).unwrap();
        remove_abandoned(parent.path(), own());
        assert!(target.join("checkout/Cargo.toml").is_file());
        for name in ["other", "scratch-file", "scratch-link", "scratch-used"] {
            let path = parent.path().join(format!("peersum-dist-{name}"));
            assert!(path.symlink_metadata().is_ok(), "{name}");
        }
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 4);
    }

    #[test]
    fn a_directory_that_is_removed_while_it_is_being_locked_is_not_taken() {
        let parent = tempfile::tempdir().unwrap();
        let path = left(parent.path(), "a");
        let held = try_lock(&path).unwrap().unwrap();
        assert!(try_lock(&path).unwrap().is_none());
        fs::remove_dir_all(&path).unwrap();
        drop(held);
        assert!(try_lock(&path).unwrap().is_none());
    }

    #[test]
    fn runs_that_begin_and_end_at_once_never_lose_a_directory_and_leave_none() {
        let parent = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        remove_abandoned(parent.path(), own());
                        let scratch = ScratchDir::within(parent.path()).unwrap();
                        fs::write(scratch.path().join("file"), "").unwrap();
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}
