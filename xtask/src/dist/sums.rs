//! SHA256SUMS: written as `sha256sum` writes it, and checked against a directory.

use anyhow::ensure;
use fs_err as fs;
use peersum_artifact::Digest;
use std::collections::BTreeMap;
use std::io;
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
/// Something cannot be read, a line is not a sum, or files are missing, unlisted or changed: all
/// that is wrong with the files is reported at once.
pub(super) fn read_checked(directory: &Path) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    let listed = parse(&fs::read_to_string(directory.join(SUMS_FILE))?)?;

    let mut faults = Vec::new();
    let mut files = BTreeMap::new();
    for (name, digest) in &listed {
        match fs::read(directory.join(name)) {
            Ok(bytes) if Digest::of(&bytes) == *digest => {
                files.insert(name.clone(), bytes);
            }
            Ok(_) => faults.push(format!("{name}: not the file that {SUMS_FILE} lists")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                faults.push(format!("{name}: missing"));
            }
            Err(error) => return Err(error.into()),
        }
    }
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        if name != SUMS_FILE && !listed.contains_key(&*name) {
            faults.push(format!("{name}: not listed in {SUMS_FILE}"));
        }
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(files)
}

/// Reads lines `{64 hex digits}  {name}`, whose names are those of files in this directory.
fn parse(text: &str) -> anyhow::Result<BTreeMap<String, Digest>> {
    let mut sums = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let sum = line.split_once("  ").and_then(|(digest, name)| {
            let plain = !name.is_empty() && !name.contains('/') && !name.starts_with('.');
            plain.then_some((name.to_owned(), digest.parse::<Digest>().ok()?))
        });
        let new = sum.is_some_and(|(name, digest)| sums.insert(name, digest).is_none());
        ensure!(
            new,
            "line {} of {SUMS_FILE} is not the sum of one more file in this directory: `{line}`",
            index + 1
        );
    }
    Ok(sums)
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
    fn a_line_that_could_lead_out_of_the_directory_or_says_a_name_twice_is_refused() {
        let digest = Digest::of(b"");
        for name in ["../a", "/etc/passwd", "", ".hidden", "a\n{}  a"] {
            let text = format!("{digest}  {name}\n").replace("{}", &digest.to_string());
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.contains("of SHA256SUMS is not the sum"), "{error}");
        }
        for text in ["", "\n", "abc  a\n", &format!("{digest} a\n")] {
            assert_eq!(parse(text).is_ok(), text.is_empty(), "{text}");
        }
    }

    #[test]
    fn no_sums_are_an_error_that_names_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let error = read_checked(directory.path()).unwrap_err().to_string();
        assert!(error.contains(SUMS_FILE), "{error}");
    }
}
