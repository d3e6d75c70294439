//! Whether a file is what its manifest entry says.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

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

/// A file is not what its manifest entry says.
#[derive(Debug, Error)]
#[error("{file} {problem}")]
pub struct VerifyError {
    /// The file's name, with its directory if it was read from one.
    pub file: String,
    /// What is wrong with it.
    pub problem: FileProblem,
}

/// What differs between a file and its manifest entry.
#[derive(Debug, Error)]
pub enum FileProblem {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Read(FileError),
    /// The length differs.
    #[error(
        "has {found} bytes, but its manifest says {expected}: truncated or replaced; precompile \
         again"
    )]
    Length {
        /// The file's length.
        found: u64,
        /// The manifest's.
        expected: u64,
    },
    /// The digest differs.
    #[error(
        "has SHA-256 {found}, but its manifest says {expected}: corrupt or replaced; precompile \
         again"
    )]
    Digest {
        /// The file's digest.
        found: Digest,
        /// The manifest's.
        expected: Digest,
    },
    /// Not a whole cubin.
    #[error("is not a usable cubin: {0}")]
    Elf(#[from] ElfError),
    /// Not a whole PTX file.
    #[error("is not usable PTX: {0}")]
    Ptx(#[from] PtxError),
    /// Made for another architecture than the name says.
    #[error("is made for architecture {found}, not for {expected}")]
    Architecture {
        /// What it is made for.
        found: Arch,
        /// What its name says.
        expected: Arch,
    },
    /// Another PTX version than the manifest says.
    #[error("is PTX of version {found}, but its manifest says {expected}")]
    PtxVersion {
        /// The file's version.
        found: PtxVersion,
        /// The manifest's.
        expected: PtxVersion,
    },
    /// The kernels of another module.
    #[error(
        "has the entry points [{}] instead of [{}]: it is another module",
        found.join(", "),
        expected.join(", ")
    )]
    EntryPoints {
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
    let read = || -> Result<Vec<u8>, FileProblem> {
        let bytes = read_regular_file(&path, MAX_MODULE_BYTES).map_err(FileProblem::Read)?;
        check(&bytes, module)?;
        Ok(bytes)
    };
    read().map_err(|problem| VerifyError {
        file: path.display().to_string(),
        problem,
    })
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
    check(bytes, module).map_err(|problem| VerifyError {
        file: module.file_name(),
        problem,
    })
}

fn check(bytes: &[u8], module: &ManifestModule) -> Result<(), FileProblem> {
    let (found, expected) = (bytes.len() as u64, module.bytes);
    if found != expected {
        return Err(FileProblem::Length { found, expected });
    }
    let (found, expected) = (Digest::of(bytes), module.sha256);
    if found != expected {
        return Err(FileProblem::Digest { found, expected });
    }

    let (arch, entry_points) = match module.target {
        Target::Cubin(_) => {
            let cubin = inspect_cubin(bytes)?;
            (cubin.arch, cubin.entry_points)
        }
        Target::Ptx(_) => {
            let ptx = inspect_ptx(bytes)?;
            let found = ptx.version;
            match module.ptx_version {
                Some(expected) if expected != found => {
                    return Err(FileProblem::PtxVersion { found, expected });
                }
                _ => (ptx.target.arch(), ptx.entry_points),
            }
        }
    };
    let (found, expected) = (arch, module.target.arch());
    if found != expected {
        return Err(FileProblem::Architecture { found, expected });
    }
    // Names of one module sort as its algorithms do, so both sides are sorted.
    let (found, expected) = (entry_points, module.key.entry_points());
    if found != expected {
        return Err(FileProblem::EntryPoints { found, expected });
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
