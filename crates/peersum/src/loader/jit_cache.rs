//! The JIT cache: what NVRTC compiled once on this machine, for the next process.
//!
//! An entry is a directory named after its cache key. It has the form of any directory of cubins, a
//! manifest and one file, and is read with the same checks. It is written beside its place,
//! synchronised and renamed there, under a lock of its own. Processes that want different modules
//! never wait for each other. Processes that want the same one wait until the first has compiled
//! it. The lock is `flock`'s, which the system releases when its holder dies.
//!
//! Digests find corruption, not malice, so the directory must belong to the user and be closed to
//! others. The number of entries is bounded.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use peersum_artifact::{
    Arch, CompilerId, Digest, MANIFEST_FILE, Manifest, ManifestError, ManifestModule, ModuleKey,
    VerifyError, verify_file,
};

/// How often a held lock is tried again. A compilation takes half a second or more.
const LOCK_POLL: Duration = Duration::from_millis(2);

/// How many entries are kept: every module for one GPU architecture, of seven builds of peersum and
/// NVRTC.
const MAX_ENTRIES: usize = 512;

/// The extension of an entry that is being written.
const STAGED: &str = "tmp";

/// Why the JIT cache, or one entry of it, cannot be used. None of these is fatal: the module is
/// compiled all the same.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The directory is missing and cannot be created, cannot be read, or is something else.
    #[error("cannot use {}: {source}", directory.display())]
    Directory {
        /// The cache's directory.
        directory: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody else owns the directory.
    #[error(
        "{} belongs to user {owner}, and this process runs as user {user}: code is not taken from \
         there; name another directory with PEERSUM_CACHE_DIR",
        directory.display()
    )]
    NotOurs {
        /// The cache's directory.
        directory: PathBuf,
        /// The owner's uid.
        owner: u32,
        /// The effective uid of this process.
        user: u32,
    },
    /// Others may enter the directory.
    #[error(
        "{} has mode {mode:04o} and must be closed to others: run `chmod 700` on it",
        directory.display()
    )]
    OpenToOthers {
        /// The cache's directory.
        directory: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The entry's manifest is missing or damaged.
    #[error("the entry is damaged and will be replaced: {source}")]
    EntryManifest {
        /// What is wrong.
        source: ManifestError,
    },
    /// The entry's file is not what its manifest says.
    #[error("the entry is damaged and will be replaced: {source}")]
    EntryFile {
        /// What is wrong.
        source: VerifyError,
    },
    /// The entry is whole, but not the module that its place is for.
    #[error("the entry {} holds something else and will be replaced: {found}", entry.display())]
    EntrySwapped {
        /// The entry.
        entry: PathBuf,
        /// What it holds.
        found: String,
    },
    /// The entry's lock cannot be taken.
    #[error("cannot lock {}, so the module is compiled and not stored: {source}", lock.display())]
    Lock {
        /// The lock file.
        lock: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process holds the entry's lock and does not release it.
    #[error(
        "another process has held {} for {:.0} s without finishing, so the module is compiled here \
         and not stored",
        lock.display(), waited.as_secs_f64()
    )]
    LockTimeout {
        /// The lock file.
        lock: PathBuf,
        /// How long this process waited.
        waited: Duration,
    },
    /// The entry cannot be written.
    #[error("cannot store the entry {}: {source}", entry.display())]
    Write {
        /// The entry.
        entry: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The right to write one entry. Released when dropped, or when the process dies.
#[derive(Debug)]
pub(super) struct EntryLock {
    key: Digest,
    file: File,
}

impl Drop for EntryLock {
    fn drop(&mut self) {
        // Closing the file would not be enough: a child that fork made meanwhile has it open as
        // well, and the lock would last until both have closed it.
        let _ = self.file.unlock();
    }
}

/// Checks that `directory` can be the JIT cache. It is created if it is missing.
///
/// Returns its absolute path.
///
/// # Errors
///
/// [`CacheError`]: what keeps modules from being stored there.
pub fn probe(directory: &Path) -> Result<PathBuf, CacheError> {
    let cache = JitCache::open(directory)?;
    // It never has a name, so nothing is left behind.
    tempfile::tempfile_in(&cache.directory).map_err(|source| CacheError::Write {
        entry: cache.directory.clone(),
        source,
    })?;
    Ok(cache.directory)
}

/// The cache's directory, found fit for use.
#[derive(Debug)]
pub(super) struct JitCache {
    directory: PathBuf,
}

impl JitCache {
    /// Creates the directory if it is missing, and checks that it is the user's own and closed to
    /// others.
    pub(super) fn open(directory: &Path) -> Result<Self, CacheError> {
        let io_error = |source| CacheError::Directory {
            directory: directory.to_owned(),
            source,
        };
        // Relative to the working directory now, not at each later use.
        let directory = std::path::absolute(directory).map_err(io_error)?;
        let metadata = match fs::metadata(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut builder = DirBuilder::new();
                let created = builder.recursive(true).mode(0o700).create(&directory);
                created.and_then(|()| fs::metadata(&directory))
            }
            found => found,
        }
        .map_err(io_error)?;
        if !metadata.is_dir() {
            return Err(io_error(io::ErrorKind::NotADirectory.into()));
        }
        let user = rustix::process::geteuid().as_raw();
        if metadata.uid() != user {
            return Err(CacheError::NotOurs {
                directory,
                owner: metadata.uid(),
                user,
            });
        }
        let mode = metadata.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(CacheError::OpenToOthers { directory, mode });
        }
        Ok(Self { directory })
    }

    /// The directory of the entry for `key`.
    pub(super) fn entry(&self, key: Digest) -> PathBuf {
        self.directory.join(key.to_string())
    }

    /// Looks the entry up and verifies it. `Ok(None)` when there is none.
    pub(super) fn lookup(
        &self,
        key: Digest,
        module: ModuleKey,
        device: Arch,
    ) -> Result<Option<(ManifestModule, Vec<u8>)>, CacheError> {
        let directory = self.entry(key);
        let mut manifest = match Manifest::read_dir(&directory) {
            Ok(manifest) => manifest,
            Err(ManifestError::NotFound { .. }) if fs::symlink_metadata(&directory).is_err() => {
                return Ok(None);
            }
            Err(source) => return Err(CacheError::EntryManifest { source }),
        };
        let swapped = |found: String| CacheError::EntrySwapped {
            entry: directory.clone(),
            found,
        };
        let entry = match (manifest.modules.pop(), manifest.modules.is_empty()) {
            (Some(entry), true) => entry,
            _ => return Err(swapped("not exactly one module".to_owned())),
        };
        if entry.cache_key != key || entry.key != module || !entry.target.serves(device) {
            return Err(swapped(format!(
                "{} with key {}",
                entry.file_name(),
                entry.cache_key
            )));
        }
        let bytes =
            verify_file(&directory, &entry).map_err(|source| CacheError::EntryFile { source })?;
        Ok(Some((entry, bytes)))
    }

    /// Takes the entry's lock, waiting for at most `patience`.
    pub(super) fn lock(&self, key: Digest, patience: Duration) -> Result<EntryLock, CacheError> {
        let lock = self.directory.join(format!("{key}.lock"));
        let io_error = |source| CacheError::Lock {
            lock: lock.clone(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&lock)
            .map_err(io_error)?;
        let start = Instant::now();
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(EntryLock { key, file }),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(source)) => return Err(io_error(source)),
            }
            let waited = start.elapsed();
            if waited >= patience {
                return Err(CacheError::LockTimeout { lock, waited });
            }
            if !told {
                let lock = lock.display();
                tracing::info!(%lock, "waiting for another process that compiles the same module");
                told = true;
            }
            std::thread::sleep(LOCK_POLL);
        }
    }

    /// Stores a module as the entry whose lock is held, in place of whatever is there.
    pub(super) fn store(
        &self,
        lock: &EntryLock,
        compiler: &CompilerId,
        module: &ManifestModule,
        bytes: &[u8],
    ) -> Result<PathBuf, CacheError> {
        let entry = self.entry(lock.key);
        match self.write(&entry, compiler, module, bytes) {
            Ok(()) => Ok(entry),
            Err(source) => Err(CacheError::Write { entry, source }),
        }
    }

    fn write(
        &self,
        entry: &Path,
        compiler: &CompilerId,
        module: &ManifestModule,
        bytes: &[u8],
    ) -> io::Result<()> {
        let manifest = Manifest {
            peersum_version: env!("CARGO_PKG_VERSION").to_owned(),
            toolkit: compiler.clone(),
            flags: Vec::new(),
            sources: Vec::new(),
            modules: vec![module.clone()],
        };
        // One name suffices, since only the lock's holder writes here. What a killed process left
        // is removed.
        let staged = entry.with_extension(STAGED);
        remove(&staged)?;
        DirBuilder::new().mode(0o700).create(&staged)?;
        write_synchronised(&staged.join(module.file_name()), bytes)?;
        write_synchronised(
            &staged.join(MANIFEST_FILE),
            manifest.to_json_string().as_bytes(),
        )?;
        File::open(&staged)?.sync_all()?;
        // What lies there is no entry, as a lookup under this lock has just found. A process that
        // looks in between finds nothing and waits for the lock. If this one is killed in between,
        // the next holder of the lock removes what it left.
        remove(entry)?;
        fs::rename(&staged, entry)?;
        File::open(&self.directory)?.sync_all()?;
        let files = fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten();
        let files: Vec<PathBuf> = files.map(|file| file.path()).collect();
        self.remove_abandoned(&files);
        remove_oldest(files);
        Ok(())
    }

    /// Removes what killed processes left half written: what has no living writer, whose lock can
    /// be taken.
    fn remove_abandoned(&self, files: &[PathBuf]) {
        let staged = files.iter().filter(|file| {
            file.extension()
                .is_some_and(|extension| extension == STAGED)
        });
        for staged in staged {
            let key = staged
                .file_stem()
                .and_then(|stem| stem.to_str()?.parse().ok());
            let lock = key.and_then(|key| self.lock(key, Duration::ZERO).ok());
            if let Some(_held) = lock {
                tracing::debug!(staged = %staged.display(), "removed a half-written entry");
                let _ = remove(staged);
            }
        }
    }
}

/// Removes the entries that were stored first, down to [`MAX_ENTRIES`]. A process that reads one
/// meanwhile finds it damaged and compiles; the next store tries again what cannot be removed. Lock
/// files stay: another process may be about to lock one.
fn remove_oldest(mut entries: Vec<PathBuf>) {
    entries.retain(|entry| entry.file_name().is_some_and(|name| name.len() == 64));
    if entries.len() <= MAX_ENTRIES {
        return;
    }
    // Those whose time cannot be read come first.
    entries.sort_by_cached_key(|entry| fs::metadata(entry).and_then(|entry| entry.modified()).ok());
    for entry in &entries[..entries.len() - MAX_ENTRIES] {
        tracing::debug!(entry = %entry.display(), "removed an old entry of the JIT cache");
        let _ = remove(entry);
    }
}

fn write_synchronised(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Removes a directory with its contents, or a file. Nothing there is success.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_ends_with_its_holder_also_if_a_forked_child_has_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let cache = JitCache::open(&directory.path().join("cache")).unwrap();
        let key = Digest::of(b"an entry");
        let lock = cache.lock(key, Duration::ZERO).unwrap();
        // What fork does for a child.
        let _inherited = lock.file.try_clone().unwrap();
        cache.lock(key, Duration::ZERO).unwrap_err();
        drop(lock);
        cache.lock(key, Duration::ZERO).unwrap();
    }
}
