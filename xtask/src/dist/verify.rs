//! Checks that a release is complete and that a program can be built from it alone.

use super::consumer;
use super::release::{ARCHIVE_PREFIX, NOTES_FILE};
use super::scratch::ScratchDir;
use super::stage::{PACK_CRATE, PACK_FILE};
use super::unpacked::UnpackedCrate;
use super::{archive, sums};
use anyhow::{Context as _, bail, ensure};
use fs_err as fs;
use peersum_artifact::pack::Pack;
use peersum_artifact::{MANIFEST_FILE, Manifest, verify_file};
use std::path::Path;

/// Checks the release in `directory`.
///
/// # Errors
/// The first check that fails.
pub(super) fn run(directory: &Path) -> anyhow::Result<()> {
    let files = sums::read_checked(directory)
        .with_context(|| format!("`{}` is not a whole release", directory.display()))?;
    eprintln!("every sum of {} files holds", files.len());

    let place = ScratchDir::new()?;
    ensure!(
        files.contains_key(NOTES_FILE),
        "the release has no {NOTES_FILE}"
    );
    let of_kind = |kind| files.iter().filter(move |(name, _)| name.ends_with(kind));
    let archives: Vec<_> = of_kind(".tar.zst").collect();
    let [(name, bytes)] = archives[..] else {
        bail!(
            "the release has {} archives {ARCHIVE_PREFIX}*.tar.zst; it must have one",
            archives.len()
        );
    };
    let archive = archive::unpack(name, bytes, place.path())?;
    let crates_place = place.path().join("crates");
    fs::create_dir(&crates_place)?;
    let crates: Vec<UnpackedCrate> = of_kind(".crate")
        .map(|(name, bytes)| UnpackedCrate::unpack(name, bytes, &crates_place))
        .collect::<anyhow::Result<_>>()?;
    ensure_crate_carries_archive(&crates, &archive)?;
    eprintln!("the archive and the crate have the same modules");

    consumer::build_and_run(&crates, place.path())?;
    eprintln!("{} is a whole release", directory.display());
    Ok(())
}

/// Checks every module of the archive against its manifest, and that the crate's pack has the same
/// files.
fn ensure_crate_carries_archive(crates: &[UnpackedCrate], archive: &Path) -> anyhow::Result<()> {
    let fault = || format!("the archive's {MANIFEST_FILE} and files do not fit");
    let expected = Manifest::read_dir(archive).with_context(fault)?;
    for module in &expected.modules {
        verify_file(archive, module).with_context(fault)?;
    }
    let carrier = crates
        .iter()
        .find(|unpacked| unpacked.name == PACK_CRATE)
        .with_context(|| format!("the release has no crate {PACK_CRATE}"))?;
    let fault = || format!("{PACK_CRATE} does not carry the modules of the archive");
    let found = fs::read(carrier.path.join(PACK_FILE))?;
    let found = Pack::parse(&found).with_context(fault)?;
    let found = found.with_context(|| format!("{}: {PACK_FILE} is empty", fault()))?;
    // The manifest has the digest of each file.
    ensure!(
        **found.manifest() == expected,
        "{}: its manifest differs",
        fault()
    );
    for module in &expected.modules {
        found.verified(module).with_context(fault)?;
    }
    Ok(())
}
