//! Lock files. A lock ends with its file, and so with the process, however that ends.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

/// Takes the lock. If another process holds it, calls `waiting` once and waits.
///
/// # Errors
/// The file cannot be opened or locked.
pub(crate) fn lock(path: &Path, waiting: impl FnOnce()) -> io::Result<File> {
    let file = open(path)?;
    if !try_lock_file(&file)? {
        waiting();
        file.lock()?;
    }
    Ok(file)
}

/// Takes the lock unless another process holds it.
///
/// # Errors
/// The file cannot be opened or locked.
pub(crate) fn try_lock(path: &Path) -> io::Result<Option<File>> {
    let file = open(path)?;
    Ok(try_lock_file(&file)?.then_some(file))
}

fn open(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

fn try_lock_file(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}
