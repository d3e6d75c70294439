//! Copies of this checkout, two modules to release, and `xtask dist` in such a copy.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// The parts of a checkout that are not sources of a release.
const LEFT_OUT: [&str; 3] = ["target", ".git", "docs"];

pub(crate) struct Checkout {
    root: TempDir,
    path: PathBuf,
}

impl Checkout {
    pub(crate) fn of_this() -> Self {
        let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
        Self::of(xtask.parent().unwrap(), "checkout")
    }

    pub(crate) fn of(original: &Path, name: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(name);
        copy(original, &path);
        Self { root, path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn out(&self) -> PathBuf {
        self.root.path().join("dist")
    }

    /// `cargo xtask dist` of the modules in `cubins`, in this checkout.
    pub(crate) fn dist(&self, cubins: &Path) -> Command {
        let mut command = self.xtask();
        command.arg("--cubins").arg(cubins);
        command.arg("--out").arg(self.out());
        command
    }

    fn xtask(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command
            .arg("dist")
            // xtask finds its checkout by this variable.
            .env("CARGO_MANIFEST_DIR", self.path.join("xtask"))
            .stdin(Stdio::null());
        command
    }
}

/// `cargo xtask dist --verify` of the release that the checkout made.
pub(crate) fn verify(checkout: &Checkout) -> Command {
    let mut command = checkout.xtask();
    command.arg("--verify").arg(checkout.out());
    command
}

/// A directory of a cubin and of PTX with their manifest.
pub(crate) fn cubins() -> TempDir {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/peersum-artifact/tests/data");
    let directory = tempfile::tempdir().unwrap();
    for (from, to) in [
        ("manifest.json", "manifest.json"),
        ("push.sm_90.cubin", "peersum_push_bf16_ws8.sm_90.cubin"),
        (
            "push.compute_80.ptx",
            "peersum_push_bf16_ws8.compute_80.ptx",
        ),
    ] {
        fs::copy(data.join(from), directory.path().join(to)).unwrap();
    }
    directory
}

/// The files of a directory by name.
pub(crate) fn snapshot(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap())
        })
        .collect()
}

/// Runs a command, which must succeed, and returns its standard output.
#[track_caller]
pub(crate) fn succeeded(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:#?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command, which must end with exit status 1, without a panic, and print each of `words`.
#[track_caller]
pub(crate) fn failed_saying(command: &mut Command, words: &[&str]) {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:#?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!said.contains("panicked"), "{said}");
    for word in words {
        assert!(said.contains(word), "`{word}` is not in\n{said}");
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            if !LEFT_OUT.iter().any(|name| entry.file_name() == *name) {
                copy(&entry.path(), &target);
            }
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}
