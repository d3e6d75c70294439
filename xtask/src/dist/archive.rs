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

/// Unpacks `{directory}.tar.zst` or `{directory}.crate`, in which everything is in `directory`, and
/// returns the path of that.
///
/// # Errors
/// The bytes are not such an archive.
pub(super) fn unpack(file: &str, bytes: &[u8], into: &Path) -> anyhow::Result<PathBuf> {
    let unpacked = match file.strip_suffix(".crate") {
        Some(directory) => unpack_tar(GzDecoder::new(bytes), directory, into),
        None => {
            let directory = file.trim_end_matches(".tar.zst");
            zstd::Decoder::new(bytes)
                .map_err(anyhow::Error::from)
                .and_then(|reader| unpack_tar(reader, directory, into))
        }
    };
    unpacked.with_context(|| format!("cannot unpack {file}"))
}

fn unpack_tar(reader: impl Read, directory: &str, into: &Path) -> anyhow::Result<PathBuf> {
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

    #[test]
    fn an_archive_that_is_cut_or_has_another_directory_is_refused() {
        let files = BTreeMap::from([("a".to_owned(), vec![1; 5000])]);
        let archive = write_tar_zst("release", &files).unwrap();
        let place = tempfile::tempdir().unwrap();
        for bytes in [&archive[..archive.len() / 2], &archive[..0], b"text"] {
            assert!(unpack("release.tar.zst", bytes, place.path()).is_err());
        }
        let error = unpack("other.tar.zst", &archive, place.path()).unwrap_err();
        assert!(format!("{error:#}").contains("release/a"), "{error:#}");
    }
}
