//! The staging area, which holds the whole next state of an output directory, and the exchange.

use anyhow::Context as _;
use fs_err::{self as fs, File};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// The prefix of files that a file-by-file exchange across file systems leaves when it is killed.
pub(super) const PARTIAL_PREFIX: &str = ".partial-";

/// The next state of the output directory, while it is made.
#[derive(Debug)]
pub(crate) struct Staging {
    root: PathBuf,
    /// The directory of the next state.
    pub(crate) next: PathBuf,
    scratch: PathBuf,
}

impl Staging {
    /// Makes the staging area in `root`.
    pub(super) fn new(root: PathBuf) -> io::Result<Self> {
        let staging = Self {
            next: root.join("next"),
            scratch: root.join("scratch"),
            root,
        };
        fs::create_dir_all(&staging.next)?;
        fs::create_dir_all(&staging.scratch)?;
        Ok(staging)
    }

    /// Puts the next state in the place of `path`, the file `last` at the end if the files can only
    /// be replaced one by one.
    pub(super) fn replace(&self, path: &Path, last: &str) -> anyhow::Result<()> {
        sync(&self.next)?;
        if !exchange(&self.next, path)? {
            replace_file_by_file(&self.next, path, last)?;
        }
        Ok(())
    }

    /// A fresh empty directory for one compiler process.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn scratch(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.scratch.join(name);
        fs::create_dir(&path)?;
        Ok(path)
    }

    /// Writes a file of the next state and waits until it is on the disk.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut file = File::create(self.next.join(name))?;
        file.write_all(bytes)?;
        file.sync_all()
    }

    /// Keeps a file of the present state: by a hard link, or by a copy if the file system has none.
    ///
    /// # Errors
    /// Neither works.
    pub(crate) fn keep(&self, output: &Path, name: &str) -> io::Result<()> {
        let (from, to) = (output.join(name), self.next.join(name));
        if fs::hard_link(&from, &to).is_ok() {
            return Ok(());
        }
        self.write(name, &fs::read(from)?)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // After an exchange this is the old state. The next run removes what is left.
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// Exchanges two directories by one rename. `false` if they cannot be exchanged; then nothing
/// happened.
fn exchange(next: &Path, path: &Path) -> anyhow::Result<bool> {
    match renameat_with(CWD, next, CWD, path, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => {
            fs::rename(next, path)?;
            Ok(true)
        }
        // The file system has no exchange, or the directory is a mount point.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::BUSY | Errno::XDEV) => {
            Ok(false)
        }
        Err(error) => Err(error).with_context(|| format!("cannot replace `{}`", path.display())),
    }
}

/// Moves each file of `next` into `path`, the file `last` at the end. Then removes the files that
/// the new state does not have.
fn replace_file_by_file(next: &Path, path: &Path, last: &str) -> io::Result<()> {
    fs::create_dir_all(path)?;
    let mut names: Vec<OsString> = Vec::new();
    for entry in fs::read_dir(next)? {
        names.push(entry?.file_name());
    }
    names.sort_by_key(|name| name == last);
    for name in &names {
        move_file(&next.join(name), &path.join(name), path)?;
    }
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if !names.contains(&entry.file_name()) {
            fs::remove_file(entry.path())?;
        }
    }
    sync(path)
}

/// Renames a file. If the two paths are on different file systems, copies it beside the target
/// first.
fn move_file(from: &Path, to: &Path, directory: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            let mut partial = OsString::from(PARTIAL_PREFIX);
            partial.push(to.file_name().unwrap_or_default());
            let partial = directory.join(partial);
            fs::copy(from, &partial)?;
            File::open(&partial)?.sync_all()?;
            fs::rename(&partial, to)
        }
        other => other,
    }
}

/// Waits until a file or directory is on the disk.
pub(crate) fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
