//! The stage: a copy of the checkout outside git. The publishable crates get what a checkout does
//! not have (the packed cubins, the licences beside each manifest), and cargo packages them there.

use super::scratch::ScratchDir;
use crate::cargo::{captured, cargo};
use crate::workspace;
use anyhow::{Context as _, ensure};
use fs_err as fs;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What crates.io accepts.
const MAX_CRATE_BYTES: usize = 10 << 20;

/// The licence texts, which are part of everything that is released.
pub(super) const LICENCES: [&str; 2] = ["LICENSE-APACHE", "LICENSE-MIT"];

/// The workspaces that crates are published from. The second has its own, so that no other build
/// waits for its dependencies.
const WORKSPACES: [&str; 2] = ["", "crates/peersum-candle"];

/// The crate that carries the cubins, and the file in it that does.
pub(super) const PACK_CRATE: &str = "peersum-kernels";
pub(super) const PACK_FILE: &str = "pack/cubins.bin";

/// A package of this checkout, as `cargo metadata` describes it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    manifest_path: PathBuf,
    /// The directory of the workspace that it is in.
    #[serde(skip)]
    workspace: PathBuf,
    /// The registries that it may go to; `None` is any.
    publish: Option<Vec<String>>,
}

impl Package {
    fn is_publishable(&self) -> bool {
        self.publish.is_none()
    }
}

/// The packages of this checkout's workspaces.
///
/// # Errors
/// `cargo metadata` fails.
pub(super) fn packages() -> anyhow::Result<Vec<Package>> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
        workspace_root: PathBuf,
    }
    let mut packages = Vec::new();
    for workspace in WORKSPACES.map(|path| workspace::root().join(path)) {
        if !workspace.join("Cargo.toml").is_file() {
            continue;
        }
        let output = captured(cargo(&workspace).args([
            "metadata",
            "--no-deps",
            "--offline",
            "--locked",
            "--format-version=1",
        ]))?;
        let metadata: Metadata = serde_json::from_slice(&output)
            .context("cargo metadata gives no such JSON as expected")?;
        packages.extend(metadata.packages.into_iter().map(|package| Package {
            workspace: metadata.workspace_root.clone(),
            ..package
        }));
    }
    Ok(packages)
}

/// The `.crate` files of the publishable packages by name, with `pack` in the one that carries the
/// cubins.
///
/// # Errors
/// A file cannot be copied, cargo refuses to package, or a crate is too large for the registry.
pub(super) fn package(
    packages: &[Package],
    pack: &[u8],
) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    // Cargo resolves links in the paths that it prints.
    let root = fs::canonicalize(workspace::root())?;
    let stage = ScratchDir::new()?;
    let copy = stage.path().join("checkout");
    fill(&root, &copy, packages, pack)?;

    let target = stage.path().join("target");
    let publishable = || packages.iter().filter(|package| package.is_publishable());
    let workspaces: BTreeSet<&Path> = publishable()
        .map(|package| package.workspace.as_path())
        .collect();
    for workspace in workspaces {
        let mut command = cargo(&within(workspace, &root, &copy)?);
        command
            // The contents of a crate must not depend on a registry's state. No lock file: these
            // are libraries, and their users have their own.
            .args([
                "package",
                "--offline",
                "--locked",
                "--no-verify",
                "--exclude-lockfile",
            ])
            .arg("--target-dir")
            .arg(&target);
        for package in publishable().filter(|package| package.workspace == workspace) {
            command.args(["--package", &package.name]);
        }
        captured(&mut command)?;
    }

    let mut crates = BTreeMap::new();
    for package in publishable() {
        let name = format!("{}-{}.crate", package.name, package.version);
        let bytes = fs::read(target.join("package").join(&name))?;
        ensure!(
            bytes.len() <= MAX_CRATE_BYTES,
            "{name} has {} bytes, and crates.io accepts {MAX_CRATE_BYTES}: compile for fewer \
             architectures",
            bytes.len()
        );
        crates.insert(name, bytes);
    }
    Ok(crates)
}

/// Copies what the packages are made of.
fn fill(root: &Path, copy: &Path, packages: &[Package], pack: &[u8]) -> anyhow::Result<()> {
    fs::create_dir_all(copy)?;
    let mut names = vec!["Cargo.toml", "Cargo.lock", "README.md"];
    names.extend(LICENCES);
    for name in &names {
        fs::copy(root.join(name), copy.join(name))?;
    }
    for package in packages {
        let from = package.manifest_path.parent().unwrap_or(root);
        let to = within(from, root, copy)?;
        ensure!(to != copy, "a package at the root cannot be staged");
        copy_directory(from, &to)?;
        if package.is_publishable() {
            for name in LICENCES {
                fs::copy(root.join(name), to.join(name))?;
            }
        }
        if package.name == PACK_CRATE {
            fs::write(to.join(PACK_FILE), pack)?;
        }
    }
    Ok(())
}

/// The path in `copy` that corresponds to `path` in `root`.
fn within(path: &Path, root: &Path, copy: &Path) -> anyhow::Result<PathBuf> {
    let relative = path
        .strip_prefix(root)
        .with_context(|| format!("`{}` is not within `{}`", path.display(), root.display()))?;
    // Without a trailing slash where it is the root itself.
    Ok(copy.components().chain(relative.components()).collect())
}

/// Copies a package's directory; the manifest says which files go into the crate (`include`).
fn copy_directory(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            if entry.file_name() != "target" {
                copy_directory(&entry.path(), &target)?;
            }
        } else if entry.path().is_file() {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}
