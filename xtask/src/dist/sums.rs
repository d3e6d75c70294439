//! SHA256SUMS: written as `sha256sum` writes it, and checked against a directory.

use peersum_artifact::Digest;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;
use thiserror::Error;

/// The name of the file.
pub(super) const SUMS_FILE: &str = "SHA256SUMS";

/// Why a directory is not what its sums say.
#[derive(Debug, Error)]
pub(super) enum SumsError {
    /// The file of the sums or the directory cannot be read.
    #[error("cannot read `{path}`: {error}")]
    Unreadable { path: String, error: io::Error },

    /// A line is not `{64 hex digits}  {name}`, or names something that cannot lie in the directory.
    #[error("line {line} of {SUMS_FILE} is no sum of a file in this directory: `{text}`")]
    Line { line: usize, text: String },

    /// Files are missing, too many, or not those that were released. At least one list has something in it.
    #[error("{}", describe(.missing, .unlisted, .changed))]
    Files {
        missing: Vec<String>,
        unlisted: Vec<String>,
        changed: Vec<String>,
    },
}

fn describe(missing: &[String], unlisted: &[String], changed: &[String]) -> String {
    let kinds = [
        ("missing", missing),
        ("not listed in SHA256SUMS", unlisted),
        ("not the file that SHA256SUMS lists", changed),
    ];
    let lines: Vec<String> = kinds
        .iter()
        .flat_map(|(what, names)| names.iter().map(move |name| format!("{name}: {what}")))
        .collect();
    lines.join("\n")
}

/// The text of the sums of `files`.
pub(super) fn write(files: &BTreeMap<String, Vec<u8>>) -> String {
    files
        .iter()
        .map(|(name, bytes)| format!("{}  {name}\n", Digest::of(bytes)))
        .collect()
}

/// Reads a directory whose files are exactly those of its sums, and returns them by name, the sums left out.
///
/// # Errors
/// See [`SumsError`]. All that is wrong with the files is said at once.
pub(super) fn read_checked(directory: &Path) -> Result<BTreeMap<String, Vec<u8>>, SumsError> {
    let unreadable = |path: &Path| {
        let path = path.display().to_string();
        move |error| SumsError::Unreadable { path, error }
    };
    let sums_path = directory.join(SUMS_FILE);
    let text = fs::read_to_string(&sums_path).map_err(unreadable(&sums_path))?;
    let listed = parse(&text)?;

    let mut present = BTreeSet::new();
    for entry in fs::read_dir(directory).map_err(unreadable(directory))? {
        let entry = entry.map_err(unreadable(directory))?;
        present.insert(entry.file_name().to_string_lossy().into_owned());
    }
    let unlisted: Vec<String> = present
        .into_iter()
        .filter(|name| name != SUMS_FILE && !listed.contains_key(name))
        .collect();

    let (mut files, mut missing, mut changed) = (BTreeMap::new(), Vec::new(), Vec::new());
    for (name, digest) in listed {
        let path = directory.join(&name);
        match fs::read(&path) {
            Ok(bytes) if Digest::of(&bytes) == digest => {
                files.insert(name, bytes);
            }
            Ok(_) => changed.push(name),
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(name),
            Err(error) => return Err(unreadable(&path)(error)),
        }
    }
    if missing.is_empty() && unlisted.is_empty() && changed.is_empty() {
        Ok(files)
    } else {
        Err(SumsError::Files {
            missing,
            unlisted,
            changed,
        })
    }
}

fn parse(text: &str) -> Result<BTreeMap<String, Digest>, SumsError> {
    let mut sums = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let sum = line.split_once("  ").and_then(|(digest, name)| {
            let plain = !name.is_empty() && !name.contains('/') && !name.starts_with('.');
            plain.then_some((name.to_owned(), digest.parse::<Digest>().ok()?))
        });
        let new = sum.is_some_and(|(name, digest)| sums.insert(name, digest).is_none());
        if !new {
            return Err(SumsError::Line {
                line: index + 1,
                text: line.to_owned(),
            });
        }
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
    fn a_missing_an_extra_and_a_tampered_file_are_each_named() {
        let directory = release();
        fs::remove_file(directory.path().join("a.crate")).unwrap();
        fs::write(directory.path().join("b.crate"), b"bet4").unwrap();
        fs::write(directory.path().join("c.crate"), b"").unwrap();
        let error = read_checked(directory.path()).unwrap_err();
        let SumsError::Files {
            missing,
            unlisted,
            changed,
        } = &error
        else {
            panic!("{error}");
        };
        assert_eq!(missing, &["a.crate"]);
        assert_eq!(unlisted, &["c.crate"]);
        assert_eq!(changed, &["b.crate"]);
        assert_eq!(
            error.to_string(),
            "a.crate: missing\nc.crate: not listed in SHA256SUMS\nb.crate: not the file that SHA256SUMS lists"
        );
    }

    #[test]
    fn a_line_that_could_lead_out_of_the_directory_or_says_a_name_twice_is_refused() {
        let digest = Digest::of(b"");
        for name in ["../a", "/etc/passwd", "", ".hidden", "a\n{}  a"] {
            let text = format!("{digest}  {name}\n").replace("{}", &digest.to_string());
            assert!(
                matches!(parse(&text), Err(SumsError::Line { .. })),
                "{text}"
            );
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
