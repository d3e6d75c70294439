//! SHA256SUMS: written as `sha256sum` writes it, and checked against a directory.

use anyhow::ensure;
use fs_err as fs;
use peersum_artifact::Digest;
use std::collections::BTreeMap;
use std::path::Path;

/// The name of the file.
pub(super) const SUMS_FILE: &str = "SHA256SUMS";

/// The text of the sums of `files`.
pub(super) fn write(files: &BTreeMap<String, Vec<u8>>) -> String {
    files
        .iter()
        .map(|(name, bytes)| format!("{}  {name}\n", Digest::of(bytes)))
        .collect()
}

/// Reads a directory whose files are exactly those of its sums, and returns them by name, without
/// the sums.
///
/// # Errors
/// Something cannot be read, or files are missing, unlisted or changed: all that is wrong with the
/// files is reported at once.
pub(super) fn read_checked(directory: &Path) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    let text = fs::read_to_string(directory.join(SUMS_FILE))?;
    let mut listed = BTreeMap::new();
    for line in text.lines() {
        let sum = line.split_once("  ");
        let is_new = sum.is_some_and(|(digest, name)| listed.insert(name, digest).is_none());
        ensure!(
            is_new,
            "a line of {SUMS_FILE} is not the sum of one more file: `{line}`"
        );
    }
    let mut faults = Vec::new();
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == SUMS_FILE {
            continue;
        }
        let Some(digest) = listed.remove(&*name) else {
            faults.push(format!("{name}: not listed in {SUMS_FILE}"));
            continue;
        };
        let bytes = fs::read(entry.path())?;
        if Digest::of(&bytes).to_string() != digest {
            faults.push(format!("{name}: not the file that {SUMS_FILE} lists"));
        }
        files.insert(name, bytes);
    }
    faults.extend(listed.keys().map(|name| format!("{name}: missing")));
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let files = BTreeMap::from([
            ("a.crate".to_owned(), b"alpha".to_vec()),
            ("b.crate".to_owned(), b"beta".to_vec()),
        ]);
        for (name, bytes) in &files {
            fs::write(directory.path().join(name), bytes).unwrap();
        }
        fs::write(directory.path().join(SUMS_FILE), write(&files)).unwrap();
        directory
    }

    #[test]
    fn what_was_written_is_read_back_and_sha256sum_agrees() {
        let directory = release();
        let files = read_checked(directory.path()).unwrap();
        assert_eq!(files.keys().collect::<Vec<_>>(), ["a.crate", "b.crate"]);
        let status = std::process::Command::new("sha256sum")
            .args(["--check", "--quiet", SUMS_FILE])
            .current_dir(directory.path())
            .status()
            .unwrap();
        assert!(status.success());
    }

    #[test]
    fn a_line_that_is_no_sum_or_says_a_name_twice_or_leads_out_of_the_directory_is_refused() {
        let directory = release();
        let sums = directory.path().join(SUMS_FILE);
        let whole = fs::read_to_string(&sums).unwrap();
        let digest = Digest::of(b"");
        for line in [
            whole.lines().next().unwrap(),
            "",
            "abc",
            &format!("{digest} a"),
            &format!("{digest}  ../a"),
            &format!("{digest}  /etc/passwd"),
        ] {
            fs::write(&sums, format!("{whole}{line}\n")).unwrap();
            assert!(read_checked(directory.path()).is_err(), "{line}");
        }
    }
}
