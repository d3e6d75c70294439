//! Small JSON files with a checksum.
//!
//! The first line is the SHA-256 of the rest. A file that a crash truncated, that another version
//! wrote or that somebody edited reads as absent. The caller then does the work that the file would
//! have saved.

use peersum_artifact::Digest;
use serde::{Serialize, de::DeserializeOwned};
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

/// Reads what [`write()`] wrote, or `None` if the file is absent, damaged or of another form.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let text = fs::read_to_string(path).ok()?;
    let (digest, body) = text.split_once('\n')?;
    if digest != Digest::of(body.as_bytes()).to_string() {
        return None;
    }
    serde_json::from_str(body).ok()
}

/// Writes `value` to `path` by one rename, so that a reader sees the old file or the new one. Makes
/// the directory if it is not there.
///
/// # Errors
/// Any failure of the file system; the old file stays.
pub(crate) fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let body = serde_json::to_string(value)?;
    let dir = path
        .parent()
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    fs::create_dir_all(dir)?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    write!(file, "{}\n{body}", Digest::of(body.as_bytes()))?;
    // No sync: if the machine crashes, what is left reads as absent.
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_cut_short_or_edited_anywhere_reads_as_absent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("facts");
        write(&path, &vec![13_u32, 88]).unwrap();
        let whole = fs::read(&path).unwrap();
        for len in 0..whole.len() {
            fs::write(&path, &whole[..len]).unwrap();
            assert_eq!(read::<Vec<u32>>(&path), None, "cut to {len} bytes");
        }
        for at in 0..whole.len() {
            let mut edited = whole.clone();
            edited[at] ^= 1;
            fs::write(&path, &edited).unwrap();
            assert_eq!(read::<Vec<u32>>(&path), None, "byte {at} flipped");
        }
    }
}
