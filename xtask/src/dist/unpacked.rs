//! A crate of a release, unpacked.

use super::archive;
use super::stage::LICENCES;
use anyhow::{Context as _, ensure};
use peersum_artifact::Digest;
use std::path::{Path, PathBuf};

/// A `.crate` file, unpacked.
#[derive(Debug)]
pub(super) struct UnpackedCrate {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) path: PathBuf,
    /// The digest of the `.crate` file, by which a registry would name it.
    pub(super) sha256: Digest,
}

impl UnpackedCrate {
    /// Unpacks `{name}-{version}.crate` in `place`.
    pub(super) fn unpack(file: &str, bytes: &[u8], place: &Path) -> anyhow::Result<Self> {
        let stem = file.trim_end_matches(".crate");
        let is_version = |rest: &str| rest.starts_with(|first: char| first.is_ascii_digit());
        let (name, version) = stem
            .match_indices('-')
            .map(|(at, _)| (&stem[..at], &stem[at + 1..]))
            .find(|(_, rest)| is_version(rest))
            .with_context(|| format!("`{file}` has no version in its name"))?;
        let path = archive::unpack(file, bytes, place)?;
        for licence in LICENCES {
            ensure!(path.join(licence).is_file(), "{file} has no {licence}");
        }
        Ok(Self {
            name: name.to_owned(),
            version: version.to_owned(),
            path,
            sha256: Digest::of(bytes),
        })
    }
}
