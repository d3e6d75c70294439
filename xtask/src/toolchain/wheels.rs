//! Sets of pinned wheels. Each is installed once for a user, and never used incomplete.
//!
//! A set has a directory named after its requirements, which is replaced as an output directory is.
//! Its stamp lists every file with its length, so a few hundred `stat` calls find an install that
//! lost a file; it is then repeated.

use super::{pip, sealed};
use crate::output::{Contents, LockedOutput, OutputDir, Staging, sync};
use anyhow::{Context as _, anyhow};
use fs_err as fs;
use peersum_artifact::Digest;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::env;
use std::path::{Path, PathBuf};

/// Names the directory that holds the sets, in place of the user's cache directory.
pub(crate) const DIRECTORY_VARIABLE: &str = "PEERSUM_TOOLCHAIN_DIR";

/// The stamp's name within an install.
const STAMP: &str = "peersum-stamp.json";

static UNPACKED: Contents = Contents {
    command: "install",
    is_name: |_| true,
    last: STAMP,
    elsewhere: "name another place with PEERSUM_TOOLCHAIN_DIR",
};

/// A set of wheels, all of whose hashes are pinned.
#[derive(Debug, Clone)]
pub(crate) struct WheelSet {
    /// What it is, as in "installing {name}".
    pub(crate) name: &'static str,
    /// The text of a pip requirements file: exact versions with their hashes.
    pub(crate) requirements: Cow<'static, str>,
    /// How much is to be fetched, as in "about 100 MB".
    pub(crate) download: &'static str,
    /// The licence that the user accepts by installing it, if it is not a free one.
    pub(crate) licence: Option<&'static str>,
    /// Files that it must have.
    pub(crate) files: &'static [&'static str],
    /// Says why the unpacked wheels in a directory do not work, if they do not.
    pub(crate) check: fn(&Path) -> anyhow::Result<()>,
    /// What to do if it cannot be installed, other than installing pip: items of a list.
    pub(crate) ways_out: &'static [&'static str],
}

/// What a complete install has. The stamps of earlier versions have more, which is ignored.
#[derive(Serialize, Deserialize)]
struct Stamp {
    /// Path within the directory and length in bytes of every file but the stamp.
    files: Vec<(String, u64)>,
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

impl WheelSet {
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
        let stamp = sealed::read::<Stamp>(&dir.join(STAMP));
        let is_there = |(path, bytes): &(String, u64)| {
            let file = fs::metadata(dir.join(path));
            file.is_ok_and(|file| file.is_file() && file.len() == *bytes)
        };
        let whole = stamp.is_some_and(|stamp| stamp.files.iter().all(is_there));
        Ok(whole.then_some(dir))
    }

    /// Installs the set unless it is there and complete, and returns its directory.
    ///
    /// It is checked before any other process can see it. Standard error gets a note for each wait,
    /// download and licence.
    ///
    /// # Errors
    /// There is no installer, it fails, the wheels do not pass the check, or the file system fails.
    /// What was installed before stays as it was.
    pub(crate) fn install(&self) -> anyhow::Result<PathBuf> {
        let dir = self.dir()?;
        self.put_in(&dir).with_context(|| {
            format!(
                "cannot install {} in {}, for which {DIRECTORY_VARIABLE} names another place",
                self.name,
                dir.display()
            )
        })?;
        Ok(dir)
    }

    fn put_in(&self, dir: &Path) -> anyhow::Result<()> {
        let output = OutputDir::new(dir, &UNPACKED)?;
        if self.installed()?.is_some() {
            // An install that was killed after its last step has left something too. This may be
            // the only chance to remove it, and does not matter if the disk cannot be written.
            if !output.leftovers().is_empty() {
                let _ = output.lock(note);
            }
            return Ok(());
        }
        let locked = output.lock(note)?;
        if self.installed()?.is_some() {
            return Ok(());
        }
        let staging = locked.stage()?;
        self.fetch(&locked, &staging)?;
        let site = &staging.next;
        let missing = self.files.iter().find(|file| !site.join(file).is_file());
        let checked = match missing {
            Some(missing) => Err(anyhow!("it has no {missing}")),
            None => (self.check)(site),
        };
        checked.context("it was fetched but does not work on this machine")?;
        let mut files = Vec::new();
        sync_and_list(site, site, &mut files)?;
        files.sort();
        sealed::write(&site.join(STAMP), &Stamp { files }).context("cannot write the stamp")?;
        if fs::symlink_metadata(output.path()).is_ok() {
            // A directory that is not empty cannot be replaced on every file system.
            fs::rename(output.path(), staging.scratch("old")?.join("damaged"))?;
        }
        locked.publish(&staging)
    }

    /// Fetches the wheels into the staging area.
    fn fetch(&self, locked: &LockedOutput<'_>, staging: &Staging) -> anyhow::Result<()> {
        let with_ways_out = |error: anyhow::Error, first: &str| {
            let items = [first].into_iter().chain(self.ways_out.iter().copied());
            let items = items.map(|item| format!("\n  - {item}"));
            anyhow!("{error:#}\nWays out:{}", items.collect::<String>())
        };
        pip::ensure_usable().map_err(|fault| {
            with_ways_out(
                fault,
                "install pip 19.3 or newer for python3 (Debian, Ubuntu: apt install python3-pip; \
                 in an environment of uv: uv pip install pip)",
            )
        })?;
        note(format!(
            "installing {} into {} ({} to fetch, once)",
            self.name,
            locked.path().display(),
            self.download
        ));
        if let Some(licence) = self.licence {
            note(licence.to_owned());
        }
        let requirements = staging.scratch("pip")?.join("requirements.txt");
        fs::write(&requirements, &*self.requirements)?;
        let lock = locked.share_lock().context("cannot share the lock")?;
        pip::install(&requirements, &staging.next, lock).map_err(|error| {
            with_ways_out(
                error,
                "if the package index could not be reached, configure another or a proxy for pip \
                 (PIP_INDEX_URL, PIP_PROXY, pip.conf)",
            )
        })
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
}

fn note(text: String) {
    eprintln!("note: {text}");
}

/// Lists the files under `dir` by their path in `site`, and syncs each of them to the disk before
/// the stamp is written.
fn sync_and_list(dir: &Path, site: &Path, files: &mut Vec<(String, u64)>) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let metadata = fs::metadata(&path)?;
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
    Ok(sync(dir)?)
}
