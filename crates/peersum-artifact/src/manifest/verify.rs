//! Whether a file is what its manifest entry says.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use thiserror::Error;

use super::model::{MAX_MODULE_BYTES, ManifestModule};
use crate::arch::{Arch, Target};
use crate::cuda_version::PtxVersion;
use crate::digest::Digest;
use crate::elf::{ElfError, inspect_cubin};
use crate::ptx::{PtxError, inspect_ptx};

/// Why a file cannot be read as a plain file of its directory.
#[derive(Debug, Error)]
pub enum FileError {
    /// The system's error.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A symbolic link, which may lead anywhere.
    #[error("it is a symbolic link; put the file itself there")]
    SymbolicLink,
    /// A directory, a pipe or the like.
    #[error("it is not a regular file")]
    NotRegular,
    /// Longer than is ever read.
    #[error("it has {bytes} bytes; at most {limit} are read")]
    TooLarge {
        /// The file's length.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
}

/// Why a file is not what its manifest entry says.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// The file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    File {
        /// The file's path.
        path: PathBuf,
        /// Why.
        error: FileError,
    },
    /// The length differs.
    #[error(
        "{file} has {found} bytes, but its manifest says {expected}: truncated or replaced; \
         precompile again"
    )]
    Length {
        /// The file's name.
        file: String,
        /// The file's length.
        found: u64,
        /// The manifest's.
        expected: u64,
    },
    /// The digest differs.
    #[error(
        "{file} has SHA-256 {found}, but its manifest says {expected}: corrupt or replaced; \
         precompile again"
    )]
    Digest {
        /// The file's name.
        file: String,
        /// The file's digest.
        found: Digest,
        /// The manifest's.
        expected: Digest,
    },
    /// Not a whole cubin.
    #[error("{file} is not a usable cubin: {error}")]
    Elf {
        /// The file's name.
        file: String,
        /// Why.
        error: ElfError,
    },
    /// Not a whole PTX file.
    #[error("{file} is not usable PTX: {error}")]
    Ptx {
        /// The file's name.
        file: String,
        /// Why.
        error: PtxError,
    },
    /// Made for another architecture than the name says.
    #[error("{file} is made for architecture {found}, not for {expected}")]
    Architecture {
        /// The file's name.
        file: String,
        /// What it is made for.
        found: Arch,
        /// What its name says.
        expected: Arch,
    },
    /// Another PTX version than the manifest says.
    #[error("{file} is PTX of version {found}, but its manifest says {expected}")]
    PtxVersion {
        /// The file's name.
        file: String,
        /// The file's version.
        found: PtxVersion,
        /// The manifest's.
        expected: PtxVersion,
    },
    /// The kernels of another module.
    #[error(
        "{file} has the entry points [{}] instead of [{}]: it is another module",
        found.join(", "),
        expected.join(", ")
    )]
    EntryPoints {
        /// The file's name.
        file: String,
        /// The kernels it has.
        found: Vec<String>,
        /// The kernels it should have.
        expected: Vec<String>,
    },
}

/// Reads a module's file from a manifest's directory and checks it as [`verify_bytes`] does.
///
/// Returns the bytes that were checked: load those, since the file may change at any moment.
///
/// # Errors
///
/// The file is not a regular file of the directory, or is not what the entry says. Every message
/// names the file.
pub fn verify_file(directory: &Path, module: &ManifestModule) -> Result<Vec<u8>, VerifyError> {
    let path = directory.join(module.file_name());
    let bytes = read_regular_file(&path, MAX_MODULE_BYTES)
        .map_err(|error| VerifyError::File { path, error })?;
    verify_bytes(&bytes, module)?;
    Ok(bytes)
}

/// Checks a module's bytes: length, digest, architecture and entry points.
///
/// The last two checks hold even if file and manifest were replaced together: a pull module never
/// passes for a push module.
///
/// # Errors
///
/// The bytes are not what the entry says.
pub fn verify_bytes(bytes: &[u8], module: &ManifestModule) -> Result<(), VerifyError> {
    let file = || module.file_name();
    if bytes.len() as u64 != module.bytes {
        return Err(VerifyError::Length {
            file: file(),
            found: bytes.len() as u64,
            expected: module.bytes,
        });
    }
    let found = Digest::of(bytes);
    if found != module.sha256 {
        return Err(VerifyError::Digest {
            file: file(),
            found,
            expected: module.sha256,
        });
    }

    let expected = module.target.arch();
    let entry_points = match module.target {
        Target::Cubin(_) => {
            let cubin = inspect_cubin(bytes).map_err(|error| VerifyError::Elf {
                file: file(),
                error,
            })?;
            if cubin.arch != expected {
                return Err(VerifyError::Architecture {
                    file: file(),
                    found: cubin.arch,
                    expected,
                });
            }
            cubin.entry_points
        }
        Target::Ptx(_) => {
            let ptx = inspect_ptx(bytes).map_err(|error| VerifyError::Ptx {
                file: file(),
                error,
            })?;
            if ptx.target != module.target {
                return Err(VerifyError::Architecture {
                    file: file(),
                    found: ptx.target.arch(),
                    expected,
                });
            }
            if let Some(expected) = module
                .ptx_version
                .filter(|expected| *expected != ptx.version)
            {
                return Err(VerifyError::PtxVersion {
                    file: file(),
                    found: ptx.version,
                    expected,
                });
            }
            ptx.entry_points
        }
    };
    // Names of one module sort as its algorithms do, so both sides are sorted.
    let expected = module.key.entry_points();
    if entry_points != expected {
        return Err(VerifyError::EntryPoints {
            file: file(),
            found: entry_points,
            expected,
        });
    }
    Ok(())
}

/// Reads a regular file of at most `limit` bytes that is no symbolic link.
pub(super) fn read_regular_file(path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    // Do not wait if it is a pipe, and do not follow it if it is a link: the file that is checked
    // is the one that is read.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::LOOP) => return Err(FileError::SymbolicLink),
        Err(error) => return Err(FileError::Io(error.into())),
    };
    let opened = file.metadata()?;
    if !opened.is_file() {
        return Err(FileError::NotRegular);
    }
    let too_large = |bytes| FileError::TooLarge { bytes, limit };
    if opened.len() > limit {
        return Err(too_large(opened.len()));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(opened.len()).unwrap_or(0));
    // One byte more than allowed shows a file that has grown since.
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(too_large(bytes.len() as u64));
    }
    Ok(bytes)
}
