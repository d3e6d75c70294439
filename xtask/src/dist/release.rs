//! Making the files of a release.

use super::stage::{LICENCES, PACK_CRATE};
use super::sums::SUMS_FILE;
use super::{archive, notes, stage, sums};
use crate::output::{Contents, OutputDir};
use crate::precompile::{self, ArchChoice, Request};
use crate::toolchain::ToolkitChoice;
use crate::workspace;
use anyhow::{Context as _, ensure};
use fs_err as fs;
use peersum_artifact::MANIFEST_FILE;
use peersum_artifact::pack::{Pack, pack_directory};
use std::collections::BTreeMap;
use std::path::Path;

/// The name of the release notes.
pub(super) const NOTES_FILE: &str = "RELEASE-NOTES.md";

/// What the archive's name begins with.
pub(super) const ARCHIVE_PREFIX: &str = "peersum-cubins-";

static RELEASE: Contents = Contents {
    command: "dist",
    is_name: is_release_name,
    last: SUMS_FILE,
    elsewhere: "give another place with --out",
};

fn is_release_name(name: &str) -> bool {
    [SUMS_FILE, NOTES_FILE].contains(&name)
        || name.starts_with("peersum-") && (name.ends_with(".crate") || name.ends_with(".tar.zst"))
}

/// Makes the release in `out`, with the modules for `arch`, or with those in the directory
/// `cubins`.
///
/// # Errors
/// A module does not compile, or a file cannot be made.
pub(super) fn run(
    out: Option<&Path>,
    arch: &[ArchChoice],
    cubins: Option<&Path>,
) -> anyhow::Result<()> {
    let root = workspace::root();
    let out = out.map_or_else(|| workspace::target().join("dist"), Path::to_path_buf);
    // Check everything that may refuse the release before making anything. dist locks `out`, and
    // compiling its modules locks their directory, so the two must differ.
    let modules = match (cubins, arch) {
        (Some(directory), _) => directory.to_path_buf(),
        // Where precompile puts the default set, so that nothing compiles twice.
        (None, []) => workspace::cubins(),
        // Another set would replace it there.
        (None, _) => workspace::target().join("dist-cubins"),
    };
    ensure!(
        std::path::absolute(&out)? != modules,
        "`{}` is where the modules are; {}",
        out.display(),
        RELEASE.elsewhere
    );
    let output = OutputDir::new(&out, &RELEASE)?;
    let locked = output.lock(|waiting| eprintln!("note: {waiting}"))?;
    locked.file_names()?;
    let packages = stage::packages()?;
    let version = &packages
        .iter()
        .find(|package| package.name == PACK_CRATE)
        .with_context(|| format!("the workspace has no {PACK_CRATE}"))?
        .version;
    let changelog = fs::read_to_string(root.join("CHANGELOG.md"))?;
    let notes = notes::of_version(&changelog, version)?;

    if cubins.is_none() {
        precompile::run(&Request {
            arch: arch.to_vec(),
            toolkit: ToolkitChoice::Pinned,
            out: Some(modules.clone()),
            ..Request::default()
        })?;
    }
    let pack = pack_directory(&modules)?;
    let (archive_name, archive) = archive(&root, version, &pack)?;
    eprintln!("packed {} bytes of modules", pack.len());

    let mut files = stage::package(&packages, &pack)?;
    eprintln!("packaged {} crates", files.len());

    files.insert(archive_name, archive);
    files.insert(NOTES_FILE.to_owned(), notes.into_bytes());
    let sums = sums::write(&files);
    let staging = locked.stage()?;
    for (name, bytes) in &files {
        staging.write(name, bytes)?;
    }
    staging.write(SUMS_FILE, sums.as_bytes())?;
    // Again, because what came meanwhile would be deleted.
    locked.file_names()?;
    locked.publish(&staging)?;

    files.insert(SUMS_FILE.to_owned(), sums.into_bytes());
    print_table(&files);
    eprintln!("the release is in {}", output.path().display());
    Ok(())
}

/// The name and the bytes of the archive of the modules in `pack`.
fn archive(root: &Path, version: &str, pack: &[u8]) -> anyhow::Result<(String, Vec<u8>)> {
    let pack = Pack::parse(pack)?.context("there are no modules to pack")?;
    let manifest = pack.manifest();
    ensure!(
        manifest.peersum_version == version,
        "the modules are of peersum {}, and this is {version}",
        manifest.peersum_version
    );
    let mut files = BTreeMap::from([(
        MANIFEST_FILE.to_owned(),
        manifest.to_json_string().into_bytes(),
    )]);
    for module in &manifest.modules {
        files.insert(module.file_name(), pack.verified(module)?);
    }
    for name in LICENCES {
        files.insert(name.to_owned(), fs::read(root.join(name))?);
    }
    let toolkit = manifest
        .toolkit
        .toolkit()
        .with_context(|| format!("`{}` is no release of CUDA", manifest.toolkit.version))?;
    let directory = format!("{ARCHIVE_PREFIX}{version}-cuda{}", toolkit.major);
    let bytes = archive::write_tar_zst(&directory, &files)?;
    Ok((format!("{directory}.tar.zst"), bytes))
}

fn print_table(files: &BTreeMap<String, Vec<u8>>) {
    let width = files.keys().map(String::len).max().unwrap_or_default();
    for (name, bytes) in files {
        println!("{name:width$}  {:>9} bytes", bytes.len());
    }
}
