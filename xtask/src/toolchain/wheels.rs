//! Sets of pinned wheels. Each is installed once for a user, and never used incomplete.
//!
//! A set has a directory named after its requirements. It is filled beside its place, checked,
//! stamped and moved there by one rename, under a lock beside it. The stamp lists every file with
//! its length, so a few hundred `stat` calls find an install that lost a file; it is then repeated.

use super::{pip, sealed};
use crate::lock;
use anyhow::{Context as _, anyhow};
use peersum_artifact::Digest;
use serde::{Deserialize, Serialize};
use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Names the directory that holds the sets, in place of the user's cache directory.
pub(crate) const DIRECTORY_VARIABLE: &str = "PEERSUM_TOOLCHAIN_DIR";

/// The stamp's name within an install.
const STAMP: &str = "peersum-stamp.json";

/// The form of the stamp.
const STAMP_SCHEMA: u32 = 1;

/// A set of wheels, all of whose hashes are pinned.
#[derive(Debug, Clone)]
pub(crate) struct WheelSet<'a> {
    /// What it is, as in "installing {name}".
    pub(crate) name: &'a str,
    /// The text of a pip requirements file: exact versions with their hashes.
    pub(crate) requirements: &'a str,
    /// How much is to be fetched, as in "about 100 MB".
    pub(crate) download: &'a str,
    /// The licence that the user accepts by installing it, if it is not a free one.
    pub(crate) licence: Option<&'a str>,
    /// Files that it must have.
    pub(crate) files: &'a [&'a str],
    /// Says why the unpacked wheels in a directory do not work, if they do not.
    pub(crate) check: fn(&Path) -> anyhow::Result<()>,
    /// What to do if it cannot be installed, other than installing pip: items of a list.
    pub(crate) ways_out: &'a [&'a str],
}

/// What a complete install has. The stamps of earlier versions have more, which is ignored.
#[derive(Serialize, Deserialize)]
struct Stamp {
    schema: u32,
    requirements: String,
    /// Path within the directory and length in bytes of every file but the stamp.
    files: Vec<(String, u64)>,
}

/// The context of a failure of the file system.
fn cannot<'a>(action: &'a str, path: &'a Path) -> impl FnOnce() -> String + 'a {
    move || {
        let path = path.display();
        format!("cannot {action} {path} ({DIRECTORY_VARIABLE} names another place for it)")
    }
}

/// The directory that holds all sets: `$PEERSUM_TOOLCHAIN_DIR`, else `peersum/toolchain` in the
/// user's cache directory.
///
/// `None` if the environment names neither.
pub(crate) fn root() -> Option<PathBuf> {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty());
    if let Some(dir) = variable(DIRECTORY_VARIABLE) {
        return std::path::absolute(dir).ok();
    }
    // The XDG specification says to ignore a relative path in either.
    let absolute = |name| {
        variable(name)
            .map(PathBuf::from)
            .filter(|dir| dir.is_absolute())
    };
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(cache.join("peersum").join("toolchain"))
}

impl WheelSet<'_> {
    /// Where this set is or would be.
    ///
    /// # Errors
    /// The environment names no place.
    pub(crate) fn dir(&self) -> anyhow::Result<PathBuf> {
        let root = root().with_context(|| {
            format!(
                "no place to install {}: set {DIRECTORY_VARIABLE}, XDG_CACHE_HOME or HOME to a \
                 directory",
                self.name
            )
        })?;
        Ok(root.join(self.digest()))
    }

    /// The directory that the wheels were unpacked into (their `site-packages`), if the set is
    /// installed and complete.
    ///
    /// # Errors
    /// The environment names no place where it could be.
    pub(crate) fn installed(&self) -> anyhow::Result<Option<PathBuf>> {
        let dir = self.dir()?;
        let Some(stamp) = sealed::read::<Stamp>(&dir.join(STAMP)) else {
            return Ok(None);
        };
        let whole = stamp.schema == STAMP_SCHEMA
            && stamp.requirements == self.digest()
            && stamp.files.iter().all(|(path, bytes)| {
                fs::metadata(dir.join(path))
                    .is_ok_and(|file| file.is_file() && file.len() == *bytes)
            });
        Ok(whole.then_some(dir))
    }

    /// Installs the set unless it is there and complete, and returns its directory.
    ///
    /// It is checked before any other process can see it. `notes` gets a line for each wait,
    /// download and licence.
    ///
    /// # Errors
    /// There is no installer, it fails, the wheels do not pass the check, or the file system fails.
    /// What was installed before stays as it was.
    pub(crate) fn install(&self, notes: &mut dyn FnMut(String)) -> anyhow::Result<PathBuf> {
        let dir = self.dir()?;
        let root = dir.parent().unwrap_or(&dir);
        let lock_path = root.join(format!("{}.lock", self.digest()));
        if let Some(installed) = self.installed()? {
            // An install that was killed after its last step has left something too. This may be
            // the only chance to remove it, unless another process installs.
            if !self.leftovers(root).is_empty()
                && let Ok(Some(_lock)) = lock::try_lock(&lock_path)
            {
                self.remove_leftovers(root, notes);
            }
            return Ok(installed);
        }
        fs::create_dir_all(root).with_context(cannot("make the directory", root))?;
        let waiting = || {
            notes(format!(
                "waiting for another process that installs {} (it holds the lock {})",
                self.name,
                lock_path.display()
            ));
        };
        let lock = lock::lock(&lock_path, waiting).with_context(cannot("lock", &lock_path))?;
        if let Some(installed) = self.installed()? {
            return Ok(installed);
        }
        self.remove_leftovers(root, notes);

        let staging = tempfile::Builder::new()
            .prefix(&self.staging_prefix())
            .tempdir_in(root)
            .with_context(cannot("make a directory in", root))?;
        let site = self.fetch(&dir, staging.path(), &lock, notes)?;
        let missing = self.files.iter().find(|file| !site.join(file).is_file());
        let checked = match missing {
            Some(missing) => Err(anyhow!("it has no {missing}")),
            None => (self.check)(&site),
        };
        checked.with_context(|| {
            format!(
                "{} was fetched but does not work on this machine, so it is not installed",
                self.name
            )
        })?;
        let mut files = Vec::new();
        sync_and_list(&site, &site, &mut files)?;
        files.sort();
        let stamp = Stamp {
            schema: STAMP_SCHEMA,
            requirements: self.digest(),
            files,
        };
        sealed::write(&site.join(STAMP), &stamp)
            .with_context(cannot("write the stamp in", &site))?;
        put_in_place(&site, staging.path(), &dir)?;
        Ok(dir)
    }

    /// Fetches the wheels into a directory in `staging`, which it returns.
    fn fetch(
        &self,
        dir: &Path,
        staging: &Path,
        lock: &File,
        notes: &mut dyn FnMut(String),
    ) -> anyhow::Result<PathBuf> {
        let ways_out = |first: &str| {
            let items = self.ways_out.iter().map(|item| format!("\n  - {item}"));
            format!("Ways out:\n{first}{}", items.collect::<String>())
        };
        pip::ensure_usable().map_err(|fault| {
            anyhow!(
                "cannot install {}: {fault:#}. {}",
                self.name,
                ways_out(
                    "  - install pip 19.3 or newer for python3 (Debian, Ubuntu: apt install \
                     python3-pip; in an environment of uv: uv pip install pip)"
                )
            )
        })?;
        notes(format!(
            "installing {} into {} ({} to fetch, once)",
            self.name,
            dir.display(),
            self.download
        ));
        if let Some(licence) = self.licence {
            notes(licence.to_owned());
        }
        let requirements = staging.join("requirements.txt");
        fs::write(&requirements, self.requirements).with_context(cannot("write", &requirements))?;
        // In the staging directory, which only its owner may enter: this one gets the usual
        // permissions.
        let site = staging.join("site");
        fs::create_dir(&site).with_context(cannot("make the directory", &site))?;
        let inherited = lock
            .try_clone()
            .with_context(cannot("share the lock of", dir))?;
        pip::install(&requirements, &site, inherited, notes).map_err(|error| {
            anyhow!(
                "cannot install {} in {}, for which {DIRECTORY_VARIABLE} names another place: \
                 {error:#}\n{}",
                self.name,
                dir.display(),
                ways_out(
                    "  - if the package index could not be reached, configure another or a proxy \
                     for pip (PIP_INDEX_URL, PIP_PROXY, pip.conf)"
                )
            )
        })?;
        Ok(site)
    }

    /// SHA-256 over the architecture and the requirements without comments. The architecture,
    /// because machines of two architectures may share a home directory.
    fn digest(&self) -> String {
        let lines = self.requirements.lines().map(str::trim);
        let mut text = String::from(env::consts::ARCH);
        for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
            text.push('\n');
            text.push_str(line);
        }
        Digest::of(text.as_bytes()).to_string()
    }

    fn staging_prefix(&self) -> String {
        format!("{}.partial-", self.digest())
    }

    /// What killed installs of this set left.
    fn leftovers(&self, root: &Path) -> Vec<PathBuf> {
        let prefix = self.staging_prefix();
        let entries = fs::read_dir(root).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
            .map(|entry| entry.path())
            .collect()
    }

    /// Removes what killed installs of this set left. Only under the lock. What cannot be removed
    /// only costs disk space, so it is a note.
    fn remove_leftovers(&self, root: &Path, notes: &mut dyn FnMut(String)) {
        for path in self.leftovers(root) {
            if let Err(error) = fs::remove_dir_all(&path) {
                notes(format!(
                    "cannot remove {}, which a killed install left: {error}",
                    path.display()
                ));
            }
        }
    }
}

/// Moves the checked and stamped `site` to `dir`. A damaged install that lies there goes into
/// `staging`, which is removed.
fn put_in_place(site: &Path, staging: &Path, dir: &Path) -> anyhow::Result<()> {
    if fs::symlink_metadata(dir).is_ok() {
        fs::rename(dir, staging.join("damaged"))
            .with_context(cannot("move aside the damaged install", dir))?;
    }
    fs::rename(site, dir).with_context(cannot("move the finished install to", dir))?;
    sync(dir.parent().unwrap_or(dir))
}

/// Lists the files under `dir` by their path in `site`, and syncs each of them to the disk before
/// the stamp is written.
fn sync_and_list(dir: &Path, site: &Path, files: &mut Vec<(String, u64)>) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir).with_context(cannot("list", dir))? {
        let path = entry.with_context(cannot("list", dir))?.path();
        let metadata = fs::metadata(&path).with_context(cannot("read", &path))?;
        if metadata.is_dir() {
            sync_and_list(&path, site, files)?;
            continue;
        }
        sync(&path)?;
        // A name that is not UTF-8 cannot be listed; none of the wheels has one.
        if let Some(name) = path.strip_prefix(site).ok().and_then(Path::to_str) {
            files.push((name.to_owned(), metadata.len()));
        }
    }
    sync(dir)
}

/// Waits until a file or directory is on the disk.
fn sync(path: &Path) -> anyhow::Result<()> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .with_context(cannot("sync", path))
}
