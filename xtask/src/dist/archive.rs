//! The two kinds of archive of a release: `.tar.zst`, which is written here, and `.crate`, which
//! cargo writes.

use anyhow::{Context as _, ensure};
use flate2::read::GzDecoder;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The compression level. The slowest one takes 20 times as long and saves a fifth.
const LEVEL: i32 = 9;

/// Packs `files` into the directory `directory` of an archive. The same files give the same bytes:
/// it records no times and no owners, and the files are in order.
///
/// # Errors
/// A name that a tar archive cannot hold.
pub(super) fn write_tar_zst(
    directory: &str,
    files: &BTreeMap<String, Vec<u8>>,
) -> anyhow::Result<Vec<u8>> {
    let mut encoder = zstd::Encoder::new(Vec::new(), LEVEL)?;
    encoder.include_checksum(true)?;
    let mut tar = tar::Builder::new(encoder);
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, format!("{directory}/{name}"), bytes.as_slice())
            .with_context(|| format!("cannot put `{name}` into the archive"))?;
    }
    Ok(tar.into_inner()?.finish()?)
}

/// Unpacks a `.tar.zst` whose one directory is `directory`, and returns the path of that.
///
/// # Errors
/// The bytes are not such an archive.
pub(super) fn unpack_tar_zst(
    bytes: &[u8],
    directory: &str,
    into: &Path,
) -> anyhow::Result<PathBuf> {
    unpack(zstd::Decoder::new(bytes)?, directory, into)
        .with_context(|| format!("cannot unpack {directory}.tar.zst"))
}

/// Unpacks a `.crate` whose one directory is `directory`, and returns the path of that.
///
/// # Errors
/// The bytes are not such an archive.
pub(super) fn unpack_crate(bytes: &[u8], directory: &str, into: &Path) -> anyhow::Result<PathBuf> {
    unpack(GzDecoder::new(bytes), directory, into)
        .with_context(|| format!("cannot unpack {directory}.crate"))
}

fn unpack(reader: impl Read, directory: &str, into: &Path) -> anyhow::Result<PathBuf> {
    let mut archive = tar::Archive::new(reader);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        ensure!(
            path.starts_with(directory) && entry.header().entry_type().is_file(),
            "it holds `{}`, which is no file in `{directory}`",
            path.display()
        );
        // Refuses a path that leads out of `into`.
        ensure!(
            entry.unpack_in(into)?,
            "`{}` leads out of the archive",
            path.display()
        );
    }
    let unpacked = into.join(directory);
    ensure!(unpacked.is_dir(), "there is no `{directory}` in it");
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_was_packed_unpacks_and_the_same_files_are_the_same_bytes() {
        let files = BTreeMap::from([
            ("b.cubin".to_owned(), vec![7; 100_000]),
            ("a.json".to_owned(), b"{}\n".to_vec()),
        ]);
        let archive = write_tar_zst("release", &files).unwrap();
        assert_eq!(archive, write_tar_zst("release", &files).unwrap());

        let place = tempfile::tempdir().unwrap();
        let unpacked = unpack_tar_zst(&archive, "release", place.path()).unwrap();
        for (name, bytes) in &files {
            assert_eq!(&fs::read(unpacked.join(name)).unwrap(), bytes);
        }
    }

    #[test]
    fn an_archive_that_is_cut_or_has_another_directory_is_refused() {
        let files = BTreeMap::from([("a".to_owned(), vec![1; 5000])]);
        let archive = write_tar_zst("release", &files).unwrap();
        let place = tempfile::tempdir().unwrap();
        for bytes in [&archive[..archive.len() / 2], &archive[..0], b"text"] {
            assert!(unpack_tar_zst(bytes, "release", place.path()).is_err());
        }
        let error = unpack_tar_zst(&archive, "other", place.path()).unwrap_err();
        assert!(format!("{error:#}").contains("release/a"), "{error:#}");
    }
}
