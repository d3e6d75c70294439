//! The output directory: what may be replaced, the lock, the staging area and the exchange.
//!
//! Beside the output directory `cubins` are the file `.cubins.lock`, which stays, and during a run
//! the directory `.cubins.staging-*`, which holds the whole next state. One rename exchanges the
//! two directories, so a run that is killed at any moment leaves the old state or the new one.

mod staging;

pub(crate) use staging::{Staging, sync};

use anyhow::{Context as _, bail};
use fs_err::{self as fs, File, OpenOptions};
use staging::PARTIAL_PREFIX;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::TryLockError;
use std::io;
use std::path::{Path, PathBuf};

/// What a command writes into its output directory. Nothing else may be there, since the directory
/// is replaced as a whole.
#[derive(Debug)]
pub(crate) struct Contents {
    /// The command, for messages.
    pub(crate) command: &'static str,
    /// Whether the command could have written a file of this name.
    pub(crate) is_name: fn(&str) -> bool,
    /// The file that describes the others. If files can only be replaced one by one, it comes last.
    pub(crate) last: &'static str,
    /// How to have the directory elsewhere: "give another place with --out".
    pub(crate) elsewhere: &'static str,
}

/// What follows the directory's name in that of a staging area.
const STAGING: &str = ".staging-";

/// The output directory and the names beside it.
#[derive(Debug)]
pub(crate) struct OutputDir {
    contents: &'static Contents,
    path: PathBuf,
    parent: PathBuf,
    name: OsString,
}

impl OutputDir {
    /// Resolves the path: if it is a symbolic link, the directory behind it is replaced and not the
    /// link.
    ///
    /// # Errors
    /// The path cannot name a directory.
    pub(crate) fn new(path: &Path, contents: &'static Contents) -> anyhow::Result<Self> {
        let path = match fs::canonicalize(path) {
            Ok(path) => path,
            Err(error) if error.kind() == io::ErrorKind::NotFound => std::path::absolute(path)?,
            Err(error) => return Err(error).context(contents.elsewhere),
        };
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            bail!(
                "`{}` cannot be the output: {} replaces the directory, and this one has no parent",
                path.display(),
                contents.command
            )
        };
        Ok(Self {
            contents,
            parent: parent.to_path_buf(),
            name: name.to_os_string(),
            path,
        })
    }

    /// The directory itself.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A path beside the directory: `.cubins.lock` for the prefix `.` and the suffix `.lock`.
    pub(crate) fn beside(&self, prefix: &str, suffix: &str) -> PathBuf {
        let mut name = OsString::from(prefix);
        name.push(&self.name);
        name.push(suffix);
        self.parent.join(name)
    }

    /// Takes the lock beside the directory and removes what killed runs left. If another process
    /// holds the lock, `waiting` gets a message, once.
    ///
    /// # Errors
    /// The parent directory cannot be written.
    pub(crate) fn lock(&self, waiting: impl FnOnce(String)) -> anyhow::Result<LockedOutput<'_>> {
        fs::create_dir_all(&self.parent).with_context(|| self.unwritable())?;
        let lock_path = self.beside(".", ".lock");
        let waiting = || {
            waiting(format!(
                "waiting for another {} into `{}` (it holds `{}`)",
                self.contents.command,
                self.path.display(),
                lock_path.display()
            ));
        };
        let lock = lock(&lock_path, waiting).with_context(|| self.unwritable())?;
        let output = LockedOutput { dir: self, lock };
        // What cannot be removed now does no harm, and the next run tries again.
        for path in self.leftovers() {
            let _ = fs::remove_dir_all(path);
        }
        Ok(output)
    }

    /// The staging areas of running and killed runs.
    pub(crate) fn leftovers(&self) -> Vec<PathBuf> {
        let prefix = self.beside(".", STAGING).into_os_string();
        let entries = fs::read_dir(&self.parent).into_iter().flatten().flatten();
        let is_left = |path: &PathBuf| {
            let path = path.as_os_str().as_encoded_bytes();
            path.starts_with(prefix.as_encoded_bytes())
        };
        let paths = entries.map(|entry| entry.path());
        paths.filter(is_left).collect()
    }

    fn unwritable(&self) -> String {
        format!(
            "cannot write beside `{}`; {}",
            self.path.display(),
            self.contents.elsewhere
        )
    }
}

/// The output directory while this process holds its lock.
#[derive(Debug)]
pub(crate) struct LockedOutput<'a> {
    dir: &'a OutputDir,
    lock: File,
}

impl LockedOutput<'_> {
    /// The names of the files in the directory; empty if it does not exist.
    ///
    /// # Errors
    /// The directory holds something that the command does not write: replacing it would delete
    /// that.
    pub(crate) fn file_names(&self) -> anyhow::Result<BTreeSet<String>> {
        let contents = self.dir.contents;
        let path = &self.dir.path;
        let entries = match fs::read_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                bail!(
                    "`{}` is a file, and must be a directory; {}",
                    path.display(),
                    contents.elsewhere
                );
            }
            entries => entries?,
        };
        let mut names = BTreeSet::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let ours = name
                .to_str()
                .filter(|name| name.starts_with(PARTIAL_PREFIX) || (contents.is_name)(name));
            let is_directory = entry.file_type().is_ok_and(|file_type| file_type.is_dir());
            match ours {
                Some(name) if !is_directory => names.insert(name.to_owned()),
                _ => bail!(
                    "`{}` holds `{}`, which {} did not write; a run replaces the whole \
                     directory, so move that away or {}",
                    path.display(),
                    name.display(),
                    contents.command,
                    contents.elsewhere
                ),
            };
        }
        Ok(names)
    }

    /// A fresh staging area beside the directory. It is removed when it is dropped.
    ///
    /// # Errors
    /// The parent directory cannot be written.
    pub(crate) fn stage(&self) -> anyhow::Result<Staging> {
        // The process id is in the name because a compiler may outlive its killed parent: it must
        // not write into the directories of a later run.
        let suffix = format!("{STAGING}{}", std::process::id());
        Staging::new(self.dir.beside(".", &suffix)).with_context(|| self.dir.unwritable())
    }

    /// Puts the staged state in the directory's place.
    ///
    /// # Errors
    /// The file system refuses. The old state stays; or, if the file system cannot exchange, a
    /// mixture that the manifest's digests expose.
    pub(crate) fn publish(&self, staging: &Staging) -> anyhow::Result<()> {
        staging.replace(&self.dir.path, self.dir.contents.last)?;
        Ok(sync(&self.dir.parent)?)
    }

    /// The directory itself.
    pub(crate) fn path(&self) -> &Path {
        &self.dir.path
    }

    /// The lock, for a child that may outlive this process: it is held as long as either lives.
    ///
    /// # Errors
    /// The process has too many open files.
    pub(crate) fn share_lock(&self) -> io::Result<std::fs::File> {
        Ok(self.lock.try_clone()?.into())
    }
}

/// Takes the lock of a file, which ends with the process, however that ends. If another process
/// holds it, calls `waiting` and waits.
fn lock(path: &Path, waiting: impl FnOnce()) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            waiting();
            file.lock()?;
        }
        Err(TryLockError::Error(error)) => return Err(error),
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_behind_a_symbolic_link_is_replaced_and_the_link_stays() {
        static CONTENTS: Contents = Contents {
            command: "test",
            is_name: |_| true,
            last: "state",
            elsewhere: "",
        };
        let root = tempfile::tempdir().unwrap();
        let (real, link) = (root.path().join("real"), root.path().join("link"));
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink("real", &link).unwrap();
        let output = OutputDir::new(&link, &CONTENTS).unwrap();
        let locked = output.lock(|_| {}).unwrap();
        let staging = locked.stage().unwrap();
        staging.write("state", b"new").unwrap();
        locked.publish(&staging).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(real.join("state")).unwrap(), b"new");
    }
}
