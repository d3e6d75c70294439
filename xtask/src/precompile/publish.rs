//! The output directory: what may be replaced, the lock, the staging area and the exchange.
//!
//! Beside the output directory `cubins` lie `.cubins.lock`, which stays, and while a run works `.cubins.staging-*`, which
//! holds the whole next state. One rename exchanges the two, so that a run killed at any moment leaves the old state or
//! the new one.

use anyhow::{Context as _, bail};
use peersum_artifact::MANIFEST_FILE;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// The prefix of files that a file-by-file exchange across file systems leaves when it is killed.
const PARTIAL_PREFIX: &str = ".partial-";

/// What a command writes into its output directory. Nothing else may lie there, since the directory is replaced as a whole.
#[derive(Debug)]
pub(crate) struct Contents {
    /// The command, for messages.
    pub(crate) command: &'static str,
    /// Whether the command could have written a file of this name.
    pub(crate) is_name: fn(&str) -> bool,
    /// The file that vouches for the others: where files can only be replaced one by one, it comes last.
    pub(crate) last: &'static str,
}

/// Cubins, PTX and their manifest.
pub(crate) static MODULES: Contents = Contents {
    command: "precompile",
    is_name: is_module_output_name,
    last: MANIFEST_FILE,
};

/// The output directory and the names beside it.
#[derive(Debug)]
pub(crate) struct OutputDir {
    contents: &'static Contents,
    path: PathBuf,
    parent: PathBuf,
    name: OsString,
}

impl OutputDir {
    /// Settles where the output lies: symbolic links are followed, so that the directory behind one is replaced and not
    /// the link.
    ///
    /// # Errors
    /// When the path names no directory that could exist.
    pub(crate) fn new(path: &Path, contents: &'static Contents) -> anyhow::Result<Self> {
        let path = match fs::canonicalize(path) {
            Ok(path) => path,
            Err(error) if error.kind() == io::ErrorKind::NotFound => std::path::absolute(path)?,
            Err(error) => {
                return Err(error).with_context(|| {
                    format!(
                        "cannot use `{}` as the output; give another place with --out",
                        path.display()
                    )
                });
            }
        };
        match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => Ok(Self {
                contents,
                parent: parent.to_path_buf(),
                name: name.to_os_string(),
                path,
            }),
            _ => bail!(
                "`{}` cannot be the output: {} replaces the directory, and this one has no parent",
                path.display(),
                contents.command
            ),
        }
    }

    /// The directory itself.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A file beside the directory: `cubins-timings.json` for the suffix `-timings.json`.
    pub(crate) fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.name.clone();
        name.push(suffix);
        self.parent.join(name)
    }

    fn hidden(&self, suffix: &str) -> OsString {
        let mut name = OsString::from(".");
        name.push(&self.name);
        name.push(suffix);
        name
    }

    /// Takes the lock beside the directory and removes what killed runs left. `waiting` is told, once, what the lock is
    /// waited for.
    ///
    /// # Errors
    /// When the place cannot be written.
    pub(crate) fn lock(&self, waiting: impl FnOnce(String)) -> anyhow::Result<LockedOutput<'_>> {
        let hint = || {
            format!(
                "cannot write beside `{}`; give another place with --out",
                self.path.display()
            )
        };
        fs::create_dir_all(&self.parent).with_context(hint)?;
        let lock_path = self.parent.join(self.hidden(".lock"));
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .with_context(|| format!("cannot open the lock `{}`", lock_path.display()))
            .with_context(hint)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                waiting(format!(
                    "waiting for another {} into `{}` (it holds `{}`)",
                    self.contents.command,
                    self.path.display(),
                    lock_path.display()
                ));
                lock.lock()
                    .with_context(|| format!("cannot lock `{}`", lock_path.display()))?;
            }
            Err(TryLockError::Error(error)) => {
                return Err(error)
                    .with_context(|| format!("cannot lock `{}`", lock_path.display()));
            }
        }
        let output = LockedOutput {
            dir: self,
            _lock: lock,
        };
        output.remove_leftovers();
        Ok(output)
    }
}

/// The output directory while this process holds its lock.
#[derive(Debug)]
pub(crate) struct LockedOutput<'a> {
    dir: &'a OutputDir,
    _lock: File,
}

impl LockedOutput<'_> {
    /// The names of the files in the directory; empty if it does not exist.
    ///
    /// # Errors
    /// When the directory holds something that the command does not write: replacing it would delete it.
    pub(crate) fn file_names(&self) -> anyhow::Result<BTreeSet<String>> {
        let contents = self.dir.contents;
        let path = &self.dir.path;
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                bail!(
                    "`{}` is a file; give a directory with --out",
                    path.display()
                );
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read `{}`", path.display()));
            }
        };
        let mut names = BTreeSet::new();
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot read `{}`", path.display()))?;
            let name = entry.file_name();
            let ours = name
                .to_str()
                .filter(|name| name.starts_with(PARTIAL_PREFIX) || (contents.is_name)(name));
            let is_directory = entry.file_type().is_ok_and(|file_type| file_type.is_dir());
            match ours {
                Some(name) if !is_directory => names.insert(name.to_owned()),
                _ => bail!(
                    "`{}` holds `{}`, which {} did not write; a run replaces the whole directory, so move that \
                     away or give another place with --out",
                    path.display(),
                    name.display(),
                    contents.command
                ),
            };
        }
        Ok(names)
    }

    /// A fresh staging area beside the directory. It is removed when it is dropped.
    ///
    /// # Errors
    /// When the place cannot be written.
    pub(crate) fn stage(&self) -> anyhow::Result<Staging> {
        // The process id keeps a compiler that outlived its killed parent out of the directories of a later run.
        let root = self
            .dir
            .parent
            .join(self.dir.hidden(&format!(".staging-{}", std::process::id())));
        let staging = Staging {
            next: root.join("next"),
            scratch: root.join("scratch"),
            root,
        };
        for path in [&staging.next, &staging.scratch] {
            fs::create_dir_all(path).with_context(|| {
                format!(
                    "cannot write beside `{}`; give another place with --out",
                    self.dir.path.display()
                )
            })?;
        }
        Ok(staging)
    }

    /// Puts the staged state in the directory's place.
    ///
    /// # Errors
    /// When the file system refuses; the old state stays, or, where no exchange exists, a mixture that the digests of
    /// the manifest expose.
    pub(crate) fn publish(&self, staging: &Staging) -> anyhow::Result<()> {
        sync_dir(&staging.next)?;
        if !exchange(&staging.next, &self.dir.path)? {
            replace_file_by_file(&staging.next, &self.dir.path, self.dir.contents.last)?;
        }
        sync_dir(&self.dir.parent)
    }

    /// Removes the staging areas of killed runs. What cannot be removed now is left for the next run: it is in nobody's way.
    fn remove_leftovers(&self) {
        let prefix = self.dir.hidden(".staging-");
        for entry in fs::read_dir(&self.dir.parent)
            .into_iter()
            .flatten()
            .flatten()
        {
            if entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(prefix.as_encoded_bytes())
            {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// The next state of the output directory, on the way.
#[derive(Debug)]
pub(crate) struct Staging {
    root: PathBuf,
    next: PathBuf,
    scratch: PathBuf,
}

impl Staging {
    /// A fresh empty directory for one compiler process.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) fn scratch(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.scratch.join(name);
        fs::create_dir(&path)?;
        Ok(path)
    }

    /// Writes a file of the next state and waits until it is on the disk.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let path = self.next.join(name);
        let write = || -> io::Result<()> {
            let mut file = File::create(&path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().with_context(|| format!("cannot write `{}`", path.display()))
    }

    /// Takes over a file of the present state: the same file under a second name, or a copy where the file system has no
    /// hard links.
    ///
    /// # Errors
    /// When neither works.
    pub(crate) fn keep(&self, output: &OutputDir, name: &str) -> anyhow::Result<()> {
        let (from, to) = (output.path.join(name), self.next.join(name));
        if fs::hard_link(&from, &to).is_ok() {
            return Ok(());
        }
        let bytes = fs::read(&from).with_context(|| format!("cannot read `{}`", from.display()))?;
        self.write(name, &bytes)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // After an exchange this is the old state. The next run removes what is left.
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// Whether precompile itself could have written a file of this name into its output.
fn is_module_output_name(name: &str) -> bool {
    name == MANIFEST_FILE
        || name.starts_with("peersum_")
            && ((name.contains(".sm_") && name.ends_with(".cubin"))
                || (name.contains(".compute_") && name.ends_with(".ptx")))
}

/// Exchanges two directories by one rename; `false` if these two cannot be, and nothing happened.
fn exchange(next: &Path, path: &Path) -> anyhow::Result<bool> {
    match renameat_with(CWD, next, CWD, path, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => {
            fs::rename(next, path)
                .with_context(|| format!("cannot create `{}`", path.display()))?;
            Ok(true)
        }
        // The file system has no exchange, or the directory is a mount point.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::BUSY | Errno::XDEV) => {
            Ok(false)
        }
        Err(error) => Err(error).with_context(|| format!("cannot replace `{}`", path.display())),
    }
}

/// Moves each file of `next` into `path`, the file `last` at the end, then removes what the new state does not have.
fn replace_file_by_file(next: &Path, path: &Path, last: &str) -> anyhow::Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot create `{}`", path.display()))?;
    let mut names: Vec<OsString> = Vec::new();
    for entry in fs::read_dir(next)? {
        names.push(entry?.file_name());
    }
    names.sort_by_key(|name| name == last);
    for name in &names {
        let (from, to) = (next.join(name), path.join(name));
        move_file(&from, &to, path)
            .with_context(|| format!("cannot replace `{}`", to.display()))?;
    }
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if !names.contains(&entry.file_name()) {
            fs::remove_file(entry.path())
                .with_context(|| format!("cannot remove `{}`", entry.path().display()))?;
        }
    }
    sync_dir(path)
}

/// Renames a file, by way of a copy beside the target where the two lie on different file systems.
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

fn sync_dir(path: &Path) -> anyhow::Result<()> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .with_context(|| format!("cannot write `{}` to the disk", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(path: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn publish_second_state(publish: impl Fn(&LockedOutput<'_>, &Staging)) {
        let root = tempfile::tempdir().unwrap();
        let output = OutputDir::new(&root.path().join("cubins"), &MODULES).unwrap();
        let locked = output.lock(|_| {}).unwrap();
        let first = locked.stage().unwrap();
        first.write("peersum_a.sm_80.cubin", b"old a").unwrap();
        first.write("peersum_b.sm_80.cubin", b"old b").unwrap();
        first.write(MANIFEST_FILE, b"first").unwrap();
        publish(&locked, &first);
        drop(first);

        let second = locked.stage().unwrap();
        second.keep(&output, "peersum_b.sm_80.cubin").unwrap();
        second.write("peersum_c.sm_80.cubin", b"new c").unwrap();
        second.write(MANIFEST_FILE, b"second").unwrap();
        publish(&locked, &second);
        drop(second);

        assert_eq!(
            names(output.path()),
            [
                MANIFEST_FILE,
                "peersum_b.sm_80.cubin",
                "peersum_c.sm_80.cubin"
            ]
        );
        assert_eq!(
            fs::read(output.path().join("peersum_b.sm_80.cubin")).unwrap(),
            b"old b"
        );
        assert_eq!(
            fs::read(output.path().join(MANIFEST_FILE)).unwrap(),
            b"second"
        );
        assert_eq!(names(root.path()), [".cubins.lock", "cubins"]);
    }

    #[test]
    fn an_exchange_replaces_the_directory_by_exactly_the_staged_files() {
        publish_second_state(|locked, staging| locked.publish(staging).unwrap());
    }

    #[test]
    fn without_an_exchange_the_directory_still_ends_with_exactly_the_staged_files() {
        publish_second_state(|locked, staging| {
            replace_file_by_file(&staging.next, &locked.dir.path, MANIFEST_FILE).unwrap()
        });
    }

    #[test]
    fn a_file_that_precompile_did_not_write_keeps_the_directory_from_being_replaced() {
        let root = tempfile::tempdir().unwrap();
        let output = OutputDir::new(&root.path().join("mine"), &MODULES).unwrap();
        fs::create_dir(output.path()).unwrap();
        fs::write(output.path().join("thesis.txt"), "years of work").unwrap();
        let error = output
            .lock(|_| {})
            .unwrap()
            .file_names()
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("thesis.txt") && error.contains("--out"),
            "{error}"
        );
    }

    #[test]
    fn the_staging_area_of_a_killed_run_is_removed_under_the_lock() {
        let root = tempfile::tempdir().unwrap();
        let output = OutputDir::new(&root.path().join("cubins"), &MODULES).unwrap();
        std::mem::forget(output.lock(|_| {}).unwrap().stage().unwrap());
        assert_eq!(names(root.path()).len(), 2);
        drop(output.lock(|_| {}).unwrap());
        assert_eq!(names(root.path()), [".cubins.lock"]);
    }

    #[test]
    fn the_directory_behind_a_symbolic_link_is_replaced_and_the_link_stays() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("real")).unwrap();
        let link = root.path().join("link");
        std::os::unix::fs::symlink("real", &link).unwrap();
        let output = OutputDir::new(&link, &MODULES).unwrap();
        let locked = output.lock(|_| {}).unwrap();
        let staging = locked.stage().unwrap();
        staging.write(MANIFEST_FILE, b"state").unwrap();
        locked.publish(&staging).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(names(&root.path().join("real")), [MANIFEST_FILE]);
    }
}
