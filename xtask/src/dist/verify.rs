//! Checks that a release is complete and that a program can be built from it alone.

use super::consumer::Consumer;
use super::progress::progress;
use super::release::{ARCHIVE_PREFIX, NOTES_FILE};
use super::scratch::ScratchDir;
use super::stage::{PACK_CRATE, PACK_FILE};
use super::unpacked::UnpackedCrate;
use super::{archive, sums};
use anyhow::{Context as _, bail, ensure};
use peersum_artifact::MANIFEST_FILE;
use peersum_artifact::pack::pack_directory;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Checks the release in `directory`.
///
/// # Errors
/// The first check that fails.
pub(super) fn run(directory: &Path) -> anyhow::Result<bool> {
    let begun = Instant::now();
    let files = sums::read_checked(directory)
        .with_context(|| format!("`{}` is not a whole release", directory.display()))?;
    progress(begun, &format!("every sum of {} files holds", files.len()));

    let begun = Instant::now();
    let place = ScratchDir::new()?;
    let release = Release::unpack(&files, place.path())?;
    release.ensure_crate_carries_archive()?;
    progress(begun, "the archive and the crate have the same modules");

    let consumer = Consumer::build(&release.crates, place.path())?;
    consumer.run()?;
    eprintln!("{} is a whole release", directory.display());
    Ok(true)
}

/// The release, unpacked.
struct Release {
    archive: PathBuf,
    crates: Vec<UnpackedCrate>,
}

impl Release {
    fn unpack(files: &BTreeMap<String, Vec<u8>>, place: &Path) -> anyhow::Result<Self> {
        ensure!(
            files.contains_key(NOTES_FILE),
            "the release has no {NOTES_FILE}"
        );
        let archives: Vec<_> = files
            .iter()
            .filter_map(|(name, bytes)| Some((name.strip_suffix(".tar.zst")?, bytes)))
            .collect();
        let [(directory, bytes)] = archives[..] else {
            bail!(
                "the release has {} archives {ARCHIVE_PREFIX}*.tar.zst; it must have one",
                archives.len()
            );
        };
        let archive = archive::unpack_tar_zst(bytes, directory, place)?;

        let crates_place = place.join("crates");
        fs::create_dir(&crates_place)?;
        let crates = files
            .iter()
            .filter(|(name, _)| name.ends_with(".crate"))
            .map(|(name, bytes)| UnpackedCrate::unpack(name, bytes, &crates_place))
            .collect::<anyhow::Result<_>>()?;
        Ok(Self { archive, crates })
    }

    /// Checks every module of the archive against its manifest, and that the crate's pack has the
    /// same files.
    fn ensure_crate_carries_archive(&self) -> anyhow::Result<()> {
        let expected = pack_directory(&self.archive)
            .with_context(|| format!("the archive's {MANIFEST_FILE} and files do not fit"))?;
        let carrier = self
            .crates
            .iter()
            .find(|unpacked| unpacked.name == PACK_CRATE)
            .with_context(|| format!("the release has no crate {PACK_CRATE}"))?;
        let path = carrier.path.join(PACK_FILE);
        let found = fs::read(&path).with_context(|| format!("{PACK_CRATE} has no {PACK_FILE}"))?;
        ensure!(
            found == expected,
            "{PACK_CRATE} does not carry the modules of the archive: {PACK_FILE} has {} bytes, \
             not {}",
            found.len(),
            expected.len()
        );
        Ok(())
    }
}
